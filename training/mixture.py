"""Several recipes in one update of the same generator, as a recipe of its own: distillation and RL together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..envs.stack import Stack
from ..models.generator import Generator
from .learner import Groups
from .loop import Trainer
from .recipe import Recipe
from .sequence import Stage
from .state import State, load_trainer, trainer_state
from .usage import ComputeUsage, added


@dataclass(frozen=True)
class Mixture:
    """A recipe made of others: an update of it is `updates` updates of each stage, one stage after another.

    Every stage has an optimiser of its own, so that the size of one gradient says nothing about the other: how much a
    stage counts is its learning rate times its updates. fade: after so many updates a stage makes none any more, and
    before that in proportion less, rounded; one number for each stage, 0 for one that never fades.
    """

    stages: tuple[Stage, ...]
    fade: tuple[int, ...] = ()

    @classmethod
    def of(cls, *parts: tuple[Recipe, int], fade: tuple[int, ...] = ()) -> Mixture:
        """From recipes, and how many updates each makes in one of the mixture."""
        return cls(tuple(Stage(recipe, updates) for recipe, updates in parts), fade)

    def __post_init__(self) -> None:
        if len(self.stages) < 2 or min(stage.updates for stage in self.stages) < 1:
            raise ValueError("a mixture has at least two stages, of at least one update each")
        if self.fade and (len(self.fade) != len(self.stages) or 0 not in self.fade or min(self.fade) < 0):
            raise ValueError(f"fade has a number for each stage, not below 0, and one of them is 0: {self.fade}")

    @property
    def seed(self) -> int:
        """That of the first stage."""
        return self.stages[0].recipe.seed

    @property
    def learning_rate(self) -> None:
        """Every stage has its own."""
        return None

    def trainer(self, stack: Stack, generator: Generator) -> MixtureTrainer:
        """One trainer for each stage, all of the same generator."""
        return MixtureTrainer(self, [stage.recipe.trainer(stack, generator) for stage in self.stages])

    def with_learning_rate(self, rate: float) -> Mixture:
        """ValueError: it takes the rates of its stages."""
        raise ValueError("a mixture takes the learning rates of its parts")

    def with_seed(self, seed: int) -> Mixture:
        """All stages with this seed."""
        return replace(self, stages=tuple(replace(stage, recipe=stage.recipe.with_seed(seed)) for stage in self.stages))

    def with_batch(self, clips: int) -> Mixture:
        """All stages with this batch."""
        stages = tuple(replace(stage, recipe=stage.recipe.with_batch(clips)) for stage in self.stages)
        return replace(self, stages=stages)

    def shares(self, update: int) -> list[int]:
        """Updates of each stage in this update of the mixture (0 is the first)."""
        fades = self.fade or (0,) * len(self.stages)
        return [
            round(stage.updates * max(0.0, 1 - update / fade)) if fade else stage.updates
            for stage, fade in zip(self.stages, fades, strict=True)
        ]


class MixtureTrainer:
    """Trains by all stages in turn. Measures of a later stage stand before those of an earlier one of the same name."""

    def __init__(self, config: Mixture, parts: Sequence[Trainer]) -> None:
        self.config, self.parts = config, parts
        self.counts = ComputeUsage()

    def update(self) -> dict[str, float]:
        """The updates of every stage."""
        measured: dict[str, float] = {}
        for part, count in zip(self.parts, self.config.shares(self.counts.updates), strict=True):
            for _ in range(count):
                measured |= part.update()
        self._count(self.counts.updates + 1)
        return measured

    def _count(self, updates: int) -> None:
        """What all stages spent; an update of the mixture counts as one."""
        self.counts = replace(added([part.counts for part in self.parts]), updates=updates)

    def state(self) -> State:
        """Everything that a bitwise resume needs; the generator's weights are written with every stage."""
        groups, states = Groups(), [trainer_state(part) for part in self.parts]
        for place, (found, _) in enumerate(states):
            groups |= {f"{place}-{name}": group for name, group in found.items()}
        return groups, {"counts": asdict(self.counts), "parts": [told for _, told in states]}

    def load_state(self, groups: Groups, meta: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        for place, (part, told) in enumerate(zip(self.parts, meta["parts"], strict=True)):
            begin = f"{place}-"
            load_trainer(part, {n.removeprefix(begin): g for n, g in groups.items() if n.startswith(begin)}, told)
        self._count(meta["counts"]["updates"])
