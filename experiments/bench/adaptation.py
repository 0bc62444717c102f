"""`reelgym bench adaptation`: a detector knows some families of fakes, a new one appears. How many of its clips, and
how many seconds of sampling and training, until it is told apart as well as after a full retrain? What is forgotten?"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

from ...envs.worlds.scene import SIDE
from ...models.detector import ClipDetector
from ..console import estimate
from ..jobs import Job
from ..league.dataset import UNSEEN
from ..options import StudyOptions
from ..pretrain.footage import REAL_FOOTAGE
from ..study import Results, Study, in_turn, job_folder, run_study, seeds_of, settings_of
from ..tables import Row
from .adaptation_clips import FAMILIES, ClipsTask
from .adaptation_runs import (
    ADAPTATIONS,
    BASE,
    FROM_PARTS,
    ORDERS,
    AdaptationTask,
    DetectorSchedule,
    clips_job,
    detector_eval_schedule,
    work,
)
from .adaptation_tables import COLUMNS, adaptation_curves_svg, adaptation_rows, report

__all__ = ["COLUMNS", "Config", "report", "run"]
PICTURES = ("bench-adaptation.svg",)
UPDATE, LOOK = 0.0033, 0.0007
"""Seconds that a clip takes in an update, and in a look, on one idle core."""
RL_UPDATE, LOADED = 1.0, 3.0
"""Seconds of an update of the student by RL; of loading and filming the clips, in each job that trains or looks."""
REALS = (4, 2)
"""How many times more clips of the world there are than of a family, to train on and to test with; they are free."""


@dataclass(frozen=True)
class Config(StudyOptions, DetectorSchedule):
    """What is run; a run that was killed goes on with the jobs that are not finished."""

    orders: tuple[str, ...] = ("student", "ghosting")
    """Which families are known, new and never met; more of them, cut for want of time, are in ORDERS of
    experiments/bench/adaptation_runs.py."""
    seeds: int = 5
    """Detectors of each."""
    detectors: Path | None = None
    """Folder with the detectors that `reelgym selfplay` wrote, league-0, league-1, ..., one for each seed; without it
    that method is left out, and so it and the rival are in orders whose new family a league has met."""
    out: Path = Path("runs/bench-adaptation")
    """Folder for results.json, the curves and the jobs."""


def run(config: Config) -> None:
    """Make the clips, train on what is known, meet what is new, report."""
    check(config)
    estimate("bench adaptation", adaptation_core_seconds(config), config)
    done = run_study(STUDY, config)
    (done.out / PICTURES[0]).write_text(adaptation_curves_svg(done.rows) + "\n")
    print(f"curves: {done.out / PICTURES[0]}")


def phases(config: Config) -> list[list[Job]]:
    """The clips; from them, detectors of what is known; from those, whoever meets what is new. Costs in seconds of one
    idle core."""
    clips = []
    for name in (REAL_FOOTAGE, *dict.fromkeys(name for order in config.orders for name in ORDERS[order].families)):
        family, counts = FAMILIES[name], _counts(config, name)
        cost = family.pace * sum(counts) + family.updates * RL_UPDATE
        clips.append(Job(clips_job(name), ClipsTask(name, *counts, config.spec), cost))
    bases = [_run(config, order, BASE, seed) for order in config.orders for seed in seeds_of(config)]
    return [clips, bases, [_run(config, *one) for one in _asked(config)]]


def _run(config: Config, order: str, method: str, seed: int) -> Job:
    folder, plan = job_folder(config), _plan_of(config)
    given = {BASE: "", "retrain": "", "rival": str(config.spec.load().places.get("rival", ""))}
    start = str(_league(config, seed)) if method == "selfplay" else str(folder / _name(order, BASE, seed))
    task = AdaptationTask(method, ORDERS[order], seed, plan, str(folder), given.get(method, start), config.spec)
    steps = len(plan.eval_points) * plan.every
    updates = {"frozen": 0, BASE: plan.scratch, "retrain": plan.scratch}.get(method, steps)
    looks = {"frozen": 1, BASE: 0}.get(method, len(plan.eval_points))
    looks *= plan.test * (REALS[1] + len(task.order.families))
    return Job(_name(order, method, seed), task, LOADED + 2 * plan.batch * updates * UPDATE + looks * LOOK)


def rows(config: Config, results: Results) -> list[Row]:
    """Those of the tables."""
    runs = {(order, method, seed): results[_name(order, method, seed)][1] for order, method, seed in _asked(config)}
    return adaptation_rows(runs, config.orders, _methods(config), seeds_of(config))


def settings(config: Config, results: Results) -> dict[str, Any]:
    """The config with the plan that it makes."""
    plan = _plan_of(config)
    own = {"plan": asdict(plan) | {"detection": asdict(plan.detection)}, "rungs": detector_eval_schedule(config.fakes)}
    return settings_of(config, results) | own


def jobs(config: Config, results: Results) -> list[Job]:
    """Those of every phase up to the first that is not finished."""
    return in_turn(phases(config), results)


STUDY = Study("bench adaptation", work, jobs, rows, lambda found: report(found["rows"]), settings)


def adaptation_core_seconds(config: Config) -> float:
    """About what the whole takes one idle core."""
    return sum(job.cost for phase in phases(config) for job in phase)


def check(config: Config) -> None:
    """ValueError or CheckpointError for what cannot be."""
    unknown = [name for name in config.orders if name not in ORDERS]
    if unknown or not config.orders:
        raise ValueError(f"unknown order {', '.join(unknown) or 'none'}; choose from {', '.join(ORDERS)}")
    least = min(config.seeds, config.fakes, config.test, config.scratch, config.every)
    if least < 1 or min(config.rung, config.last) < config.every:
        raise ValueError(
            "seeds, fakes, test, scratch and every are at least 1, and rung and last are no less than every"
        )
    side = SIDE // config.detection.pool
    for seed in seeds_of(config) if config.detectors else ():
        size = cast(ClipDetector, config.spec.load().with_weights(rival=_league(config, seed)).rival).size
        if size != side:
            raise ValueError(f"{_league(config, seed)}: it looks at {size} pixels a side, not {side}")


def _plan_of(config: Config) -> DetectorSchedule:
    """The config's own part of it."""
    return DetectorSchedule(**{field.name: getattr(config, field.name) for field in fields(DetectorSchedule)})


def _methods(config: Config) -> list[str]:
    return [method for method in ADAPTATIONS if method != "selfplay" or config.detectors]


def _asked(config: Config) -> list[tuple[str, str, int]]:
    """Every run: order, method, seed. Detectors from self-play, and the rival, meet new families alone."""
    return [
        (order, method, seed)
        for order in config.orders
        for method in _methods(config)
        for seed in seeds_of(config)
        if method not in FROM_PARTS or ORDERS[order].new in UNSEEN
    ]


def _counts(config: Config, family: str) -> tuple[int, int]:
    """Clips of a family to train on, none of one that nobody trains on, and to test with."""
    if family == REAL_FOOTAGE:
        return REALS[0] * config.fakes, REALS[1] * config.test
    trained = any(family in (*ORDERS[order].known, ORDERS[order].new) for order in config.orders)
    return config.fakes if trained else 0, config.test


def _league(config: Config, seed: int) -> Path:
    return Path(config.detectors or "") / f"league-{seed}"


def _name(order: str, what: str, seed: int) -> str:
    return f"{order}-{what}-{seed}"
