"""The families of clips that `reelgym bench adaptation` is about, and what a worker does to make them.

M clips, F frames, H x W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from ...agents.finetune import FineTune
from ...agents.finetune_recipes import FINETUNE
from ...agents.fit import fit
from ...envs.detect_bank import STRENGTH, Source, scripted
from ...envs.self_play import coded
from ...envs.worlds.fakes import FAKES
from ...envs.worlds.grammar import GRAMMARS, Script, chunk_clauses, sample_scripts
from ...envs.worlds.render import render
from ...envs.worlds.scene import roll
from ...models.sampler import step_sigmas
from ...models.tiny import SAMPLER_SHIFT, WEIGHTS
from ...noise import stream_keys
from ..jobs import Result
from ..methods import Stack

REAL = "real"
SCRIPTED = ("flicker", "jitter", "hue_drift", "swap", "teleport", "growing_blur", "texture_noise", "shrink", "blank")
"""Fakes that show on every clip."""
SPLITS = ("train", "test")
AT_ONCE = 32


@dataclass(frozen=True)
class Family:
    """One way to make clips. steps: of the student's sampler, in place of its own. updates: of RL by the recipe
    "reward" before it is sampled. pace: seconds a clip on one idle core, for the estimate."""

    label: str
    pace: float = 0.035
    steps: int = 0
    updates: int = 0


FAMILIES = {
    REAL: Family("the world"),
    **{name: Family(name.replace("_", " ")) for name in SCRIPTED},
    "ghosting": Family("ghosting (of what moves)"),
    "student": Family("student (4 steps)", 0.09),
    "student-2": Family("student (2 steps)", 0.07, steps=2),
    "student-1": Family("student (1 step)", 0.06, steps=1),
    "tuned": Family("student after RL", 0.09, updates=60),
    "teacher": Family("teacher (32 guided steps)", 0.65),
}
"""What can be in an order: scripted fakes and generators. Of ghosting a resting object shows nothing."""


@dataclass(frozen=True)
class ClipsTask:
    """Make a family's clips, `train` of them of training prompts and `test` of test prompts."""

    family: str
    train: int
    test: int
    weights: str = ""
    """Folder of the pretrained stack; empty: the shipped one."""
    made_from: str = ""
    """Hash of code and weights."""


def make_clips(task: ClipsTask) -> Result:
    """Groups of uint8 clips, and the seconds that one took to sample."""
    stack = _stack(task.weights)
    sampler = sampler_of(stack, task.family)
    clips: dict[str, Tensor] = {}
    seconds = 0.0
    for number, split in enumerate(SPLITS):
        count, parts = getattr(task, split), list[Tensor]()
        if not count:
            continue
        scripts = sample_scripts(count, split=split, seed=_own(task.family), grammar=GRAMMARS[stack.grammar])
        for start in range(0, count, AT_ONCE):
            begun = time.monotonic()
            made = sampler(scripts[start : start + AT_ONCE], _own(task.family) + 2 * start + number)
            seconds += time.monotonic() - begun
            parts.append((made.clamp(0, 1) * 255).round().to(torch.uint8))
        clips[split] = torch.cat(parts)
    return {"clips": clips}, {"seconds": seconds / (task.train + task.test)}


def _own(family: str) -> int:
    return 7_000_000 + 10_000 * list(FAMILIES).index(family)


Sampler = Callable[[Sequence[Script], int], Tensor]


def sampler_of(stack: Stack, family: str) -> Sampler:
    """`sampler(scripts, seed)`: clips [M, F, 3, H, W] of a family. All have come out of the codec, so that what it
    leaves behind tells nothing apart."""
    if family in FAKES or family == REAL:
        return lambda scripts, seed: _of_the_world(stack, family, scripts, seed)
    if family == "teacher":
        teacher, chunks = stack.system("teacher"), stack.clock.chunks

        def taught(scripts: Sequence[Script], seed: int) -> Tensor:
            with torch.no_grad():
                return teacher([chunk_clauses(script, chunks) for script in scripts], stream_keys(seed, len(scripts)))

        return taught
    known = FAMILIES[family]
    generator = stack.student() if known.updates else stack.start
    if known.updates:
        recipe = FINETUNE["reward"]
        trainer = FineTune(recipe, generator, stack.env(recipe.prompts * recipe.group), stack.prompts())
        fit(trainer, known.updates)
    if known.steps:
        generator = replace(generator, sigmas=step_sigmas(known.steps, SAMPLER_SHIFT))
    source = Source(generator, stack.codec, stack.encoder, stack.grammar)
    return lambda scripts, seed: source(scripts, stack.clock.chunks, seed)


def _of_the_world(stack: Stack, family: str, scripts: Sequence[Script], seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    clauses = [chunk_clauses(script, stack.clock.chunks) for script in scripts]
    scene = roll(clauses, stack.clock.frames_per_chunk, random)
    video = render(scene)
    if family != REAL:
        video = scripted(scene, video, (family,), STRENGTH, random)[0]
    return coded(video, stack.codec)


@lru_cache(maxsize=1)
def _stack(weights: str) -> Stack:
    return Stack.load(weights or WEIGHTS)
