"""The families of clips that `reelgym bench adaptation` is about, and what a worker does to make them.

M clips, F frames, H x W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...agents.finetune_recipes import FINETUNE
from ...envs.clip_dataset import generate
from ...envs.stack import Stack, StackSpec
from ...envs.worlds.grammar import GRAMMARS, Script, sample_scripts
from ...noise import SeedDomain
from ...training.loop import fit
from ..jobs import Result
from ..pretrain.footage import REAL_FOOTAGE, clips_of

SCRIPTED = ("flicker", "jitter", "hue_drift", "swap", "teleport", "growing_blur", "texture_noise", "shrink", "blank")
"""Fakes that show on every clip."""
_SPLITS = ("train", "test")
_AT_ONCE = 32
SPARE = 4
"""Scripts for every clip: fakes that show nothing are left out."""


@dataclass(frozen=True)
class Family:
    """One way to make clips. updates: of the student by RL, recipe "reward", before it is sampled. pace: seconds a clip
    on one idle core, for the estimate."""

    label: str
    pace: float = 0.035
    updates: int = 0


FAMILIES = {
    REAL_FOOTAGE: Family("the world"),
    **{name: Family(name.replace("_", " ")) for name in SCRIPTED},
    "ghosting": Family("ghosting (of what moves)"),
    "student": Family("student (4 steps)", 0.09),
    "student-2": Family("student (2 steps)", 0.07),
    "student-1": Family("student (1 step)", 0.06),
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
    stack: StackSpec = StackSpec()


def make_family_clips(task: ClipsTask) -> Result:
    """Groups of uint8 clips, and the seconds that one took to sample."""
    stack = task.stack.load()
    sampler = sampler_of(stack, task.family)
    clips: dict[str, Tensor] = {}
    seconds = 0.0
    for number, split in enumerate(_SPLITS):
        count, parts = getattr(task, split), list[Tensor]()
        if not count:
            continue
        scripts = sample_scripts(SPARE * count, split=split, seed=_own(task.family), grammar=GRAMMARS[stack.grammar])
        for start in range(0, len(scripts), _AT_ONCE):
            few = scripts[start : start + min(_AT_ONCE, count - sum(map(len, parts)))]
            begun = time.monotonic()
            made = sampler(few, _own(task.family) + 2 * start + number)
            seconds += time.monotonic() - begun
            parts.append((made.clamp(0, 1) * 255).round().to(torch.uint8))
            if sum(map(len, parts)) == count:
                break
        clips[split] = torch.cat(parts)
    return {"clips": clips}, {"seconds": seconds / sum(map(len, clips.values()))}


def _own(family: str) -> int:
    return SeedDomain.FAMILY_CLIPS + 10_000 * list(FAMILIES).index(family)


def sampler_of(stack: Stack, family: str) -> Callable[[Sequence[Script], int], Tensor]:
    """`sampler(scripts, seed)`: clips [M, F, 3, H, W] of a family, all of which have come out of the codec."""
    updates = FAMILIES[family].updates
    if not updates:
        return lambda scripts, seed: clips_of(stack, family, scripts, seed, visible=True)
    student = stack.student()
    fit(FINETUNE["reward"].trainer(stack, student), updates)
    trained = stack.with_parts(generator=student)
    return lambda scripts, seed: generate(trained, scripts, stack.layout.chunks, seed)
