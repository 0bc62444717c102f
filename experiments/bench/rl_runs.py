"""What one worker of `reelgym bench rl` does: train the starting student until it has gained enough, or give up."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from ...agents.advantage import AdvantageEstimator
from ...agents.finetune_recipes import FINETUNE
from ...envs.stack import Stack, StackSpec
from ...noise import SeedDomain
from ...training.learner import NonFiniteError
from ...training.recipe import Recipe, find_recipe
from ..evaluate import EvalConfig, evaluate, reward_scores
from ..jobs import Result
from ..systems import VideoModel, as_system, reference

"""Of every look: the same for all runs, so that they are paired."""
FIRST_LOOK = 64
OURS = ("reward", "forward", "policy")
BASELINES = ("raven", "flow-grpo", "ddpo")


@dataclass(frozen=True)
class Setting:
    """One way to train. For the estimate, pace: chunks a second with all that training does, on one idle core; arrives:
    chunks after which runs of the committed results had gained half of the gap, mean."""

    label: str
    recipe: Recipe
    pace: float = 45.0
    arrives: float = math.inf


def _forward(label: str, pace: float = 45.0, **changes: Any) -> Setting:
    return Setting(f"forward, {label}", replace(FINETUNE["forward"], **changes), pace)


RL_SETTINGS = {
    "reward": Setting("reward gradient (ours)", FINETUNE["reward"], 21, 544),
    "forward": Setting("forward process (ours)", FINETUNE["forward"]),
    "policy": Setting("policy gradient (ours)", FINETUNE["policy"]),
    "raven": Setting("whole-video groups (RAVEN)", FINETUNE["raven"], 28),
    "flow-grpo": Setting("Flow-GRPO SDE", FINETUNE["flow-grpo"], 28),
    "ddpo": Setting("DDPO", FINETUNE["ddpo"], 20),
    "forward-own": _forward("own prefix", prefix="own"),
    "forward-clip": _forward("whole-clip score", prefix="own", advantage=AdvantageEstimator(returns="episode")),
    "forward-full": _forward("full continuations", 39, prefix="full"),
    "forward-critic": _forward("critic for what follows", 43, advantage=AdvantageEstimator(bootstrap=True)),
    "forward-perplexity": _forward("perplexity", 19, advantage=AdvantageEstimator(perplexity=True)),
    "forward-placebo": _forward(
        "placebo (other clips' rewards)", advantage=AdvantageEstimator(shuffle_advantages=True)
    ),
    "policy-own": Setting("policy, own prefix", replace(FINETUNE["policy"], prefix="own")),
}
"""What can be run. Ours share prefixes and credit the window; each "forward, ..." changes that in one way."""


def setting_of(name: str) -> Setting:
    """One of SETTINGS, or a recipe of one's own by import path or installed name; ValueError for anything else."""
    if name in RL_SETTINGS:
        return RL_SETTINGS[name]
    try:
        return Setting(name, find_recipe(name, {}))
    except ValueError as error:
        known = ", ".join(RL_SETTINGS)
        raise ValueError(f"unknown setting {name}; choose from {known}, or give a recipe module:name") from error


@dataclass(frozen=True)
class ReferenceTask:
    """Measure "start" or "teacher": one look, and the exam with the noise of every seed."""

    row: str
    seeds: tuple[int, ...]
    look: EvalConfig
    exam: EvalConfig
    stack: StackSpec = StackSpec()


@dataclass(frozen=True)
class RunTask:
    """Train with one recipe and one seed."""

    recipe: Recipe
    seed: int
    """Of the training and of the exam's noise."""
    target: float
    """Mean oracle total of a look that counts as arrived."""
    chunks: int
    """Generated at most."""
    look: EvalConfig
    exam: EvalConfig | None
    """None where a learning rate is tried: then there is one look, at the end."""
    stack: StackSpec = StackSpec()


def eval_schedule(chunks: int) -> list[int]:
    """Chunk counts at which a run is looked at: 64, 96, 128, 192, 256, ... and `chunks` itself, the last."""
    doublings = range(max(chunks // FIRST_LOOK, 1).bit_length())
    steps = sorted(first << power for first in (FIRST_LOOK, FIRST_LOOK * 3 // 2) for power in doublings)
    return [step for step in steps if step < chunks] + [chunks]


def work(task: ReferenceTask | RunTask) -> Result:
    """Do a task; the result holds looks, and of every exam totals and diversity per prompt."""
    stack = task.stack.load()
    if isinstance(task, RunTask):
        return {}, _trained(task, stack)
    system = reference(stack, task.row)
    exams = [_sat(stack, system, task.exam, seed) for seed in task.seeds]
    return {}, {"looks": [looked(stack, system, task.look)], "exams": exams}


def _trained(task: RunTask, stack: Stack) -> dict[str, Any]:
    """A run that diverges keeps its last finite weights; it is not looked at again, and sits the exam with them."""
    student = stack.student()
    trainer = task.recipe.with_seed(task.seed).trainer(stack, student)
    system, counts = as_system(stack, student), trainer.counts
    steps = [task.chunks] if task.exam is None else eval_schedule(task.chunks)
    looks, diverged = list[dict[str, Any]](), False
    while steps and not diverged and not any(look["oracle"] >= task.target for look in looks):
        try:
            trainer.update()
        except NonFiniteError:
            diverged = True
        passed = [step for step in steps if step <= counts.chunks]
        if passed and not diverged:
            steps = steps[len(passed) :]
            spent = {"rung": passed[-1], "chunks": counts.chunks, "seconds": counts.seconds}
            looks.append(spent | looked(stack, system, task.look))
    spent = {"chunks": counts.chunks, "seconds": counts.seconds, "updates": counts.updates, "diverged": diverged}
    exam = {} if task.exam is None else {"exam": _sat(stack, system, task.exam, task.seed)}
    return {"looks": looks, **exam, **spent}


def looked(stack: Stack, system: VideoModel, exam: EvalConfig) -> dict[str, float | None]:
    """Means over the clips of a look: the oracle, and rewards: the one that is trained on and the held-out one."""
    grades = evaluate(system, exam, SeedDomain.POINTS, device=stack.device, long=False)
    axes = {"oracle": "total", "vq": "VQ", "mq": "MQ", "ta": "TA"}
    found: dict[str, float | None] = {name: float(grades.scores[axis].mean()) for name, axis in axes.items()}
    rewards = {"reward": stack.reward, "heldout": stack.heldout if stack.has("heldout") else None}
    found["diversity"] = float(grades.diversity.mean())
    return found | {
        name: None if model is None else float(reward_scores(stack, model, exam, grades).reward.mean())
        for name, model in rewards.items()
    }


def _sat(stack: Stack, system: VideoModel, exam: EvalConfig, seed: int) -> dict[str, list[float]]:
    grades = evaluate(system, exam, seed, device=stack.device, long=False)
    return {"total": grades.scores["total"].tolist(), "diversity": grades.diversity.tolist()}
