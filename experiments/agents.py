"""`reelgym agents`: do agents of other libraries learn in the environments? Against random, the best fixed setting and
an informed planner, over seeds, judged on held-out prompts by the reward and by the oracle."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from ..agents.recipes import AGENTS, DETECT, RECIPES, STEER
from ..models.tiny import WEIGHTS
from .evaluate import Exam
from .jobs import Job, one_thread, run_jobs
from .learning.runs import BASELINES, AgentTask, work
from .learning.tables import COLUMNS, curves_svg, report, table_rows
from .results import command_line, write_results
from .runs import fingerprint

__all__ = ["COLUMNS", "Config", "report", "run"]
ROOT = Path(__file__).resolve().parent / "learning"


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    seeds: int = 5
    exam: Exam = field(default_factory=lambda: Exam(prompts=64, clips=2, long_prompts=0))
    validation: Exam = field(default_factory=lambda: Exam(prompts=24, clips=1, long_prompts=0, split="validation"))
    clips: int = 1024
    """Of StreamDetect's test bank."""
    steps: int | None = None
    """Of training; None: the recipes' own."""
    points: int = 6
    single: tuple[str, ...] = ("tianshou-ppo", "planner")
    """Rows that run with the first seed alone."""


SIZES = {
    "standard": Size(),
    "smoke": Size(
        seeds=1,
        exam=Exam(prompts=2, clips=1, long_prompts=0),
        validation=Exam(prompts=2, clips=1, long_prompts=0, split="validation"),
        clips=64,
        steps=256,
        points=1,
    ),
}
"""standard: evidence, in less than 45 minutes on two cores. smoke: only shows that everything runs."""


@dataclass(frozen=True)
class Config:
    """What is run; a run that was killed goes on with the jobs that are not finished."""

    preset: Literal["standard", "smoke"] = "standard"
    """standard: evidence, in less than 45 minutes on two cores. smoke: only shows that everything runs."""
    seed: int = 0
    """The first of the seeds."""
    device: Literal["cpu"] = "cpu"
    """The agents learn on the CPU."""
    out: Path | None = None
    """Folder for results.json, the curves, the agents and the jobs; runs/agents-PRESET by default."""
    workers: int | None = None
    """Processes of one thread each; by default 2, or as many as there are cores."""
    weights: str = "tiny"
    """A preset of the environments, or a folder with codec, reward and student."""


def run(config: Config) -> None:
    """Train, examine, report."""
    size, out = SIZES[config.preset], config.out or Path("runs") / f"agents-{config.preset}"
    seeds = range(config.seed, config.seed + size.seeds)
    jobs = [_job(config, size, env, row, seed) for env, row in rows_of_all() for seed in _seeds(size, row, seeds)]
    workers = config.workers or min(2, os.cpu_count() or 1)
    with tqdm(total=len(jobs), desc="agents", unit="job", file=sys.stderr) as bar:
        results = run_jobs(jobs, work, out / "jobs", workers=workers, done=lambda name: bar.update(), tick=bar.refresh)
    found = {
        (env, row): [results[_name(env, row, seed)][1] for seed in _seeds(size, row, seeds)]
        for env, row in rows_of_all()
    }
    rows = table_rows(found, list(seeds))
    settings: dict[str, Any] = {"preset": config.preset, "workers": workers, "weights": config.weights}
    settings["size"] = asdict(size)
    settings["recipes"] = {f"{name} in {env}": asdict(recipe) for (name, env), recipe in RECIPES.items()}
    with one_thread():
        write_results(out, command_line(["reelgym", "agents"], config), list(seeds), settings, rows)
    for env in (STEER, DETECT):
        (out / f"{env.split('/')[1]}.svg").write_text(curves_svg(rows, env) + "\n")
    print(report(rows))


def rows_of_all() -> list[tuple[str, str]]:
    """(environment, row) of every line of the tables."""
    return [
        (env, row)
        for env in (STEER, DETECT)
        for row in (*BASELINES[env], *(name for name in AGENTS if (name, env) in RECIPES))
    ]


def _seeds(size: Size, row: str, seeds: range) -> range:
    return seeds[:1] if row in size.single else seeds


def _job(config: Config, size: Size, env: str, row: str, seed: int) -> Job:
    sizes = (size.exam, size.validation, size.clips, size.steps, size.points)
    task = AgentTask(row, env, seed, *sizes, preset=config.weights, made_from=_made_from(config))
    quick = row in BASELINES[env] and row not in ("fixed", "planner")
    return Job(_name(env, row, seed), task, cost=1.0 if quick else 2.0)


def _name(env: str, row: str, seed: int) -> str:
    return f"{env.split('/')[1]}-{row}-{seed}"


def _made_from(config: Config) -> str:
    """Hash of the code and the weights that a result depends on."""
    weights = WEIGHTS if config.weights == "tiny" else Path(config.weights)
    digest = hashlib.sha256(fingerprint(weights).encode())
    for name in ("runs", "steering", "detecting"):
        digest.update((ROOT / f"{name}.py").read_bytes())
    return digest.hexdigest()
