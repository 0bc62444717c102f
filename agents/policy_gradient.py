"""Policy gradient on the sampling kernel p(x_next | x) = N((1 - s') x0, s'^2): group-relative, strictly on-policy.

B streams (prompts x group), n chunks, f latent frames a chunk, S denoising steps, of which the last is deterministic.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..envs.prompt_source import Draw
from ..envs.stream_gen import StreamGenVectorEnv
from ..envs.windows import clip_prompts, clip_reward
from ..models.generator import Generator
from ..models.sampler import x0_from_v
from ..noise import fold, stream_keys, uniform
from .direction import (
    clipped_weight,
    group_advantage,
    log_ratio,
    policy_direction,
    reference_direction,
    returns_to_go,
    surrogate,
)
from .fit import Counts, State, own_draw, pack, unpack
from .learner import Groups, Learner, LearnerConfig
from .rollout import Choice, GeneratorPolicy, Rollout, chosen, predictions, rollout

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class PolicyGradientConfig:
    """A recipe; the environment must have prompts * group streams."""

    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(learning_rate=5e-5))
    prompts: int = 8
    """Prompts an update."""
    group: int = 8
    """Clips of each prompt."""
    steps: int = 1
    """Denoising steps of each chunk, drawn at random, that an update looks at, 1 to S - 1; each costs a backward."""
    reference: float = 0.05
    """Weight of the KL to the starting generator; 0 leaves it out."""
    reference_every: int = 4
    """The KL is taken on one clip in so many, in turn, and weighed up to match; it costs two passes a chunk."""
    rescale: bool = True
    """Even out the size of the gradient over denoising steps."""
    epochs: int = 1
    """Updates on one rollout; more than one wants `clip`."""
    clip: float = 0.0
    """PPO clipping of the ratio; its log-probability is a mean over elements, so 1e-4 is usual. 0: no ratio."""
    perplexity: bool = False
    """Weigh elements by the reward's perplexity: credit that depends on the sampled action, so it is biased."""
    seed: int = 0


def policy_loss(
    x0: Tensor,
    choice: Choice,
    advantage: Tensor,
    reference: tuple[Tensor, Tensor] | None,
    weight: Tensor | float,
    config: PolicyGradientConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one chunk's chosen steps, and what to log.

    x0 [B, f, C, h, w] with gradient; advantage [B]; weight broadcasts to x0; reference: rows int64 [M] and the frozen
    generator's x0 there, which stand for all B.
    """
    now = x0.detach()
    ratio = log_ratio(choice.x_next, now, choice.x0, choice.next_sigma, weight).exp()
    scale = clipped_weight(ratio, advantage, config.clip) if config.clip else torch.ones_like(ratio)
    direction = weight * policy_direction(now, choice.x_next, choice.next_sigma, scale * advantage, config.rescale)
    measured = {"ratio_error": (ratio - 1).abs().max(), "clipped": (scale == 0).float().mean()}
    if reference is not None:
        rows, frozen = reference
        pull = reference_direction(now[rows], frozen, choice.next_sigma[rows], config.rescale)
        direction = direction.index_add(0, rows, config.reference * len(now) / len(rows) * pull)
        measured["reference_distance"] = (now[rows] - frozen).square().mean()
    return surrogate(x0, direction), measured


class PolicyGradient:
    """Trains a generator through StreamGen.

    config, generator (its model is trained), env (of prompts * group streams), prompts: draws the prompts of an update.
    """

    def __init__(
        self,
        config: PolicyGradientConfig,
        generator: Generator,
        env: StreamGenVectorEnv,
        prompts: Draw,
        accelerator: Accelerator | None = None,
    ) -> None:
        if env.num_envs != config.prompts * config.group:
            given = f"{env.num_envs} streams were given"
            raise ValueError(f"{config.prompts} prompts x {config.group} clips need as many streams: {given}")
        if config.reference_every < 1:
            raise ValueError(f"reference_every must be at least 1, not {config.reference_every}")
        if not 1 <= config.steps < len(generator.sigmas):
            raise ValueError(f"steps must lie in 1 .. {len(generator.sigmas) - 1}, not {config.steps}")
        self.config, self.generator, self.env, self.prompts = config, generator, env, prompts
        self.learner = Learner(generator.model, config.learner, accelerator)
        self.reference = copy.deepcopy(generator.model).requires_grad_(False) if config.reference else None
        self.counts = Counts()

    def update(self) -> dict[str, float]:
        """Roll out, give credit, and follow the direction `epochs` times."""
        started, config = time.monotonic(), self.config
        played, keys = self._play()
        advantage = group_advantage(returns_to_go(played.rewards), config.group)
        weight = self._perplexity(played) if config.perplexity else None
        measured: dict[str, float] = {}
        for epoch in range(config.epochs):
            parts: dict[str, Tensor] = {}
            for pick in self._picks(fold(keys, epoch + 1), played):
                choices = [chosen(t[:-1], column) for t, column in zip(played.transitions, pick.unbind(1), strict=True)]
                parts = self._backward(played, choices, advantage, weight)
            measured = {name: float(value) for name, value in parts.items()} | self.learner.apply()
        self.counts.updates += 1
        self.counts.seconds += time.monotonic() - started
        spread = played.rewards.sum(1).unflatten(0, (-1, config.group)).std(1, correction=0).mean()
        return {"reward": float(played.rewards.sum(1).mean()), "reward_spread": float(spread), **measured}

    def _play(self) -> tuple[Rollout, Tensor]:
        config, clock = self.config, self.env.clock
        draw = own_draw(config.seed, self.counts.updates, self.learner.accelerator)
        _, texts = self.prompts(config.prompts, draw)
        keys = fold(stream_keys(config.seed, self.env.num_envs, self.env.device), draw)
        repeated = [row for row in texts for _ in range(config.group)]
        played = rollout(self.env, GeneratorPolicy(self.generator), keys, repeated)
        chunks = self.env.num_envs * clock.chunks
        self.counts.chunks += chunks
        self.counts.generator_calls += chunks * (len(self.generator.sigmas) + 1)
        self.counts.reward_calls += chunks
        return played, keys

    def _picks(self, keys: Tensor, played: Rollout) -> list[Tensor]:
        """`steps` choices [B, n] of a stochastic denoising step, no step twice for a chunk."""
        stochastic = len(self.generator.sigmas) - 1
        first = (uniform(keys, 0, 0, (len(played.transitions),)) * stochastic).long()
        return [(first + offset) % stochastic for offset in range(self.config.steps)]

    def _backward(
        self, played: Rollout, choices: Sequence[Choice], advantage: Tensor, weight: Tensor | None
    ) -> dict[str, Tensor]:
        count, f = len(choices), self.env.clock.frames_per_chunk
        references = self._frozen(played, choices)
        total: dict[str, Tensor] = {}
        for chunk, choice in enumerate(choices):
            context = played.transitions[chunk][0].context
            v = self.generator.model(choice.x, choice.sigma, played.embeds[:, chunk], cache=context)
            x0 = x0_from_v(choice.x, v, choice.sigma)
            part = 1.0 if weight is None else weight[:, chunk * f : (chunk + 1) * f, None]
            loss, measured = policy_loss(x0, choice, advantage[:, chunk], references[chunk], part, self.config)
            self.learner.backward(loss / (count * self.config.steps))
            total = {name: total.get(name, 0) + value / count for name, value in measured.items()}
        self.counts.generator_calls += len(advantage) * count
        return total

    def _frozen(self, played: Rollout, choices: Sequence[Choice]) -> Sequence[tuple[Tensor, Tensor] | None]:
        """Per chunk, rows and what the starting generator predicts there."""
        if self.reference is None:
            return [None] * len(choices)
        count = len(played.rewards)
        every = min(self.config.reference_every, count)
        rows = torch.arange(self.counts.updates % every, count, every, device=played.latents.device)
        some = [choice.take(rows) for choice in choices]
        self.counts.reference_calls += len(rows) * (2 * len(choices) - 1)
        found = predictions(self.reference, some, played.latents[rows], played.embeds[rows])
        return [(rows, x0) for x0 in found]

    def _perplexity(self, played: Rollout) -> Tensor:
        env = self.env
        with torch.no_grad():
            video = env.codec.decode(played.latents)
        scorer = clip_reward(env.reward, env.codec, env.clock)
        prompts, grid = clip_prompts(played.embeds, played.texts), env.codec.grid(video.shape[1])
        self.counts.reward_calls += len(video) * env.clock.chunks
        weight = scorer(video, prompts, grid, need={"perplexity"}).perplexity
        assert weight is not None
        return weight

    def state(self) -> State:
        """Everything that a bitwise resume needs; tensors are those in use, so copy them to keep them."""
        return pack(self.config, self.counts, {"generator": self.learner}, self._reference_weights())

    def load_state(self, groups: Groups, meta: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        extra = unpack(self.config, self.counts, {"generator": self.learner}, groups, meta)
        if self.reference is not None:
            self.reference.load_state_dict(extra)

    def _reference_weights(self) -> dict[str, Tensor]:
        return {} if self.reference is None else dict(self.reference.state_dict())
