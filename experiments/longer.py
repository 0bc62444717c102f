"""One method of the standard comparison on a longer budget: does it need time, or is it no use?

`python -m reelgym.experiments.longer --method dmd --updates 48 --rate 1e-4` trains it without a search, draws its
learning curve on validation prompts, and compares it with the start on the test prompts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .compare import Config as Comparison
from .compare import prepare
from .jobs import run_jobs
from .results import write_results
from .rows import contrast_row, curve_rows, method_row, run_row
from .runs import work


@dataclass(frozen=True)
class Config:
    """What to train for longer; a run that was killed goes on with the jobs that are not finished."""

    method: str = "dmd"
    """A method of the comparison."""
    updates: int = 48
    """Updates of a run."""
    rate: float | None = None
    """Learning rate, if not the stored one, which won a search on a short budget."""
    seeds: int = 2
    """Runs."""
    points: int = 8
    """Points of the learning curve."""
    preset: Literal["standard", "smoke"] = "standard"
    """Whose exam, recipes and validation it takes."""
    out: Path | None = None
    """Folder of results.json and the jobs; runs/longer-METHOD by default."""
    stack: Annotated[str, tyro.conf.arg(aliases=["--weights"])] = "tiny"
    """The stack of models."""

    @property
    def command(self) -> str:
        """What to type for this."""
        chosen = f"--method {self.method} --updates {self.updates} --seeds {self.seeds} --points {self.points}"
        rate = f" --rate {self.rate:g}" if self.rate is not None else ""
        return f"python -m reelgym.experiments.longer {chosen}{rate}"


def run(config: Config) -> None:
    """Train, examine, print the curve and the difference, write results.json. ValueError for an unknown method."""
    setup = prepare(Comparison(config.preset, seeds=config.seeds, device="cpu", stack=config.stack))
    plans = setup.preset.plans()
    if config.method not in plans:
        raise ValueError(f"no method {config.method!r}: choose from {', '.join(plans)}")
    plan, exam = replace(plans[config.method], updates=config.updates), replace(setup.preset.exam, slice_prompts=0)
    if config.rate is not None:
        plan = replace(plan, recipe=plan.recipe.with_learning_rate(config.rate))
    jobs = [setup.job(f"{row}-{seed}", row, seed, exam=exam) for row in ("truth", "start") for seed in setup.seeds]
    jobs += [
        setup.job(f"{config.method}-{seed}", config.method, seed, exam=exam, plan=plan, points=config.points, cost=9.0)
        for seed in setup.seeds
    ]
    out = config.out or Path("runs") / f"longer-{config.method}"
    found = {name: result for name, (_, result) in run_jobs(jobs, work, out / "jobs", workers=setup.workers).items()}
    names = ("truth", "start", config.method)
    runs = {name: [{"seed": seed, **found[f"{name}-{seed}"]} for seed in setup.seeds] for name in names}
    contrast = contrast_row(config.method, "start", runs)
    rows = [method_row(name, results, runs["truth"]) for name, results in runs.items()] + [contrast]
    rows += [run_row(name, one) for name, results in runs.items() for one in results]
    curve = [row for one in runs[config.method] for row in curve_rows(config.method, one)]
    for row in curve:
        print(f"seed {row['seed']} update {row['update']:4d}: oracle {row['oracle']:.3f}, reward {row['reward']:.3f}")
    print(f"{contrast['label']}: {contrast['difference']:+.4f} [{contrast['low']:+.4f}, {contrast['high']:+.4f}]")
    path = write_results(out, config.command, setup.seeds, {"plan": asdict(plan)}, rows + curve)
    print(f"results: {path}")


def main(args: Sequence[str] | None = None) -> int:
    """Exit status of `python -m reelgym.experiments.longer`."""
    run(tyro.cli(Config, prog="python -m reelgym.experiments.longer", args=args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
