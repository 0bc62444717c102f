"""Clips with known flaws: what the reward model's preferences are made from.

A flaw has a strength in [0, 1] and says which axes it touches. Labels come from how a clip was made, never from an
oracle: an axis is worth the product of (1 - strength) over the flaws that touch it. Flaws of the path alone are
measured on the path instead (`path_worth` of the reward's recipe).
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ...envs.worlds.fakes import at_time, kept_in, wide
from ...envs.worlds.grammar import SHAPES
from ...envs.worlds.render import render
from ...envs.worlds.scene import RGB, Scene


def either(strength: Tensor, generator: torch.Generator, below: float = 0.5) -> Tensor:
    """A sign [B] for each of strength [B]; a share `below` of them is -1."""
    return torch.where(torch.rand(len(strength), generator=generator) < below, -1.0, 1.0)


def wrong_pace(scene: Scene, strength: Tensor, generator: torch.Generator) -> Scene:
    """The path is played too slow or too fast: its length is off by up to 70%."""
    scale = (1 + 0.7 * either(strength, generator, 0.6) * strength)[:, None, None]
    start = scene.position[:, :1]
    return replace(scene, position=kept_in(start + scale * (scene.position - start), scene.radius))


def wrong_way(scene: Scene, strength: Tensor, generator: torch.Generator) -> Scene:
    """The path is turned about its start by up to 180 degrees."""
    angle = (either(strength, generator) * strength * math.pi)[:, None]
    start = scene.position[:, :1]
    x, y = (scene.position - start).unbind(-1)
    turned = torch.stack([x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()], -1)
    return replace(scene, position=kept_in(start + turned, scene.radius))


def wrong_colour(scene: Scene, strength: Tensor, generator: torch.Generator) -> Scene:
    """The colour moves towards another of the palette."""
    palette = torch.tensor(RGB)
    other = palette[torch.randint(len(RGB), (len(strength),), generator=generator)][:, None]
    return replace(scene, rgb=torch.lerp(scene.rgb, other.expand_as(scene.rgb), strength[:, None, None]))


def wrong_size(scene: Scene, strength: Tensor, generator: torch.Generator) -> Scene:
    """The object is up to 40% too small or too large, throughout."""
    return replace(scene, radius=scene.radius * (1 + 0.4 * either(strength, generator) * strength)[:, None])


def wobble(scene: Scene, strength: Tensor, generator: torch.Generator) -> Scene:
    """The path strays from its course by smooth noise of up to 2.5 pixels."""
    steps = torch.randn(*scene.position.shape, generator=generator)
    noise = steps.cumsum(1) / torch.arange(1, steps.shape[1] + 1)[:, None].sqrt()
    return replace(scene, position=kept_in(scene.position + 2.5 * strength[:, None, None] * noise, scene.radius))


def stumble(scene: Scene, strength: Tensor, generator: torch.Generator) -> Scene:
    """The pace along the path changes from frame to frame, by up to a factor of e; it ends where it should."""
    pace = (strength[:, None] * torch.randn(scene.radius[:, 1:].shape, generator=generator)).exp()
    clock = torch.nn.functional.pad(pace.cumsum(1) / pace.sum(1, keepdim=True), (1, 0))
    return replace(scene, position=at_time(scene, clock))


def breathe(scene: Scene, strength: Tensor, generator: torch.Generator) -> Scene:
    """The size wavers from frame to frame by up to 35%."""
    noise = torch.randn(scene.radius.shape, generator=generator).clamp(-1.5, 1.5)
    return replace(scene, radius=scene.radius * (1 + 0.35 * strength[:, None] * noise).clamp_min(0.2))


SCENE_FLAWS: dict[str, tuple[Callable[[Scene, Tensor, torch.Generator], Scene], tuple[int, ...]]] = {
    "wrong_pace": (wrong_pace, (2,)),
    "wrong_way": (wrong_way, (2,)),
    "wrong_colour": (wrong_colour, (2,)),
    "wrong_size": (wrong_size, (2,)),
    "wobble": (wobble, (1,)),
    "stumble": (stumble, (1,)),
    "breathe": (breathe, (1,)),
}


def wrong_shape(scene: Scene, video: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """The picture blends into that of another shape; at full strength it is that shape."""
    turn = torch.randint(1, len(SHAPES), (len(strength),), generator=generator)[:, None]
    other = render(replace(scene, shape=(scene.shape + turn) % len(SHAPES)))
    return torch.lerp(video, other, wide(strength))


def soft(scene: Scene, video: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Box blur throughout, up to fully."""
    flat = video.flatten(0, 1)
    blurred = torch.nn.functional.avg_pool2d(flat, 5, 1, 2, count_include_pad=False).view_as(video)
    return torch.lerp(video, blurred, wide(strength))


def blotches(scene: Scene, video: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Noise in cells of 4 pixels, smooth inside them, as a decoder makes of noisy latents."""
    count, frames = video.shape[:2]
    cells = torch.randn(count * frames, 3, 8, 8, generator=generator)
    field = torch.nn.functional.interpolate(cells, size=video.shape[-2:], mode="bilinear").view_as(video)
    near = torch.nn.functional.avg_pool2d((video - video.amin((-1, -2), keepdim=True)).amax(2).flatten(0, 1), 5, 1, 2)
    mask = (near * 2).clamp(0.05, 1).view(count, frames, 1, *video.shape[-2:])
    return (video + 0.5 * wide(strength) * mask * field).clamp(0, 1)


def exposure(scene: Scene, video: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Too dark or too bright throughout, by a factor of up to 2.5 either way."""
    return (video * wide(2.5 ** (either(strength, generator) * strength))).clamp(0, 1)


def _cast(scene: Scene, video: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """A colour cast, which takes light from some channels, or grey in place of colour."""
    tint = 1 - 0.8 * torch.rand(len(strength), 1, 3, 1, 1, generator=generator)
    grey = video.mean(dim=2, keepdim=True).expand_as(video)
    faded = torch.rand(len(strength), generator=generator) < 0.3
    return torch.lerp(video, torch.where(wide(faded), grey, video * tint), wide(strength))


PIXEL_FLAWS: dict[str, tuple[Callable[[Scene, Tensor, Tensor, torch.Generator], Tensor], tuple[int, ...]]] = {
    "wrong_shape": (wrong_shape, (2,)),
    "soft": (soft, (0,)),
    "blotches": (blotches, (0,)),
    "exposure": (exposure, (0, 2)),
    "cast": (_cast, (0, 2)),
}
