"""Distribution matching (DMD 2311.18828, DMD2 2405.14867) as pure functions of x0 predictions."""

from __future__ import annotations

from torch import Tensor

from ..models.sampler import shifted


def clip_levels(u: Tensor, shift: float, low: float, high: float) -> Tensor:
    """Noise levels [B] of whole clips from uniform u [B]: shifted, then clamped to [low, high]."""
    return shifted(u, shift).clamp(low, high)


def dmd_direction(x0: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """(fake - real) / mean|x0 - real| per clip, all of them x0 predictions [B, F, C, h, w] (DMD's gradient)."""
    return (fake - real) / distance(x0, real)


def distance(x0: Tensor, real: Tensor) -> Tensor:
    """mean|x0 - real| per clip [B, 1, ...], at least 1e-5: what directions are divided by."""
    return (x0 - real).abs().mean(dim=tuple(range(1, x0.ndim)), keepdim=True).clamp_min(1e-5)
