"""`reelgym bench distill`: where the seconds of one update of distillation go, recipe by recipe, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from ...distill.recipes import DISTILL, DMD
from ...distill.trainer import DistillConfig
from ...envs.stack import Stack
from ...training.recipe import find_recipe
from ..console import publish
from ..jobs import on_threads
from ..options import BenchOptions
from ..results import pick_device
from ..tables import Column, Row, markdown_table, number
from .timing import interleaved_timings

AS_IT_WAS = "dmd, 16 clips, critic 6 to 1"
"""What the others are compared with: DMD as it was trained here before its critic was made cheaper."""
_KNOWN = {AS_IT_WAS: replace(DMD, batch=16, critic_updates=6, critic_share=1.0), **DISTILL}
UPDATE_PARTS = {"rollout": "_rollout", "critic": "_train_critic", "scores": "_direction", "reward": "_weight"}
"""Of an update of distribution matching, with the trainer's methods; what is left is the generator's own step."""
COLUMNS = (
    Column("recipe", "what was updated", lambda row: row["recipe"]),
    Column("clips", "clips an update", number("batch", "d")),
    Column("s an update", "mean seconds of one update", number("seconds", ".2f")),
    *(Column(part, f"of these, in the {part}", number(part, ".2f")) for part in UPDATE_PARTS),
    Column("step", "of these, in the generator's backward pass and step", number("step", ".2f")),
    Column("x", f"how many times longer “{AS_IT_WAS}” takes", number("ratio", ".1f")),
)


@dataclass(frozen=True)
class Config(BenchOptions):
    """What is timed."""

    recipes: tuple[str, ...] = ("dmd", "stream-r1", "sid", "on-policy", "consistency", "continued")
    """Recipes of `reelgym distill`, or your own, module:name; DMD with the critic that it once had comes first."""
    student_steps: int = 2
    """Denoising steps of the student."""
    repeats: int = 5
    """Updates of each that count, in turns, after one that does not; their mean is told."""
    out: Path = Path("runs/bench-distill")
    """Folder for results.json."""


def run(config: Config) -> None:
    """Time every recipe in turn, print the table, write results.json."""
    device = pick_device(config.device)
    stack = Stack.load("tiny", device).with_steps(config.student_steps)
    names = (AS_IT_WAS, *config.recipes)
    with on_threads(config.threads):
        subjects = [_Subject(name, stack, config.seed) for name in names]
        times = interleaved_timings([one.update for one in subjects], config.repeats, device, warm_up=1)
    rows = [one.row(mean(spent)) for one, spent in zip(subjects, times, strict=True)]
    for row in rows:
        row["ratio"] = rows[0]["seconds"] / row["seconds"]
    publish(["reelgym", "bench", "distill"], config, [config.seed], rows, report(rows), device)


def report(rows: Sequence[Row]) -> str:
    """One line per recipe."""
    return markdown_table(COLUMNS, rows)


class _Subject:
    """A recipe under the clock."""

    def __init__(self, name: str, stack: Stack, seed: int) -> None:
        self.name, self.recipe = name, find_recipe(name, _KNOWN).with_seed(seed)
        trainer: Any = self.recipe.trainer(stack, stack.student())
        self.update: Callable[[], object] = trainer.update
        self.spent: dict[str, list[float]] = (
            {part: [] for part in UPDATE_PARTS} if isinstance(self.recipe, DistillConfig) else {}
        )
        for part in self.spent:
            setattr(trainer, UPDATE_PARTS[part], self._clocked(part, getattr(trainer, UPDATE_PARTS[part])))

    def _clocked(self, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            started = time.perf_counter()
            found = method(*args, **options)
            self.spent[part].append(time.perf_counter() - started)
            return found

        return timed

    def row(self, seconds: float) -> Row:
        """Seconds of an update, and of its parts where it has them; the first update was a warm-up."""
        parts = {part: mean(spent[1:]) for part, spent in self.spent.items()}
        row: Row = {"kind": "update", "recipe": self.name, "batch": getattr(self.recipe, "batch", None)}
        row |= {"seconds": seconds, **dict.fromkeys(UPDATE_PARTS), **parts}
        return row | {"step": seconds - sum(parts.values()) if parts else None}
