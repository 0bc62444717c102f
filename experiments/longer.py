"""One method of the standard comparison on a longer budget: does it need time, or is it no use?

`python -m reelgym.experiments.longer --method dmd --updates 48 --rate 1e-4` trains it without a search, draws its
learning curve on validation prompts, and compares it with the start on the test prompts.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from ..training.sequence import Stage
from .compare import Config as Comparison
from .compare import folder_of, plans_of, preset_of
from .jobs import Job
from .rows import contrast_row, curve_rows, method_row, run_row
from .runs import Task, work
from .study import Results, Study, run_study, seeds_of
from .tables import Row


@dataclass(frozen=True)
class Config(Comparison):
    """What to train for longer; a run that was killed goes on with the jobs that are not finished. The preset says
    whose exam, recipes and validation it takes."""

    preset: Literal["quick", "standard", "smoke"] = "standard"
    seeds: int = 2
    method: str = "dmd"
    """A method of the comparison."""
    updates: int = 48
    """Updates of a run."""
    rate: float | None = None
    """Learning rate, if not the stored one, which won a search on a short budget."""
    points: int = 8
    """Points of the learning curve."""


def run(config: Config) -> None:
    """Train, examine, print the curve and the difference, write results.json. ValueError for an unknown method."""
    run_study(STUDY, replace(config, out=config.out or Path("runs") / folder_of(f"longer-{config.method}")))


def _plan_of(config: Config) -> Stage:
    """The method's recipe, and for how many updates."""
    plans = plans_of(config)
    if config.method not in plans:
        raise ValueError(f"no method {config.method!r}: choose from {', '.join(plans)}")
    recipe = plans[config.method].recipe
    return Stage(recipe if config.rate is None else recipe.with_learning_rate(config.rate), config.updates)


def _jobs_of(config: Config, results: Results) -> list[Job]:
    """Truth, start and the method, with every seed."""
    preset, plan = preset_of(config), _plan_of(config)
    exam, plans = replace(preset.exam, slice_prompts=0), {"truth": None, "start": None, config.method: plan}
    return [
        Job(
            folder_of(f"{name}-{seed}"),
            Task(name, seed, exam, preset.validation, plan, config.points, stack=config.spec),
            cost,
        )
        for name, plan in plans.items()
        for seed in seeds_of(config)
        for cost in (1.0 if plan is None else 9.0,)
    ]


def _rows_of(config: Config, results: Results) -> list[Row]:
    """Means, the contrast with the start, every run and its curve."""
    names, seeds = ("truth", "start", config.method), seeds_of(config)
    runs = {name: [{"seed": seed, **results[folder_of(f"{name}-{seed}")][1]} for seed in seeds] for name in names}
    rows = [method_row(name, found, runs["truth"]) for name, found in runs.items()]
    rows += [contrast_row(config.method, "start", runs)]
    rows += [run_row(name, one) for name, found in runs.items() for one in found]
    return rows + [row for one in runs[config.method] for row in curve_rows(config.method, one)]


def tables(found: Mapping[str, Any]) -> str:
    """The curve, and the difference."""
    lines = [
        f"seed {row['seed']} update {row['update']:4d}: oracle {row['oracle']:.3f}, reward {row['reward']:.3f}"
        for row in found["rows"]
        if row["kind"] == "curve"
    ]
    (row,) = [row for row in found["rows"] if row["kind"] == "contrast"]
    return "\n".join([*lines, f"{row['label']}: {row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"])


def _settings_of(config: Config, results: Results) -> dict[str, Any]:
    """The plan."""
    return {"plan": asdict(_plan_of(config))}


STUDY = Study("python -m reelgym.experiments.longer", work, _jobs_of, _rows_of, tables, _settings_of)


def main(args: Sequence[str] | None = None) -> int:
    """Exit status of `python -m reelgym.experiments.longer`."""
    run(tyro.cli(Config, prog="python -m reelgym.experiments.longer", args=args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
