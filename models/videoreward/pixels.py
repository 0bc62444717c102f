"""Video pixels as Qwen2-VL reads them: sampled frames, Pillow's bicubic resize and patches, differentiable throughout.

Shape letters: T frames, H W pixels, N patches; a grid is (t, h, w): patches in time, height and width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

PATCH, MERGE, PAIR = 14, 2, 2
"""Pixels of a patch's side, patches of a token's side, frames of a patch."""
FACTOR = PATCH * MERGE
PATCH_WIDTH = 3 * PAIR * PATCH * PATCH
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
IMAGE_MIN_PIXELS = 56 * 56
VIDEO_MIN_PIXELS = 128 * 28 * 28
MAX_PIXELS = 448 * 448
MIN_FRAMES, MAX_FRAMES = 4, 768
MAX_RATIO = 200
COEFFICIENT_BITS = 22


@dataclass(frozen=True)
class PixelConfig:
    """How a clip becomes patches.

    fps: frames per second that are looked at. min_pixels, max_pixels: bounds on the pixels of a resized frame.
    rounding: round to 8 bits where a video file and Pillow do, the gradient passing straight through; False for the
    smooth function, which finite differences need.
    """

    fps: float = 2.0
    min_pixels: int = IMAGE_MIN_PIXELS
    max_pixels: int = MAX_PIXELS
    rounding: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} must be positive and at most max_pixels {self.max_pixels}")
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"fps must be a positive number, not {self.fps}")


def sample_frames(total: int, source_fps: float, fps: float = 2.0) -> Tensor:
    """Which of `total` frames, shown at source_fps, are looked at: int64, an even number of indices, evenly spread.

    As many as `fps` gives, at least 4 and at most 768, and no more than there are. ValueError for fewer than 4 frames.
    """
    if total < MIN_FRAMES:
        raise ValueError(f"a clip needs at least {MIN_FRAMES} frames, not {total}")
    if not (math.isfinite(source_fps) and source_fps > 0):
        raise ValueError(f"source_fps must be a positive number, not {source_fps}")
    most = min(MAX_FRAMES, total) // PAIR * PAIR
    count = round(min(max(total / source_fps * fps, MIN_FRAMES), most) / PAIR) * PAIR
    return torch.linspace(0, total - 1, count).round().long()


def target_size(height: int, width: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The nearest height and width in multiples of 28 with min_pixels to max_pixels pixels and about the same shape."""
    if max(height, width) > MAX_RATIO * min(height, width):
        raise ValueError(f"a frame of {height} x {width} pixels is too long: one side is over {MAX_RATIO} of the other")
    h, w = (max(FACTOR, round(side / FACTOR) * FACTOR) for side in (height, width))
    if h * w > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        h, w = (max(FACTOR, math.floor(side / shrink / FACTOR) * FACTOR) for side in (height, width))
    elif h * w < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        h, w = (math.ceil(side * grow / FACTOR) * FACTOR for side in (height, width))
    return h, w


def resize(levels: Tensor, size: tuple[int, int], rounding: bool = True) -> Tensor:
    """Pillow's antialiased bicubic: levels [*, H, W] in [0, 255] to [*, h, w], one pass an axis, clamped after each.

    The width goes first, but the height where that loses more than twice as many pixels: Pillow 13's rule (earlier ones
    always began with the width, which moves some pixels by a level). rounding: round to whole levels as Pillow does (to
    the bit for whole levels in), with a straight-through gradient. Sums run in float64, where they are exact; the
    result is float64.
    """
    x = levels.double()
    lost, lost_width = x.shape[-2] - size[0], x.shape[-1] - size[1]
    for axis in (-2, -1) if lost > max(0, 2 * lost_width) else (-1, -2):
        if size[axis] != x.shape[axis]:
            matrix = resampling_matrix(x.shape[axis], size[axis]).to(x.device)
            x = _level(x @ matrix.T if axis == -1 else matrix @ x, rounding)
    return x


def fitted_clip(clip: Tensor, config: PixelConfig) -> Tensor:
    """clip [T, 3, H, W] in [0, 1] in the size that the model reads, [T, 3, h, w] in [0, 1], same dtype."""
    size = target_size(clip.shape[-2], clip.shape[-1], config.min_pixels, config.max_pixels)
    return (resize(_level(clip.double() * 255, config.rounding), size, config.rounding) / 255).to(clip.dtype)


def to_patches(clip: Tensor, config: PixelConfig) -> tuple[Tensor, tuple[int, int, int]]:
    """clip [T, 3, H, W] in [0, 1], every frame of which is looked at (an odd last one twice).

    Returns normalised patches [N, 1176] (colour, frame, row, column within a patch) and their grid (t, h, w). Patches
    are in Qwen2-VL's order: time, then tokens by row and column, then the four patches of a token.
    """
    frames = fitted_clip(clip, config)
    if len(frames) % PAIR:
        frames = torch.cat([frames, frames[-1:]])
    mean, std = (frames.new_tensor(values)[:, None, None] for values in (MEAN, STD))
    t, h, w = len(frames) // PAIR, frames.shape[-2] // PATCH, frames.shape[-1] // PATCH
    split = ((frames - mean) / std).reshape(t, PAIR, 3, h // MERGE, MERGE, PATCH, w // MERGE, MERGE, PATCH)
    return split.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, PATCH_WIDTH), (t, h, w)


def _level(x: Tensor, rounding: bool) -> Tensor:
    """x clamped to [0, 255] and, with rounding, moved to the nearest whole level under the gradient of x."""
    x = x.clamp(0, 255)
    return (x + 0.5).floor().detach() + (x - x.detach()) if rounding else x


def _bicubic(x: float) -> float:
    """Keys' cubic convolution kernel with a = -0.5."""
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


@lru_cache(maxsize=32)
def resampling_matrix(given: int, wanted: int) -> Tensor:
    """Float64 [wanted, given]: the weights of one pass, whose support is scaled when it shrinks, in 2**-22ths."""
    scale = given / wanted
    stretch = max(scale, 1.0)
    matrix = torch.zeros(wanted, given, dtype=torch.float64)
    for row in range(wanted):
        center = (row + 0.5) * scale
        low, high = max(0, int(center - 2 * stretch + 0.5)), min(given, int(center + 2 * stretch + 0.5))
        weights = [_bicubic((column - center + 0.5) / stretch) for column in range(low, high)]
        total = sum(weights)
        units = [math.floor(abs(weight / total) * 2**COEFFICIENT_BITS + 0.5) for weight in weights]
        signed = [math.copysign(unit, weight) for unit, weight in zip(units, weights, strict=True)]
        matrix[row, low:high] = torch.tensor(signed, dtype=torch.float64) / 2**COEFFICIENT_BITS
    return matrix
