"""What an update of RL on the forward process takes (training.forecast)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from ..models.generator import StreamState, chunks, prediction, update_cache
from ..training.forecast import Cast, Method
from ..training.surrogate import surrogate
from .finetune import FineTuneConfig


def forward_method(config: FineTuneConfig) -> Method:
    """One noise of every chunk, and a KL penalty where the recipe has one; codec and reward come on top."""
    frozen = ("reference",) if config.kl_coef else ()
    return Method(frozen, (), partial(_update, config), config.learner.ema)


def _update(config: FineTuneConfig, cast: Cast) -> Iterator[str]:
    generator, embeds, learner = cast.generator, cast.embeds, cast.learners["student"]
    played, states = list(chunks(generator, embeds, cast.keys)), [StreamState.start(cast.keys)]
    yield "rollout"
    targets = [torch.zeros_like(x0) for x0, _, _ in played]
    rows = slice(None, None, config.kl_every)
    if config.kl_coef:
        start = replace(generator, model=cast.roles["reference"])
        state, sigma = StreamState.start(cast.keys[rows]), torch.ones(len(cast.keys[rows]))
        for number, (x0, _, _) in enumerate(played):
            targets[number][rows] = prediction(start, state, x0[rows], sigma, embeds[rows, number])
            state = update_cache(start, state, x0[rows], embeds[rows, number])
        yield "reference"
    states += [state for _, _, state in played]
    for number, (x0, _, _) in enumerate(played):
        again = generator.denoise(x0, generator.sigmas[-1], embeds[:, number], states[number].cache)
        learner.backward(surrogate(again, targets[number]))
    yield "student"
