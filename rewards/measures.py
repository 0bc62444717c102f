"""Closed-form measures of a video, differentiable and blind to the prompt: rewards, and watchmen over others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..models.prompts import PromptBatch

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in brightness (ITU-R BT.601)."""


def luma(video: Tensor) -> Tensor:
    """Brightness [B, F, H, W] of video [B, F, 3, H, W]."""
    return torch.einsum("bfchw,c->bfhw", video, torch.tensor(LUMA, device=video.device, dtype=video.dtype))


def sharpness(video: Tensor) -> Tensor:
    """[B]: variance of the Laplacian of brightness, mean over frames (Pech-Pacheco et al., ICPR 2000)."""
    grey = luma(video)
    inside = grey[..., 1:-1, 1:-1]
    around = grey[..., :-2, 1:-1] + grey[..., 2:, 1:-1] + grey[..., 1:-1, :-2] + grey[..., 1:-1, 2:]
    return (around - 4 * inside).flatten(2).var(dim=-1).mean(dim=-1)


def flicker(video: Tensor) -> Tensor:
    """[B]: root mean square of the second difference in time of the mean brightness; a steady fade has none."""
    return luma(video).mean(dim=(-1, -2)).diff(n=2, dim=1).square().mean(dim=-1).add(1e-12).sqrt()


def motion(video: Tensor) -> Tensor:
    """[B]: mean absolute difference in brightness of consecutive frames."""
    return luma(video).diff(dim=1).abs().mean(dim=(1, 2, 3))


def saturation(video: Tensor) -> Tensor:
    """[B]: mean over pixels of (max - min) / max over RGB, the saturation of HSV."""
    high, low = video.amax(dim=2), video.amin(dim=2)
    return ((high - low) / high.clamp_min(1e-3)).mean(dim=(1, 2, 3))


def drift(video: Tensor) -> Tensor:
    """[B]: how far brightness, contrast and saturation of the last quarter of the frames lie from those of the first,
    mean of the three; at least 2 frames."""
    few = max(1, video.shape[1] // 4)
    ends = [video[:, :few], video[:, -few:]]
    told = [(luma(end).mean((1, 2, 3)), luma(end).flatten(2).std(-1).mean(1), saturation(end)) for end in ends]
    return torch.stack([(first - last).abs() for first, last in zip(*told, strict=True)]).mean(0)


def similarity(video: Tensor, apart: int) -> Tensor:
    """[B]: correlation of the pixels of frames that are so many frames apart, mean over such pairs: 1 for a still
    picture."""
    pixels = video.flatten(2)
    pixels = pixels - pixels.mean(-1, keepdim=True)
    pixels = pixels / pixels.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return (pixels[:, apart:] * pixels[:, :-apart]).sum(-1).mean(1)


def similarities(video: Tensor) -> dict[str, Tensor]:
    """[B] each: similarity against distance in frames, for neighbours, a quarter, a half and the whole of the clip."""
    last = video.shape[1] - 1
    distances = dict.fromkeys(max(1, part) for part in (1, last // 4, last // 2, last))
    return {f"similarity {apart}": similarity(video, apart) for apart in distances}


MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "sharpness": sharpness,
    "flicker": flicker,
    "motion": motion,
    "saturation": saturation,
}


class MeasureReward(torch.nn.Module):
    """A reward model of measures. axes: their names, with "-" before one that is better small: ("sharpness",
    "-flicker"). z-scores are of mean 0 and standard deviation 1 until `calibrate`."""

    min_frames = 3
    mean: Tensor
    std: Tensor

    def __init__(self, axes: Sequence[str]) -> None:
        super().__init__()
        unknown = [axis for axis in axes if axis.removeprefix("-") not in MEASURES]
        if unknown or not axes:
            raise ValueError(f"no measure {unknown[0] if unknown else ''!r}: choose from {', '.join(MEASURES)}")
        self.axes = tuple(axes)
        self.register_buffer("mean", torch.zeros(len(self.axes)))
        self.register_buffer("std", torch.ones(len(self.axes)))

    def score(self, video: Tensor, prompts: PromptBatch | None = None) -> Tensor:
        """video [B, F, 3, H, W] in [0, 1]. Returns [B, A]."""
        found = [MEASURES[axis.removeprefix("-")](video) * (-1 if axis.startswith("-") else 1) for axis in self.axes]
        return torch.stack(found, dim=-1)

    @torch.no_grad()
    def calibrate(self, video: Tensor) -> MeasureReward:
        """Set mean and std from reference clips [M, F, 3, H, W], M >= 2; returns itself."""
        if len(video) < 2:
            raise ValueError(f"calibration needs 2 clips or more, video {list(video.shape)} holds {len(video)}")
        scores = self.score(video)
        self.mean.copy_(scores.mean(dim=0))
        self.std.copy_(scores.std(dim=0).clamp_min(1e-6))
        return self
