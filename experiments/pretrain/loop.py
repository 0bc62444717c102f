"""One resumable training loop for everything that is pretrained; under `accelerate launch` a batch is shared out."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters
from tqdm import tqdm

from ...checkpoint import (
    CheckpointError,
    has_checkpoint,
    load_checkpoint,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train."""

    steps: int
    """Optimiser steps that the learning rate is planned for."""
    batch: int
    """Clips (or frames) a step, over all processes."""
    learning_rate: float
    """Peak rate of AdamW; 2% linear warm-up, then cosine to a twentieth."""
    matrix_rate: float | None = None
    """Peak rate of Muon, which then trains the matrices of the transformer's blocks; the same schedule."""
    ema: float = 0.998
    """Decay of the averaged weights, which are what is shipped."""
    clip: float = 1.0
    """Largest gradient norm."""
    seed: int = 0
    """Everything drawn at step k is a function of (seed, k)."""
    checkpoint_every: int = 200
    """Steps between resumable checkpoints."""
    stop: int | None = None
    """Step at which training ends, if before `steps`."""

    @property
    def end(self) -> int:
        """The last step."""
        return self.steps if self.stop is None else min(self.stop, self.steps)

    def pace(self, step: int) -> float:
        """The learning rates at `step` as a share of their peaks."""
        warm = max(1, self.steps // 50)
        progress = min(1.0, max(0.0, (step - warm) / max(1, self.steps - warm)))
        return min((step + 1) / warm, 0.05 + 0.475 * (1 + math.cos(math.pi * progress)))

    def optimizers(self, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        """What trains `model`, by name; every group's "initial_lr" is its peak."""
        named = dict(model.named_parameters())
        matrices = [n for n, p in named.items() if self.matrix_rate and p.ndim == 2 and "blocks." in n]
        rest = [p for n, p in named.items() if n not in set(matrices)]
        chosen: dict[str, torch.optim.Optimizer] = {
            "optimizer": torch.optim.AdamW(rest, lr=self.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
        }
        if matrices and self.matrix_rate:
            chosen["muon"] = torch.optim.Muon([named[n] for n in matrices], lr=self.matrix_rate, weight_decay=0.01)
        for optimizer in chosen.values():
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        return chosen


M = TypeVar("M", bound=nn.Module)
Loss = Callable[[M, torch.Generator, slice], Tensor]
"""`loss(model, generator, share)`: draws a whole batch from `generator` alone and returns the mean over its `share`."""
Evaluate = Callable[[M, int], Mapping[str, float]]


class Processes:
    """The processes that train together (one, unless `accelerate launch` started more)."""

    def __init__(self) -> None:
        from accelerate import PartialState

        self.state = PartialState(cpu=True)
        self.main: bool = self.state.is_main_process
        self.share = slice(self.state.process_index, None, self.state.num_processes)

    def average_gradients(self, model: nn.Module) -> None:
        """Replace every gradient by its mean over the processes."""
        if self.state.num_processes > 1:
            from accelerate.utils import reduce

            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            vector_to_parameters(reduce(parameters_to_vector(gradients), "mean"), gradients)


class Pretraining(Generic[M]):
    """A module, its optimiser and its averaged weights, on the way through a schedule. Only the main process writes."""

    def __init__(self, name: str, model: M, schedule: Schedule, out: Path) -> None:
        self.name, self.model, self.schedule, self.folder = name, model, schedule, out / "checkpoint"
        self.log_file, self.processes = out / "log.txt", Processes()
        self.optimizers = schedule.optimizers(model)
        self.mean = copy.deepcopy(model).requires_grad_(False)
        self.step, self.seconds = 0, 0.0
        if has_checkpoint(self.folder):
            self._resume()

    def advance(self, loss: Loss[M]) -> float:
        """One step; a loss that is not finite stops the run before it can touch the weights. Returns the loss."""
        drawn = self.schedule.seed * 1_000_003 + self.step
        generator = torch.Generator().manual_seed(drawn)
        torch.manual_seed(drawn)  # for what a network draws itself
        value = loss(self.model, generator, self.processes.share)
        if not torch.isfinite(value):
            raise ValueError(f"train {self.name}: the loss at step {self.step} is {value}; lower the learning rate")
        self.model.zero_grad(set_to_none=True)
        value.backward()
        self.processes.average_gradients(self.model)
        clip_grad_norm_(self.model.parameters(), self.schedule.clip)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self.schedule.pace(self.step)
            optimizer.step()
        self.step += 1
        decay = min(self.schedule.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.mean.parameters()), list(self.model.parameters()), 1 - decay)
        return float(value.detach())

    def save(self) -> None:
        """Replace the resumable checkpoint."""
        if self.processes.main:
            parts, settings = {"model": self.model.state_dict(), "mean": self.mean.state_dict()}, {}
            for name, optimizer in self.optimizers.items():
                parts[name], settings[name] = pack_optimizer(optimizer)
            schedule = {**asdict(self.schedule), "stop": None}
            meta = {"step": self.step, "seconds": self.seconds, "schedule": schedule, "optimizers": settings}
            save_checkpoint(self.folder, parts, meta)

    def log(self, figures: Mapping[str, float]) -> None:
        """Append a line to log.txt."""
        if self.processes.main:
            line = " ".join(f"{name}={value:.5f}" for name, value in figures.items())
            with self.log_file.open("a") as file:
                print(f"step={self.step} seconds={self.seconds:.0f} {line}", file=file)

    def _resume(self) -> None:
        tensors, meta = load_checkpoint(self.folder)
        if meta["schedule"] != {**asdict(self.schedule), "stop": None}:
            raise CheckpointError(f"{self.folder} was written with another schedule; pass another --out or delete it")
        self.model.load_state_dict(tensors["model"])
        self.mean.load_state_dict(tensors["mean"])
        for name, optimizer in self.optimizers.items():
            unpack_optimizer(optimizer, tensors[name], meta["optimizers"][name])
        self.step, self.seconds = meta["step"], meta["seconds"]


def logged(out: Path, name: str) -> dict[int, float]:
    """What log.txt holds of one figure, by step; a step that a resumed run did again counts as it was last."""
    lines = [dict(pair.split("=", 1) for pair in line.split()) for line in (out / "log.txt").read_text().splitlines()]
    return {int(line["step"]): float(line[name]) for line in lines if name in line}


def pretrain(
    name: str,
    model: M,
    loss: Loss[M],
    schedule: Schedule,
    out: Path,
    *,
    evaluate: Evaluate[M] | None = None,
    evaluate_every: int = 0,
) -> tuple[M, float]:
    """Train `model` to the end of its schedule, going on from out/checkpoint; return averaged weights and seconds."""
    run = Pretraining(name, model, schedule, out)
    started = time.monotonic() - run.seconds
    quiet = not run.processes.main
    bar = tqdm(
        total=schedule.end, initial=run.step, desc=f"train {name}", file=sys.stderr, mininterval=5, disable=quiet
    )
    while run.step < schedule.end:
        value = run.advance(loss)
        run.seconds = time.monotonic() - started
        bar.update()
        if run.step % 50 == 0:
            bar.set_postfix(loss=f"{value:.4f}")
            run.log({"loss": value})
        if run.step % schedule.checkpoint_every == 0 or run.step == schedule.end:
            run.save()
        if evaluate is not None and evaluate_every and run.step % evaluate_every == 0 and run.processes.main:
            run.log(evaluate(run.mean, run.step))
    bar.close()
    return run.mean, run.seconds
