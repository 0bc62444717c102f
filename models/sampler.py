"""Noise levels, the few-step sampler's Gaussian kernel, and the teacher's Euler sampler.

x_sigma = (1 - sigma) x0 + sigma eps and v = eps - x0. A level is a number, [B], or [B, F]; latents are [B, F, C, h, w].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

SAMPLER_SHIFT = 5.0
"""Wan's: how far the levels of samplers are moved towards noise."""
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


def denoise(model: Callable[..., Tensor], x: Tensor, sigma: float | Tensor, embeds: Tensor, **options: Any) -> Tensor:
    """The clean prediction of a velocity model at x of level sigma: the model as a denoiser."""
    return x0_from_v(x, model(x, sigma, embeds, **options), sigma)


def renoise(x0: Tensor, eps: Tensor, sigma: float | Tensor) -> Tensor:
    """x0 noised to sigma; with fresh eps, a draw from the sampler's kernel p(x_next | x)."""
    level = _spread(sigma, x0)
    return (1 - level) * x0 + level * eps


@dataclass(frozen=True)
class Kernel:
    """The sampler's Gaussian step p(x_next | x) = N(keep x + pull x0, std^2 I); each is a number or [B].

    A step without noise (std 0) is deterministic: it has no log-probability and no score.
    """

    keep: float | Tensor
    pull: float | Tensor
    std: float | Tensor

    def draw(self, x: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
        """x_next for standard normal noise eps, all [B, F, C, h, w]."""
        return self.mean(x, x0) + _spread(self.std, x0) * eps

    def mean(self, x: Tensor, x0: Tensor) -> Tensor:
        """keep x + pull x0."""
        centre = _spread(self.pull, x0) * x0
        return centre if isinstance(self.keep, float) and not self.keep else centre + _spread(self.keep, x) * x

    def log_prob(self, x_next: Tensor, x: Tensor, x0: Tensor, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
        """log p(x_next | x), float32 [B], the mean or the sum over a stream's elements."""
        std = self._noise(x0)
        distance = (x_next.float() - self.mean(x.float(), x0.float())) / std
        log_prob = -0.5 * distance.square() - _log(std) - 0.5 * math.log(2 * math.pi)
        return log_prob.flatten(1).mean(1) if reduction == "mean" else log_prob.flatten(1).sum(1)

    def score(self, x_next: Tensor, x: Tensor, x0: Tensor) -> Tensor:
        """Gradient of the summed log_prob with respect to x0, float32: pull (x_next - mean) / std^2."""
        std = self._noise(x0)
        return _spread(self.pull, x0) * (x_next.float() - self.mean(x.float(), x0.float())) / std**2

    def _noise(self, x0: Tensor) -> float | Tensor:
        if not isinstance(self.std, Tensor) and self.std <= 0:
            raise ValueError("a step without noise is deterministic: it has no log-probability")
        return _spread(self.std, x0)


KernelOf = Callable[[float, float], Kernel]
"""From a noise level and the next, lower one to the step between them."""


def consistency(sigma: float, next_sigma: float) -> Kernel:
    """Consistency sampling: the prediction, noised afresh, N((1 - s') x0, s'^2) (RAVEN, 2605.15190). Exact at any
    number of steps; at next_sigma 0 it is the prediction itself."""
    return Kernel(0.0, 1.0 - next_sigma, next_sigma)


@dataclass(frozen=True)
class FlowSDE:
    """Flow-GRPO's stochastic flow step (2505.05470), an Euler-Maruyama step of an SDE with the flow's marginals.

    With dt = s' - s and g = noise sqrt(s / (1 - s)):
    x_next = x + (v + g^2 / (2 s) (x + (1 - s) v)) dt + g sqrt(-dt) eps. At s = 1, where g is infinite, 1 - s' stands
    for 1 - s, as in the authors' code, which adds some variance in the first step at any number of steps. Four steps
    are coarse for it. The step to 0 is the plain flow's, without noise, which leaves the clip clean.
    """

    noise: float = 0.7

    def __call__(self, sigma: float, next_sigma: float) -> Kernel:
        dt = next_sigma - sigma
        g2 = 0.0 if next_sigma == 0 else self.noise**2 * sigma / (1 - (next_sigma if sigma == 1 else sigma))
        drift = dt * (1 + g2 * (1 - sigma) / (2 * sigma)) / sigma
        return Kernel(1 + g2 * dt / (2 * sigma) + drift, -drift, math.sqrt(-g2 * dt))


def kernel_log_prob(
    x_next: Tensor, x0: Tensor, next_sigma: float | Tensor, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """log N(x_next; (1 - s') x0, s'^2 I), float32 [B]: `Kernel.log_prob` of consistency sampling."""
    return Kernel(0.0, 1 - next_sigma, next_sigma).log_prob(x_next, x0, x0, reduction)


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


def _log(level: float | Tensor) -> float | Tensor:
    return level.log() if isinstance(level, Tensor) else math.log(level)
