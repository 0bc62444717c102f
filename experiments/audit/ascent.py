"""Gradient ascent on a reward: what pixels become when nothing but the reward holds them."""

from __future__ import annotations

import torch
from torch import Tensor

from ...envs.worlds.exploits import ground
from ...models.codec import Codec
from ...models.prompts import PromptBatch
from ...rewards.stream_reward import StreamReward

BETAS = (0.9, 0.99)


def ascend(
    reward: StreamReward, video: Tensor, prompts: PromptBatch, steps: int, rate: float, codec: Codec | None = None
) -> Tensor:
    """`steps` of Adam (1412.6980) on the pixels of video [B, F, 3, H, W], kept in [0, 1]; with a codec on its latents,
    through the decoder. rate: how far a step may carry a pixel, or a latent. Returns the video."""
    place = video if codec is None else codec.encode(video).detach()
    mean, square = torch.zeros_like(place), torch.zeros_like(place)
    for step in range(1, steps + 1):
        slope = _slope(reward, place, prompts, codec)
        mean = BETAS[0] * mean + (1 - BETAS[0]) * slope
        square = BETAS[1] * square + (1 - BETAS[1]) * slope.square()
        size = (square / (1 - BETAS[1] ** step)).sqrt() + 1e-8
        place = place + rate * mean / (1 - BETAS[0] ** step) / size
        place = place.clamp(0, 1) if codec is None else place
    with torch.no_grad():
        return place if codec is None else codec.decode(place)


def _slope(reward: StreamReward, place: Tensor, prompts: PromptBatch, codec: Codec | None) -> Tensor:
    """d reward / d place, where place is pixels or, with a codec, latents."""
    leaf = place.detach().requires_grad_()
    with torch.enable_grad():
        total = reward(leaf if codec is None else codec.decode(leaf), prompts).reward.sum()
    return torch.autograd.grad(total, leaf)[0]


def starts(video: Tensor, seed: int) -> dict[str, Tensor]:
    """Where ascents begin: the true clips, their latents, their empty background, and noise; each like video."""
    noise = torch.rand(video.shape, generator=torch.Generator().manual_seed(seed)).to(video.device)
    return {"real": video, "latents": video, "blank": ground(video).expand_as(video), "noise": noise}
