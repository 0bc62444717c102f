"""`reelgym agents`: do agents of other libraries learn in the environments? Against random, the best fixed setting and
an informed planner, over seeds, judged on held-out prompts by the reward and by the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..agents.recipes import AGENT_RECIPES, AGENTS, DETECT, STEER
from .evaluate import EvalConfig
from .jobs import Job
from .learning.runs import FIXED_POLICIES, AgentBudget, AgentTask, work
from .learning.tables import COLUMNS, agent_curves_svg, agent_rows, report
from .options import StudyOptions
from .study import Results, Study, run_study
from .tables import Row

__all__ = ["COLUMNS", "Config", "report", "run"]
PICTURES = tuple(f"{env.split('/')[1]}.svg" for env in (STEER, DETECT))


@dataclass(frozen=True)
class AgentPreset:
    """How much, and over how many seeds. single: rows that run with the first seed alone."""

    budget: AgentBudget = field(default_factory=AgentBudget)
    seeds: int = 5
    single: tuple[str, ...] = ("tianshou-ppo", "planner")


_PAIR = EvalConfig(prompts=2, clips=1, long_prompts=0)
SMOKE = AgentBudget(_PAIR, replace(_PAIR, split="validation"), clips=64, steps=256, points=1)
AGENT_PRESETS = {"standard": AgentPreset(), "smoke": AgentPreset(SMOKE, 1)}


@dataclass(frozen=True)
class Config(StudyOptions):
    """What is run; a run that was killed goes on with the jobs that are not finished."""

    preset: Literal["standard", "smoke"] = "standard"
    """standard: evidence, in less than 45 minutes on two cores. smoke: only shows that everything runs."""
    out: Path | None = None
    """Folder for results.json, the curves, the agents and the jobs; runs/agents-PRESET by default."""


def cells(config: Config) -> dict[tuple[str, str], list[AgentTask]]:
    """The tasks of every line of the tables, an environment and a row, one a seed."""
    preset = AGENT_PRESETS[config.preset]

    def tasks(env: str, row: str) -> list[AgentTask]:
        seeds = _seeds_of(config)[: 1 if row in preset.single else None]
        return [AgentTask(row, env, seed, preset.budget, config.spec) for seed in seeds]

    rows = {
        env: [*FIXED_POLICIES[env], *(name for name in AGENTS if (name, env) in AGENT_RECIPES)]
        for env in (STEER, DETECT)
    }
    return {(env, row): tasks(env, row) for env in rows for row in rows[env]}


def _seeds_of(config: Config) -> list[int]:
    """Of the rows that run with all."""
    return list(range(config.seed, config.seed + AGENT_PRESETS[config.preset].seeds))


def jobs(config: Config, results: Results) -> list[Job]:
    """One a cell; baselines that search nothing are soon done."""
    quick = {name for baselines in FIXED_POLICIES.values() for name in baselines} - {"fixed", "planner"}
    return [
        Job(task.name, task, 1.0 if row in quick else 2.0)
        for (_, row), tasks in cells(config).items()
        for task in tasks
    ]


def rows(config: Config, results: Results) -> Sequence[Row]:
    """See `table_rows`."""
    found = {cell: [results[task.name][1] for task in tasks] for cell, tasks in cells(config).items()}
    return agent_rows(found, _seeds_of(config))


def settings(config: Config, results: Results) -> dict[str, Any]:
    """Of results.json: the sizes, and the recipes of the libraries."""
    recipes = {f"{name} in {env}": asdict(recipe) for (name, env), recipe in AGENT_RECIPES.items()}
    return asdict(config) | {"size": asdict(AGENT_PRESETS[config.preset]), "recipes": recipes}


STUDY = Study("agents", work, jobs, rows, lambda found: report(found["rows"]), settings, _seeds_of)


def run(config: Config) -> None:
    """Train, examine, report."""
    done = run_study(STUDY, config)
    for env, name in zip((STEER, DETECT), PICTURES, strict=True):
        (done.out / name).write_text(agent_curves_svg(done.rows, env) + "\n")
