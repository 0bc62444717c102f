"""RL on the forward process (DiffusionNFT, 2509.16117): good chunks and bad ones, noised afresh, pull and push."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..envs.streaming import StreamingEnv
from ..models.generator import Generator
from ..models.sampler import renoise
from ..noise import fold, normal, uniform
from .advantage import ADVANTAGE_LIMIT
from .direction import Needs, TrainingBatch, TrainingSample, nft_direction
from .rollout import Rollout


@dataclass(frozen=True)
class ForwardProcess:
    """It needs neither log-probabilities nor a stochastic sampler: only chunks and how good they were."""

    needs: ClassVar[Needs] = Needs()
    kind: Literal["forward"] = "forward"
    minibatches: int = 1
    """Times that every chunk is noised afresh for an update; each costs a backward."""
    train_timesteps: tuple[int, ...] = (-1,)
    """Denoising steps whose levels are drawn from, the last by default; empty: all of them."""
    alike: bool = True
    """Noise the chunks of a group alike, so that what they have in common cancels out of the contrast."""
    beta: float = 1.0
    """How far the two models that are contrasted lie from the one that acted."""

    def actor(self, generator: Generator, shared_steps: int = 0) -> Generator:
        """The generator that plays the rollouts; ValueError where `train_timesteps` does not fit it."""
        steps = len(generator.sigmas)
        if any(not -steps <= step < steps for step in self.train_timesteps) or self.minibatches < 1 or self.beta <= 0:
            raise ValueError(f"steps lie in 0 .. {steps - 1}, minibatches is at least 1 and beta positive: {self}")
        return generator

    def check(self, config: Any) -> None:
        """It goes with everything."""

    def training_samples(self, played: Rollout, keys: Tensor, actor: Generator, env: StreamingEnv) -> TrainingBatch:
        """`minibatches` of them."""
        sigmas = torch.tensor(actor.sigmas, device=keys.device)
        levels = sigmas[list(self.train_timesteps)] if self.train_timesteps else sigmas
        if self.alike:
            keys = keys[:: played.group].repeat_interleave(played.group)
        noises = [fold(keys, 1 + number) for number in range(self.minibatches)]
        return TrainingBatch(
            [
                [self._sample(step.chunk.detach(), step.number, fresh, levels) for step in played.steps]
                for fresh in noises
            ]
        )

    def _sample(self, clean: Tensor, number: int, keys: Tensor, levels: Tensor) -> TrainingSample:
        sigma = levels[(uniform(keys, number, 0, ()) * len(levels)).long().clamp_max(len(levels) - 1)]
        x = renoise(clean, normal(keys, number, 0, tuple(clean.shape[1:])), sigma)
        return TrainingSample(x, sigma, clean)

    def loss_gradient(
        self, sample: TrainingSample, x0: Tensor, old_x0: Tensor, advantage: Tensor, weight: Tensor | float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See Direction; on-policy it is advantage times error."""
        reward_weight = 0.5 + 0.5 * advantage / ADVANTAGE_LIMIT
        direction = ADVANTAGE_LIMIT * nft_direction(x0, old_x0, sample.target, reward_weight, self.beta)
        return weight * direction, {"denoising_error": (x0 - sample.target).abs().mean()}
