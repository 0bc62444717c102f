"""`reelgym compare`: RL fine-tuning and distillation of one starting student, on one budget, judged by one oracle."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from ..checkpoint import save_checkpoint
from ..envs.stack import StackSpec
from ..training.recipe import find_recipe
from ..training.sequence import Sequence as RecipeSequence
from ..training.sequence import Stage
from .evaluate import REFERENCES
from .events import write_events
from .jobs import Job, Result, one_thread, run_jobs
from .options import StackOptions
from .presets import PRESETS, RECIPES, Preset, chain, label_of
from .report import load_media, read_results, summary_text, write_picture, write_report
from .results import write_results
from .rows import clip_rows, curve_rows, table_rows
from .runs import Task, fingerprint, work

SEARCH_SEED = 10_000


@dataclass(frozen=True)
class Config(StackOptions):
    """What to compare; a run that was killed goes on where it was, jobs that are finished are not redone."""

    preset: Literal["quick", "standard", "smoke"] = "quick"
    """quick: a look, in minutes. standard: evidence, in less than an hour. smoke: only shows that everything runs."""
    add: tuple[str, ...] = ()
    """Recipes of your own beside those of the preset: module:name=UPDATES, or the name that an installed package gives
    them; UPDATES within the preset's seconds on your machine."""
    seed: int = 0
    """The first of the seeds."""
    seeds: int | None = None
    """How many runs of each method, if not the preset's number."""
    out: Path | None = None
    """Folder for results.json, report.html, TensorBoard events and the jobs; runs/compare-PRESET by default."""
    workers: int | None = None
    """Processes of one thread each; by default 2, or as many as there are cores; 1 on a GPU."""

    @property
    def command(self) -> str:
        """What to type for this comparison."""
        named = {"seed": self.seed, "seeds": self.seeds, "stack": self.stack.removeprefix("tiny")}
        named |= {"reward": self.reward, "world": self.world}
        options = [f"--{name} {value}" for name, value in named.items() if value]
        options += ["--add", *self.add] if self.add else []
        return " ".join(["reelgym compare --preset", self.preset, *options])


@dataclass(frozen=True)
class Setup:
    """A config made definite."""

    preset: Preset
    seeds: tuple[int, ...]
    device: torch.device
    out: Path
    workers: int
    stack: StackSpec
    made_from: str

    def job(self, name: str, row: str, seed: int, *, cost: float = 1.0, **task: Any) -> Job:
        """A job of this comparison."""
        fixed = {"stack": self.stack, "made_from": self.made_from}
        settings = {"validation": self.preset.validation, **fixed, **task}
        return Job(name.replace(":", "."), Task(row, seed, **settings), cost)


def run(config: Config) -> None:
    """Search, train, examine, report; prints the tables and where the report is."""
    setup = prepare(config)
    plans = setup.preset.plans() | own_plans(config.add)
    tries, references = search_jobs(setup, plans), reference_jobs(setup)
    total = len(tries) + len(references) + len(plans) * len(setup.seeds)
    with tqdm(total=total, desc=f"compare {config.preset}", unit="job", file=sys.stderr) as bar:
        first = _go([*tries, *references], setup, bar)
        plans = winners(plans, tries, first)
        results = first | _go(training_jobs(setup, plans), setup, bar)
    publish(config, setup, plans, results)


def prepare(config: Config) -> Setup:
    """Resolve devices, folders and sizes; ValueError for what cannot be."""
    preset, stack = PRESETS[config.preset], config.spec.load()
    grammar = stack.grammar
    preset = replace(
        preset,
        seeds=preset.seeds if config.seeds is None else config.seeds,
        exam=replace(preset.exam, grammar=grammar, world=config.world),
        validation=replace(preset.validation, grammar=grammar, world=config.world),
    )
    if preset.seeds < 1 or (config.workers or 1) < 1:
        raise ValueError("--seeds and --workers must be at least 1")
    return Setup(
        preset,
        tuple(range(config.seed, config.seed + preset.seeds)),
        stack.device,
        config.out or Path("runs") / f"compare-{config.preset}",
        config.workers or (1 if stack.device.type == "cuda" else min(2, os.cpu_count() or 1)),
        config.spec,
        fingerprint(stack.folder),
    )


def own_plans(added: Sequence[str]) -> dict[str, Stage]:
    """Recipes that a user adds, by the name they were asked for; ValueError for a line that is not NAME=UPDATES."""
    plans = {}
    for line in added:
        name, _, updates = line.rpartition("=")
        if not name or not updates.isdigit() or int(updates) < 1:
            raise ValueError(f"--add {line}: write module:name=UPDATES, such as my_package.recipes:best_of_n=20")
        plans[name] = Stage(find_recipe(name, RECIPES), int(updates))
    return plans


def search_jobs(setup: Setup, plans: Mapping[str, Stage]) -> list[Job]:
    """Every method's tries of learning rates, judged on validation prompts; none where the preset stores its rates.

    A sequence is not searched: it takes the winners of its parts.
    """
    share = setup.preset.search_share
    return [
        setup.job(
            f"search-{name}-{number}",
            name,
            SEARCH_SEED,
            cost=2 * share,
            exam=None,
            plan=Stage(plan.recipe.with_learning_rate(factor * rate), max(1, round(share * plan.updates))),
            points=1,
        )
        for name, plan in plans.items()
        if (rate := plan.recipe.learning_rate) is not None
        for number, factor in enumerate(setup.preset.search)
    ]


def reference_jobs(setup: Setup) -> list[Job]:
    """Ground truth, codec, teacher and starting student, under the noise of every seed."""
    exam = setup.preset.exam
    slow = replace(exam, prompts=min(exam.prompts, setup.preset.teacher_prompts))
    return [
        setup.job(
            f"{name}-{seed}",
            name,
            seed,
            cost=3.0 if name == "teacher" else 1.0,
            exam=slow if name == "teacher" else exam,
            shown=_shown(setup, seed),
        )
        for name in REFERENCES
        for seed in setup.seeds
    ]


def training_jobs(setup: Setup, plans: Mapping[str, Stage]) -> list[Job]:
    """Every method with every seed."""
    shared = {"exam": setup.preset.exam, "points": setup.preset.points}
    return [
        setup.job(f"{name}-{seed}", name, seed, cost=2.0, plan=plan, shown=_shown(setup, seed), **shared)
        for name, plan in plans.items()
        for seed in setup.seeds
    ]


def winners(plans: Mapping[str, Stage], tries: Sequence[Job], results: Mapping[str, Result]) -> dict[str, Stage]:
    """Each plan at the learning rate whose try ended with the highest oracle total on the validation prompts; a
    sequence at those of its parts."""
    found = dict(plans)
    for name, plan in plans.items():
        ends = {job.name: results[job.name][1] for job in tries if job.config.row == name}
        if ends:
            best = max(ends.values(), key=lambda result: result["curve"][-1]["oracle"])
            found[name] = replace(plan, recipe=plan.recipe.with_learning_rate(best["learning_rate"]))
    return {name: chain(name, found) if "+" in name else plan for name, plan in found.items()}


def publish(config: Config, setup: Setup, plans: Mapping[str, Stage], results: Mapping[str, Result]) -> None:
    """Write results.json, media, TensorBoard events and report.html; print the tables."""
    out, preset = setup.out, setup.preset
    found = {name: result for name, (_, result) in results.items()}
    runs = {
        name: [{"seed": seed, **found[f"{name}-{seed}".replace(":", ".")]} for seed in setup.seeds]
        for name in (*REFERENCES, *plans)
    }
    rows = table_rows(runs)
    rows += [row for name in plans for one in runs[name] for row in curve_rows(name, one)]
    rows += [_search_row(name, result) for name, result in found.items() if name.startswith("search-")]
    settings: dict[str, Any] = {"preset": asdict(preset)}
    settings["plans"] = {name: asdict(plan) for name, plan in plans.items()}
    settings |= {"notes": [*notes(setup, plans), *diverged(runs)], "workers": setup.workers}
    settings |= {"weights": "shipped" if config.stack == "tiny" else config.stack}
    settings |= {name: path for name in ("reward", "world") if (path := getattr(config, name))}
    settings |= {"prompts": preset.exam.prompts, "clips": preset.exam.clips, "made_from": setup.made_from}
    rows += clip_rows(preset.exam, preset.shown)
    with one_thread():
        write_results(out, config.command, setup.seeds, settings, rows, setup.device)
    media = {name: tensor for groups, _ in results.values() for name, tensor in groups.get("media", {}).items()}
    save_checkpoint(out / "media", {"media": media}, {})
    write_events(out / "tensorboard", found, load_media(out / "media"))
    write_picture(out, out / "clips.webp")
    page = write_report(out)
    print(summary_text(read_results(out)))
    print(f"\nreport: {page}\ncurves and clips: tensorboard --logdir {out / 'tensorboard'}")


def notes(setup: Setup, plans: Mapping[str, Stage]) -> list[str]:
    """What a reader of the table must know, in sentences."""
    preset = setup.preset
    found = {name: plan.recipe.learning_rate for name, plan in plans.items()}
    rates = ", ".join(f"{name} {rate:.2g}" for name, rate in found.items() if rate is not None)
    search = (
        f"Learning rates were searched in this run, {len(preset.search)} tries for each method on validation prompts"
        if preset.search
        else "Learning rates are stored in the preset: winners of the search that --preset standard makes"
    )
    return [
        f"{search}: {rates}.",
        f"Every method trains the same starting student, with a budget of {preset.seconds:g} s on one core of the "
        "reference machine, converted once to the updates shown; the weights are the last ones, not averages.",
        *sequence_notes(plans),
        f"The teacher is examined on the first {min(preset.teacher_prompts, preset.exam.prompts)} prompts alone.",
        f"Intervals: paired bootstrap over {preset.seeds} seeds and {preset.exam.prompts} prompts."
        + (" With so few seeds they say little about other seeds." if preset.seeds < 5 else ""),
        *([f"Edge slices: {preset.exam.slice_prompts} test prompts each."] if preset.exam.slice_prompts else []),
        f"Calls count chunks through a network. Test prompts are of the grammar “{preset.exam.grammar}”, half with a "
        "(colour, shape, motion) that training never shows; the search never sees them.",
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


def _search_row(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "kind": "search",
        "try": name,
        "learning_rate": result["learning_rate"],
        "updates": result["counts"]["updates"],
        "oracle": result["curve"][-1]["oracle"],
        "reward": result["curve"][-1]["reward"],
    }


def _shown(setup: Setup, seed: int) -> int:
    return setup.preset.shown if seed == setup.seeds[0] else 0


def _go(jobs: Sequence[Job], setup: Setup, bar: tqdm) -> dict[str, Result]:
    def done(name: str) -> None:
        bar.set_postfix_str(name)
        bar.update()

    return run_jobs(jobs, work, setup.out / "jobs", workers=setup.workers, done=done, tick=bar.refresh)
