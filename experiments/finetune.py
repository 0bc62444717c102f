"""`reelgym finetune RECIPE`: RL fine-tuning of a student, watched by a guard, resumable at any update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from ..agents.finetune_recipes import RECIPES
from ..training.recipe import find_recipe
from .train_student import TrainOptions, changed, train_student


@dataclass(frozen=True)
class Config(TrainOptions):
    """How to fine-tune; a run that was killed goes on from its last update."""

    recipe: Annotated[str, tyro.conf.Positional]
    """reward (refl): by the gradient of the reward; reward-window: of one window of each clip. forward (nft), policy
    (grpo): by its value alone, with credit by chunk. raven (cm-grpo), flow-grpo, ddpo: published baselines. Or your
    own: an import path, such as my_package.recipes:best_of_n, or the name that an installed package gives it."""
    prompts: int | None = None
    """Prompts an update, if not the recipe's own."""
    group: int | None = None
    """Clips of each prompt, if not the recipe's own."""


def run(config: Config) -> None:
    """Train, watch, save; print what the oracle found before and after."""
    recipe = changed(find_recipe(config.recipe, RECIPES), config, prompts=config.prompts, group=config.group)
    train_student("finetune", config.recipe, recipe, config)
