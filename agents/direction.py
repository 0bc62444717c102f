"""What every method shares: a loss whose gradient on the prediction x0 is a given direction; and each direction alone.

Latents are [B, f, C, h, w]; advantages, levels and ratios [B].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models.sampler import Kernel


@dataclass(frozen=True)
class Ask:
    """Where a method wants a chunk's prediction, to push it: x [B, f, C, h, w] at level sigma [B].

    given: what the method keeps for the push.   old: the prediction of the policy that acted; None: whatever the first
    pass over a rollout finds.   stiffness: [B], of the pull towards a reference (`reference_direction`).
    live: the prediction, where the rollout holds its graph already.
    """

    x: Tensor
    sigma: Tensor
    given: Any
    old: Tensor | None
    stiffness: Tensor
    live: Tensor | None = None


def policy_direction(
    kernel: Kernel, x_next: Tensor, x: Tensor, x0: Tensor, advantage: Tensor, rescale: bool = True
) -> Tensor:
    """Minus advantage times grad_x0 log p(x_next | x): see `Kernel.score`.

    rescale: times std / pull, so that on-policy every step gives advantage times unit noise (unscaled, the steps'
    gradients differ several times over).
    """
    direction = -rows(advantage) * kernel.score(x_next, x, x0)
    return direction * _column(kernel.std / kernel.pull) if rescale else direction


def reference_direction(x0: Tensor, reference: Tensor, stiffness: Tensor) -> Tensor:
    """d KL / d x0 of the kernels around x0 and around a reference's prediction: stiffness (x0 - x0_ref).

    For Gaussian kernels KL = pull^2 |x0 - x0_ref|^2 / (2 std^2), so stiffness is (pull / std)^2, or pull / std where
    the policy's direction is rescaled (`policy_direction`). 1 is the plain squared distance.
    """
    return rows(stiffness) * (x0 - reference)


def log_ratio(
    kernel: Kernel, x_next: Tensor, x: Tensor, x0: Tensor, old_x0: Tensor, weight: Tensor | float = 1.0
) -> Tensor:
    """Log-probability of x_next under x0 less that under old_x0, the weighed mean over elements: float32 [B]."""
    new, old = ((x_next.float() - kernel.mean(x.float(), y.float())) / _column(kernel.std) for y in (x0, old_x0))
    return (-0.5 * weight * (new.square() - old.square())).flatten(1).mean(1)


def clipped_weight(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """What PPO's clipped objective puts before advantage * grad log pi: the ratio, or 0 where clipping cuts it off."""
    cut = torch.where(advantage > 0, ratio > 1 + clip, ratio < 1 - clip)
    return ratio.masked_fill(cut, 0.0)


def contrast_direction(x0: Tensor, old_x0: Tensor, clean: Tensor, goodness: Tensor, beta: float) -> Tensor:
    """DiffusionNFT's gradient (2509.16117) at x0, predicted like old_x0 from the clean chunk noised afresh.

    Loss: r |x+ - clean|^2 / w+ + (1 - r) |x- - clean|^2 / w-, with x+ = b x0 + (1 - b) old, x- = (1 + b) old - b x0,
    w = mean|x - clean| per stream, held fixed, and goodness r [B] in [0, 1]: half way it teaches nothing on-policy.
    Divided by 2 b: on-policy (2 r - 1) (x0 - clean) / w, towards what was good and away from what was bad.
    """
    good = beta * x0 + (1 - beta) * old_x0 - clean
    bad = (1 + beta) * old_x0 - beta * x0 - clean
    r = rows(goodness)
    return r * good / _size(good) - (1 - r) * bad / _size(bad)


def rows(values: Tensor) -> Tensor:
    """[B] as [B, 1, 1, 1, 1]."""
    return values[:, None, None, None, None]


def _column(values: float | Tensor) -> float | Tensor:
    return rows(values) if isinstance(values, Tensor) else values


def _size(error: Tensor) -> Tensor:
    return error.abs().mean((1, 2, 3, 4), keepdim=True).clamp_min(1e-5)
