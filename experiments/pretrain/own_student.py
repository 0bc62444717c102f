"""The starting student of a stack of one's own: its teacher made causal on the stack's clips, and then fast."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...checkpoint import CheckpointError, has_checkpoint, write_json
from ...distill.causal_init import CausalInitConfig, causal_loss
from ...distill.recipes import DISTILL
from ...envs.data_files import DataFileError
from ...envs.encoded import ClipLatents, data_of
from ...envs.stack import Stack
from ...models.generator import Generator
from ...models.stream_files import LONG_CACHE, save_transformer
from ...models.tiny import STEPS, build_generator
from ...noise import stream_keys
from ...training.regression import Schedule
from ...training.sequence import Stage
from ..presets import chain
from ..train_student import as_config
from .loop import train

STARTS = ("teacher-forcing", "continued")
"""Recipes that make a causal student of a bidirectional teacher."""
LATER = ("consistency", "on-policy")
"""Recipes that make a causal student fast: by predicting alike along its own flow, and by the ends of that flow."""
_CLIPS = 8


def train_own_student(
    stack: Stack, recipe: str, steps: int, out: Path, *, batch: int | None = None, seed: int = 0
) -> Path:
    """Train by recipes joined by "+", each half of the updates, and write the transformer in diffusers' layout; returns
    its folder. STARTS begin with the teacher's weights, LATER with the stack's student or with what they follow.

    ValueError for another recipe, a stack without clips, and a teacher that `reelgym train teacher` made.
    """
    parts = recipe.split("+")
    if unknown := [part for part in parts if part not in (*STARTS, *LATER)]:
        raise ValueError(f"--recipe {unknown[0]}: choose from {', '.join((*STARTS, *LATER))}, or two joined by +")
    if len(parts) > 2 or (len(parts) == 2 and parts[1] in STARTS):
        raise ValueError(f"--recipe {recipe}: {' or '.join(STARTS)} comes first, and two are the most")
    begun = stack if parts[0] in LATER else at_teacher(stack)
    student = begun.student()
    plans = {part: Stage(_sized(part, batch, seed), steps) for part in parts}
    plan = plans[recipe] if len(parts) == 1 else chain(recipe, plans)
    _settle(out, stack, recipe, batch, seed)
    trainer = plan.recipe.trainer(begun, student)
    held = _held_out(stack)

    def look() -> Mapping[str, float]:
        return {} if held is None else {"validation_loss": forcing_error(student, held)}

    before, every = look(), max(1, steps // 6)
    length = Schedule(steps=plan.updates, batch=1, learning_rate=0.0, seed=seed, checkpoint_every=every)
    train("student", trainer, length, out, look, every)
    quality = {**look(), **{f"{name}_before": value for name, value in before.items()}}
    told: dict[str, Any] = {"part": "student", "recipe": as_config(plan.recipe) | {"name": recipe}, "seed": seed}
    told |= {"steps": trainer.counts.updates, "sampler_steps": len(student.sigmas), "quality": quality, "guard": None}
    told["made_from"] = stack.weights().get("student" if parts[0] in LATER else "teacher")
    save_transformer(out / "student", student.model, told)
    print(" ".join(f"{name}={value:.4f}" for name, value in quality.items()) or "no validation clips: not measured")
    return out / "student"


def at_teacher(stack: Stack) -> Stack:
    """The stack with its teacher's weights as the student, in float32, with the cache and steps that its file says."""
    part = stack.said.parts.get("teacher")
    if part is not None and part.is_tiny:
        raise ValueError(f"{stack.folder}: reelgym train made this teacher: leave out --stack, give --weights FOLDER")
    model, said = copy.deepcopy(stack.teacher).float(), stack.said.parts.get("student")
    shift = {"shift": shift} if (shift := getattr(said, "shift", None)) else {}
    made = build_generator(model, stack.codec, getattr(said, "steps", None) or STEPS, **shift)
    begun = stack.with_parts(generator=made)
    cache = LONG_CACHE if said is None else stack.generator.model.cache_config
    return begun.with_cache(cache)


@torch.no_grad()
def forcing_error(student: Generator, clips: ClipLatents) -> float:
    """Mean squared error of the velocity beside a clean past, on clips that are not trained on, with fixed noise."""
    config = CausalInitConfig(past="clean")
    keys = stream_keys(1, len(clips.keys), clips.device)
    found = []
    for row in range(min(_CLIPS, len(clips.keys))):
        x0 = clips.store.get(clips.keys[row])[None].to(clips.device)
        embeds = clips.encoder.encode(clips.texts[row])[None].to(clips.device)
        found.append(float(causal_loss(student.model, x0, embeds, keys[row : row + 1], student.sigmas, config)))
    return sum(found) / len(found)


def _sized(name: str, batch: int | None, seed: int) -> Any:
    recipe = DISTILL[name].with_seed(seed)
    return recipe if batch is None else recipe.with_batch(batch)


def _held_out(stack: Stack) -> ClipLatents | None:
    """The validation clips, where there are some."""
    if "clips" not in stack.data:
        return None
    try:
        return data_of(stack).clips("validation")
    except DataFileError:
        return None


def _settle(out: Path, stack: Stack, recipe: str, batch: int | None, seed: int) -> None:
    """Note down what a run is made from, or hold it against the note."""
    note, made = out / "start.json", {**stack.weights(), "recipe": recipe, "batch": batch, "seed": seed}
    if has_checkpoint(out / "checkpoint") and note.exists() and json.loads(note.read_text()) != made:
        raise CheckpointError(f"{out} holds a run from other weights, or by another recipe: give another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(note, made)
