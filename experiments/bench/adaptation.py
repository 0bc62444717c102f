"""`reelgym bench adaptation`: a detector knows some families of fakes, a new one appears. How many of its clips, and
how many seconds of sampling and training, until it is told apart as well as after a full retrain? What is forgotten?"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from ...agents.detection import DetectionConfig
from ...envs.worlds.scene import SIDE
from ...models.detector import ClipDetector
from ..console import worker_count
from ..jobs import Job
from ..league.dataset import UNSEEN
from ..options import StackOptions
from ..pretrain.footage import REAL
from ..study import Results, Study, finished, job_folder, run_study, seeds_of, settings_of
from ..tables import Row
from .adaptation_clips import FAMILIES, ClipsTask
from .adaptation_runs import FROM_PARTS, METHODS, ORDERS, BaseTask, Plan, RunTask, clips_job, eval_schedule, work
from .adaptation_tables import COLUMNS, curves_svg, report, table_rows

__all__ = ["COLUMNS", "Config", "report", "run"]
PICTURE = "bench-adaptation.svg"
UPDATE, LOOK = 0.0033, 0.0007
"""Seconds that a clip takes in an update, and in a look, on one idle core."""
RL_UPDATE, LOADED = 1.0, 3.0
"""Seconds of an update of the student by RL; of loading and filming the clips, in each job that trains or looks."""
REALS = (4, 2)
"""How many times more clips of the world there are than of a family, to train on and to test with; they are free."""
GOING_ON = ("finetune", "replay", *FROM_PARTS)


@dataclass(frozen=True)
class Config(StackOptions):
    """What is run; a run that was killed goes on with the jobs that are not finished."""

    orders: tuple[str, ...] = ("student", "ghosting")
    """Which families are known, new and never met; more of them, cut for want of time, are in ORDERS of
    experiments/bench/adaptation_runs.py."""
    seeds: int = 5
    """Detectors of each."""
    seed: int = 0
    """The first of the seeds."""
    detectors: Path | None = None
    """Folder with the detectors that `reelgym selfplay` wrote, league-0, league-1, ..., one for each seed; without it
    that method is left out, and so it and the rival are in orders whose new family a league has met."""
    fakes: int = Plan.fakes
    """Clips of the new family at most; as many of every known one."""
    test: int = Plan.test
    """Clips of a family, of other prompts, on which AUC is taken."""
    scratch: int = Plan.scratch
    """Updates of a training from scratch."""
    rung: int = Plan.rung
    """Updates with 8, 16, 32, ... fakes each."""
    last: int = Plan.last
    """Updates with all of them."""
    every: int = Plan.every
    """Updates between two looks."""
    batch: int = 16
    """Clips of each kind an update."""
    camera: str = "dusk"
    """Through which all clips pass."""
    workers: int | None = None
    """Processes of one thread each; by default 2, or as many as there are cores."""
    device: Literal["cpu"] = "cpu"
    """All runs on the CPU."""
    out: Path = Path("runs/bench-adaptation")
    """Folder for results.json, the curves and the jobs."""


def run(config: Config) -> None:
    """Make the clips, train on what is known, meet what is new, report."""
    plan_of(config)
    workers = worker_count(config.device, config.workers)
    minutes = core_seconds(config) / workers / 60
    print(f"bench adaptation: about {minutes:.0f} minutes on {workers} idle cores", file=sys.stderr)
    done = run_study(STUDY, config)
    (done.out / PICTURE).write_text(curves_svg(done.rows) + "\n")
    print(f"curves: {done.out / PICTURE}")


def jobs(config: Config, results: Results) -> list[Job]:
    """The clips; then, from them, detectors of what is known; then, from those, whoever meets what is new."""
    plan, folder = plan_of(config), job_folder(config)
    paces = {name: FAMILIES[name].pace * sum(_counts(config, name)) for name in _families(config)}
    wanted = [
        Job(clips_job(name), ClipsTask(name, *_counts(config, name), config.spec), pace) for name, pace in paces.items()
    ]
    if not finished(wanted, results):
        return wanted
    wanted += [
        Job(_name(order, "base", seed), BaseTask(ORDERS[order], seed, plan, str(folder), config.spec))
        for order in config.orders
        for seed in seeds_of(config)
    ]
    return [*wanted, *_runs(config, plan, folder)] if finished(wanted, results) else wanted


def _runs(config: Config, plan: Plan, folder: Path) -> Iterator[Job]:
    costs = {"frozen": 0.0, "retrain": float(config.scratch)}
    for order, method, seed in _asked(config):
        starts = {
            "retrain": "",
            "rival": str(config.spec.load().places.get("rival", "")),
            "selfplay": str(_league(config, seed)),
        }
        start = starts.get(method, str(folder / _name(order, "base", seed)))
        task = RunTask(method, ORDERS[order], seed, plan, str(folder), start, config.spec)
        yield Job(_name(order, method, seed), task, costs.get(method, 100.0))


def rows(config: Config, results: Results) -> list[Row]:
    """Those of the tables."""
    runs = {(order, method, seed): results[_name(order, method, seed)][1] for order, method, seed in _asked(config)}
    return table_rows(runs, config.orders, _methods(config), seeds_of(config))


def settings(config: Config, results: Results) -> dict[str, Any]:
    """The config with the plan that it makes."""
    steps = eval_schedule(config.fakes)
    return settings_of(config, results) | {"plan": asdict(plan_of(config)), "rungs": steps}


STUDY = Study("bench adaptation", work, jobs, rows, lambda found: report(found["rows"]), settings)


def core_seconds(config: Config) -> float:
    """About what the whole takes one idle core."""
    clips = sum(FAMILIES[name].pace * sum(_counts(config, name)) for name in _families(config))
    clips += sum(FAMILIES[name].updates * RL_UPDATE for name in _families(config))
    rounds = (len(eval_schedule(config.fakes)) - 1) * config.rung + config.last
    going = [method for method in _methods(config) if method in GOING_ON]
    updates = 2 * config.scratch + len(going) * rounds
    looks = 2 + (1 + len(going)) * rounds // config.every
    per_seed = updates * 2 * config.batch * UPDATE + (1 + len(_methods(config))) * LOADED
    films = sum(LOOK * config.test * (REALS[1] + len(ORDERS[order].families)) for order in config.orders)
    return clips + config.seeds * (len(config.orders) * per_seed + looks * films)


def plan_of(config: Config) -> Plan:
    """What the config asks for; ValueError or CheckpointError where it cannot be."""
    unknown = [name for name in config.orders if name not in ORDERS]
    if unknown or not config.orders:
        raise ValueError(f"unknown order {', '.join(unknown) or 'none'}; choose from {', '.join(ORDERS)}")
    if (
        min(config.seeds, config.fakes, config.test, config.scratch, config.every) < 1
        or min(config.rung, config.last) < config.every
    ):
        raise ValueError(
            "seeds, fakes, test, scratch and every are at least 1, and rung and last are no less than every"
        )
    detection = DetectionConfig(Plan().detection.learner, config.batch, config.camera)
    for seed in seeds_of(config) if config.detectors else ():
        size = cast(ClipDetector, config.spec.load().with_weights(rival=_league(config, seed)).rival).size
        if size != SIDE // detection.pool:
            raise ValueError(f"{_league(config, seed)}: it looks at {size} pixels a side, not {SIDE // detection.pool}")
    sizes = {name: getattr(config, name) for name in ("scratch", "rung", "last", "every", "fakes", "test")}
    return Plan(detection, **sizes)


def _methods(config: Config) -> list[str]:
    return [method for method in METHODS if method != "selfplay" or config.detectors]


def _asked(config: Config) -> list[tuple[str, str, int]]:
    """Every run: order, method, seed. Detectors from self-play, and the rival, meet new families alone."""
    return [
        (order, method, seed)
        for order in config.orders
        for method in _methods(config)
        for seed in seeds_of(config)
        if method not in FROM_PARTS or ORDERS[order].new in UNSEEN
    ]


def _families(config: Config) -> list[str]:
    found = [name for order in config.orders for name in ORDERS[order].families]
    return [REAL, *dict.fromkeys(found)]


def _counts(config: Config, family: str) -> tuple[int, int]:
    """Clips of a family to train on, none of one that nobody trains on, and to test with."""
    if family == REAL:
        return REALS[0] * config.fakes, REALS[1] * config.test
    trained = any(family in (*ORDERS[order].known, ORDERS[order].new) for order in config.orders)
    return config.fakes if trained else 0, config.test


def _league(config: Config, seed: int) -> Path:
    return Path(config.detectors or "") / f"league-{seed}"


def _name(order: str, what: str, seed: int) -> str:
    return f"{order}-{what}-{seed}"
