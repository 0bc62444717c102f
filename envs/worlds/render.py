"""A batched renderer: signed distances to pixels, on whatever device the scene lies."""

import math

import torch
from torch import Tensor

from .scene import BACKGROUND, SIDE, Scene

BAR_HALF_WIDTH = 2.0
BAR_GREY = 0.5


def signed_distance(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Distances [..., 4] of points to circle, square, triangle and cross of (nearly) one area, negative inside."""
    ax, ay = x.abs(), y.abs()
    circle = (x * x + y * y).sqrt() - radius
    square = torch.maximum(ax, ay) - 0.886 * radius
    inner = 0.7776 * radius
    lowered = y - 0.5 * inner
    triangle = torch.maximum(lowered - inner, 0.5 * math.sqrt(3) * ax - 0.5 * lowered - inner)
    arm, half = 1.2 * radius, 0.42 * radius
    cross = torch.minimum(torch.maximum(ax - arm, ay - half), torch.maximum(ax - half, ay - arm))
    return torch.stack([circle, square, triangle, cross], -1)


def coverage(position: Tensor, radius: Tensor, shape: Tensor) -> Tensor:
    """Share of each pixel that the object covers: position [..., 2], radius and shape [...] -> [..., SIDE, SIDE]."""
    centres = torch.arange(SIDE, device=position.device) + 0.5
    x = centres - position[..., 0, None, None]
    y = centres[:, None] - position[..., 1, None, None]
    x, y = torch.broadcast_tensors(x, y)
    distances = signed_distance(x, y, radius[..., None, None])
    chosen = distances.gather(-1, shape[..., None, None, None].expand(*distances.shape[:-1], 1))[..., 0]
    return (0.5 - chosen).clamp(0, 1)


def render(scene: Scene) -> Tensor:
    """Draw every frame of a scene: video [B, F, 3, SIDE, SIDE] in [0, 1]."""
    alpha = coverage(scene.position, scene.radius, scene.shape)[:, :, None]
    video = BACKGROUND + alpha * (scene.rgb[..., None, None] - BACKGROUND)
    centres = torch.arange(SIDE, device=video.device) + 0.5
    bar = (BAR_HALF_WIDTH + 0.5 - (centres - SIDE / 2).abs()).clamp(0, 1)
    bar = bar * scene.occluder[:, None, None, None, None]
    video = video + bar * (BAR_GREY - video)
    return video * scene.light[..., None, None]
