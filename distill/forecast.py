"""What an update of distribution matching takes (training.forecast)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from ..training.forecast import Cast, Method
from ..training.surrogate import surrogate
from .directions import flow_loss, score_direction
from .trainer import DistillConfig, self_forcing


def matching_method(config: DistillConfig, steps: int) -> Method:
    """DMD's, for a student of so many steps; a weight, a GAN term and SiD's gradient come on top."""
    passes = (2 + (steps - 1) / 2) / (steps + 1)  # the exit step is drawn, and a chunk is written once
    return Method(("teacher",), ("critic",), partial(_update, config), config.generator.ema, passes)


def _update(config: DistillConfig, cast: Cast) -> Iterator[str]:
    generator, embeds, keys = cast.generator, cast.embeds, cast.keys
    last, critic, rows = (
        len(generator.sigmas) - 1,
        cast.learners["critic"],
        max(1, round(config.critic_share * len(keys))),
    )
    x0 = self_forcing(generator, embeds, keys, last, True)
    fresh = x0.detach()
    yield "rollout"
    noise, sigma = torch.randn_like(fresh), torch.rand(len(keys))
    for turn in range(config.critic_updates):
        if 0 < turn < config.critic_rollouts:
            self_forcing(generator, embeds, keys, last, False)
            yield "rollout"
        critic.backward(flow_loss(critic.module, fresh[:rows], noise[:rows], sigma[:rows], embeds[:rows]))
        critic.zero_grad()
        yield "critic"
    null = torch.zeros_like(embeds[0, 0])
    scores = cast.roles["teacher"], cast.roles["critic"]
    direction, _ = score_direction(fresh, noise, sigma, embeds, null, scores, config.guidance)
    yield "scores"
    cast.learners["student"].backward(surrogate(x0, direction))
    yield "student"
