"""Causal consistency distillation by teacher forcing (Causal Forcing++, after consistency models 2303.01469): a start
for few-step students that needs neither stored trajectories nor a critic.

On clips of the world a chunk is noised to a level s, beside a clean past; the frozen causal teacher takes one guided
Euler step to the next level t; what the student predicts at s goes towards what its average predicts at t. B clips,
n chunks, f latent frames a chunk, F = n f.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..envs.stack import Stack
from ..models.generator import Generator
from ..models.lora import frozen_copy, load_own_weights, own_weights
from ..models.sampler import guided, renoise, step_sigmas, x0_from_v
from ..noise import fold, normal, stream_keys, uniform, update_seed
from ..training.learner import Groups, Learner, LearnerConfig
from ..training.microbatches import backward_in_parts
from ..training.state import State, pack, unpack
from ..training.usage import ComputeUsage
from .causal_init import LatentSampler, world_clips
from .on_policy import root_error


@dataclass(frozen=True)
class ConsistencyConfig:
    """A recipe (training.recipe.Recipe)."""

    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(learning_rate=2e-4, betas=(0.9, 0.99)))
    batch: int = 8
    """Clips an update."""
    levels: int = 4
    """Of the grid that the teacher steps along."""
    sampler_share: float = 0.5
    """Share of chunks whose level is one of the student's own; the others are drawn from the whole grid."""
    guidance: float = 1.5
    """Of the teacher; 1 halves its passes."""
    average: float = 0.9
    """Decay of the averaged student that predicts the targets."""
    shift: float = 5.0
    """Of the grid."""
    context_noise: float = 0.2
    """The past is noised to a level drawn up to this, per clip: a stream's own past is not perfect either."""
    pool: int = 512
    """Clips of the world that a stack's trainer draws from."""
    seed: int = 0

    @property
    def learning_rate(self) -> float:
        """Of the generator."""
        return self.learner.learning_rate

    def trainer(self, stack: Stack, generator: Generator) -> Consistency:
        """The teacher is the generator as it is now."""
        return Consistency(self, generator, world_clips(stack, self.pool, self.seed), stack.null())

    def with_learning_rate(self, rate: float) -> ConsistencyConfig:
        """With another rate."""
        return replace(self, learner=replace(self.learner, learning_rate=rate))

    def with_seed(self, seed: int) -> ConsistencyConfig:
        """With another seed."""
        return replace(self, seed=seed)

    def with_batch(self, clips: int) -> ConsistencyConfig:
        """With so many clips an update."""
        return replace(self, batch=clips)


class Consistency:
    """Trains a generator to predict alike along its teacher's flow.

    clips: draws encoded clips of the world.   null: the empty prompt's embedding [L, D], for the guided teacher.
    """

    def __init__(self, config: ConsistencyConfig, generator: Generator, clips: LatentSampler, null: Tensor) -> None:
        self.config, self.generator, self.clips, self.null = config, generator, clips, null
        self.learner = Learner(generator.model, config.learner)
        self.teacher, self.target = (frozen_copy(generator.model) for _ in range(2))
        self.counts = ComputeUsage()

    def update(self) -> dict[str, float]:
        """One regression step; it generates nothing."""
        with self.counts.timed():
            config = self.config
            draw = update_seed(config.seed, self.counts.updates)
            rows = self.learner.ranks.rows(config.batch)
            x0, embeds = (drawn[rows] for drawn in self.clips(config.batch, draw))
            keys = fold(stream_keys(config.seed, config.batch, x0.device), draw)[rows]
            shape, frames = tuple(x0.shape[1:]), self.generator.frames_per_chunk
            past = renoise(x0, normal(keys, 0, 2, shape), config.context_noise * uniform(keys, 0, 1, ()))
            upper, lower = (level.repeat_interleave(frames, 1) for level in self._levels(keys, embeds.shape[1]))
            x = renoise(x0, normal(keys, 0, 1, shape), upper)

            def loss(some: slice) -> Tensor:
                seen = x[some], past[some], upper[some]
                target = self._target(*seen, lower[some], embeds[some])
                v = self.generator.model.teacher_forcing(*seen, embeds[some])
                return root_error(x0_from_v(x[some], v, upper[some]), target)

            measured = {"loss": backward_in_parts(self.learner, len(x), loss), **self.learner.optimizer_step()}
            with torch.no_grad():
                mean, now = (list(own_weights(model).values()) for model in (self.target, self.generator.model))
                torch._foreach_lerp_(mean, now, 1 - config.average)
            calls = len(embeds) * embeds.shape[1]
            self.counts.generator_calls += 4 * calls
            self.counts.teacher_calls += 2 * calls * (1 if config.guidance == 1 else 2)
            self.counts.updates += 1
        return measured

    def _levels(self, keys: Tensor, chunks: int) -> tuple[Tensor, Tensor]:
        """Neighbouring levels of the grid [B, n], the upper and the lower one of every chunk."""
        config, own = self.config, self.generator.sigmas
        grid = torch.tensor([*step_sigmas(config.levels, config.shift), 0.0], device=keys.device)
        places = torch.tensor([int((grid[:-1] - sigma).abs().argmin()) for sigma in own], device=keys.device)
        u = uniform(keys, 0, 0, (chunks,))
        mine = (u / max(config.sampler_share, 1e-9) * len(own)).long().clamp_max(len(own) - 1)
        rest = ((u - config.sampler_share) / max(1 - config.sampler_share, 1e-9) * config.levels).long()
        place = torch.where(u < config.sampler_share, places[mine], rest.clamp(0, config.levels - 1))
        return grid[place], grid[place + 1]

    @torch.no_grad()
    def _target(self, x: Tensor, past: Tensor, upper: Tensor, lower: Tensor, embeds: Tensor) -> Tensor:
        """What the average predicts one step of the teacher further on; the step's own end at level 0."""
        v = self.teacher.teacher_forcing(x, past, upper, embeds)
        if self.config.guidance != 1:
            blind = self.teacher.teacher_forcing(x, past, upper, self.null.expand_as(embeds))
            v = guided(blind, v, self.config.guidance)
        further = x + (lower - upper)[:, :, None, None, None] * v
        predicted = x0_from_v(further, self.target.teacher_forcing(further, past, lower, embeds), lower)
        return torch.where((lower == 0)[:, :, None, None, None], further, predicted)

    def state(self) -> State:
        """Everything that a bitwise resume needs; tensors are those in use, so copy them to keep them."""
        kept = {
            f"{name}/{key}": value
            for name, model in self._frozen().items()
            for key, value in own_weights(model).items()
        }
        return pack(self.config, self.counts, {"generator": self.learner}, kept)

    def load_state(self, groups: Groups, meta: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        kept = unpack(self.config, self.counts, {"generator": self.learner}, groups, meta)
        for name, model in self._frozen().items():
            load_own_weights(
                model, {key.removeprefix(f"{name}/"): v for key, v in kept.items() if key.startswith(f"{name}/")}
            )

    def _frozen(self) -> dict[str, torch.nn.Module]:
        return {"teacher": self.teacher, "target": self.target}
