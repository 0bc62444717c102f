"""On-policy distillation without a critic: in the states that a student's own streams pass through, it learns where its
teacher would take them in many small, guided steps.

The trajectory's end is the target of ODE regression (CausVid, 2412.07772; Self Forcing, 2506.08009), but from the
student's own past and with no stored pairs. B clips, n chunks, f latent frames a chunk.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..envs.prompt_source import PromptSampler
from ..envs.stack import Stack
from ..models.generator import Generator, StreamState, chunks, update_cache
from ..models.lora import frozen_copy, load_own_weights, own_weights
from ..models.sampler import guided, step_sigmas
from ..noise import fold, stream_keys, update_seed
from ..training.learner import Groups, Learner, LearnerConfig
from ..training.microbatches import parts
from ..training.state import State, pack, unpack
from ..training.usage import ComputeUsage


@dataclass(frozen=True)
class OnPolicyConfig:
    """A recipe (training.recipe.Recipe)."""

    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(learning_rate=1e-4, betas=(0.9, 0.99)))
    batch: int = 8
    """Clips an update."""
    teacher_steps: int = 4
    """Levels of the teacher's sampler; it takes those that lie below the student's state."""
    guidance: float = 1.5
    """Of the teacher; 1 halves its passes."""
    shift: float = 5.0
    """Of its levels."""
    seed: int = 0

    @property
    def learning_rate(self) -> float:
        """Of the generator."""
        return self.learner.learning_rate

    def trainer(self, stack: Stack, generator: Generator) -> OnPolicy:
        """The causal teacher is the generator as it is now, under a finer sampler."""
        return OnPolicy(self, generator, stack.prompts(), stack.null())

    def with_learning_rate(self, rate: float) -> OnPolicyConfig:
        """With another rate."""
        return replace(self, learner=replace(self.learner, learning_rate=rate))

    def with_seed(self, seed: int) -> OnPolicyConfig:
        """With another seed."""
        return replace(self, seed=seed)

    def with_batch(self, clips: int) -> OnPolicyConfig:
        """With so many clips an update."""
        return replace(self, batch=clips)


class CausalTeacher:
    """A frozen generator that follows B streams, guided, and says where the flow from a state ends.

    embeds [B, n, L, D]; null: the empty prompt [L, D]; keys int64 [B].
    """

    def __init__(self, generator: Generator, embeds: Tensor, null: Tensor, keys: Tensor, guidance: float) -> None:
        self.generator, self.embeds, self.guidance = generator, embeds, guidance
        self.null = null.expand_as(embeds[:, 0])
        self.state = self.blind = StreamState.start(keys)
        self.calls = 0

    @torch.no_grad()
    def end(self, x: Tensor, levels: list[float]) -> Tensor:
        """Euler steps from x [B, f, C, h, w] at levels[0] down to 0, after what was read."""
        for sigma, lower in pairwise([*levels, 0.0]):
            x = x + (lower - sigma) * self._velocity(x, sigma)
        return x

    def _velocity(self, x: Tensor, sigma: float) -> Tensor:
        model, number = self.generator.model, self.state.chunk
        self.calls += len(x) * (1 if self.guidance == 1 else 2)
        v = model(x, sigma, self.embeds[:, number], cache=self.state.cache)
        return v if self.guidance == 1 else guided(model(x, sigma, self.null, cache=self.blind.cache), v, self.guidance)

    @torch.no_grad()
    def read(self, chunk: Tensor) -> None:
        """Go on from a clean chunk."""
        number = self.state.chunk
        self.state = update_cache(self.generator, self.state, chunk, self.embeds[:, number])
        self.calls += len(chunk)
        if self.guidance != 1:
            self.blind = update_cache(self.generator, self.blind, chunk, self.null)
            self.calls += len(chunk)


class OnPolicy:
    """Trains a generator towards its own flow's ends; prompts: draws the prompts of an update, null: the empty one."""

    def __init__(
        self,
        config: OnPolicyConfig,
        generator: Generator,
        prompts: PromptSampler,
        null: Tensor,
    ) -> None:
        self.config, self.generator, self.prompts, self.null = config, generator, prompts, null
        self.learner = Learner(generator.model, config.learner)
        self.teacher = replace(generator, model=frozen_copy(generator.model))
        self.counts = ComputeUsage()

    def update(self) -> dict[str, float]:
        """One rollout; every chunk's prediction goes towards where the teacher takes its state."""
        with self.counts.timed():
            config = self.config
            draw = update_seed(config.seed, self.counts.updates)
            rows = self.learner.ranks.rows(config.batch)
            embeds = self.prompts(config.batch, draw)[0].to(self.null.device)[rows]
            keys = fold(stream_keys(config.seed, config.batch, embeds.device), draw)
            exit_step = random.Random(int(keys[0])).randrange(len(self.generator.sigmas))
            sigma, count = self.generator.sigmas[exit_step], embeds.shape[1]
            levels = [sigma, *(s for s in step_sigmas(config.teacher_steps, config.shift) if s < sigma - 1e-6)]
            keys, total = keys[rows], 0.0
            for some, share in parts(len(keys)):
                teacher = CausalTeacher(self.teacher, embeds[some], self.null, keys[some], config.guidance)
                for x0, steps, _ in chunks(self.generator, embeds[some], keys[some], exit_step=exit_step, grad=True):
                    loss = root_error(x0, teacher.end(steps[-1].x, levels)) / count * share
                    self.learner.backward(loss)
                    teacher.read(x0.detach())
                    total += float(loss.detach())
                self.counts.teacher_calls += teacher.calls
            measured = {"loss": total, **self.learner.optimizer_step()}
            self.counts.chunks += len(embeds) * count
            self.counts.generator_calls += len(embeds) * count * (exit_step + 2)
            self.counts.updates += 1
        return measured

    def state(self) -> State:
        """Everything that a bitwise resume needs; tensors are those in use, so copy them to keep them."""
        return pack(self.config, self.counts, {"generator": self.learner}, own_weights(self.teacher.model))

    def load_state(self, groups: Groups, meta: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        frozen = unpack(self.config, self.counts, {"generator": self.learner}, groups, meta)
        load_own_weights(self.teacher.model, frozen)


def root_error(x0: Tensor, target: Tensor) -> Tensor:
    """Mean over clips of the root mean square of x0 - target [B, f, C, h, w]: clips that lie far off, whose targets are
    the least sure, count no more than others (the Huber loss of consistency training, 2310.14189, without its foot)."""
    return ((x0 - target).square().flatten(1).mean(1) + 1e-6).sqrt().mean()
