"""The KL penalty, which holds a training to the generator that it began with, taken on some of the streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.generator import Generator, StreamState, prediction, prefill
from .direction import TrainingSample, reference_direction
from .rollout import Rollout

Samples = Sequence[tuple[int, TrainingSample]]
"""Samples of an update, minibatch by minibatch, with the place of their step in the rollout."""


@dataclass(frozen=True)
class KLPenalty:
    """What a frozen generator predicts of every sample on rows [R] of the B streams, each [R, f, C, h, w].

    calls: of the generator for that.   weight: of a row, for all those that are left out.
    """

    rows: Tensor
    predictions: tuple[Tensor, ...]
    calls: int
    weight: float

    @classmethod
    def of(cls, start: Generator, played: Rollout, samples: Samples, rows: Tensor, weight: float) -> KLPenalty:
        """`start` reads each chunk once: a row's past only grows, since a group that goes on from one prefix has the
        same past in all its rows. Where no row is asked of this process it is run nevertheless, on one that weighs
        nothing: all processes call the network alike."""
        if not len(rows):
            rows, weight = rows.new_zeros(1), 0.0
        embeds, state, size = played.embeds[rows], StreamState.start(rows), start.frames_per_chunk
        found: dict[int, Tensor] = {}
        for number, step in enumerate(played.steps):
            read = state.chunk
            state = prefill(start, state, step.past[rows, read * size :], embeds[:, read:])
            for place, (at, sample) in enumerate(samples):
                if at == number:
                    found[place] = prediction(start, state, sample.x[rows], sample.sigma[rows], embeds[:, step.number])
        calls = len(rows) * (state.chunk + len(samples))
        return cls(rows, tuple(found[place] for place in range(len(samples))), calls, weight)

    def gradient(self, place: int, sample: TrainingSample, x0: Tensor) -> tuple[Tensor, Tensor]:
        """On x0 of the sample at a place, 0 off the rows and weighed up to match; and the mean square distance."""
        held, now = self.predictions[place], x0[self.rows]
        weight = torch.ones_like(sample.sigma) if sample.kl_weight is None else sample.kl_weight.expand(len(x0))
        pull = reference_direction(now, held, weight[self.rows])
        away = torch.zeros_like(x0).index_add(0, self.rows, self.weight * pull)
        return away, (now - held).square().mean()


def penalized(count: int, every: int, turn: int, mine: slice, device: torch.device) -> tuple[Tensor, float]:
    """Of `count` streams the one in so many whose turn it is: those among `mine`, by their places there, and what each
    weighs."""
    every = min(every, count)
    rows = torch.arange(turn % every, count, every, device=device)
    return rows[(rows >= mine.start) & (rows < mine.stop)] - mine.start, count / len(rows)
