"""One resumable training of a part: a progress bar, log.txt, a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import nn

from ...envs.stack import Stack
from ...training.loop import Trainer, fit
from ...training.ranks import here
from ...training.regression import Loss, Regression, Schedule
from ..console import progress

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Made:
    """A trained part, what it measured, and what readers of its weights have to know."""

    module: nn.Module
    quality: dict[str, float]
    reads: dict[str, Any] = field(default_factory=dict)


class PartRecipe(Protocol):
    """How a part is made, a frozen dataclass; all that its weights depend on is a field of it."""

    @property
    def schedule(self) -> Schedule:
        """Training length."""
        ...

    def train(self, name: str, stack: Stack, out: Path) -> Made:
        """Train the part called `name` by what the stack has, measure it; log and checkpoint go to `out`."""
        ...


def train(
    name: str,
    trainer: Trainer,
    schedule: Schedule,
    out: Path,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    evaluate_every: int = 0,
) -> None:
    """Train to the end of the schedule, going on from out/checkpoint."""
    out.mkdir(parents=True, exist_ok=True)
    bar = progress(schedule.end, f"train {name}", "update") if here().first else nullcontext()
    with (out / "log.txt").open("a", buffering=1) as file, bar as shown:

        def log(measured: Mapping[str, float], update: int) -> None:
            figures = {"step": update, "seconds": f"{trainer.counts.seconds:.0f}"}
            figures |= {key: f"{value:.5f}" for key, value in measured.items()}
            print(*(f"{key}={value}" for key, value in figures.items()), file=file)

        fit(
            trainer,
            schedule.end,
            log=log,
            evaluate=evaluate,
            evaluate_every=evaluate_every,
            checkpoint=out / "checkpoint",
            checkpoint_every=schedule.checkpoint_every,
            bar=shown,
        )


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
    measure: Callable[[M], Mapping[str, float]] | None = None,
    measure_every: int = 0,
    data: Mapping[str, Any] | None = None,
) -> tuple[M, float]:
    """Train `model` by its loss; returns averaged weights and seconds.

    measure: of averaged weights, for log.txt. data: what else a checkpoint must agree in to be gone on with.
    """
    trainer = Regression(schedule, model, loss, data)

    def averaged() -> M:
        return trainer.learner.ema_model().requires_grad_(False)

    evaluate = None if measure is None else lambda: measure(averaged())
    train(name, trainer, schedule, out, evaluate, measure_every)
    return averaged(), trainer.counts.seconds
