"""The search of a learning rate: every method tries the same factors of its own, and goes on at the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from ...noise import SeedDomain
from ...training.recipe import Recipe

R = TypeVar("R", bound=Recipe)
SEARCH_SEED = int(SeedDomain.SEARCH)
"""Of every try, apart from the seeds that count."""
DIVERGED = -1.0
"""Score of a try that diverged: below all that an oracle gives."""


def tries_of(name: str, recipe: R, factors: Sequence[float]) -> dict[str, R]:
    """The recipe at so many times its rate, by the name of the job that tries it; none where it has no single rate."""
    rate = recipe.learning_rate
    if rate is None:
        return {}
    return {f"search-{name}-{place}": recipe.with_learning_rate(x * rate) for place, x in enumerate(factors)}


def winner(recipe: R, tries: Mapping[str, R], scores: Mapping[str, float]) -> R:
    """The try with the highest score, of equal ones that with the lowest rate; the recipe itself where none was tried.

    scores: by the names of the tries, on validation prompts.
    """
    if not tries:
        return recipe
    return tries[max(tries, key=lambda name: (scores[name], -(tries[name].learning_rate or 0.0)))]
