"""Gradient ascent on a reward: what pixels become when nothing but the reward holds them."""

from __future__ import annotations

import torch
from torch import Tensor

from ...models.prompts import PromptBatch
from ...rewards.stream_reward import StreamReward

BETAS = (0.9, 0.99)


def ascend(reward: StreamReward, video: Tensor, prompts: PromptBatch, steps: int, rate: float) -> Tensor:
    """`steps` of Adam (1412.6980) on the pixels of video [B, F, 3, H, W], kept in [0, 1]; rate: pixels a step."""
    mean, square = torch.zeros_like(video), torch.zeros_like(video)
    for step in range(1, steps + 1):
        slope = reward(video, prompts, need={"gradient"}).gradient
        assert slope is not None
        mean = BETAS[0] * mean + (1 - BETAS[0]) * slope
        square = BETAS[1] * square + (1 - BETAS[1]) * slope.square()
        size = (square / (1 - BETAS[1] ** step)).sqrt() + 1e-8
        video = (video + rate * mean / (1 - BETAS[0] ** step) / size).clamp(0, 1)
    return video


def starts(video: Tensor, seed: int) -> dict[str, Tensor]:
    """Where ascents begin: the true clips, their empty background, and noise; each like video."""
    ground = video.movedim(2, 1).flatten(2).median(dim=-1).values[:, None, :, None, None]
    noise = torch.rand(video.shape, generator=torch.Generator().manual_seed(seed)).to(video.device)
    return {"real": video, "blank": ground.expand_as(video).clone(), "noise": noise}
