"""Streaming distillation: DMD on self-forcing rollouts (Self Forcing, 2506.08009) and its weighted form Stream-R1.

B clips, n chunks, f latent frames a chunk, F = n f. Real score: the frozen bidirectional teacher; fake score: a
trainable copy of it, the critic, which learns the velocity of the student's own clips.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from ..envs.prompt_source import PromptSampler, Texts
from ..envs.stack import Stack
from ..models.codec import Codec
from ..models.generator import Generator, chunks
from ..models.lora import trainable_like
from ..models.shards import shard
from ..models.wan import CausalWan
from ..noise import Domain, fold, normal, stream_keys, uniform, update_seed
from ..rewards.reliability import BalanceConfig, BalanceState, balance
from ..rewards.stream_reward import StreamReward
from ..rewards.windows import ChunkLayout, clip_prompts
from ..training.learner import Groups, Learner, LearnerConfig
from ..training.microbatches import backward_in_parts, parts
from ..training.ranks import here
from ..training.state import State, pack, unpack
from ..training.surrogate import surrogate
from ..training.usage import ComputeUsage
from .causal_init import LatentSampler, world_clips
from .directions import clip_levels, flow_loss, score_direction, sid_direction
from .gan import GanTerm


@dataclass(frozen=True)
class DistillConfig:
    """A recipe (training.recipe.Recipe); recipes.py has those of DMD and Stream-R1."""

    generator: LearnerConfig = field(
        default_factory=lambda: LearnerConfig(learning_rate=1e-4, betas=(0.0, 0.999), max_grad_norm=10.0, ema=0.99)
    )
    critic: LearnerConfig = field(
        default_factory=lambda: LearnerConfig(learning_rate=2e-4, betas=(0.0, 0.999), max_grad_norm=10.0)
    )
    batch: int = 16
    """Clips an update."""
    critic_updates: int = 3
    """Critic updates to one of the generator."""
    critic_share: float = 1.0
    """Share of an update's clips that each of them learns from, in turn."""
    critic_rollouts: int = 3
    """Rollouts that they learn from, taken in turn: the generator's own and so many less one besides. 1 is cheapest."""
    guidance: float = 2.0
    """Of the real score; the fake one has none."""
    shift: float = 5.0
    """Levels of the scores are uniform, shifted by this much, and clamped to `levels`."""
    levels: tuple[float, float] = (0.02, 0.98)
    matching: Literal["dmd", "sid"] = "dmd"
    """How the two scores become a direction: DMD's (2311.18828), or SiD's (2404.04057), which differentiates them."""
    gan: float = 0.0
    """Weight of a GAN term on clips of the world (DMD2), beside the matching's direction; 0 leaves it out."""
    pool: int = 512
    """Clips of the world that its discriminator draws from."""
    reliability: bool = False
    """Weigh clips by exp(beta r) (Stream-R1)."""
    axes: tuple[str, ...] | None = None
    """The scores that reliability and perplexity read; None: all."""
    perplexity: Literal["spatial", "temporal", "full"] | None = None
    """Weigh latent cells by where the reward is sensitive (Stream-R1): within their frame, frames alone, or both."""
    tau: float | None = None
    """Temperature at which the axes' saliency is fused: small, the weakest axis alone; infinite, all alike; None: the
    reward's own."""
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.critic_share <= 1:
            raise ValueError(f"critic_share lies in (0, 1], not {self.critic_share}")
        if self.matching not in ("dmd", "sid") or self.perplexity not in (None, "spatial", "temporal", "full"):
            raise ValueError(f"matching is dmd or sid, perplexity None, spatial, temporal or full: {self}")

    @property
    def weighted(self) -> bool:
        """Whether a reward weighs the direction."""
        return self.reliability or self.perplexity is not None

    def reading(self, reward: StreamReward) -> StreamReward:
        """The reward as this recipe reads it; a floor of 1 makes weights of 1."""
        settings = replace(reward.settings, tau=self.tau or reward.settings.tau, axes=self.axes)
        if self.perplexity == "spatial":
            settings = replace(settings, temporal_floor=1.0)
        elif self.perplexity == "temporal":
            settings = replace(settings, spatial_floor=1.0)
        return StreamReward(reward.model, settings)

    @property
    def learning_rate(self) -> float:
        """Of the generator."""
        return self.generator.learning_rate

    def trainer(self, stack: Stack, generator: Generator) -> Distill:
        """With the stack's teacher, training prompts and reward."""
        helpers: dict[str, Any] = {}
        if self.weighted:
            helpers = {"codec": stack.codec, "reward": stack.reward, "layout": stack.layout}
        if self.gan:
            helpers["clips"] = world_clips(stack, self.pool, self.seed)
        sampling = stack.teacher_sampling
        own = self if sampling is None else replace(self, guidance=sampling.guidance)
        return Distill(own, generator, stack.teacher, stack.prompts(), stack.null(), **helpers)

    def with_learning_rate(self, rate: float) -> Self:
        """With another rate of the generator; the critic's stays in proportion."""
        critic = replace(self.critic, learning_rate=self.critic.learning_rate * rate / self.learning_rate)
        return replace(self, critic=critic, generator=replace(self.generator, learning_rate=rate))

    def with_seed(self, seed: int) -> Self:
        """With another seed."""
        return replace(self, seed=seed)

    def with_batch(self, clips: int) -> Self:
        """With so many clips an update."""
        return replace(self, batch=clips)


def self_forcing(generator: Generator, embeds: Tensor, keys: Tensor, exit_step: int, grad: bool) -> Tensor:
    """Clips [B, F, C, h, w] whose chunks all leave denoising at `exit_step`, which alone carries gradient.

    embeds [B, n, L, D]; keys int64 [B]. Gradient does not cross chunks: the cache is written without.
    """
    return torch.cat([x0 for x0, _, _ in chunks(generator, embeds, keys, exit_step=exit_step, grad=grad)], 1)


class Distill:
    """Trains a generator by distribution matching.

    config, generator (its model is trained), teacher: the frozen real score, prompts: draws the prompts of an update,
    null: the empty prompt's embedding [L, D]. codec, reward and layout serve reliability and perplexity; a plain DMD
    needs neither of the first two.
    """

    def __init__(
        self,
        config: DistillConfig,
        generator: Generator,
        teacher: CausalWan,
        prompts: PromptSampler,
        null: Tensor,
        *,
        codec: Codec | None = None,
        reward: StreamReward | None = None,
        layout: ChunkLayout | None = None,
        clips: LatentSampler | None = None,
    ) -> None:
        if config.weighted and (codec is None or reward is None or layout is None):
            raise ValueError("reliability and perplexity come from a reward: pass codec, reward and layout")
        if config.gan and clips is None:
            raise ValueError("a GAN term learns from clips of the world: pass clips")
        self.config, self.generator, self.prompts, self.null, self.clips = config, generator, prompts, null, clips
        critic = trainable_like(teacher, generator.model, config.seed)
        self.teacher = (shard(teacher) if here().sharded else teacher).requires_grad_(False)
        self.codec, self.layout = codec, layout
        self.reward = (
            config.reading(reward).windowed(layout, codec, apart=True)
            if config.weighted and reward and codec and layout
            else None
        )
        self.learner = Learner(generator.model, config.generator)
        self.critic = Learner(critic, config.critic)
        self.gan = GanTerm(generator.latent_shape[0], config.critic, config.seed) if config.gan else None
        self.balance = BalanceState.open(len(self.reward.axes) if self.reward else 1, config.balance)
        self.counts = ComputeUsage()

    def update(self) -> dict[str, float]:
        """One rollout with gradient, the critic's updates, and then the generator's."""
        with self.counts.timed():
            config = self.config
            draw = update_seed(config.seed, self.counts.updates)
            embeds, texts = self.prompts(config.batch, draw)
            embeds = embeds.to(self.null.device)
            keys = fold(stream_keys(config.seed, config.batch, embeds.device), draw)
            mine = self.learner.ranks.rows(config.batch)
            whole = len(parts(mine.stop - mine.start)) == 1
            x0 = self._rollout(embeds, keys, grad=whole)
            measured = self._train_critic(x0.detach(), embeds, keys)
            exit_step = self._exit_step(keys)
            embeds, texts, keys = embeds[mine], texts[mine], keys[mine]
            direction, teacher_loss = self._direction(x0.detach(), embeds, keys)
            if self.gan is not None:
                gained, found = self._gan(self.gan, x0.detach(), keys, draw)
                direction, measured = direction + config.gan * gained, measured | found
            weight, scored = self._weight(x0.detach(), embeds, texts)
            size, direction = float(direction.abs().mean()), weight * direction

            def loss(rows: slice) -> Tensor:
                again = x0 if whole else self._clips(embeds[rows], keys[rows], exit_step, grad=True)
                return surrogate(again, direction[rows])

            measured |= scored | {"loss": backward_in_parts(self.learner, len(x0), loss)}
            measured |= self.learner.optimizer_step()
            measured |= {"direction": size, "teacher_loss": float(teacher_loss)}
            measured["cache_evicted_frames"] = float(self.generator.evicted_in(embeds.shape[1]))
            self.counts.updates += 1
        return measured

    def _rollout(self, embeds: Tensor, keys: Tensor, grad: bool = False) -> Tensor:
        """Of the whole batch, the clips that are this process's."""
        mine, exit_step = self.learner.ranks.rows(len(keys)), self._exit_step(keys)
        embeds, keys = embeds[mine], keys[mine]
        self.counts.chunks += len(keys) * embeds.shape[1]
        return torch.cat([self._clips(embeds[rows], keys[rows], exit_step, grad) for rows, _ in parts(len(keys))])

    def _exit_step(self, keys: Tensor) -> int:  # of all clips of a batch
        return random.Random(int(keys[0])).randrange(len(self.generator.sigmas))

    def _clips(self, embeds: Tensor, keys: Tensor, exit_step: int, grad: bool) -> Tensor:
        self.counts.generator_calls += len(keys) * embeds.shape[1] * (exit_step + 2)
        return self_forcing(self.generator, embeds, keys, exit_step, grad)

    def _train_critic(self, x0: Tensor, embeds: Tensor, keys: Tensor) -> dict[str, float]:
        """embeds and keys of the whole batch, x0 of this process's rows."""
        losses, clips, config, ranks, total = [], [x0], self.config, self.learner.ranks, len(keys)
        count = max(1, round(config.critic_share * total))
        for turn in range(config.critic_updates):
            fresh = fold(keys, Domain.UPDATE + 1 + turn)
            if 0 < turn < config.critic_rollouts:
                clips.append(self._rollout(embeds, fresh))
            first = (self.counts.updates * config.critic_updates + turn) * count
            x0, rows = clips[turn % len(clips)], torch.arange(total, device=keys.device)[ranks.rows(total)]
            if count < total:
                rows = (first + torch.arange(count, device=keys.device)[ranks.rows(count)]) % total
                x0 = ranks.gather(x0)[rows]
            eps, sigma = self._noise(x0, fold(fresh[rows], Domain.UPDATE))
            losses.append(self._critic_step(x0, eps, sigma, embeds[rows]))
            self.counts.critic_calls += len(rows) * embeds.shape[1]
        return {"critic_loss": sum(losses) / len(losses)} if losses else {}

    def _critic_step(self, x0: Tensor, eps: Tensor, sigma: Tensor, embeds: Tensor) -> float:
        def loss(rows: slice) -> Tensor:
            return flow_loss(self.critic.module, x0[rows], eps[rows], sigma[rows], embeds[rows])

        found = backward_in_parts(self.critic, len(x0), loss)
        self.critic.optimizer_step()
        return found

    def _direction(self, x0: Tensor, embeds: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        eps, sigma = self._noise(x0, fold(keys, Domain.UPDATE))
        calls, guidance = len(x0) * embeds.shape[1], self.config.guidance
        self.counts.teacher_calls += calls * (1 if guidance == 1 else 2)
        self.counts.critic_calls += calls
        match = sid_direction if self.config.matching == "sid" else score_direction
        scores, found, loss = (self.teacher, self.critic.module), list[Tensor](), x0.new_zeros(())
        for rows, share in parts(len(x0)):
            away, part = match(x0[rows], eps[rows], sigma[rows], embeds[rows], self.null, scores, guidance)
            found.append(away)
            loss = loss + part * share
        return torch.cat(found), loss

    def _gan(self, gan: GanTerm, x0: Tensor, keys: Tensor, draw: int) -> tuple[Tensor, dict[str, float]]:
        """Where the discriminator would have x0 go, after a step of its own."""
        assert self.clips is not None, "looked at when the trainer is made"
        real = self.clips(self.config.batch, draw)[0][self.learner.ranks.rows(self.config.batch)]
        eps, sigma = self._noise(x0, fold(keys, Domain.GAN))
        measured = gan.to(x0.device).train(x0, real, eps, sigma)
        return gan.direction(x0, eps, sigma), measured

    def _noise(self, x0: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        u = uniform(keys, 0, 0, ())
        return normal(keys, 0, 1, tuple(x0.shape[1:])), clip_levels(u, self.config.shift, *self.config.levels)

    def _weight(self, x0: Tensor, embeds: Tensor, texts: Texts) -> tuple[Tensor | float, dict[str, float]]:
        """Reliability [B, 1, 1, 1, 1] times perplexity [B, F, 1, h, w]; advances the balance once."""
        if self.reward is None or self.codec is None:
            return 1.0, {}
        with torch.no_grad():
            video = self.codec.decode(x0)
        need = {"scores", "perplexity"} if self.config.perplexity is not None else {"scores"}
        signal = self.reward(video, clip_prompts(embeds, texts), self.codec.grid(video.shape[1]), need=need)
        self.counts.reward_calls += len(texts) * embeds.shape[1]
        reliability, self.balance = balance(signal.scores, self.balance, self.config.balance, self.learner.ranks.mean)
        weight = torch.ones_like(reliability) if not self.config.reliability else reliability
        weight = weight[:, None, None, None, None]
        if signal.perplexity is not None:
            weight = weight * signal.perplexity[:, :, None]
        return weight, {"reward": float(signal.reward.mean()), "reliability": float(reliability.mean())}

    def state(self) -> State:
        """Everything that a bitwise resume needs; tensors are those in use, so copy them to keep them."""
        return pack(self.config, self.counts, self._learners(), self.balance.tensors())

    def load_state(self, groups: Groups, meta: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.balance = BalanceState.from_tensors(unpack(self.config, self.counts, self._learners(), groups, meta))

    def _learners(self) -> dict[str, Learner[Any]]:
        found: dict[str, Learner[Any]] = {"generator": self.learner, "critic": self.critic}
        return found | ({"discriminator": self.gan.learner} if self.gan is not None else {})
