"""What one worker of `reelgym audit guard` does: let a training hack its reward, or stop it with the guard, and examine
what came of it. P prompts, A axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ...agents.finetune import FineTuneConfig
from ...agents.finetune_recipes import FINETUNE, rate
from ...agents.reward_gradient import RewardGradient
from ...envs.stack import Stack, StackSpec
from ...models.generator import Generator
from ...rewards.stream_reward import RewardSettings, StreamReward
from ...training.guard import GuardConfig, guard_of
from ...training.loop import fit
from ..evaluate import EvalConfig, evaluate, reward_scores
from ..jobs import Result
from ..runs import VALIDATION_NOISE
from ..systems import as_system

Case = Literal["motion", "quality", "text", "all", "forward"]


@dataclass(frozen=True)
class HackingCase:
    """What a case trains on. rate: learning rate. updates: of a run that nobody stops. axes: of the reward, that alone
    are climbed; none: all of them."""

    label: str
    recipe: FineTuneConfig
    rate: float
    updates: int
    axes: tuple[str, ...] = ()


UNREGULARIZED = replace(FINETUNE["reward"], direction=RewardGradient(noise=0.0, shift=0), kl_coef=0.0)
_SINGLE = {"motion": ("motion quality", "MQ"), "quality": ("visual quality", "VQ"), "text": ("text alignment", "TA")}
LABEL = "reward gradient of {} ({}) alone, nothing held back"
CASES: dict[str, HackingCase] = {
    **{name: HackingCase(LABEL.format(*one), UNREGULARIZED, 2e-4, 24, one[1:]) for name, one in _SINGLE.items()},
    "all": HackingCase("reward gradient of all axes, nothing held back", UNREGULARIZED, 4e-4, 16),
    "forward": HackingCase("forward process on all axes, too high a rate", FINETUNE["forward"], 3e-4, 16),
}
HACKED_AXES = ("VQ", "MQ", "TA")


@dataclass(frozen=True)
class GuardTask:
    """One run, or the start: "start", or the end of a run "without" or "with" the guard."""

    end: str
    case: str
    seed: int
    updates: int
    rate: float
    guard: GuardConfig
    exam: EvalConfig
    validation: EvalConfig
    stack: StackSpec


def work(task: GuardTask) -> Result:
    """Train as the task says, then examine. JSON: per-prompt scores of the exam, and the curve of its looks."""
    case = CASES[task.case]
    stack = task.stack.load()
    stack = stack.with_parts(reward=StreamReward(stack.reward.model, RewardSettings(axes=case.axes or None)))
    student = stack.student()
    if task.end == "start":
        return {}, examined(stack, student, task)
    recipe = replace(case.recipe, learner=rate(task.rate), seed=task.seed)
    trainer = recipe.trainer(stack, student)
    watched = task.end == "with"
    guard = guard_of(stack, task.guard if watched else replace(task.guard, patience=10**9), student)
    curve: list[dict[str, Any]] = []

    def note(measured: Mapping[str, float], update: int) -> None:
        if "guard/heldout" in measured:
            looked = {key.removeprefix("guard/"): value for key, value in measured.items() if key.startswith("guard/")}
            curve.append({"update": update, "oracle": measured.get("oracle", begun["oracle"]), **looked})

    def judged() -> dict[str, float]:
        found = evaluate(as_system(stack, student), task.validation, VALIDATION_NOISE, long=False)
        return {"oracle": float(found.scores["total"].mean())}

    def looked() -> dict[str, float]:
        return judged() | guard.evaluate(trainer.counts.updates)

    begun = judged()
    every = task.guard.every
    if watched:
        fit(trainer, task.updates, log=note, evaluate=judged, evaluate_every=every, guard=guard)
    else:
        note(guard.evaluate(0), 0)
        fit(trainer, task.updates, log=note, evaluate=looked, evaluate_every=every)
    ended = {"updates": trainer.counts.updates, "seconds": trainer.counts.seconds, "why": guard.stop_reason}
    kept = guard.best.update if guard.stop_reason and guard.best else trainer.counts.updates
    spent = {"kept": kept, "curve": curve, "guard": asdict(guard.counts)}
    return {}, examined(stack, student, task) | ended | spent


def examined(stack: Stack, student: Generator, task: GuardTask) -> dict[str, Any]:
    """Per test prompt [P] what the oracle finds, and of the same clips each axis of the reward and the held-out one."""
    grades = evaluate(as_system(stack, student), task.exam, task.seed, long=False)
    exam, settings = task.exam, RewardSettings(axes=HACKED_AXES)
    rewards = (StreamReward(model, settings) for model in (stack.reward.model, stack.heldout.model))
    scores = (reward_scores(stack, reward, exam, grades).scores for reward in rewards)
    whole, heldout = (clips.unflatten(0, (exam.prompts, exam.clips)).mean(1) for clips in scores)  # [P, A]
    found = {**grades.scores, "diversity": grades.diversity, "heldout": heldout.mean(1)}
    found |= dict(zip((f"reward {axis}" for axis in HACKED_AXES), whole.unbind(1), strict=True))
    return {"exam": {name: [round(float(value), 6) for value in values] for name, values in found.items()}}
