"""What one worker of `reelgym bench rl` does: train the starting student until it has gained enough, or give up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from ...agents.credit import Credit
from ...agents.finetune import FineTuneConfig
from ...agents.finetune_recipes import FINETUNE
from ...envs.stack import Stack
from ...training.learner import NonFiniteError
from ..evaluate import Exam, examine, reward_scores
from ..jobs import Result
from ..systems import System, as_system, reference

LOOK_NOISE = 1_000_004
"""Of every look: the same for all runs, so that they are paired."""
FIRST_LOOK = 64
OURS = ("reward", "forward", "policy")
BASELINES = ("raven", "flow-grpo", "ddpo")


@dataclass(frozen=True)
class Setting:
    """One way to train. For the estimate, pace: chunks a second with all that training does, on one idle core; arrives:
    chunks after which runs of the committed results had gained half of the gap, mean."""

    label: str
    recipe: FineTuneConfig
    pace: float = 45.0
    arrives: float = math.inf


def _forward(label: str, pace: float = 45.0, **changes: Any) -> Setting:
    return Setting(f"forward, {label}", replace(FINETUNE["forward"], **changes), pace)


SETTINGS = {
    "reward": Setting("reward gradient (ours)", FINETUNE["reward"], 21, 544),
    "forward": Setting("forward process (ours)", FINETUNE["forward"]),
    "policy": Setting("policy gradient (ours)", FINETUNE["policy"]),
    "raven": Setting("whole-video groups (RAVEN)", FINETUNE["raven"], 28),
    "flow-grpo": Setting("Flow-GRPO SDE", FINETUNE["flow-grpo"], 28),
    "ddpo": Setting("DDPO", FINETUNE["ddpo"], 20),
    "forward-own": _forward("own prefix", prefix="own"),
    "forward-clip": _forward("whole-clip score", prefix="own", credit=Credit(reach="clip")),
    "forward-full": _forward("full continuations", 39, prefix="full"),
    "forward-critic": _forward("critic for what follows", 43, credit=Credit(bootstrap=True)),
    "forward-perplexity": _forward("perplexity", 19, credit=Credit(perplexity=True)),
    "forward-placebo": _forward("placebo (other clips' rewards)", credit=Credit(placebo=True)),
    "policy-own": Setting("policy, own prefix", replace(FINETUNE["policy"], prefix="own")),
}
"""What can be run. Ours share prefixes and credit the window; each "forward, ..." changes that in one way."""


@dataclass(frozen=True)
class ReferenceTask:
    """Measure "start" or "teacher": one look, and the exam with the noise of every seed."""

    row: str
    seeds: tuple[int, ...]
    look: Exam
    exam: Exam
    weights: str = ""
    """Folder of the pretrained stack; empty: the shipped one."""
    device: str = "cpu"
    made_from: str = ""
    """Hash of code and weights."""


@dataclass(frozen=True)
class RunTask:
    """Train with one setting and one seed."""

    recipe: FineTuneConfig
    seed: int
    """Of the training and of the exam's noise."""
    goal: float
    """Mean oracle total of a look that counts as arrived."""
    chunks: int
    """Generated at most."""
    look: Exam
    exam: Exam | None
    """None where a learning rate is tried: then there is one look, at the end."""
    weights: str = ""
    device: str = "cpu"
    made_from: str = ""


def with_rate(recipe: FineTuneConfig, factor: float) -> FineTuneConfig:
    """The recipe at so many times its learning rate."""
    learner = replace(recipe.learner, learning_rate=factor * recipe.learner.learning_rate)
    return replace(recipe, learner=learner)


def ladder(chunks: int) -> list[int]:
    """Chunk counts at which a run is looked at: 64, 96, 128, 192, 256, ... and `chunks` itself, the last."""
    doublings = range(max(chunks // FIRST_LOOK, 1).bit_length())
    rungs = sorted(first << power for first in (FIRST_LOOK, FIRST_LOOK * 3 // 2) for power in doublings)
    return [rung for rung in rungs if rung < chunks] + [chunks]


def arrival(looks: Sequence[Mapping[str, Any]], goal: float) -> Mapping[str, Any] | None:
    """The first look whose oracle total reaches the goal."""
    return next((look for look in looks if look["oracle"] >= goal), None)


def work(task: ReferenceTask | RunTask) -> Result:
    """Do a task; the result holds looks, and of every exam totals and diversity per prompt."""
    return {}, _trained(task) if isinstance(task, RunTask) else _measured(task)


def _measured(task: ReferenceTask) -> dict[str, Any]:
    stack = _stack(task.weights, task.device)
    system = reference(stack, task.row)
    exams = [_sat(stack, system, task.exam, seed) for seed in task.seeds]
    return {"looks": [looked(stack, system, task.look)], "exams": exams}


def _trained(task: RunTask) -> dict[str, Any]:
    """A run that diverges keeps its last finite weights; it is not looked at again, and sits the exam with them."""
    stack, recipe = _stack(task.weights, task.device), replace(task.recipe, seed=task.seed)
    student = stack.student()
    trainer = recipe.trainer(stack, student)
    system, counts = as_system(stack, student), trainer.counts
    rungs = [task.chunks] if task.exam is None else ladder(task.chunks)
    looks, diverged = list[dict[str, Any]](), False
    while rungs and not arrival(looks, task.goal) and not diverged:
        try:
            trainer.update()
        except NonFiniteError:
            diverged = True
        passed = [rung for rung in rungs if rung <= counts.chunks]
        if passed and not diverged:
            rungs = rungs[len(passed) :]
            spent = {"rung": passed[-1], "chunks": counts.chunks, "seconds": counts.seconds}
            looks.append(spent | looked(stack, system, task.look))
    spent = {"chunks": counts.chunks, "seconds": counts.seconds, "updates": counts.updates, "diverged": diverged}
    exam = {} if task.exam is None else {"exam": _sat(stack, system, task.exam, task.seed)}
    return {"looks": looks, **exam, **spent}


def looked(stack: Stack, system: System, exam: Exam) -> dict[str, float | None]:
    """Means over the clips of a look: the oracle, and rewards: the one that is trained on and the held-out one."""
    grades = examine(system, exam, LOOK_NOISE, device=stack.device, long=False)
    axes = {"oracle": "total", "vq": "VQ", "mq": "MQ", "ta": "TA"}
    found: dict[str, float | None] = {name: float(grades.scores[axis].mean()) for name, axis in axes.items()}
    heldout = stack.heldout if stack.has("heldout") else None
    return found | {
        "diversity": float(grades.diversity.mean()),
        "reward": float(reward_scores(stack, stack.reward, exam, grades).reward.mean()),
        "heldout": None if heldout is None else float(reward_scores(stack, heldout, exam, grades).reward.mean()),
    }


def _sat(stack: Stack, system: System, exam: Exam, seed: int) -> dict[str, list[float]]:
    grades = examine(system, exam, seed, device=stack.device, long=False)
    return {"total": grades.scores["total"].tolist(), "diversity": grades.diversity.tolist()}


@lru_cache(maxsize=1)
def _stack(weights: str, device: str) -> Stack:
    return Stack.load(weights or "tiny", device)
