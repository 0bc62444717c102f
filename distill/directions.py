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
) -> tuple[Tensor, Tensor]:
    """DMD's direction at x0 [B, F, C, h, w] noised by eps to sigma [B]; scores: real (guided by w) and fake. Also the
    real score's flow loss there, without guidance: a critic that knows the student's clips has a smaller one."""
    real, fake = scores
    x = renoise(x0, eps, sigma)
    told = denoise(real, x, sigma, embeds)
    wanted = told if w == 1 else guided(denoise(real, x, sigma, null.expand_as(embeds)), told, w)
    return dmd_direction(x0, wanted, denoise(fake, x, sigma, embeds)), _flow_loss_of(told, x0, sigma)


def sid_direction(
    x0: Tensor, eps: Tensor, sigma: Tensor, embeds: Tensor, null: Tensor, scores: tuple[CausalWan, CausalWan], w: float
) -> tuple[Tensor, Tensor]:
    """SiD's direction (2404.04057, alpha 1), arguments and the loss beside it as `score_direction`'s: the gradient of
    (real - fake) . (fake - x0) / mean|x0 - real| with respect to x0, through both scores."""
    real, fake = scores
    with torch.enable_grad():
        leaf = x0.detach().requires_grad_()
        x = renoise(leaf, eps, sigma)
        told, own = denoise(real, x, sigma, embeds), denoise(fake, x, sigma, embeds)
        wanted = told if w == 1 else guided(denoise(real, x, sigma, null.expand_as(embeds)), told, w)
        (gradient,) = torch.autograd.grad(((wanted - own) * (own - leaf)).sum(), leaf)
    return gradient / distance(x0, wanted.detach()), _flow_loss_of(told.detach(), x0, sigma)


def _flow_loss_of(predicted: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    return ((predicted - x0) / sigma[:, None, None, None, None]).square().mean()


def flow_loss(model: CausalWan, x0: Tensor, eps: Tensor, sigma: Tensor, embeds: Tensor) -> Tensor:
    """Mean squared error of the velocity of clips x0 [B, F, C, h, w] at levels sigma [B]."""
    return (model(renoise(x0, eps, sigma), sigma, embeds) - (eps - x0)).square().mean()
