"""DMD2's GAN term (2405.14867): a discriminator of noised latents tells the student's clips from the world's.

Theirs is a head on the critic's features; ours is a small network of its own, which reads no prompt. B clips
[B, F, C, h, w].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..models.sampler import renoise
from ..training.learner import Learner, LearnerConfig


class LatentDiscriminator(nn.Module):
    """Logits [B] that latents of level sigma [B] are the world's."""

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv3d(channels + 1, width, (1, 3, 3), (1, 2, 2), (0, 1, 1)),
            nn.SiLU(),
            nn.Conv3d(width, 2 * width, 3, (1, 2, 2), 1),
            nn.SiLU(),
            nn.Conv3d(2 * width, 2 * width, 3, 1, 1),
            nn.SiLU(),
        )
        self.head = nn.Linear(2 * width, 1)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x [B, F, C, h, w]."""
        level = sigma[:, None, None, None, None].expand(-1, x.shape[1], 1, *x.shape[3:])
        seen = self.net(torch.cat((x, level), 2).transpose(1, 2))
        logits: Tensor = self.head(seen.mean((2, 3, 4)))[:, 0]
        return logits


class GanTerm:
    """The discriminator and its optimiser. channels: C; seed: of its first weights."""

    def __init__(self, channels: int, learner: LearnerConfig, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = LatentDiscriminator(channels)
        self.learner = Learner(network, learner)

    def to(self, device: torch.device) -> GanTerm:
        """Onto the latents' device."""
        self.learner.module.to(device)
        return self

    def train(self, made: Tensor, real: Tensor, eps: Tensor, sigma: Tensor) -> dict[str, float]:
        """One step of the logistic loss on made and real latents, noised alike by eps to sigma [B]."""
        network = self.learner.module
        told, known = network(renoise(made, eps, sigma), sigma), network(renoise(real, eps, sigma), sigma)
        measured = self.learner.step((softplus(told) + softplus(-known)).mean())
        right = ((told < 0).float().mean() + (known > 0).float().mean()) / 2
        return {"losses/discriminator": measured["loss"], "discriminator_right": float(right)}

    def direction(self, x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
        """The gradient of softplus(-logit) with respect to x0, of unit root mean square per clip."""
        with torch.enable_grad():
            leaf = x0.detach().requires_grad_()
            loss = softplus(-self.learner.module(renoise(leaf, eps, sigma), sigma)).sum()
            (gradient,) = torch.autograd.grad(loss, leaf)
        size = gradient.square().mean(dim=(1, 2, 3, 4), keepdim=True).sqrt()
        return gradient / size.clamp_min(1e-12)
