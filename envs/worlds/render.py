"""A batched renderer: signed distances to pixels, on whatever device the scene lies."""

import math

import torch
from torch import Tensor

from .scene import BACKGROUND, SIDE, Scene

BAR_HALF_WIDTH = 2.0
BAR_GREY = 0.5
_FRAMES_AT_ONCE = 128


def _circle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return (x * x + y * y).sqrt_().sub_(radius)


def _square(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()).sub_(0.886 * radius)


def _triangle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    inner = 0.7776 * radius
    lowered = y - 0.5 * inner
    return torch.maximum(lowered, 0.5 * math.sqrt(3) * x.abs() - 0.5 * lowered).sub_(inner)


def _cross(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    ax, ay = x.abs(), y.abs()
    arm, half = 1.2 * radius, 0.42 * radius
    return torch.minimum(torch.maximum(ax - arm, ay - half), torch.maximum(ax - half, ay - arm))


DISTANCES = (_circle, _square, _triangle, _cross)


def cover(shape: int, position: Tensor, radius: Tensor) -> Tensor:
    """Share of each pixel that one kind of shape covers: position [..., 2], radius [...] -> [..., SIDE, SIDE]."""
    centres = torch.arange(SIDE, device=position.device) + 0.5
    x = centres - position[..., 0, None, None]
    y = centres[:, None] - position[..., 1, None, None]
    return DISTANCES[shape](x, y, radius[..., None, None]).neg_().add_(0.5).clamp_(0, 1)


def coverage(position: Tensor, radius: Tensor, shape: Tensor) -> Tensor:
    """Share of each pixel that the object covers: position [..., 2], radius and shape [...] -> [..., SIDE, SIDE]."""
    chosen = cover(0, position, radius)
    for kind in range(1, len(DISTANCES)):
        chosen = torch.where((shape == kind)[..., None, None], cover(kind, position, radius), chosen)
    return chosen


def render(scene: Scene) -> Tensor:
    """Draw every frame of a scene: video [B, F, 3, SIDE, SIDE] in [0, 1]."""
    count, frames = scene.radius.shape
    occluder = scene.occluder[:, None].expand(count, frames)
    rows = (scene.position, scene.radius, scene.shape, scene.rgb, scene.light, occluder)
    flat = [row.reshape(count * frames, *row.shape[2:]) for row in rows]
    video = torch.empty(count * frames, 3, SIDE, SIDE, device=scene.radius.device)
    for first in range(0, count * frames, _FRAMES_AT_ONCE):
        part = slice(first, first + _FRAMES_AT_ONCE)
        video[part] = _draw(*(row[part] for row in flat))
    return video.reshape(count, frames, 3, SIDE, SIDE)


def _draw(position: Tensor, radius: Tensor, shape: Tensor, rgb: Tensor, light: Tensor, occluder: Tensor) -> Tensor:
    alpha = coverage(position, radius, shape)[:, None]
    frames = (alpha * (rgb[..., None, None] - BACKGROUND)).add_(BACKGROUND)
    centres = torch.arange(SIDE, device=rgb.device) + 0.5
    bar = (BAR_HALF_WIDTH + 0.5 - (centres - SIDE / 2).abs()).clamp(0, 1)
    frames.lerp_(torch.full_like(frames, BAR_GREY), (bar * occluder[:, None, None, None]).expand_as(frames))
    return frames.mul_(light[..., None, None])
