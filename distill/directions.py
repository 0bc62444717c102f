"""Distribution matching (DMD 2311.18828, DMD2 2405.14867, SiD 2404.04057): directions on x0, and the critic's loss."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.sampler import denoise, guided, renoise, shifted
from ..models.wan import CausalWan


def clip_levels(u: Tensor, shift: float, low: float, high: float) -> Tensor:
    """Noise levels [B] of whole clips from uniform u [B]: shifted, then clamped to [low, high]."""
    return shifted(u, shift).clamp(low, high)


def dmd_direction(x0: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """(fake - real) / mean|x0 - real| per clip, all of them x0 predictions [B, F, C, h, w] (DMD's gradient)."""
    return (fake - real) / distance(x0, real)


def distance(x0: Tensor, real: Tensor) -> Tensor:
    """mean|x0 - real| per clip [B, 1, ...], at least 1e-5: what directions are divided by."""
    return (x0 - real).abs().mean(dim=tuple(range(1, x0.ndim)), keepdim=True).clamp_min(1e-5)


@torch.no_grad()
def score_direction(
    x0: Tensor, eps: Tensor, sigma: Tensor, embeds: Tensor, null: Tensor, scores: tuple[CausalWan, CausalWan], w: float
) -> Tensor:
    """DMD's direction at x0 [B, F, C, h, w] noised by eps to sigma [B]; scores: real (guided by w) and fake."""
    real, fake = scores
    x = renoise(x0, eps, sigma)
    conditional = denoise(real, x, sigma, embeds)
    if w != 1:
        conditional = guided(denoise(real, x, sigma, null.expand_as(embeds)), conditional, w)
    return dmd_direction(x0, conditional, denoise(fake, x, sigma, embeds))


def sid_direction(
    x0: Tensor, eps: Tensor, sigma: Tensor, embeds: Tensor, null: Tensor, scores: tuple[CausalWan, CausalWan], w: float
) -> Tensor:
    """SiD's direction (2404.04057, alpha 1), arguments as `score_direction`'s: the gradient of
    (real - fake) . (fake - x0) / mean|x0 - real| with respect to x0, through both scores."""
    real, fake = scores
    with torch.enable_grad():
        leaf = x0.detach().requires_grad_()
        x = renoise(leaf, eps, sigma)
        conditional, own = denoise(real, x, sigma, embeds), denoise(fake, x, sigma, embeds)
        if w != 1:
            conditional = guided(denoise(real, x, sigma, null.expand_as(embeds)), conditional, w)
        gap = conditional - own
        (gradient,) = torch.autograd.grad((gap * (own - leaf)).sum(), leaf)
    return gradient / distance(x0, conditional.detach())


def flow_loss(model: CausalWan, x0: Tensor, eps: Tensor, sigma: Tensor, embeds: Tensor) -> Tensor:
    """Mean squared error of the velocity of clips x0 [B, F, C, h, w] at levels sigma [B]."""
    return (model(renoise(x0, eps, sigma), sigma, embeds) - (eps - x0)).square().mean()
