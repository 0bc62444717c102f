"""What one worker of a comparison does: measure a system, or train the starting student and measure what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..envs.stack import Stack, StackSpec
from ..models.generator import Generator
from ..models.tiny import STEPS
from ..noise import SeedDomain
from ..training.learner import NonFiniteError
from ..training.loop import fit
from ..training.sequence import Stage
from .evaluate import EvalConfig, EvalResult, evaluate, exam_prompts, reward_scores
from .jobs import Result
from .slices import examine_slices
from .systems import VideoModel, as_system, reference

VALIDATION_NOISE = int(SeedDomain.VALIDATION)


@dataclass(frozen=True)
class Task:
    """One cell of a comparison: a row and a seed."""

    row: str
    """A key of REFERENCES or METHODS."""
    seed: int
    """Of the training and of the exam's noise."""
    exam: EvalConfig | None
    """None where only the validation counts (a search for a learning rate)."""
    validation: EvalConfig
    """What the learning curve is measured on."""
    plan: Stage | None = None
    """Recipe and updates; None for REFERENCES."""
    points: int = 4
    """Points of the learning curve after its first, at least 1."""
    shown: int = 0
    """Prompts whose clips are kept for the report."""
    stack: StackSpec = StackSpec()
    """What the student belongs to."""


def work(task: Task) -> Result:
    """Do a task. The result holds per prompt what the exam found, and of a training its counts, curve and log.

    A training that diverges stops at its last finite weights, which are examined; `diverged` is the update that failed.
    A try of a learning rate that diverges ends with an oracle total of 0.
    """
    stack = task.stack.load()
    if task.plan is None:
        return _measured(stack, task)
    student = stack.student()
    trainer = task.plan.recipe.with_seed(task.seed).trainer(stack, student)
    curve, log = list[dict[str, Any]](), list[dict[str, Any]]()

    def look() -> dict[str, float]:
        spent = trainer.counts
        curve.append({"update": spent.updates, "seconds": spent.cpu_seconds, **_validate(stack, task, student)})
        return {}

    look()
    updates = task.plan.updates
    every = -(-updates // task.points)
    note = partial(_noted, log)
    try:
        fit(trainer, updates, log=note, evaluate=look, evaluate_every=every)
        diverged = None
    except NonFiniteError:
        diverged = trainer.counts.updates
        if task.exam is None:
            curve.append({**curve[0], "update": updates, "oracle": 0.0})
    if curve[-1]["update"] < updates:
        look()
        curve[-1]["update"] = updates
    groups: dict[str, dict[str, Tensor]] = {}
    result: dict[str, Any] = {"curve": curve, "log": log, "counts": asdict(trainer.counts), "diverged": diverged}
    result["learning_rate"] = task.plan.recipe.learning_rate
    if task.exam is not None:
        system = as_system(stack, student)
        grades = evaluate(system, task.exam, task.seed, device=stack.device)
        result |= grades_json(grades) | _sliced(stack, system, task.exam, task.seed)
        result |= {"steps": len(student.sigmas), "first_chunk": grades.first_chunk}
        groups = {"weights": student.model.state_dict(), **_media(grades, task)}
    return groups, result


def _measured(stack: Stack, task: Task) -> Result:
    if task.exam is None:
        raise ValueError(f"{task.row} is measured, not trained: give its task an exam")
    system = reference(stack, task.row)
    grades = evaluate(system, task.exam, task.seed, device=stack.device, long=task.row != "teacher")
    groups = _media(grades, task)
    if task.row == "start" and task.shown:
        groups["media"] |= _maps(stack, task.exam, grades, task.shown)
    result = grades_json(grades) | _sliced(stack, system, task.exam, task.seed)
    steps = {"start": len(stack.generator.sigmas), "four-steps": STEPS}
    if task.row in steps:
        result |= {"steps": steps[task.row], "first_chunk": grades.first_chunk}
    if task.row == "four-steps":
        level = _validate(stack, task, stack.generator.with_steps(STEPS))
        result["curve"] = [{"update": 0, "seconds": 0.0, **level}]
    return groups, result


def _sliced(stack: Stack, system: VideoModel, exam: EvalConfig, seed: int) -> dict[str, Any]:
    found = examine_slices(system, exam, seed, device=stack.device)
    slices = {name: {axis: _numbers(score) for axis, score in scores.items()} for name, scores in found.items()}
    return {"slices": slices} if slices else {}


def _noted(log: list[dict[str, Any]], measured: Mapping[str, float], update: int) -> None:
    log.append({"update": update, **measured})


@torch.no_grad()
def _validate(stack: Stack, task: Task, student: Generator) -> dict[str, Any]:
    """The oracle's total, also by prompt, and the trained reward on the same clips of the validation prompts."""
    exam = task.validation
    grades = evaluate(as_system(stack, student), exam, VALIDATION_NOISE, device=stack.device, long=False)
    reward = reward_scores(stack, stack.reward, exam, grades).reward
    total = grades.scores["total"]
    return {"oracle": float(total.mean()), "reward": float(reward.mean()), "scores": _numbers(total)}


def _maps(stack: Stack, exam: EvalConfig, grades: EvalResult, shown: int) -> dict[str, Tensor]:
    """What Stream-R1 would weigh the first clips with."""
    video = grades.video[:shown, 0]
    prompts = exam_prompts(stack, exam, range(0, shown * exam.clips, exam.clips))
    scorer = stack.reward.windowed(stack.layout, stack.codec)
    weights = scorer.weights(video, prompts, stack.codec.grid(video.shape[1])).perplexity
    return {"map/frames": _bytes(video), "map/weights": weights.cpu()}


def _media(grades: EvalResult, task: Task) -> dict[str, dict[str, Tensor]]:
    clips = {f"clips/{task.row}": _bytes(grades.video[: task.shown, 0])}
    if len(grades.long_video):
        clips[f"long/{task.row}"] = _bytes(grades.long_video[: (task.shown + 1) // 2])
    return {"media": clips} if task.shown else {}


def grades_json(grades: EvalResult) -> dict[str, Any]:
    """Grades as JSON holds them: per prompt, without pictures."""
    scores = {axis: _numbers(score) for axis, score in grades.scores.items()}
    parts = {name: _numbers(getattr(grades, name)) for name in ("diversity", "late", "drift")}
    for times, found in grades.further.items():
        parts |= {f"late_{times}": _numbers(found.tail), f"drift_{times}": _numbers(found.drift)}
    return {"scores": scores, **parts, "fps": grades.fps}


def _numbers(values: Tensor) -> list[float]:
    return [round(float(value), 6) for value in values]


def _bytes(video: Tensor) -> Tensor:
    """Video [..., 3, H, W] in [0, 1] as uint8 [..., H, W, 3]."""
    return (video.clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1).cpu().contiguous()
