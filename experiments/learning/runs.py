"""What one worker of `reelgym agents` does: one row of one environment's table with one seed.

A row is an agent that learns (a name in agents.recipes.AGENTS), or something that it is held against.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import gymnasium
import torch
from torch import Tensor

from ...agents.recipes import AGENT_RECIPES, DETECT, STEER
from ...agents.saved import Agent, library_of
from ...envs.stack import StackSpec
from ...envs.stream_detect import FAKE, REAL
from ...envs.worlds.fakes import FAKES
from ...noise import SeedDomain
from ..evaluate import EvalConfig
from ..jobs import Result
from . import detecting, steering
from .detecting import Act

Build = Callable[[Any], Act]
"""From the environment of the exam to what acts in it."""
_WIDTH = 64
"""Rows of the search for a fixed setting, and of StreamDetect's exam."""


@dataclass(frozen=True)
class AgentBudget:
    """How much of everything."""

    exam: EvalConfig = field(default_factory=lambda: EvalConfig(prompts=64, clips=2, long_prompts=0))
    """Test prompts of StreamSteer."""
    validation: EvalConfig = field(
        default_factory=lambda: EvalConfig(prompts=24, clips=1, long_prompts=0, split="validation")
    )
    """Prompts of its learning curve."""
    clips: int = 1024
    """Of StreamDetect's test dataset; a quarter as many are in the one for its learning curve."""
    steps: int | None = None
    """Of training and of the search for a fixed setting; None: the recipes' own."""
    points: int = 6
    """Of the learning curve."""


@dataclass(frozen=True)
class AgentTask:
    """One cell: a row, an environment and a seed."""

    row: str
    env: str
    seed: int
    budget: AgentBudget
    stack: StackSpec

    @property
    def name(self) -> str:
        """Of the job."""
        return f"{self.env.split('/')[1]}-{self.row}-{self.seed}"

    def make(self, rows: int, **options: Any) -> Any:
        """The environment, vectorised; `autoreset_mode` and the rest as options."""
        return gymnasium.make_vec(self.env, num_envs=rows, preset=self.stack.stack, **options)

    def exam_env(self, rows: int, **options: Any) -> Any:
        """One that is reset by whoever plays in it."""
        return self.make(rows, autoreset_mode="Disabled", check=False, **options)


def work(task: AgentTask) -> Result:
    """Do a task: the weights of an agent, and per prompt or clip what the exam found, with the curve of a training."""
    started = time.perf_counter()
    baseline = FIXED_POLICIES[task.env].get(task.row)
    if baseline:
        exam = _evaluated(task, lambda env: baseline(task, env), "test")
        return {}, {"exam": exam, "curve": [], "seconds": time.perf_counter() - started}
    groups, result = trained(task)
    return groups, result | {"seconds": time.perf_counter() - started}


def trained(task: AgentTask) -> Result:
    """An agent that learns."""
    recipe = AGENT_RECIPES[task.row, task.env]
    library, steps = library_of(recipe), task.budget.steps or recipe.steps
    curve: list[dict[str, float]] = []

    def note(agent: Agent, done: int) -> None:
        earned = _evaluated(task, lambda env: agent.act, "validation")["reward"]
        curve.append({"steps": done, "reward": sum(earned) / len(earned)})

    vector = task.make(recipe.streams, autoreset_mode=library.AUTORESET, **recipe.env)
    every = max(1, steps // task.budget.points)
    agent = library.learn(recipe, vector, task.seed, steps=steps, call=note, every=every)
    exam = _evaluated(task, lambda env: agent.act, "test")
    return {"policy": agent.tensors()}, {"exam": exam, "curve": curve, "steps": steps}


def _evaluated(task: AgentTask, build: Build, split: str) -> dict[str, list[float]]:
    """The exam on "test", or its small sister on "validation"."""
    test, budget = split == "test", task.budget
    if task.env == STEER:
        exam = budget.exam if test else budget.validation
        env = task.exam_env(exam.prompts * exam.clips, split=split, chunks=exam.chunks)
        return steering.evaluated_steering(
            env, build(env), exam, SeedDomain.TESTS + task.seed if test else SeedDomain.TESTS - 1
        )
    clips, families = (budget.clips, {"families": tuple(FAKES)}) if test else (budget.clips // 4, {})
    env = task.exam_env(min(_WIDTH, clips), split=split, clips=clips, **families)
    return detecting.evaluated(env, build(env))


def unsteered(task: AgentTask, env: Any) -> Act:
    """The generator as it ships: all its steps, no guidance, all of the past, noise left alone."""
    return constant(steering.setting(env, len(env.generator.sigmas)))


def random_steering(task: AgentTask, env: Any) -> Act:
    """Actions drawn evenly from the space."""
    random = torch.Generator().manual_seed(task.seed)
    return lambda seen: 2 * torch.rand(len(seen), *env.single_action_space.shape, generator=random) - 1


def fixed_steering(task: AgentTask, env: Any) -> Act:
    """The action that earned most when always taken, searched with as many steps as an agent learns with."""
    return constant(_searched(replace(task, seed=0)))


@lru_cache(maxsize=1)
def _searched(task: AgentTask) -> Tensor:
    """One search serves all seeds that a worker examines."""
    steps = task.budget.steps or max(recipe.steps for (_, env), recipe in AGENT_RECIPES.items() if env == STEER)
    rows = min(_WIDTH, max(1, steps // (steering.HALVING * task.budget.exam.chunks)))
    return steering.best_fixed(task.make(rows), steps, seed=0)


def planner(task: AgentTask, env: Any) -> Act:
    """Tries six settings in forks of the exam before every chunk; it sees the noise to come."""
    levels = len(env.generator.sigmas)
    plain = [steering.setting(env, steps) for steps in range(1, levels + 1)]
    guided = [steering.setting(env, steps, 0.5) for steps in range(max(1, levels - 1), levels + 1)]
    return steering.planned(env, torch.stack(plain + guided), steering.setting(env, max(1, levels - 1)))


def random_verdicts(task: AgentTask, env: Any) -> Act:
    """Waits, says real or says fake, as it comes."""
    random = torch.Generator().manual_seed(task.seed)
    return lambda seen: torch.randint(3, (len(seen),), generator=random)


def fixed_verdict(task: AgentTask, env: Any) -> Act:
    """The moment and the verdict that earned most on the training dataset when always taken."""
    options = AGENT_RECIPES["sb3-ppo", DETECT].env
    training = task.exam_env(min(_WIDTH, options["clips"]), **options)
    rules = [(moment, verdict) for moment in range(training.chunks) for verdict in (REAL, FAKE)]
    best = max(rules, key=lambda one: sum(detecting.evaluated(training, detecting.rule(training, *one))["reward"]))
    return detecting.rule(env, *best)


def informed(task: AgentTask, env: Any) -> Act:
    """Knows the label and says it at once."""
    return lambda seen: torch.where(env.dataset.label[env.state.clip], FAKE, REAL)


def constant(action: Tensor) -> Act:
    """The same action in every row."""
    return lambda seen: action.expand(len(seen), -1)


FIXED_POLICIES: dict[str, dict[str, Callable[[AgentTask, Any], Act]]] = {
    STEER: {
        "unsteered": unsteered,
        "random": random_steering,
        "fixed": fixed_steering,
        "by-hand": lambda task, env: steering.by_hand(env),
        "planner": planner,
    },
    DETECT: {"random": random_verdicts, "fixed": fixed_verdict, "informed": informed},
}
"""Rows that do not learn."""
