"""Clips that detectors learn from where there is no world: a stack's own videos, what its models make of its prompts,
and fakes of these videos that need no scene. All went through the codec. F frames, H x W pixels.
"""

from __future__ import annotations

from math import gcd, prod

import torch
from torch import Tensor

from ...envs.clip_dataset import made_clips
from ...envs.encoded import data_of
from ...envs.game_rules import GameRules
from ...envs.stack import Stack
from ...models.fit import size_of
from ...models.tiny import STEPS, TEACHER_SAMPLING
from ...noise import stream_keys
from ...rewards.windows import even_chunks
from ..systems import Teacher

OWN_HELD_OUT = ("ghosting",)
"""Families that no training sees."""
_STUDENTS = {"student": STEPS, "student-2": 2, "student-1": 1}
_LEAST_SIDE = 16
_MOST_BYTES = 2**28
"""Of the clips of a family, in 8 bits."""
_FEWEST = 4


def game_rules(stack: Stack) -> GameRules:
    """The game's rules for a stack: pictures are averaged over the largest squares that leave a detector 16 rows."""
    height, width = size_of(stack.codec, stack.device)
    sides = gcd(height, width)
    pools = [pool for pool in range(1, sides + 1) if sides % pool == 0 and min(height, width) // pool >= _LEAST_SIDE]
    return GameRules(pool=max(pools, default=1))


@torch.no_grad()
def own_footage(stack: Stack, family: str, count: int, split: str, seed: int) -> Tensor:
    """Clips uint8 [M, F, 3, H, W] of one family: "real", a student by its steps, "teacher", "scripted", which holds a
    picture, or "ghosting", which mixes in the picture before. M is `count`, or as many as fit.

    DataFileError where the stack has no clips, or no prompts, of the split. The first picture is held until all chunks
    have the same length.
    """
    frames = stack.codec.frames_of(stack.layout.clip_frames)
    most = _MOST_BYTES // (3 * frames * prod(size_of(stack.codec, stack.device)))
    count = min(count, max(_FEWEST, most))
    if family in _STUDENTS:
        embeds, _ = stack.prompts(split)(count, seed)
        video = made_clips(stack.with_steps(min(_STUDENTS[family], len(stack.generator.sigmas))), embeds, seed)
    elif family == "teacher":
        prompts = stack.prompts(split)
        rows = [prompts.spread(row) if isinstance(row, str) else row for row in prompts.sample(count, seed)]
        teacher = Teacher(stack.teacher, stack.pipeline, stack.teacher_sampling or TEACHER_SAMPLING)
        keys = stream_keys(seed, count, stack.device)
        parts = [teacher([row], keys[place : place + 1]).cpu() for place, row in enumerate(rows)]  # type: ignore[list-item]
        video = torch.cat(parts)
    else:
        video = _real(stack, count, split, seed)
        if family != "real":
            video = _FAKES[family](video, torch.Generator().manual_seed(seed))
    even = even_chunks(video, stack.codec, stack.layout)
    return (even.clamp(0, 1) * 255).round().to(torch.uint8)


def _real(stack: Stack, count: int, split: str, seed: int) -> Tensor:
    """Clips of a split in an order of the seed, at least a few: where there are fewer, some stand twice."""
    clips = data_of(stack).clips(split)
    order = torch.randperm(len(clips.keys), generator=torch.Generator().manual_seed(seed)).tolist()[:count]
    latents = (clips.store.get(clips.keys[row])[None].to(stack.device) for row in order)
    video = torch.cat([stack.codec.decode(one).cpu() for one in latents])
    return video[torch.arange(max(len(order), min(count, _FEWEST))) % len(order)]


def _held(video: Tensor, random: torch.Generator) -> Tensor:
    """From some picture on the rest stands still."""
    found, frames = video.clone(), video.shape[1]
    for clip in found:
        at = int(torch.randint(1, max(2, frames - 1), (1,), generator=random))
        clip[at:] = clip[at - 1].clone()
    return found


def _ghosting(video: Tensor, random: torch.Generator) -> Tensor:
    """Every picture holds a part of the one before."""
    return torch.cat((video[:, :1], 0.6 * video[:, 1:] + 0.4 * video[:, :-1]), 1)


_FAKES = {"scripted": _held, "ghosting": _ghosting}
