"""`reelgym bench rl`: chunk generations and seconds until the starting student has gained a stated amount on the
held-out oracle, for every direction and credit setting, over seeds; runs that never arrive are censored."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from ...agents.finetune import FineTuneConfig
from ...envs.stack import Stack
from ...models.tiny import WEIGHTS
from ..evaluate import Exam, texts_of
from ..jobs import Job, Result, one_thread, run_jobs
from ..results import command_line, write_results
from ..runs import fingerprint
from .rl_runs import BASELINES, SETTINGS, ReferenceTask, RunTask, ladder, with_rate, work
from .rl_tables import COLUMNS, curves_svg, report, table_rows

__all__ = ["COLUMNS", "Config", "report", "run"]
CLIPS = 2
"""Of every prompt of a look and of the exam."""
STUDENT_PACE, TEACHER_PACE = 12.0, 1.6
"""Clips a second that are made, judged and scored on one idle core."""
DRAWS = 2000
"""Of scripts, until one is found for the looks that shares none with the exam."""
PICTURE = "bench-rl.svg"
SEARCH_SEED = 10_000
NEVER = 2.0
"""A goal that no oracle total reaches."""


@dataclass(frozen=True)
class Config:
    """What is run; a run that was killed goes on with the jobs that are not finished."""

    settings: tuple[str, ...] = ("reward", "forward", *BASELINES)
    """Which ways to train; more in experiments/bench/rl_runs.py."""
    seeds: int = 10
    """Trainings of each."""
    seed: int = 0
    """The first of the seeds."""
    chunks: int = 2048
    """Generated at most by a training; who has not arrived then is censored."""
    share: float = 0.5
    """Of the gap between starting student and teacher that is to be gained."""
    gain: float | None = None
    """An oracle total to be gained, in place of a share of the gap."""
    search: tuple[float, ...] = (1 / 3, 1.0, 3.0)
    """Factors of a recipe's learning rate that every setting tries, each in one training of half the chunks, judged on
    validation prompts; empty: the rates as they are."""
    prompts: int = 12
    """Test prompts of a look, two clips each."""
    exam_prompts: int = 32
    """Other test prompts, on which a run is judged once it has stopped."""
    workers: int | None = None
    """Processes of one thread each; by default 2, or as many as there are cores."""
    weights: Path | None = None
    """Folder of a pretrained stack; by default the shipped one."""
    device: Literal["cpu"] = "cpu"
    """Trainings run on the CPU."""
    out: Path = Path("runs/bench-rl")
    """Folder for results.json, the curves and the jobs."""


def run(config: Config) -> None:
    """Measure start and teacher, train towards the goal that follows, report."""
    _check(config)
    workers = config.workers or min(2, os.cpu_count() or 1)
    minutes = core_seconds(config) / workers / 60
    print(f"bench rl: about {minutes:.0f} minutes on {workers} idle cores", file=sys.stderr)
    common, jobs = _common(config), config.out / "jobs"
    tries = _tries(config, common)
    total = 2 + len(tries) + len(config.settings) * config.seeds
    with tqdm(total=total, desc="bench rl", unit="job", file=sys.stderr) as bar:
        how: dict[str, Any] = {"workers": workers, "done": lambda name: bar.update(), "tick": bar.refresh}
        references = {
            name: result for name, (_, result) in run_jobs(_references(config, common), work, jobs, **how).items()
        }
        goal = goal_of(config, *(references[name]["looks"][0]["oracle"] for name in ("start", "teacher")))
        recipes, searched = winners(config, run_jobs(tries, work, jobs, **how))
        results = run_jobs(_runs(config, recipes, goal, common), work, jobs, **how)
    found = {name: [results[f"{name}-{seed}"][1] for seed in _seeds(config)] for name in config.settings}
    rows = [*table_rows(found, references, _seeds(config), goal), *searched]
    for row in rows:
        if row["kind"] == "setting":
            row["learning_rate"] = recipes[row["setting"]].learner.learning_rate
    settings = asdict(config) | {"workers": workers, "goal": goal, "ladder": ladder(config.chunks)}
    settings["recipes"] = {name: asdict(recipe) for name, recipe in recipes.items()}
    with one_thread():
        command = command_line(["reelgym", "bench", "rl"], config)
        written = write_results(config.out, command, _seeds(config), settings, rows)
    (config.out / PICTURE).write_text(curves_svg(rows) + "\n")
    print(f"{report(rows)}\n\nresults: {written}\ncurves: {config.out / PICTURE}")


def goal_of(config: Config, start: float, teacher: float) -> float:
    """The oracle total to be reached; ValueError where there is no gap to close."""
    if config.gain is not None:
        return start + config.gain
    if teacher <= start:
        raise ValueError(f"the teacher ({teacher:.3f}) is not above the start ({start:.3f}): state a --gain")
    return start + config.share * (teacher - start)


def winners(config: Config, tried: Mapping[str, Result]) -> tuple[dict[str, FineTuneConfig], list[dict[str, Any]]]:
    """Every setting's recipe at the rate whose try ended with the highest oracle total, and a row for every try."""
    recipes, rows = {}, []
    for name in config.settings:
        ends: list[tuple[float, float]] = []
        for place, factor in enumerate(config.search):
            _, result = tried[f"search-{name}-{place}"]
            end = -1.0 if result["diverged"] else result["looks"][-1]["oracle"]
            ends.append((end, factor))
            rate = with_rate(SETTINGS[name].recipe, factor).learner.learning_rate
            rows.append({"kind": "search", "setting": name, "learning_rate": rate, "oracle": end})
        best = max(ends, key=lambda end: (end[0], -end[1]))[1] if ends else 1.0
        recipes[name] = with_rate(SETTINGS[name].recipe, best)
    return recipes, rows


def core_seconds(config: Config) -> float:
    """About what the whole takes one idle core, where runs arrive as those of the committed results did."""
    look, exam = (CLIPS * prompts / STUDENT_PACE for prompts in (config.prompts, config.exam_prompts))
    references = look + config.seeds * exam + CLIPS * (config.prompts + config.exam_prompts) / TEACHER_PACE
    tries = len(config.search) * sum(config.chunks / 2 / SETTINGS[name].pace + look for name in config.settings)
    return references + tries + config.seeds * sum(_cost(config, name) for name in config.settings)


def _cost(config: Config, name: str) -> float:
    setting = SETTINGS[name]
    chunks = min(config.chunks, setting.arrives)
    update = setting.recipe.prompts * setting.recipe.group * Exam.chunks
    looks = len({-(-rung // update) for rung in ladder(config.chunks) if rung <= chunks})
    clips = CLIPS * (looks * config.prompts + config.exam_prompts)
    return chunks / setting.pace + clips / STUDENT_PACE


def _check(config: Config) -> None:
    unknown = [name for name in config.settings if name not in SETTINGS]
    if unknown or not config.settings:
        raise ValueError(f"unknown setting {', '.join(unknown) or 'none'}; choose from {', '.join(SETTINGS)}")
    if min(config.seeds, config.chunks, config.prompts, config.exam_prompts) < 1 or config.share <= 0:
        raise ValueError("seeds, chunks, prompts and exam-prompts are at least 1, and share is positive")
    if config.gain is not None and config.gain <= 0:
        raise ValueError(f"a gain is positive, not {config.gain}")


def apart(look: Exam, exam: Exam) -> Exam:
    """`look` with the first draw of scripts, from its own on, that shares none with the exam."""
    taken = set(texts_of(exam.scripts()))
    draws = (replace(look, scripts_seed=look.scripts_seed + more) for more in range(DRAWS))
    found = next((draw for draw in draws if taken.isdisjoint(texts_of(draw.scripts()))), None)
    if found is None:
        raise ValueError(f"{look.prompts} prompts for looks and {exam.prompts} for the exam are too many to lie apart")
    return found


def _seeds(config: Config) -> list[int]:
    return list(range(config.seed, config.seed + config.seeds))


def _common(config: Config) -> Mapping[str, Any]:
    """What every job needs."""
    grammar = Stack.load(config.weights or WEIGHTS).grammar
    exam = Exam(config.exam_prompts, CLIPS, long_prompts=0, scripts_seed=0, grammar=grammar)
    look = apart(Exam(config.prompts, CLIPS, long_prompts=0, scripts_seed=2, batch=48, grammar=grammar), exam)
    weights = "" if config.weights is None else str(config.weights)
    return {"look": look, "exam": exam, "weights": weights, "device": config.device, "made_from": _made_from(config)}


def _references(config: Config, common: Mapping[str, Any]) -> list[Job]:
    seeds = tuple(_seeds(config))
    tasks = {"start": seeds, "teacher": seeds[:1]}
    return [Job(row, ReferenceTask(row, own, **common)) for row, own in tasks.items()]


def _tries(config: Config, common: Mapping[str, Any]) -> list[Job]:
    look = replace(common["look"], split="validation", scripts_seed=Exam.scripts_seed)
    own = {**common, "look": look, "exam": None}
    half = max(1, config.chunks // 2)
    return [
        Job(
            f"search-{name}-{place}",
            RunTask(with_rate(SETTINGS[name].recipe, factor), SEARCH_SEED, NEVER, half, **own),
            half / SETTINGS[name].pace,
        )
        for name in config.settings
        for place, factor in enumerate(config.search)
    ]


def _runs(config: Config, recipes: Mapping[str, FineTuneConfig], goal: float, common: Mapping[str, Any]) -> list[Job]:
    return [
        Job(f"{name}-{seed}", RunTask(recipes[name], seed, goal, config.chunks, **common), _cost(config, name))
        for seed in _seeds(config)
        for name in config.settings
    ]


def _made_from(config: Config) -> str:
    """Hash of the code and the weights that a result depends on."""
    digest = hashlib.sha256(fingerprint(config.weights or WEIGHTS).encode())
    digest.update(Path(__file__).with_name("rl_runs.py").read_bytes())
    return digest.hexdigest()
