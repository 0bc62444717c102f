"""Intra-Perplexity (Stream-R1, 2605.03849): where in a clip the reward is sensitive, as weights on the latent grid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..models.codec import Grid

TEMPORAL_FLOOR = 0.2
SPATIAL_FLOOR = 0.15


def fuse(scores: Tensor, gradients: Tensor, tau: float = 1.0) -> Tensor:
    """Saliency S = sum_m softmax(-score / tau)_m |d score_m / d pixel|: the weaker axis counts more.

    scores: z-scored [B, A]. gradients: d score_m / d video, [A, B, F, 3, H, W]. Returns [B, F, H, W], summed over RGB.
    """
    share = torch.softmax(-scores.detach() / tau, dim=-1)
    return torch.einsum("ba,abfhw->bfhw", share, gradients.abs().sum(dim=3))


def to_latents(saliency: Tensor, grid: Grid) -> Tensor:
    """saliency [B, F, H, W] on pixels. Returns its mean over the pixels of each latent cell, [B, F', h, w]."""
    frames = len(grid.latent_of_frame)
    if saliency.shape[1] != frames:
        raise ValueError(
            f"the grid is of {frames} frames, the video has {saliency.shape[1]}: ask the codec for its grid"
        )
    cells = functional.adaptive_avg_pool2d(saliency, (grid.h, grid.w))
    latent_of_frame = grid.latent_of_frame.to(cells.device)
    total = cells.new_zeros(len(cells), grid.latent_frames, grid.h, grid.w).index_add(1, latent_of_frame, cells)
    return total / torch.bincount(latent_of_frame, minlength=grid.latent_frames)[:, None, None]


def temporal_weight(saliency: Tensor, floor: float = TEMPORAL_FLOOR) -> Tensor:
    """Frame means of saliency [B, F, h, w], min-max over frames, at least floor, divided by their mean: [B, F]."""
    return _floored(saliency.mean(dim=(-1, -2)), floor)


def spatial_weight(saliency: Tensor, floor: float = SPATIAL_FLOOR) -> Tensor:
    """Per frame of saliency [B, F, h, w]: min-max over cells, at least floor, divided by the frame's mean: same
    shape."""
    return _floored(saliency.flatten(2), floor).view_as(saliency)


def intra_perplexity(
    saliency: Tensor, temporal_floor: float = TEMPORAL_FLOOR, spatial_floor: float = SPATIAL_FLOOR
) -> Tensor:
    """Temporal times spatial weight of saliency [B, F, h, w], divided by its mean over the clip: same shape, mean 1."""
    weight = temporal_weight(saliency, temporal_floor)[..., None, None] * spatial_weight(saliency, spatial_floor)
    return weight / weight.mean(dim=(1, 2, 3), keepdim=True)


def _floored(x: Tensor, floor: float) -> Tensor:
    """Min-max over the last dimension, clamped below at floor, divided by its mean; all ones where x is constant."""
    low, high = x.amin(dim=-1, keepdim=True), x.amax(dim=-1, keepdim=True)
    span = high - low
    constant = span <= 1e-6 * high.abs()
    scaled = (x - low) / torch.where(constant, torch.ones_like(span), span)
    weight = torch.where(constant, torch.ones_like(x), scaled.clamp_min(floor))
    return weight / weight.mean(dim=-1, keepdim=True)
