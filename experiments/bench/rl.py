"""`reelgym bench rl`: chunk generations and seconds until the starting student has gained a stated amount on the
held-out oracle, for every direction and credit setting, over seeds; runs that never arrive are censored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...training.recipe import Recipe
from ..console import estimate
from ..evaluate import EvalConfig
from ..evaluation.search import DIVERGED, SEARCH_SEED, tries_of, winner
from ..jobs import Job
from ..options import StudyOptions
from ..study import Results, Study, finished, run_study, seeds_of, settings_of
from ..tables import Row
from .rl_runs import BASELINES, ReferenceTask, RunTask, eval_schedule, setting_of, work
from .rl_tables import COLUMNS, report, rl_curves_svg, rl_rows

__all__ = ["COLUMNS", "Config", "report", "run"]
CLIPS = 2
"""Of every prompt of a look and of the exam."""
STUDENT_PACE, TEACHER_PACE = 12.0, 1.6
"""Clips a second that are made, judged and scored on one idle core."""
DRAWS = 2000
"""Of scripts, until one is found for the looks that shares none with the exam."""
PICTURES = ("bench-rl.svg",)
NEVER = 2.0
"""A target that no oracle total reaches."""


@dataclass(frozen=True)
class Config(StudyOptions):
    """What is run; a run that was killed goes on with the jobs that are not finished."""

    settings: tuple[str, ...] = ("reward", "forward", *BASELINES)
    """Which ways to train: more in experiments/bench/rl_runs.py, and recipes of your own by import path module:name."""
    seeds: int = 10
    """Trainings of each."""
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
    out: Path = Path("runs/bench-rl")
    """Folder for results.json, the curves and the jobs."""


def run(config: Config) -> None:
    """Measure start and teacher, train towards the target that follows, report."""
    _check(config)
    estimate("bench rl", core_seconds(config), config)
    done = run_study(STUDY, config)
    (done.out / PICTURES[0]).write_text(rl_curves_svg(done.rows) + "\n")
    print(f"curves: {done.out / PICTURES[0]}")


def first_jobs(config: Config) -> list[Job]:
    """Start, teacher and the search; costs in seconds of one idle core."""
    look, exam = _exams(config)
    spec, seeds, half = config.spec, tuple(seeds_of(config)), max(1, config.chunks // 2)
    validation = replace(look, split="validation", scripts_seed=EvalConfig.scripts_seed)
    a_look = _clips(config, 1, 0) / STUDENT_PACE
    sat = {"start": (seeds, STUDENT_PACE), "teacher": (seeds[:1], TEACHER_PACE)}
    references = [
        Job(row, ReferenceTask(row, noise, look, exam, spec), _clips(config, 1, len(noise)) / pace)
        for row, (noise, pace) in sat.items()
    ]
    return references + [
        Job(name, RunTask(recipe, SEARCH_SEED, NEVER, half, validation, None, spec), half / setting.pace + a_look)
        for setting, tries in _searches(config).values()
        for name, recipe in tries.items()
    ]


def jobs(config: Config, results: Results) -> list[Job]:
    """The first ones; then, at the rates that the search found, trainings towards the target."""
    first = first_jobs(config)
    if not finished(first, results):
        return first
    recipes, exams = winning_recipes(config, results), _exams(config)
    shared = (target_of(config, results), config.chunks, *exams, config.spec)
    return first + [
        Job(f"{name}-{seed}", RunTask(recipes[name], seed, *shared), _cost(config, name))
        for seed in seeds_of(config)
        for name in config.settings
    ]


def target_of(config: Config, results: Results) -> float:
    """The oracle total to be reached; ValueError where there is no gap to close."""
    start, teacher = (results[name][1]["looks"][0]["oracle"] for name in ("start", "teacher"))
    if config.gain is not None:
        return float(start + config.gain)
    if teacher <= start:
        raise ValueError(f"the teacher ({teacher:.3f}) is not above the start ({start:.3f}): state a --gain")
    return float(start + config.share * (teacher - start))


def winning_recipes(config: Config, results: Results) -> dict[str, Recipe]:
    """Every setting's recipe at the rate whose try ended with the highest oracle total."""
    return {
        name: winner(setting.recipe, tries, {one: _end(results[one][1]) for one in tries})
        for name, (setting, tries) in _searches(config).items()
    }


def rows(config: Config, results: Results) -> list[Row]:
    """Those of the tables, and one for every try."""
    found = {name: [results[f"{name}-{seed}"][1] for seed in seeds_of(config)] for name in config.settings}
    references = {name: results[name][1] for name in ("start", "teacher")}
    tried = [
        {"kind": "search", "setting": name, "learning_rate": recipe.learning_rate, "oracle": _end(results[one][1])}
        for name, (_, tries) in _searches(config).items()
        for one, recipe in tries.items()
    ]
    target = target_of(config, results)
    return rl_rows(found, winning_recipes(config, results), references, seeds_of(config), target) + tried


def settings(config: Config, results: Results) -> dict[str, Any]:
    """The config with what was found on the way."""
    recipes: dict[str, Any] = winning_recipes(config, results)
    found = {"goal": target_of(config, results), "ladder": eval_schedule(config.chunks)}
    return settings_of(config, results) | found | {"recipes": {name: asdict(one) for name, one in recipes.items()}}


STUDY = Study("bench rl", work, jobs, rows, lambda found: report(found["rows"]), settings)


def core_seconds(config: Config) -> float:
    """About what the whole takes one idle core, where runs arrive as those of the committed results did."""
    return sum(job.cost for job in first_jobs(config)) + config.seeds * sum(_cost(config, x) for x in config.settings)


def _cost(config: Config, name: str) -> float:
    setting = setting_of(name)
    chunks = min(config.chunks, setting.arrives)
    update = getattr(setting.recipe, "prompts", 1) * getattr(setting.recipe, "group", 16) * EvalConfig.chunks
    looks = len({-(-step // update) for step in eval_schedule(config.chunks) if step <= chunks})
    return chunks / setting.pace + _clips(config, looks, 1) / STUDENT_PACE


def _clips(config: Config, looks: int, exams: int) -> int:
    return CLIPS * (looks * config.prompts + exams * config.exam_prompts)


def _check(config: Config) -> None:
    if not config.settings:
        raise ValueError("no setting to run: give one to --settings")
    if min(config.seeds, config.chunks, config.prompts, config.exam_prompts) < 1 or config.share <= 0:
        raise ValueError("seeds, chunks, prompts and exam-prompts are at least 1, and share is positive")
    if config.gain is not None and config.gain <= 0:
        raise ValueError(f"a gain is positive, not {config.gain}")


def _searches(config: Config) -> Mapping[str, Any]:
    """Every setting and its tries by name."""
    found = {name: setting_of(name) for name in config.settings}
    return {name: (setting, tries_of(name, setting.recipe, config.search)) for name, setting in found.items()}


def _end(result: Mapping[str, Any]) -> float:
    return DIVERGED if result["diverged"] else float(result["looks"][-1]["oracle"])


@lru_cache(maxsize=4)
def _exams(config: Config) -> tuple[EvalConfig, EvalConfig]:
    """Of a look, and the last one."""
    own: dict[str, Any] = {"long_prompts": 0, "grammar": config.spec.load().grammar, "world": config.world}
    exam = EvalConfig(config.exam_prompts, CLIPS, scripts_seed=0, **own)
    return apart(EvalConfig(config.prompts, CLIPS, scripts_seed=2, batch=48, **own), exam), exam


def apart(look: EvalConfig, exam: EvalConfig) -> EvalConfig:
    """`look` with the first draw of scripts, from its own on, that shares none with the exam."""
    taken = set(exam.texts())
    draws = (replace(look, scripts_seed=look.scripts_seed + more) for more in range(DRAWS))
    found = next((draw for draw in draws if taken.isdisjoint(draw.texts())), None)
    if found is None:
        raise ValueError(f"{look.prompts} prompts for looks and {exam.prompts} for the exam are too many to lie apart")
    return found
