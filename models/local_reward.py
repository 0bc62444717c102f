"""The tiny reward whose VQ is made of damage: how much is wrong at every place of every frame, each by itself.

Shape letters: B clips, F frames, H W pixels, h w cells of 2 x 2 pixels, K channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .reward_net import TinyReward

WORST = 3.0
"""Power of the mean over frames: the worse a frame, the more of the score and of its gradient is its own."""
RESTORED = 12
"""Channels of a cell that are trained to hold what was done to its 2 x 2 pixels of RGB."""


class _Residual(nn.Module):
    """Two 3x3 convolutions added to the input, without a norm, which would carry damage over the whole frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for conv in self.convs:
            h = conv(functional.silu(h))
        return x + h


class DamageMap(nn.Module):
    """What is wrong with single frames, cell by cell; zero where nothing is.

    A score that falls with the square of it has no gradient where nothing is wrong, and the more the worse it is.
    """

    def __init__(self, width: int = 32, free: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 4, stride=2, padding=1), _Residual(width))
        self.down = nn.Sequential(
            nn.SiLU(), nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), _Residual(2 * width), nn.SiLU()
        )
        self.up = nn.Conv2d(2 * width, 4 * width, 1)
        mixed, last = _Residual(width), nn.Conv2d(width, RESTORED + free, 1)
        self.out = nn.Sequential(mixed, nn.SiLU(), last)
        self.log_slope = nn.Parameter(torch.tensor(1.0))
        self.log_least = nn.Parameter(torch.tensor(-4.0))
        with torch.no_grad():
            last.weight.mul_(0.3)

    def forward(self, video: Tensor) -> Tensor:
        """video [B, F, 3, H, W] in [0, 1]. Returns damage [B, F, K, h, w]."""
        fine = self.stem(video.flatten(0, 1) * 2 - 1)
        whole = fine + functional.pixel_shuffle(self.up(self.down(fine)), 2)
        return self.out(whole).unflatten(0, video.shape[:2])

    def score(self, damage: Tensor) -> Tensor:
        """Score [B] of damage [B, F, K, h, w]: minus the logarithm of its mean square, the worst frames foremost."""
        frames = damage.square().sum(dim=2).mean(dim=(-1, -2))
        mean = (frames.pow(WORST).mean(dim=1) + 1e-20).pow(1 / WORST)
        return -self.log_slope.exp() * torch.log(self.log_least.exp() + mean)

    def restored(self, damage: Tensor) -> Tensor:
        """What was done to the pixels, as far as it is seen in damage: [B, F, 3, H, W]."""
        return functional.pixel_shuffle(damage[:, :, :RESTORED], 2) / 2


class LocalReward(TinyReward):
    """MQ and TA as a TinyReward has them; VQ by a `DamageMap`, so that its saliency lies on the damage."""

    tau = 0.1
    """Temperature at which a stack fuses its saliency: what is wrong with a damaged clip is its VQ."""

    def __init__(self, text_dim: int, width: int = 96) -> None:
        super().__init__(text_dim, width)
        self.damage = DamageMap()

    @classmethod
    def over(cls, reward: TinyReward) -> LocalReward:
        """With the weights of a reward, all but the damage map frozen."""
        local = cls.from_config(**reward.config)
        local.load_state_dict(reward.state_dict() | local.damage.state_dict(prefix="damage."))
        local.requires_grad_(False).damage.requires_grad_(True)
        return local

    @classmethod
    def from_config(cls, **config: Any) -> LocalReward:
        """Untrained, with the arguments that `config` holds."""
        return cls(**config)

    def read(self, video: Tensor, embeds: Tensor) -> tuple[Tensor, Tensor]:
        """As a TinyReward's, with a VQ of its own."""
        quality, agreement = super().read(video, embeds)
        return torch.stack([self.damage.score(self.damage(video)), quality[:, 1]], dim=1), agreement
