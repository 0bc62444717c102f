"""`reelgym compare`: RL fine-tuning and distillation of one starting student, on one budget, judged by one oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..checkpoint import save_checkpoint, write_json
from ..envs.stack import Stack, StackSpec
from ..models.lora_files import write_lora
from ..models.stream_files import STUDENT
from ..models.tiny import STEPS
from ..training.recipe import find_recipe
from ..training.sequence import Stage
from .evaluation.judged import exam_of, judge_of_task
from .evaluation.judges import ORACLE, open_judge
from .evaluation.notes import diverged, notes
from .evaluation.search import SEARCH_SEED, tries_of, winner
from .evaluation.vbench import read_vbench, rejudged
from .events import write_events
from .findings import BLOCKS, PICTURES
from .jobs import Job
from .options import AdapterOptions, StackOptions, installed_name
from .presets import METHOD_RECIPES, PRESETS, Preset, chain, needs_of
from .report import load_media, summary_text, write_picture, write_report
from .rows import clip_rows, curve_rows, score_lines, table_rows
from .runs import Task, work
from .study import Results, Study, finished, run_study
from .systems import REFERENCES
from .tables import Row

__all__ = ["BLOCKS", "PICTURES", "Config", "run"]


@dataclass(frozen=True)
class Config(AdapterOptions, StackOptions):
    """What to compare; a run that was killed goes on where it was, jobs that are finished are not redone."""

    preset: Literal["quick", "one-step", "two-steps", "ablation", "standard", "smoke"] = "quick"
    """quick: a look at two steps, in minutes. one-step, two-steps, standard (four steps): evidence, rungs of the map.
    ablation: what `reelgym ablate` trains. smoke: only shows that everything runs."""
    add: tuple[str, ...] = ()
    """Recipes of your own beside those of the preset: module:name=UPDATES, or the name that an installed package gives
    them; UPDATES within the preset's seconds on your machine."""
    only: tuple[str, ...] = ()
    """Methods of the preset, by their names in results.json; by default all. A sequence needs its parts beside it."""
    judge: str = ""
    """Who judges (docs/judges.md): oracle, the world's own; heldout, the stack's held-out reward; measures, which need
    no model; an import path module:name, or an installed name. By default the first of these that the stack has."""
    vbench: Path | None = None
    """Folder with the result files that VBench, or VBench-Long, made of this comparison's videos/: they judge then."""
    prompts: int | None = None
    """Test prompts, if not the preset's number."""
    updates: int | None = None
    """Of every method, if not the preset's, which suit the tiny stack."""
    batch: int | None = None
    """Clips an update, if not the recipes' own."""
    times: float = 1.0
    """How many times the preset's updates every method gets: does it only need longer?"""
    seed: int = 0
    """The first of the seeds."""
    seeds: int | None = None
    """How many runs of each method, if not the preset's number."""
    out: Path | None = None
    """Folder for results.json, report.html, TensorBoard events and the jobs; runs/compare-PRESET by default."""
    workers: int | None = None
    """Processes of one thread each; by default 2, or as many as there are cores; 1 on a GPU."""


def run(config: Config) -> None:
    """Search, train, examine, report; prints the tables and where the report is."""
    done = run_study(STUDY, config)
    out, found = done.out, {name: result for name, (_, result) in done.results.items()}
    media = {name: tensor for groups, _ in done.results.values() for name, tensor in groups.get("media", {}).items()}
    save_checkpoint(out / "media", {"media": media}, {})
    if done.config.adapter is not None:
        write_loras(out / "students", done.results)
    lines = score_lines(_runs(done.config, done.results), preset_of(done.config).exam)
    (out / "scores.csv").write_text("\n".join(lines) + "\n")
    write_events(out / "tensorboard", found, load_media(out / "media"))
    write_picture(out, out / PICTURES[0])
    print(f"report: {write_report(out)}\ncurves and clips: tensorboard --logdir {out / 'tensorboard'}")


def write_loras(folder: Path, results: Results) -> None:
    """What every method trained with every seed, as `generate --student` and diffusers read it."""
    for name, (groups, found) in results.items():
        if "weights" in groups:
            write_lora(folder / name, groups["weights"])
            write_json(folder / name / STUDENT, {"part": "student", "sampler_steps": found["steps"]})


def preset_of(config: Config) -> Preset:
    """The preset with the config's seeds, and the words or the world of its stack; ValueError for what cannot be."""
    preset = PRESETS[config.preset]
    seeds = preset.seeds if config.seeds is None else config.seeds
    counts = [count for count in (seeds, config.prompts, config.updates, config.batch) if count is not None]
    if min(counts) < 1 or config.times <= 0:
        raise ValueError("--seeds, --prompts, --updates and --batch must be at least 1, and --times above 0")
    updates = {name: max(1, round(config.times * (config.updates or count))) for name, count in preset.updates.items()}
    stack = config.spec.load()
    judge = judge_of_task(stack, installed_name("judges", config.judge))
    asked = preset.exam if config.prompts is None else replace(preset.exam, prompts=config.prompts)
    few = preset.validation if config.prompts is None else replace(preset.validation, prompts=config.prompts)
    exam, validation = (exam_of(one, stack, judge, config.world) for one in (asked, few))
    sizes = {"updates": updates, "batch": config.batch or preset.batch}
    return replace(preset, seeds=seeds, exam=exam, validation=validation, **sizes)  # type: ignore[arg-type]


def spec_of(config: Config) -> StackSpec:
    """The stack, its student with the steps that are asked for, else those of the preset, else its own."""
    spec = config.spec
    return spec if spec.steps is not None else replace(spec, steps=PRESETS[config.preset].student_steps)


def references_of(config: Config) -> list[str]:
    """What is measured beside the methods, as far as the stack has it; the starting student at its full steps where the
    methods have fewer."""
    stack, world = spec_of(config).load(), not preset_of(config).exam.rows
    there = {
        "truth": world,
        "codec": world or "clips" in stack.data,
        "teacher": stack.has("teacher"),
        "four-steps": len(stack.generator.sigmas) < STEPS,
    }
    return [name for name in REFERENCES if there.get(name, True)]


def _seeds_of(config: Config) -> list[int]:
    """Of the runs."""
    count = PRESETS[config.preset].seeds if config.seeds is None else config.seeds
    return list(range(config.seed, config.seed + count))


def plans_of(config: Config) -> dict[str, Stage]:
    """The preset's methods and the recipes that a user adds, by the name they were asked for; ValueError for a line
    that is not NAME=UPDATES."""
    every = preset_of(config).plans()
    needs = {name: _missing(config.spec.load(), name) for name in every}
    lacking = {name: found for name, found in needs.items() if found}
    plans = {name: every[name] for name in every if (name in config.only if config.only else name not in lacking)}
    for name in (name for name in plans if name in lacking):
        raise ValueError(f"{config.stack}: {name} needs {', '.join(lacking[name])}, which this stack lacks")
    if missing := {*config.only, *(part for name in plans for part in name.split("+"))} - set(plans):
        raise ValueError(
            f"--only lacks {', '.join(sorted(missing))}: choose from {', '.join(every)}, with a sequence's parts"
        )
    for line in config.add:
        name, _, updates = line.rpartition("=")
        if not name or not updates.isdigit() or int(updates) < 1:
            raise ValueError(f"--add {line}: write module:name=UPDATES, such as my_package.recipes:best_of_n=20")
        plans[name] = Stage(find_recipe(name, METHOD_RECIPES), int(updates))
    return plans


def _missing(stack: Stack, name: str) -> list[str]:
    """What a method needs and a stack lacks."""
    world = stack.has("grammar") or stack.has("world")
    there = {"world": world, "clips": stack.has("grammar") or "clips" in stack.data}
    return [need for need in sorted(needs_of(name)) if not there.get(need, stack.has(need))]


def _jobs_of(config: Config, results: Results) -> list[Job]:
    """References and the search for learning rates; then every method at the rate that won."""
    plans = plans_of(config)
    tries = search_jobs(config, plans)
    first = [*tries, *reference_jobs(config)]
    return training_jobs(config, winners(plans, tries, results)) if finished(first, results) else first


def search_jobs(config: Config, plans: Mapping[str, Stage]) -> list[Job]:
    """Every method's tries of learning rates, judged on validation prompts; none where the preset stores its rates.

    A sequence is not searched: it takes the winners of its parts.
    """
    preset = preset_of(config)
    share, cost, trained = preset.search_share, 2 * preset.search_share, (spec_of(config), config.adapter)
    return [
        Job(folder_of(job), Task(name, SEARCH_SEED, None, preset.validation, plan, 1, 0, *trained), cost)
        for name, start in plans.items()
        for job, recipe in tries_of(name, start.recipe, preset.search).items()
        for plan in [Stage(recipe, max(1, round(share * start.updates)))]
    ]


def reference_jobs(config: Config) -> list[Job]:
    """Ground truth, codec, teacher and starting student, under the noise of every seed."""
    preset = preset_of(config)
    few = min(preset.exam.prompts, preset.teacher_prompts)
    slow = replace(preset.exam, prompts=few, rows=preset.exam.rows[:few])
    exams = {name: (slow, 3.0) if name == "teacher" else (preset.exam, 1.0) for name in references_of(config)}
    return [
        Job(f"{name}-{seed}", _task(config, replace(preset, exam=exam, points=1), name, seed, None), cost)
        for name, (exam, cost) in exams.items()
        for seed in _seeds_of(config)
    ]


def training_jobs(config: Config, plans: Mapping[str, Stage]) -> list[Job]:
    """Every method with every seed."""
    preset = preset_of(config)
    return [
        Job(folder_of(f"{name}-{seed}"), _task(config, preset, name, seed, plan), 2.0)
        for name, plan in plans.items()
        for seed in _seeds_of(config)
    ]


def folder_of(name: str) -> str:
    """An import path is no name for a folder everywhere."""
    return name.replace(":", ".")


def _task(config: Config, preset: Preset, name: str, seed: int, plan: Stage | None) -> Task:
    """One that ends with an exam: the first seed's clips are shown, and where the prompts are the stack's own, all are
    kept as files."""
    shown = preset.shown if seed == config.seed else 0
    videos = str(config.out / "videos" / folder_of(f"{name}-{seed}")) if preset.exam.rows and config.out else ""
    exams = (preset.exam, preset.validation)
    return Task(name, seed, *exams, plan, preset.points, shown, spec_of(config), config.adapter, videos)


def winners(plans: Mapping[str, Stage], tries: Sequence[Job], results: Results) -> dict[str, Stage]:
    """Each plan at the learning rate whose try ended with the highest oracle total on the validation prompts; a
    sequence at those of its parts."""
    found = {}
    for name, plan in plans.items():
        own = {job.name: job.config.plan.recipe for job in tries if job.config.row == name}
        ends = {job: level_of(results[job][1]["curve"][-1]) for job in own}
        found[name] = replace(plan, recipe=winner(plan.recipe, own, ends))
    return {name: chain(name, found) if "+" in name else plan for name, plan in found.items()}


def _chosen(config: Config, results: Results) -> dict[str, Stage]:
    """The plans that were trained."""
    plans = plans_of(config)
    return winners(plans, search_jobs(config, plans), results)


def _runs(config: Config, results: Results) -> dict[str, list[dict[str, Any]]]:
    """Results by row of the table, one per seed."""
    names, exam = (*references_of(config), *plans_of(config)), preset_of(config).exam
    runs = {
        name: [{"seed": seed, **results[folder_of(f"{name}-{seed}")][1]} for seed in _seeds_of(config)]
        for name in names
    }
    if config.vbench is None:
        return runs
    if not exam.rows:
        raise ValueError("--vbench judges the videos of a comparison without an oracle: ask for another --judge")
    judge = read_vbench(config.vbench)
    return {
        name: [rejudged(one, judge, folder_of(f"{name}-{one['seed']}"), exam.clips) for one in found]
        for name, found in runs.items()
    }


def _rows_of(config: Config, results: Results) -> list[Row]:
    """Of results.json."""
    runs, preset = _runs(config, results), preset_of(config)
    rows = table_rows(runs)
    rows += [row for name, found in runs.items() for one in found if "curve" in one for row in curve_rows(name, one)]
    rows += [_search_row(name, result) for name, (_, result) in results.items() if name.startswith("search-")]
    return rows + clip_rows(preset.exam, preset.shown)


def _settings_of(config: Config, results: Results) -> dict[str, Any]:
    """What results.json keeps as "config"."""
    preset, plans = preset_of(config), _chosen(config, results)
    settings: dict[str, Any] = {"preset": asdict(preset)}
    settings["plans"] = {name: asdict(plan) for name, plan in plans.items()}
    settings |= {"notes": [*notes(preset, plans), *diverged(_runs(config, results))], "workers": config.workers}
    settings |= {"steps": len(spec_of(config).load().generator.sigmas)}
    settings |= {} if config.adapter is None else {"lora": asdict(config.adapter)}
    settings |= {"weights": "shipped" if config.stack == "tiny" else config.stack}
    settings |= {name: path for name in ("reward", "world") if (path := getattr(config, name))}
    if preset.exam.judge != ORACLE:
        settings["judge"] = open_judge(preset.exam.judge, spec_of(config).load()).words
    if config.vbench is not None:
        settings["notes"].append(f"Learning curves, and the choice of learning rates, are by {settings['judge']}.")
        settings["judge"] = read_vbench(config.vbench).words
    return settings | {"prompts": preset.exam.prompts, "clips": preset.exam.clips}


def _search_row(name: str, result: Mapping[str, Any]) -> Row:
    last = result["curve"][-1]
    row: Row = {"kind": "search", "try": name, "learning_rate": result["learning_rate"]}
    level = {key: last[key] for key in ("oracle", "judged", "reward") if key in last}
    return row | {"updates": result["counts"]["updates"]} | level


def level_of(point: Mapping[str, Any]) -> float:
    """The judge's total at a point of a learning curve."""
    return float(point["oracle"] if "oracle" in point else point["judged"])


STUDY = Study("compare", work, _jobs_of, _rows_of, lambda found: summary_text(dict(found)), _settings_of, _seeds_of)
