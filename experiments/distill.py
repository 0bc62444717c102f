"""`reelgym distill RECIPE`: distillation of a student from its teacher, watched by a guard, resumable at any update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from ..training.recipe import find_recipe
from .presets import METHOD_RECIPES
from .train_student import TrainOptions, changed, train_student

_KNOWN = {name.replace("&", "-with-"): recipe for name, recipe in METHOD_RECIPES.items()}


@dataclass(frozen=True)
class Config(TrainOptions):
    """How to distil; a run that was killed goes on from its last update."""

    recipe: Annotated[str, tyro.conf.Positional]
    """dmd, sid: distribution matching. stream-r1: weighed by reliability and perplexity. on-policy, consistency: no
    critic. dmd-with-reward, dmd-with-forward: with RL in one update. continued, teacher-forcing: the starting recipe
    goes on. All are in docs/distillation.md. Or your own: an import path, such as my_package.recipes:mine, or the name
    that an installed package gives it."""
    batch: int | None = None
    """Clips an update, if not the recipe's own."""


def run(config: Config) -> None:
    """Train, watch, save; print what the oracle found before and after."""
    recipe = changed(find_recipe(config.recipe, _KNOWN), config, batch=config.batch)
    train_student("distill", config.recipe, recipe, config)
