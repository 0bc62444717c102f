"""What one worker of a comparison does: measure a system, or train the starting student and measure what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ..envs.stack import Stack, StackSpec
from ..models.generator import Generator
from ..models.lora import AdapterConfig
from ..models.lora_files import lora_weights
from ..models.tiny import STEPS
from ..noise import SeedDomain
from ..training.learner import NonFiniteError
from ..training.loop import fit
from ..training.sequence import Stage
from .evaluate import EvalConfig, EvalResult, evaluate, exam_prompts, reward_scores
from .evaluation.judged import judged, judged_real
from .jobs import Result
from .slices import examine_slices
from .systems import VideoModel, as_system, reference

VALIDATION_NOISE = int(SeedDomain.VALIDATION)
LOST = -1e6
"""Total of a try that diverged, where another than the oracle judges."""
_WIDEST = 160
"""Pixels of a side of what a report shows, at most."""


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
    adapter: AdapterConfig | None = None
    """What trains in place of the student's weights, where anything does."""
    videos: str = ""
    """Folder for the clips of the exam as files, where another than the oracle judges; empty: none."""

    @property
    def level(self) -> str:
        """What the total on validation prompts is called in a learning curve."""
        return "oracle" if self.validation.judge == "oracle" else "judged"


def work(task: Task) -> Result:
    """Do a task. The result holds per prompt what the exam found, and of a training its counts, curve and log.

    A training that diverges stops at its last finite weights, which are examined; `diverged` is the update that failed.
    A try of a learning rate that diverges ends with an oracle total of 0.
    """
    stack = task.stack.load()
    if task.plan is None:
        return _measured(stack, task)
    student = stack.student(task.adapter)
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
            curve.append({**curve[0], "update": updates, task.level: 0.0 if task.level == "oracle" else LOST})
    if curve[-1]["update"] < updates:
        look()
        curve[-1]["update"] = updates
    groups: dict[str, dict[str, Tensor]] = {}
    result: dict[str, Any] = {"curve": curve, "log": log, "counts": asdict(trainer.counts), "diverged": diverged}
    result["learning_rate"] = task.plan.recipe.learning_rate
    if task.exam is not None:
        system = as_system(stack, student)
        grades = _graded(stack, system, task, task.exam)
        result |= grades_json(grades) | _sliced(stack, system, task.exam, task.seed)
        result |= {"steps": len(student.sigmas), "first_chunk": grades.first_chunk}
        weights = student.model.state_dict() if task.adapter is None else lora_weights(student.model)
        groups = {"weights": weights, **_media(grades, task)}
    return groups, result


def _measured(stack: Stack, task: Task) -> Result:
    if task.exam is None:
        raise ValueError(f"{task.row} is measured, not trained: give its task an exam")
    if task.exam.rows and task.row == "codec":
        return {}, grades_json(judged_real(stack, task.exam, task.videos))
    system = reference(stack, task.row)
    grades = _graded(stack, system, task, task.exam)
    groups = _media(grades, task)
    if task.row == "start" and task.shown and stack.has("reward"):
        groups["media"] |= _maps(stack, task.exam, grades, task.shown)
    result = grades_json(grades) | _sliced(stack, system, task.exam, task.seed)
    steps = {"start": len(stack.generator.sigmas), "four-steps": STEPS}
    if task.row in steps:
        result |= {"steps": steps[task.row], "first_chunk": grades.first_chunk}
    if task.row == "four-steps":
        level = _validate(stack, task, stack.generator.with_steps(STEPS))
        result["curve"] = [{"update": 0, "seconds": 0.0, **level}]
    return groups, result


def _graded(stack: Stack, system: VideoModel, task: Task, exam: EvalConfig) -> EvalResult:
    """What came of an exam, by whoever judges it."""
    long = task.row != "teacher"
    if exam.rows:
        return judged(stack, system, exam, task.seed, long=long, keep=task.shown, videos=task.videos)
    return evaluate(system, exam, task.seed, device=stack.device, long=long)


def _sliced(stack: Stack, system: VideoModel, exam: EvalConfig, seed: int) -> dict[str, Any]:
    found = examine_slices(system, exam, seed, device=stack.device)
    slices = {name: {axis: _numbers(score) for axis, score in scores.items()} for name, scores in found.items()}
    return {"slices": slices} if slices else {}


def _noted(log: list[dict[str, Any]], measured: Mapping[str, float], update: int) -> None:
    log.append({"update": update, **measured})


@torch.no_grad()
def _validate(stack: Stack, task: Task, student: Generator) -> dict[str, Any]:
    """The judge's total, also by prompt, and the trained reward on the same clips of the validation prompts."""
    exam, system = task.validation, as_system(stack, student)
    if exam.rows:
        grades = judged(stack, system, exam, VALIDATION_NOISE, long=False, keep=exam.prompts)
    else:
        grades = evaluate(system, exam, VALIDATION_NOISE, device=stack.device, long=False)
    total = grades.scores["total"]
    level = {task.level: float(total.mean()), "scores": _numbers(total)}
    if stack.has("reward"):
        level["reward"] = float(reward_scores(stack, stack.reward, exam, grades).reward.mean())
    return level


def _maps(stack: Stack, exam: EvalConfig, grades: EvalResult, shown: int) -> dict[str, Tensor]:
    """What Stream-R1 would weigh the first clips with."""
    video = grades.video[:shown, 0].to(stack.device)
    scorer, weights = stack.reward.windowed(stack.layout, stack.codec), list[Tensor]()
    for place in range(len(video)):
        prompts = exam_prompts(stack, exam, [place * exam.clips])
        part = scorer.weights(video[place : place + 1], prompts, stack.codec.grid(video.shape[1]))
        weights.append(part.perplexity[:, stack.codec.grid(video.shape[1]).latent_of_frame].cpu())
    return {"map/frames": _bytes(video), "map/weights": torch.cat(weights)}


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
    by_clip = {axis: _numbers(score) for axis, score in grades.by_clip.items()}
    return {"scores": scores, **parts, "fps": grades.fps, "by_clip": by_clip}


def _numbers(values: Tensor) -> list[float]:
    return [round(float(value), 6) for value in values]


def _bytes(video: Tensor) -> Tensor:
    """Video [..., 3, H, W] in [0, 1] as uint8 [..., H, W, 3], large pictures averaged down."""
    if (times := -(-max(video.shape[-2:]) // _WIDEST)) > 1:
        video = avg_pool2d(video.flatten(0, -4), times).unflatten(0, video.shape[:-3])
    return (video.clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1).cpu().contiguous()
