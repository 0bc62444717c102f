"""What a reader of a comparison must know, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...training.sequence import Sequence as RecipeSequence
from ...training.sequence import Stage
from ..presets import Preset, label_of


def notes(preset: Preset, plans: Mapping[str, Stage]) -> list[str]:
    """What a reader of the table must know, in sentences."""
    found = {name: plan.recipe.learning_rate for name, plan in plans.items()}
    rates = ", ".join(f"{name} {rate:.2g}" for name, rate in found.items() if rate is not None)
    budget = (
        f"with a budget of {preset.seconds:g} s on one core of the reference machine, converted once to the updates"
    )
    prompts = (
        f"Test prompts are of the grammar “{preset.exam.grammar}”, half with a (colour, shape, motion) that training "
        "never shows"
    )
    if preset.exam.rows:
        budget = "for the updates"
        prompts = f"Test prompts are {preset.exam.prompts} of the split “{preset.exam.split}”"
    search = (
        f"Learning rates were searched in this run, {len(preset.search)} tries for each method on validation prompts"
        if preset.search
        else "Learning rates are stored in the preset: winners of the search that --preset standard makes"
    )
    return [
        f"{search}: {rates}.",
        f"Every method trains the same starting student, {budget} shown; the weights are the last ones, not averages.",
        *sequence_notes(plans),
        f"The teacher is examined on the first {min(preset.teacher_prompts, preset.exam.prompts)} prompts alone.",
        f"Intervals: paired bootstrap over {preset.seeds} seeds and {preset.exam.prompts} prompts."
        + (" With so few seeds they say little about other seeds." if preset.seeds < 5 else ""),
        *([f"Edge slices: {preset.exam.slice_prompts} test prompts each."] if preset.exam.slice_prompts else []),
        f"Calls count chunks through a network. {prompts}; the search never sees them.",
    ]


def sequence_notes(plans: Mapping[str, Stage]) -> list[str]:
    """How the sequences share the budget; nothing where there are none."""
    shares = [
        f"{label_of(name)} {' + '.join(str(stage.updates) for stage in plan.recipe.stages)}"
        for name, plan in plans.items()
        if isinstance(plan.recipe, RecipeSequence)
    ]
    text = (
        f"A sequence has one budget too, half of the updates of each part ({'; '.join(shares)}). It is not searched: "
        "it takes the learning rates of its parts. What its second part is pulled towards is what the first one left."
    )
    return [text] if shares else []


def diverged(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """A sentence for each run that diverged: it counts as it stood before the update that failed."""
    return [
        f"{name}, seed {run['seed']}, diverged at update {run['diverged']} and counts as it stood before."
        for name, results in runs.items()
        for run in results
        if run.get("diverged") is not None
    ]
