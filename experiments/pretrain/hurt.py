"""Damage in a known place: blur or noise in one rectangle of a clip, steady, growing or fading."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...envs.worlds.camera import blurred
from ...envs.worlds.fakes import wide
from ...envs.worlds.scene import SIDE
from .reward_measure import visibly_changed

BLUR, NOISE = 2.5, 0.2
"""Standard deviations at full strength: of the blur in pixels, of the noise in a range of 1."""
_LEAST = 0.15
_SMALLEST = 8


@dataclass(frozen=True)
class Hurt:
    """Clips and what was done to them.

    video: [B, F, 3, H, W]   strength: [B], of the worst frame, 0 where nothing is to be seen   amount: [B, F, H, W],
    strength at each pixel
    """

    video: Tensor
    strength: Tensor
    amount: Tensor


def hurt(video: Tensor, generator: torch.Generator, share: float = 1.0) -> Hurt:
    """A share of the clips [B, F, 3, H, W] damaged, each by its own strength, kind, place and course."""
    count, frames = video.shape[:2]

    def uniform() -> Tensor:
        return torch.rand(count, generator=generator)

    strength = _LEAST + (1 - _LEAST) * uniform()
    even = torch.arange(1, frames + 1) / frames
    clock = torch.where(uniform()[:, None] < 0.15, even.flip(0), even)
    bend, kind = uniform(), uniform()
    power = torch.where(kind < 0.5, torch.ones(count), torch.where(kind < 0.75, torch.zeros(count), 2 * bend))
    course = strength[:, None] * clock ** power[:, None]
    region = (_span(count, generator)[:, :, None] & _span(count, generator)[:, None, :])[:, None]
    noise = torch.randn(video.shape, generator=generator)
    grainy = (video + NOISE * course[..., None, None, None] * noise).clamp(0, 1)
    bad = torch.where(wide(uniform()) < 0.5, blurred(video, (BLUR * course).clamp_min(0.05)), grainy)
    chosen = region & (uniform() < share)[:, None, None, None]
    found = torch.where(chosen[:, :, None], bad, video)
    seen = visibly_changed(video, found) & chosen.flatten(1).any(dim=1)
    return Hurt(found, strength * seen, chosen * (course * seen[:, None])[..., None, None])


def _span(count: int, generator: torch.Generator) -> Tensor:
    """Rows (or columns) of a picture, bool [B, SIDE]: all of them, one half, or any 8 or more in a row."""
    kind, size, start = torch.rand(3, count, generator=generator)
    size = _SMALLEST + (SIDE - _SMALLEST) * size
    low = start * (SIDE - size)
    half = SIDE // 2 * (start > 0.5)
    low = torch.where(kind < 0.4, torch.zeros(count), torch.where(kind < 0.64, half, low))
    high = torch.where(kind < 0.4, torch.full((count,), SIDE), torch.where(kind < 0.64, half + SIDE // 2, low + size))
    middle = torch.arange(SIDE) + 0.5
    return (middle > low[:, None]) & (middle < high[:, None])
