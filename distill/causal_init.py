"""The starting recipe of a streaming student: velocity regression on clips of the world under a causal mask.

B clips, n chunks, f latent frames a chunk, F = n f.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..envs.encoded import data_of
from ..envs.stack import Stack
from ..envs.worlds.clips import encode_clips, make_clips
from ..models.generator import Generator
from ..models.sampler import renoise, shifted
from ..models.wan import CausalWan
from ..noise import SeedDomain, fold, normal, stream_keys, uniform, update_seed
from ..training.learner import Groups, Learner, LearnerConfig
from ..training.microbatches import backward_in_parts
from ..training.state import State, pack, unpack
from ..training.usage import ComputeUsage

LatentSampler = Callable[[int, int], tuple[Tensor, Tensor]]
"""`clips(batch, step)` -> latents [batch, F, C, h, w] and prompts [batch, n, L, D], a pure function."""


@dataclass(frozen=True)
class CausalInitConfig:
    """A recipe."""

    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(learning_rate=1e-4, ema=0.99))
    batch: int = 32
    """Clips an update."""
    past: Literal["noisy", "clean"] = "noisy"
    """What a chunk sees of the chunks before it. noisy: them at its own level, as in its teacher; a clean past, and its
    own mistakes, are new to it when it streams. clean: teacher forcing, each chunk at a level of its own."""
    shift: float = 5.0
    """Noisy past: the level of a clip is uniform, then shifted by this much towards noise."""
    sampler_share: float = 0.75
    """Clean past: share of chunks whose level is one of the sampler's; the others are uniform in [0, 1]."""
    context_noise: float = 0.2
    """Clean past: it is noised to a level drawn up to this, per clip: a stream's own past is not perfect either."""
    pool: int = 512
    """Clips of the world that a stack's trainer draws from."""
    seed: int = 0

    @property
    def learning_rate(self) -> float:
        """Of the generator."""
        return self.learner.learning_rate

    def trainer(self, stack: Stack, generator: Generator) -> CausalInit:
        """The starting recipe goes on, on clips of the world that pretraining has not met."""
        return CausalInit(self, generator, world_clips(stack, self.pool, self.seed))

    def with_learning_rate(self, rate: float) -> CausalInitConfig:
        """With another rate."""
        return replace(self, learner=replace(self.learner, learning_rate=rate))

    def with_seed(self, seed: int) -> CausalInitConfig:
        """With another seed."""
        return replace(self, seed=seed)

    def with_batch(self, clips: int) -> CausalInitConfig:
        """With so many clips an update."""
        return replace(self, batch=clips)


def world_clips(stack: Stack, pool: int, seed: int) -> LatentSampler:
    """Draws from the stack's own clips, or else from so many of the world that pretraining has not met."""
    if "clips" in stack.data:
        return data_of(stack).clips("train", seed)
    if not stack.has("grammar"):
        raise ValueError(f'{stack.folder}: this stack has no clips; say clips = "FOLDER" in its toml')
    world = make_clips(pool, split="train", seed=SeedDomain.FRESH_CLIPS + seed, grammar=stack.grammar)
    encoded = encode_clips(stack.codec, replace(world, video=world.video.to(stack.device)), stack.encoder)

    def clips(batch: int, step: int) -> tuple[Tensor, Tensor]:
        latents, embeds = encoded.draw(batch, torch.Generator().manual_seed(update_seed(seed, step)))
        return latents.to(stack.device), embeds.to(stack.device)

    return clips


def chunk_levels(u: Tensor, sigmas: tuple[float, ...], sampler_share: float) -> Tensor:
    """Noise levels [B, n], one a chunk, from uniform u [B, n]: a share on the sampler's levels, the rest uniform."""
    steps = torch.tensor(sigmas, device=u.device)
    place = (u / max(sampler_share, 1e-9) * len(sigmas)).long().clamp_max(len(sigmas) - 1)
    rest = (u - sampler_share) / max(1 - sampler_share, 1e-9)
    return torch.where(u < sampler_share, steps[place], rest)


def forcing_loss(model: CausalWan, x0: Tensor, embeds: Tensor, levels: Tensor, eps: Tensor, context: Tensor) -> Tensor:
    """Mean squared error of the velocity of x0 [B, F, C, h, w] noised by eps, each chunk seeing `context` before it.

    embeds [B, n, L, D]; levels [B, n] of the chunks; context like x0, what stands for the past.
    """
    sigma = levels.repeat_interleave(model.frames_per_chunk, 1)
    v = model.teacher_forcing(renoise(x0, eps, sigma), context, sigma, embeds)
    return (v - (eps - x0)).square().mean()


def causal_loss(
    model: CausalWan, x0: Tensor, embeds: Tensor, keys: Tensor, sigmas: tuple[float, ...], config: CausalInitConfig
) -> Tensor:
    """Mean squared error of the velocity of x0 [B, F, C, h, w], with everything random drawn from keys int64 [B].

    embeds [B, n, L, D]; sigmas: the sampler's levels.
    """
    shape = tuple(x0.shape[1:])
    eps = normal(keys, 0, 1, shape)
    if config.past == "noisy":
        sigma = shifted(uniform(keys, 0, 0, ()), config.shift)
        v = model(renoise(x0, eps, sigma), sigma, embeds, mask="causal")
        return (v - (eps - x0)).square().mean()
    past = renoise(x0, normal(keys, 0, 2, shape), config.context_noise * uniform(keys, 0, 1, ()))
    levels = chunk_levels(uniform(keys, 0, 0, (embeds.shape[1],)), sigmas, config.sampler_share)
    return forcing_loss(model, x0, embeds, levels, eps, past)


class CausalInit:
    """Trains a generator as its starting recipe did; `clips` draws encoded clips of the world."""

    def __init__(
        self,
        config: CausalInitConfig,
        generator: Generator,
        clips: LatentSampler,
    ) -> None:
        self.config, self.generator, self.clips = config, generator, clips
        self.learner = Learner(generator.model, config.learner)
        self.counts = ComputeUsage()

    def update(self) -> dict[str, float]:
        """One regression step; it generates nothing."""
        with self.counts.timed():
            config = self.config
            draw = update_seed(config.seed, self.counts.updates)
            rows = self.learner.ranks.rows(config.batch)
            x0, embeds = (drawn[rows] for drawn in self.clips(config.batch, draw))
            keys = fold(stream_keys(config.seed, config.batch, x0.device), draw)[rows]
            model, sigmas = self.generator.model, self.generator.sigmas

            def loss(some: slice) -> Tensor:
                return causal_loss(model, x0[some], embeds[some], keys[some], sigmas, config)

            measured = {"loss": backward_in_parts(self.learner, len(x0), loss), **self.learner.optimizer_step()}
            self.counts.generator_calls += (2 if config.past == "clean" else 1) * len(embeds) * embeds.shape[1]
            self.counts.updates += 1
        return measured

    def state(self) -> State:
        """Everything that a bitwise resume needs; tensors are those in use, so copy them to keep them."""
        return pack(self.config, self.counts, {"generator": self.learner})

    def load_state(self, groups: Groups, meta: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        unpack(self.config, self.counts, {"generator": self.learner}, groups, meta)
