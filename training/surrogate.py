"""The loss that every method shares: its gradient on the prediction x0 is a given direction."""

from __future__ import annotations

from torch import Tensor


def surrogate(x0: Tensor, direction: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """The scalar loss whose gradient with respect to x0 is weight * direction / x0.numel().

    x0 [B, F, C, h, w]; direction like x0; weight a number or what broadcasts to x0. Neither carries a gradient.
    """
    return (weight * direction.detach() * x0).mean()
