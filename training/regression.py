"""Plain training of one module on a loss: what makes the parts of a stack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic

import torch
from torch import Tensor

from ..noise import update_seed
from .learner import Groups, Learner, LearnerConfig, Trained
from .ranks import here
from .state import State, pack, unpack
from .usage import ComputeUsage

Loss = Callable[[Trained, torch.Generator, slice], Tensor]
"""`loss(module, generator, share)`: draws a whole batch from `generator` alone, returns the mean over its `share`."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train."""

    steps: int
    """Updates that the learning rate is planned for."""
    batch: int
    """Clips (or frames) an update, over all processes."""
    learning_rate: float
    """Peak rate of AdamW; 2% linear warm-up, then cosine to a twentieth."""
    muon_lr: float | None = None
    """Peak rate of Muon, which then trains the matrices of the transformer's blocks; the same schedule."""
    ema: float = 0.998
    """Decay of the averaged weights, which are what is shipped."""
    max_grad_norm: float = 1.0
    """Largest gradient norm."""
    seed: int = 0
    """Everything drawn at update k is a function of (seed, k)."""
    checkpoint_every: int = 200
    """Updates between resumable checkpoints."""
    stop: int | None = None
    """Update at which training ends, if before `steps`."""

    @property
    def end(self) -> int:
        """The last update."""
        return self.steps if self.stop is None else min(self.stop, self.steps)

    def learner(self) -> LearnerConfig:
        """How the module learns."""
        return LearnerConfig(
            self.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            max_grad_norm=self.max_grad_norm,
            ema=self.ema,
            planned=self.steps,
            muon_lr=self.muon_lr,
            ema_warmup=True,
        )


@dataclass(frozen=True)
class Agreed:
    """What a checkpoint and a training that goes on with it agree in; where it stops is no part of it."""

    schedule: Schedule
    data: dict[str, Any]


class Regression(Generic[Trained]):
    """Trains a module by its loss; a `Trainer`, so `fit` resumes it bit for bit.

    data: what else a checkpoint must agree in, as JSON holds it. Several processes share every batch out.
    """

    def __init__(
        self,
        schedule: Schedule,
        module: Trained,
        loss: Loss[Trained],
        data: Mapping[str, Any] | None = None,
    ) -> None:
        self.schedule, self.loss = schedule, loss
        self.config = Agreed(replace(schedule, stop=None), dict(data or {}))
        self.learner = Learner(module, schedule.learner())
        self.share = slice(here().index, None, here().count)
        self.counts = ComputeUsage()

    def update(self) -> dict[str, float]:
        """One step on the loss of a batch."""
        with self.counts.timed():
            drawn = update_seed(self.schedule.seed, self.counts.updates)
            torch.manual_seed(drawn)  # for what a network draws itself
            measured = self.learner.step(
                self.loss(self.learner.module, torch.Generator().manual_seed(drawn), self.share)
            )
            self.counts.updates += 1
        return measured

    def state(self) -> State:
        """Everything that a bitwise resume needs."""
        return pack(self.config, self.counts, {"module": self.learner})

    def load_state(self, groups: Groups, meta: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        unpack(self.config, self.counts, {"module": self.learner}, groups, meta)
