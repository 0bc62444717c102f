"""Recipes one after another on the same generator, as a recipe of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..envs.stack import Stack
from ..models.generator import Generator
from .learner import Groups
from .loop import Trainer
from .recipe import Recipe
from .state import State, load_trainer, trainer_state
from .usage import ComputeUsage, added


@dataclass(frozen=True)
class Stage:
    """A recipe, and for how many updates."""

    recipe: Recipe
    updates: int


@dataclass(frozen=True)
class Sequence:
    """A recipe made of others: each trains what the one before it left; the last goes on as long as it is asked to."""

    stages: tuple[Stage, ...]

    @property
    def seed(self) -> int:
        """That of the first stage."""
        return self.stages[0].recipe.seed

    @property
    def learning_rate(self) -> None:
        """Every stage has its own."""
        return None

    def trainer(self, stack: Stack, generator: Generator) -> SequenceTrainer:
        """One trainer after another."""
        return SequenceTrainer(self, lambda recipe: recipe.trainer(stack, generator))

    def with_learning_rate(self, rate: float) -> Sequence:
        """ValueError: it takes the rates of its stages."""
        raise ValueError("a sequence takes the learning rates of its parts")

    def with_seed(self, seed: int) -> Sequence:
        """All stages with this seed."""
        return Sequence(tuple(replace(stage, recipe=stage.recipe.with_seed(seed)) for stage in self.stages))

    def with_batch(self, clips: int) -> Sequence:
        """All stages with this batch."""
        return Sequence(tuple(replace(stage, recipe=stage.recipe.with_batch(clips)) for stage in self.stages))


class SequenceTrainer:
    """Trains by one stage after another.

    build: a recipe to its trainer; it is called when the stage's turn comes, so that a pull towards the start is one
    towards what the stage before left. `counts` adds up.
    """

    def __init__(self, config: Sequence, build: Callable[[Recipe], Trainer]) -> None:
        self.config, self.build = config, build
        self.ended: list[ComputeUsage] = []
        self.trainer = build(config.stages[0].recipe)
        self.counts = ComputeUsage()

    def update(self) -> dict[str, float]:
        """One update of the stage whose turn it is."""
        at, stages = len(self.ended), self.config.stages
        if at + 1 < len(stages) and self.trainer.counts.updates >= stages[at].updates:
            self.ended.append(self.trainer.counts)
            self.trainer = self.build(stages[at + 1].recipe)
        measured = self.trainer.update()
        self.counts = added([*self.ended, self.trainer.counts])
        return measured

    def state(self) -> State:
        """What the stage whose turn it is needs for a bitwise resume, and what those before it spent."""
        groups, meta = trainer_state(self.trainer)
        return groups, {"ended": [asdict(counts) for counts in self.ended], "part": meta, "counts": asdict(self.counts)}

    def load_state(self, groups: Groups, meta: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.ended = [ComputeUsage(**counts) for counts in meta["ended"]]
        self.trainer = self.build(self.config.stages[len(self.ended)].recipe)
        load_trainer(self.trainer, groups, meta["part"])
        self.counts = added([*self.ended, self.trainer.counts])
