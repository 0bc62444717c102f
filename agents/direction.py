"""What every method shares: a loss whose gradient on the prediction x0 is a given direction, and credit for chunks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.sampler import kernel_score

ADVANTAGE_LIMIT = 5.0


def surrogate(x0: Tensor, direction: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """The scalar loss whose gradient with respect to x0 is weight * direction / x0.numel().

    x0 [B, F, C, h, w]; direction like x0; weight a number or what broadcasts to x0. Neither carries a gradient.
    """
    return (weight * direction.detach() * x0).mean()


def returns_to_go(rewards: Tensor) -> Tensor:
    """Rewards [B, n] of chunks; [B, n], for each chunk what it and later ones earn: what is past is left out."""
    return rewards.flip(1).cumsum(1).flip(1)


def group_advantage(returns: Tensor, group: int) -> Tensor:
    """(r - mean) / (std + 1e-4) over the clips of one prompt, per chunk, clamped to +-5.

    returns [B, n], where each run of `group` rows shares a prompt. A group of one, or of equal returns, gets 0.
    """
    if returns.shape[0] % group:
        raise ValueError(f"{returns.shape[0]} clips are not whole groups of {group}")
    runs = returns.float().unflatten(0, (-1, group))
    spread = runs.std(1, correction=0, keepdim=True)
    advantage = (runs - runs.mean(1, keepdim=True)) / (spread + 1e-4)
    return advantage.clamp(-ADVANTAGE_LIMIT, ADVANTAGE_LIMIT).flatten(0, 1)


def policy_direction(x0: Tensor, x_next: Tensor, next_sigma: Tensor, advantage: Tensor, rescale: bool = True) -> Tensor:
    """Minus advantage times grad_x0 log N(x_next; (1 - s') x0, s'^2): see sampler.kernel_score.

    x0, x_next [B, f, C, h, w]; next_sigma, advantage [B]. rescale: times s' / (1 - s'), so that on-policy every step
    gives advantage times unit noise (unscaled, the steps' gradients differ several times over).
    """
    direction = -_rows(advantage) * kernel_score(x_next, x0, next_sigma)
    return direction * _rows(next_sigma / (1 - next_sigma)) if rescale else direction


def reference_direction(x0: Tensor, reference: Tensor, next_sigma: Tensor, rescale: bool = True) -> Tensor:
    """d KL / d x0 of the kernels N((1 - s') x0, s'^2) and N((1 - s') x0_ref, s'^2): (1 - s')^2 (x0 - x0_ref) / s'^2.

    KL = (1 - s')^2 |x0 - x0_ref|^2 / (2 s'^2); next_sigma [B]. rescale: times s' / (1 - s'), as in `policy_direction`.
    """
    factor = (1 - next_sigma) / next_sigma
    return _rows(factor if rescale else factor**2) * (x0 - reference)


def log_ratio(x_next: Tensor, x0: Tensor, old_x0: Tensor, next_sigma: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Log-probability of x_next under x0 less that under old_x0, the weighed mean over elements: float32 [B]."""
    level = _rows(next_sigma.float())
    new, old = ((x_next.float() - (1 - level) * x.float()) / level for x in (x0, old_x0))
    return (-0.5 * weight * (new.square() - old.square())).flatten(1).mean(1)


def clipped_weight(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """What PPO's clipped objective puts before advantage * grad log pi: the ratio, or 0 where clipping cuts it off."""
    cut = torch.where(advantage > 0, ratio > 1 + clip, ratio < 1 - clip)
    return ratio.masked_fill(cut, 0.0)


def _rows(values: Tensor) -> Tensor:
    """[B] as [B, 1, 1, 1, 1]."""
    return values[:, None, None, None, None]
