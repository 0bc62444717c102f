"""Noise levels, the few-step sampler's Gaussian kernel, and the teacher's Euler sampler.

x_sigma = (1 - sigma) x0 + sigma eps and v = eps - x0. A level is a number, [B], or [B, F]; latents are [B, F, C, h, w].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeVar

import torch
from torch import Tensor

Level = TypeVar("Level", float, Tensor)


def shifted(u: Level, k: float) -> Level:
    """Level u in [0, 1] moved towards noise: k u / (1 + (k - 1) u) (Wan: k = 5)."""
    return k * u / (1 + (k - 1) * u)


def step_sigmas(steps: int, shift: float) -> tuple[float, ...]:
    """Levels at which a sampler of so many steps runs, from 1 downwards; the 0 at its end is left out."""
    return tuple(shifted(1 - i / steps, shift) for i in range(steps))


def x0_from_v(x: Tensor, v: Tensor, sigma: float | Tensor) -> Tensor:
    """The clean prediction behind a velocity."""
    return x - _spread(sigma, x) * v


def renoise(x0: Tensor, eps: Tensor, sigma: float | Tensor) -> Tensor:
    """x0 noised to sigma; with fresh eps, a draw from the sampler's kernel p(x_next | x)."""
    level = _spread(sigma, x0)
    return (1 - level) * x0 + level * eps


def kernel_log_prob(
    x_next: Tensor, x0: Tensor, next_sigma: float | Tensor, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """log N(x_next; (1 - s') x0, s'^2 I), float32 [B], the mean or the sum over a stream's elements.

    The kernel of consistency sampling (RAVEN, 2605.15190). next_sigma must not be 0: the last step is deterministic.
    """
    level = _level(next_sigma, x0)
    distance = (x_next.float() - (1 - level) * x0.float()) / level
    log_prob = -0.5 * distance.square() - _log(level) - 0.5 * math.log(2 * math.pi)
    return log_prob.flatten(1).mean(1) if reduction == "mean" else log_prob.flatten(1).sum(1)


def kernel_score(x_next: Tensor, x0: Tensor, next_sigma: float | Tensor) -> Tensor:
    """Gradient of the summed kernel_log_prob with respect to x0, float32: (1 - s') (x' - (1 - s') x0) / s'^2."""
    level = _level(next_sigma, x0)
    return (1 - level) * (x_next.float() - (1 - level) * x0.float()) / level**2


def guided(unconditional: Tensor, conditional: Tensor, weight: float | Tensor) -> Tensor:
    """Classifier-free guidance: u + w (c - u); w is a number, or a tensor that broadcasts."""
    return unconditional + weight * (conditional - unconditional)


def sloped(u: float | Tensor, slope: float | Tensor, frames: int) -> Tensor:
    """Unshifted levels [B, F] that rise by `slope` from the first frame to the last, clamped to [0, 1].

    u [B] in [0, 1] is progress: at 1 every frame is noise, at 0 every frame is clean, for every slope [B] >= 0.
    """
    u, slope = torch.as_tensor(u).view(-1, 1), torch.as_tensor(slope, device=torch.as_tensor(u).device).view(-1, 1)
    place = torch.arange(frames, device=u.device) / max(frames - 1, 1)
    return ((1 + slope) * u - slope * (1 - place)).clamp(0, 1)


def euler_sample(
    velocity: Callable[[Tensor, float | Tensor], Tensor], noise: Tensor, sigmas: Sequence[float] | Sequence[Tensor]
) -> Tensor:
    """Integrate dx / dsigma = velocity(x, sigma) from noise at sigmas[0] down to 0."""
    x = noise
    levels: list[float | Tensor] = [*sigmas, 0.0 * sigmas[-1]]
    for sigma, lower in pairwise(levels):
        x = x + _spread(lower - sigma, x) * velocity(x, sigma)
    return x


@dataclass(frozen=True)
class TeacherSampling:
    """How a bidirectional teacher is sampled."""

    steps: int = 50
    """Euler steps."""
    guidance: float = 5.0
    """Weight of classifier-free guidance; 1 runs the conditional half alone."""
    shift: float = 5.0
    """Levels are moved this much towards noise."""
    slope: float = 0.0
    """How much later the last frame is denoised than the first (`sloped`); 0: all frames together."""

    def sigmas(self, frames: int, device: torch.device) -> tuple[float, ...] | tuple[Tensor, ...]:
        """The levels of every step: numbers, or [1, F] where they differ between frames."""
        if not self.slope:
            return step_sigmas(self.steps, self.shift)
        progress = torch.linspace(1, 0, self.steps + 1, device=device)[:-1]
        return shifted(sloped(progress, self.slope, frames), self.shift).split(1)


@torch.no_grad()
def sample_teacher(
    model: Callable[[Tensor, float | Tensor, Tensor], Tensor],
    embeds: Tensor,
    null_embed: Tensor,
    noise: Tensor,
    sampling: TeacherSampling,
) -> Tensor:
    """Clean latents [B, F, C, h, w] of a bidirectional teacher, guided Euler steps from noise of that shape.

    embeds [B, n, L, D] (or [B, L, D]) and null_embed [L, D]: both halves of the guidance run as one batch.
    """
    both = torch.cat((null_embed.expand_as(embeds), embeds))

    def velocity(x: Tensor, sigma: float | Tensor) -> Tensor:
        if sampling.guidance == 1:
            return model(x, sigma, embeds)
        unconditional, conditional = model(torch.cat((x, x)), sigma, both).chunk(2)
        return guided(unconditional, conditional, sampling.guidance)

    return euler_sample(velocity, noise, sampling.sigmas(noise.shape[1], noise.device))


def _spread(sigma: float | Tensor, x: Tensor) -> float | Tensor:
    """sigma with the trailing dimensions that x has."""
    return sigma.view(*sigma.shape, *(1,) * (x.ndim - sigma.ndim)) if isinstance(sigma, Tensor) else sigma


def _level(next_sigma: float | Tensor, x: Tensor) -> float | Tensor:
    if not isinstance(next_sigma, Tensor) and next_sigma <= 0:
        raise ValueError("the step to sigma 0 is deterministic: it has no log-probability")
    return _spread(next_sigma, x)


def _log(level: float | Tensor) -> float | Tensor:
    return level.log() if isinstance(level, Tensor) else math.log(level)
