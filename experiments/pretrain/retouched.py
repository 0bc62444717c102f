"""Windows that something worked over after they were drawn: the teacher's brush, or a climb on the reward itself."""

from dataclasses import replace

import torch
from torch import Tensor

from ...envs.worlds.exploits import ground
from ...envs.worlds.fakes import wide
from ...models.codec import Codec
from ...models.reward_net import TinyReward
from ...models.sampler import renoise
from ...models.wan import CausalWan
from .flawed import Batch

REPAINTED = 0.3
"""Largest noise level that a window is repainted from."""
CLIMB = 3
"""Steps of pixel ascent that a gamed window has taken."""
FARTHEST, SPOILT = 0.3, 0.2
"""How far they may carry a pixel, of a range of 1, and how far leaves the window worth nothing."""


def gamed(model: TinyReward, batch: Batch, generator: torch.Generator) -> Batch:
    """The windows after a few signed steps of pixel ascent on the model's own scores, every fourth of them from noise
    or from its background alone. What was gained so is worth nothing: each axis loses by how far the pixels went."""
    count = len(batch.video)
    start = torch.rand(count, generator=generator)
    noise = torch.rand(batch.video.shape, generator=generator)
    pick = wide(start)
    video = torch.where(pick < 1 / 8, noise, torch.where(pick < 1 / 4, ground(batch.video), batch.video))
    reach = FARTHEST * torch.rand(count, generator=generator)
    for _ in range(CLIMB):
        video = video.detach().requires_grad_()
        (slope,) = torch.autograd.grad(model(video, batch.embeds[:, 0]).sum(), video)
        video = (video + wide(reach / CLIMB) * slope.sign()).clamp(0, 1)
    left = (1 - reach / SPOILT).clamp_min(0) * (start >= 1 / 4)
    unknown = torch.full_like(batch.true, -1)
    return replace(batch, video=video.detach(), worth=batch.worth * left[:, None], true=unknown)


@torch.no_grad()
def repainted(codec: Codec, teacher: CausalWan, batch: Batch, null: Tensor, generator: torch.Generator) -> Batch:
    """The windows after the teacher has noised them a little and denoised them, under the null prompt [L, D]: flaws and
    worth stay, but what painted them is a network and no longer the renderer."""
    parts = []
    for video in batch.video.split(64):
        x0 = codec.encode(video)
        sigma = REPAINTED * torch.rand(len(x0), generator=generator)
        x = renoise(x0, torch.randn(x0.shape, generator=generator), sigma)
        for here, there in ((sigma, sigma / 2), (sigma / 2, 0 * sigma)):
            x = x + wide(there - here) * teacher(x, here, null.expand(len(x), -1, -1))
        parts.append(codec.decode(x))
    return replace(batch, video=torch.cat(parts))
