"""`reelgym bench adaptation`: a detector knows some families of fakes, a new one appears. How many of its clips, and
how many seconds of sampling and training, until it is told apart as well as after a full retrain? What is forgotten?"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from ...agents.detection import DetectionConfig
from ...checkpoint import sha256_file
from ...envs.worlds.scene import SIDE
from ...models.tiny import WEIGHTS, load_tiny
from ..jobs import Job, one_thread, run_jobs
from ..league.dataset import UNSEEN
from ..pretrain.footage import REAL
from ..results import command_line, write_results
from ..runs import fingerprint
from .adaptation_clips import FAMILIES, ClipsTask
from .adaptation_runs import (
    FROM_PARTS,
    METHODS,
    ORDERS,
    BaseTask,
    Plan,
    RunTask,
    clips_job,
    rungs,
    work,
)
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
class Config:
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
    weights: Path | None = None
    """Folder of a pretrained stack; by default the shipped one."""
    device: Literal["cpu"] = "cpu"
    """All runs on the CPU."""
    out: Path = Path("runs/bench-adaptation")
    """Folder for results.json, the curves and the jobs."""


def run(config: Config) -> None:
    """Make the clips, train on what is known, meet what is new, report."""
    plan = _plan(config)
    workers = config.workers or min(2, os.cpu_count() or 1)
    minutes = core_seconds(config) / workers / 60
    print(f"bench adaptation: about {minutes:.0f} minutes on {workers} idle cores", file=sys.stderr)
    jobs, made_from = config.out / "jobs", _made_from(config)
    stages = [_clips(config, made_from), _bases(config, plan, made_from), _runs(config, plan, made_from)]
    with tqdm(total=sum(map(len, stages)), desc="bench adaptation", unit="job", file=sys.stderr) as bar:
        how: dict[str, Any] = {"workers": workers, "done": lambda name: bar.update(), "tick": bar.refresh}
        for stage in stages:
            results = run_jobs(stage, work, jobs, **how)
    runs = {(order, method, seed): results[_name(order, method, seed)][1] for order, method, seed in _asked(config)}
    rows = table_rows(runs, config.orders, _methods(config), _seeds(config))
    settings = asdict(config) | {"workers": workers, "plan": asdict(plan), "rungs": rungs(config.fakes)}
    with one_thread():
        command = command_line(["reelgym", "bench", "adaptation"], config)
        written = write_results(config.out, command, _seeds(config), settings, rows)
    (config.out / PICTURE).write_text(curves_svg(rows) + "\n")
    print(f"{report(rows)}\n\nresults: {written}\ncurves: {config.out / PICTURE}")


def core_seconds(config: Config) -> float:
    """About what the whole takes one idle core."""
    clips = sum(FAMILIES[name].pace * sum(_counts(config, name)) for name in _families(config))
    clips += sum(FAMILIES[name].updates * RL_UPDATE for name in _families(config))
    rounds = (len(rungs(config.fakes)) - 1) * config.rung + config.last
    going = [method for method in _methods(config) if method in GOING_ON]
    updates = 2 * config.scratch + len(going) * rounds
    looks = 2 + (1 + len(going)) * rounds // config.every
    per_seed = updates * 2 * config.batch * UPDATE + (1 + len(_methods(config))) * LOADED
    films = sum(LOOK * config.test * (REALS[1] + len(ORDERS[order].families)) for order in config.orders)
    return clips + config.seeds * (len(config.orders) * per_seed + looks * films)


def _plan(config: Config) -> Plan:
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
    for seed in _seeds(config) if config.detectors else ():
        size = load_tiny("rival", _league(config, seed)).size
        if size != SIDE // detection.pool:
            raise ValueError(f"{_league(config, seed)}: it looks at {size} pixels a side, not {SIDE // detection.pool}")
    sizes = {name: getattr(config, name) for name in ("scratch", "rung", "last", "every", "fakes", "test")}
    return Plan(detection, **sizes)


def _seeds(config: Config) -> list[int]:
    return list(range(config.seed, config.seed + config.seeds))


def _methods(config: Config) -> list[str]:
    return [method for method in METHODS if method != "selfplay" or config.detectors]


def _asked(config: Config) -> list[tuple[str, str, int]]:
    """Every run: order, method, seed. Detectors from self-play, and the rival, meet new families alone."""
    return [
        (order, method, seed)
        for order in config.orders
        for method in _methods(config)
        for seed in _seeds(config)
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


def _clips(config: Config, made_from: str) -> list[Job]:
    weights = "" if config.weights is None else str(config.weights)
    return [
        Job(
            clips_job(name),
            ClipsTask(name, *_counts(config, name), weights, made_from),
            FAMILIES[name].pace * sum(_counts(config, name)),
        )
        for name in _families(config)
    ]


def _bases(config: Config, plan: Plan, made_from: str) -> list[Job]:
    folder = str(config.out / "jobs")
    return [
        Job(_name(order, "base", seed), BaseTask(ORDERS[order], seed, plan, folder, made_from))
        for order in config.orders
        for seed in _seeds(config)
    ]


def _runs(config: Config, plan: Plan, made_from: str) -> list[Job]:
    folder = config.out / "jobs"
    costs = {"frozen": 0.0, "retrain": float(config.scratch)}
    jobs = []
    for order, method, seed in _asked(config):
        start, made = ("", made_from) if method == "retrain" else (str(folder / _name(order, "base", seed)), made_from)
        if method in FROM_PARTS:
            start = str(_league(config, seed) if method == "selfplay" else (config.weights or WEIGHTS) / "rival")
            made = made_from + sha256_file(Path(start) / "weights.safetensors")
        task = RunTask(method, ORDERS[order], seed, plan, str(folder), start, made)
        jobs.append(Job(_name(order, method, seed), task, costs.get(method, 100.0)))
    return jobs


def _league(config: Config, seed: int) -> Path:
    return Path(config.detectors or "") / f"league-{seed}"


def _name(order: str, what: str, seed: int) -> str:
    return f"{order}-{what}-{seed}"


def _made_from(config: Config) -> str:
    """Hash of the code and the weights that a result depends on."""
    digest = hashlib.sha256(fingerprint(config.weights or WEIGHTS).encode())
    for part in ("clips", "runs"):
        digest.update(Path(__file__).with_name(f"adaptation_{part}.py").read_bytes())
    return digest.hexdigest()
