"""One resumable training loop for everything that is pretrained."""

import copy
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...checkpoint import load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train."""

    steps: int
    """Optimiser steps."""
    batch: int
    """Clips (or frames) a step."""
    learning_rate: float
    """Peak rate of AdamW; 2% linear warm-up, then cosine to a twentieth."""
    ema: float = 0.0
    """Decay of the averaged weights that are shipped; 0 ships the last weights."""
    clip: float = 1.0
    """Largest gradient norm."""
    seed: int = 0
    """Everything drawn at step k is a function of (seed, k)."""
    checkpoint_every: int = 200
    """Steps between resumable checkpoints."""

    def rate(self, step: int) -> float:
        """The learning rate at `step`."""
        warm = max(1, self.steps // 50)
        progress = min(1.0, max(0.0, (step - warm) / max(1, self.steps - warm)))
        return self.learning_rate * min((step + 1) / warm, 0.05 + 0.475 * (1 + math.cos(math.pi * progress)))


LossFunction = Callable[[nn.Module, torch.Generator], tuple[Tensor, dict[str, Tensor]]]


def pretrain(
    name: str,
    model: nn.Module,
    loss: LossFunction,
    schedule: Schedule,
    out: Path,
    *,
    evaluate: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
    evaluate_every: int = 0,
    average: nn.Module | None = None,
) -> tuple[nn.Module, float]:
    """Train `model` to the end of its schedule, resuming from out/checkpoint; return what to ship and seconds.

    `loss(model, generator)` returns a scalar and what to log, drawing only from `generator`. A loss that is not finite
    stops the run before it can touch the weights. `average`: where averaged weights start, if not at the model's own.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    mean = copy.deepcopy(average or model).requires_grad_(False) if schedule.ema else None
    folder = out / "checkpoint"
    step, seconds = _resume(folder, model, mean, optimiser, schedule) if folder.exists() else (0, 0.0)
    started = time.monotonic() - seconds
    log = (out / "log.txt").open("a")
    progress = tqdm(total=schedule.steps, initial=step, desc=f"train {name}", file=sys.stderr, mininterval=5)
    while step < schedule.steps:
        generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + step)
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step)
        value, parts = loss(model, generator)
        if not torch.isfinite(value):
            raise ValueError(f"train {name}: the loss at step {step} is {value.item()}; lower the learning rate")
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
        optimiser.step()
        step += 1
        if mean is not None:
            _average(mean, model, min(schedule.ema, (1 + step) / (10 + step)))
        progress.update()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{value.item():.4f}")
            line = " ".join(f"{key}={float(part):.5f}" for key, part in parts.items())
            print(
                f"step={step} seconds={time.monotonic() - started:.0f} loss={value.item():.5f} {line}",
                file=log,
                flush=True,
            )
        if step % schedule.checkpoint_every == 0 or step == schedule.steps:
            _save(folder, model, mean, optimiser, schedule, step, time.monotonic() - started)
        if evaluate is not None and evaluate_every and step % evaluate_every == 0:
            figures = evaluate(mean if mean is not None else model, step)
            print(f"step={step} " + " ".join(f"{k}={v:.4f}" for k, v in figures.items()), file=log, flush=True)
    progress.close()
    log.close()
    return (mean if mean is not None else model), time.monotonic() - started


@torch.no_grad()
def _average(mean: nn.Module, model: nn.Module, decay: float) -> None:
    averaged, latest = list(mean.parameters()), list(model.parameters())
    torch._foreach_lerp_(averaged, latest, 1 - decay)


def _save(
    folder: Path,
    model: nn.Module,
    mean: nn.Module | None,
    optimiser: torch.optim.Optimizer,
    schedule: Schedule,
    step: int,
    seconds: float,
) -> None:
    tensors, settings = pack_optimizer(optimiser)
    parts = {"model": model.state_dict(), "optimizer": tensors}
    if mean is not None:
        parts["mean"] = mean.state_dict()
    meta: dict[str, Any] = {"step": step, "seconds": seconds, "schedule": asdict(schedule), "optimizer": settings}
    save_checkpoint(folder, parts, meta)


def _resume(
    folder: Path, model: nn.Module, mean: nn.Module | None, optimiser: torch.optim.Optimizer, schedule: Schedule
) -> tuple[int, float]:
    tensors, meta = load_checkpoint(folder)
    if meta["schedule"] != asdict(schedule):
        raise ValueError(f"{folder} was written with another schedule; pass another --out or delete it")
    model.load_state_dict(tensors["model"])
    if mean is not None:
        mean.load_state_dict(tensors["mean"])
    unpack_optimizer(optimiser, tensors["optimizer"], meta["optimizer"])
    return meta["step"], meta["seconds"]
