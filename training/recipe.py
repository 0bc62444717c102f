"""What a recipe is: settings that become a trainer. Ours and yours, found by name or by import path."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol, Self, runtime_checkable

from ..envs.stack import Stack
from ..models.generator import Generator
from ..plugins import PluginError, find
from .loop import Trainer


@runtime_checkable
class Recipe(Protocol):
    """A frozen dataclass with these; everything that a run depends on is a field of it.

    A training whose rate, seed and batch can be changed takes part in a comparison and in its search.
    """

    @property
    def seed(self) -> int:
        """Of prompts and noise."""
        ...

    @property
    def learning_rate(self) -> float | None:
        """Of the generator; None where parts have rates of their own, which are then not searched."""
        ...

    def trainer(self, stack: Stack, generator: Generator) -> Trainer:
        """What trains `generator`, a student of the stack."""
        ...

    def with_learning_rate(self, rate: float) -> Self:
        """The recipe with another rate of the generator; that of a helper, such as a critic, stays in proportion."""
        ...

    def with_seed(self, seed: int) -> Self:
        """The recipe with another seed."""
        ...

    def with_batch(self, clips: int) -> Self:
        """The recipe with so many clips (RL: prompts, of two clips at most) an update."""
        ...


def required(function: Any) -> list[str]:
    """Names of the arguments that a function cannot do without."""
    parameters = inspect.signature(function).parameters.values()
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [one.name for one in parameters if one.default is one.empty and one.kind not in free]


def find_recipe(name: str, builtin: Mapping[str, Any]) -> Recipe:
    """The recipe of a name in `builtin`, of an installed package, or of an import path: a Recipe, or a function without
    arguments that returns one. PluginError for anything else."""
    found = find("recipes", name, builtin)
    makes = callable(found) and (isinstance(found, type) or not isinstance(found, Recipe))
    made = found() if makes and not required(found) else found
    if not isinstance(made, Recipe) or isinstance(made, type):
        wanted = [
            word for word in ("trainer", "with_seed", "with_learning_rate", "with_batch") if not hasattr(made, word)
        ]
        raise PluginError(
            f"{name} is no recipe, it lacks {', '.join(wanted) or 'seed'}: see reelgym.training.recipe.Recipe"
        )
    return made
