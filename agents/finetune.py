"""RL fine-tuning of a streaming generator: one trainer for every direction, acting in StreamGen as any agent would.

B streams (prompts x group), n chunks, f latent frames a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from gymnasium.error import InvalidAction
from torch import Tensor

from ..envs.prompt_source import PromptSampler
from ..envs.stack import Stack
from ..envs.stream_gen import StreamGenVectorEnv
from ..envs.streaming import StreamingEnv
from ..models.critic import Critic, critic_for
from ..models.generator import Generator
from ..models.lora import frozen_copy, load_own_weights, own_weights
from ..noise import fold, stream_keys, update_seed
from ..rewards.stream_reward import PixelError, StreamReward
from ..training.learner import Groups, Learner, LearnerConfig, NonFiniteError
from ..training.microbatches import parts
from ..training.ranks import here
from ..training.state import State, pack, unpack
from ..training.surrogate import surrogate
from ..training.usage import ComputeUsage
from .advantage import AdvantageEstimator, advantages, lambda_returns, one_of
from .direction import Direction, TrainingSample
from .forward_process import ForwardProcess
from .kl_penalty import KLPenalty, Samples, penalized
from .rollout import GeneratorPolicy, Prefix, Rollout, RolloutStep, rollout, share


@dataclass(frozen=True)
class FineTuneConfig:
    """A recipe; the environment must have prompts * group streams."""

    direction: Direction = field(default_factory=ForwardProcess)
    """Where predictions are pushed; one of ours, or one of your own."""
    advantage: AdvantageEstimator = field(default_factory=AdvantageEstimator)
    """Which rewards a chunk answers for; a reward gradient asks for none."""
    prefix: Prefix = "local"
    """What the clips of a group share (`rollout`): "own" nothing; "local" at every chunk all that came before it;
    "full" an opening of random length."""
    shared_steps: int = 0
    """Denoising steps of a chunk, from the first, that continuations of a prefix share too; prefix "local" alone."""
    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(learning_rate=5e-5))
    critic: LearnerConfig = field(default_factory=lambda: LearnerConfig(learning_rate=1e-3))
    """Of the critic, where the advantage wants one."""
    prompts: int = 2
    """Prompts an update."""
    group: int = 8
    """Clips of each prompt."""
    epochs: int = 1
    """Updates of the weights on one rollout; the policy gradient wants `clip_coef` for more than one."""
    kl_coef: float = 0.0
    """Weight of the KL penalty, towards the starting generator; 0 leaves it out."""
    kl_every: int = 4
    """The penalty is taken on one stream in so many, in turn, and weighed up to match; it costs passes of its own."""
    seed: int = 0

    @property
    def learning_rate(self) -> float:
        """Of the generator."""
        return self.learner.learning_rate

    def trainer(self, stack: Stack, generator: Generator) -> FineTune:
        """In StreamGen, with the stack's codec, reward and training prompts; each process plays its own clips."""
        prompts, clips = stack.prompts(), self.prompts * self.group // here().count
        env = StreamGenVectorEnv(clips, stack.codec, stack.reward, prompts, layout=stack.layout, device=stack.device)
        return FineTune(self, generator, env, prompts)

    def with_learning_rate(self, rate: float) -> FineTuneConfig:
        """With another rate of the generator; a critic's stays as it is."""
        return replace(self, learner=replace(self.learner, learning_rate=rate))

    def with_seed(self, seed: int) -> FineTuneConfig:
        """With another seed."""
        return replace(self, seed=seed)

    def with_batch(self, clips: int) -> FineTuneConfig:
        """With so many prompts an update, and up to two clips of each."""
        return replace(self, prompts=clips, group=min(2, self.group))

    def __post_init__(self) -> None:
        if min(self.prompts, self.group, self.epochs, self.kl_every) < 1:
            raise ValueError(f"prompts, group, epochs and kl_every are at least 1: {self}")
        one_of("prefix", self.prefix, Prefix)
        if self.kl_coef < 0:
            raise ValueError(f"kl_coef is not below 0: {self.kl_coef}")
        needs = self.direction.needs
        if needs.advantages:
            self.advantage.check(self.prompts, self.group)
        elif self.advantage.perplexity or self.advantage.shuffle_advantages:
            name = type(self.direction).__name__
            raise ValueError(f"{name} asks for no advantages: leave out perplexity and shuffle_advantages")
        if (needs.whole_clips and self.prefix != "own") or (needs.graph and self.epochs > 1):
            rule = " and ".join(["prefix='own'"] * needs.whole_clips + ["epochs=1"] * needs.graph)
            raise ValueError(f"{type(self.direction).__name__} takes {rule}: see its `needs`")
        self.direction.check(self)
        if self.shared_steps and self.prefix != "local":
            raise ValueError(f"shared_steps={self.shared_steps}: only prefix='local' shares denoising steps")
        if self.prefix != "own" and self.advantage.returns == "episode":
            raise ValueError(
                f"with prefix={self.prefix!r} a chunk does not answer for the whole clip: returns='reward_to_go'"
            )


class FineTune:
    """Trains a generator through a streaming environment.

    config, generator (its model is trained), env (of prompts * group streams, shared out over the processes), prompts:
    draws the prompts of an update.
    """

    def __init__(self, config: FineTuneConfig, generator: Generator, env: StreamingEnv, prompts: PromptSampler) -> None:
        ranks = here()
        self.rows = ranks.rows(config.prompts, "prompts")
        here_are = self.rows.stop - self.rows.start
        if env.num_envs != here_are * config.group:
            given = f"{env.num_envs} streams were given"
            raise ValueError(f"{here_are} prompts x {config.group} clips need as many streams: {given}")
        self.streams = ranks.rows(config.prompts * config.group)
        needs = config.direction.needs
        if (needs.reward_gradient or config.advantage.perplexity) and not isinstance(env.reward, StreamReward):
            raise TypeError(f"gradients and perplexity need a StreamReward, not {type(env.reward).__name__}")
        self.config, self.generator, self.env, self.prompts = config, generator, env, prompts
        if not 0 <= config.shared_steps < len(generator.sigmas):
            raise ValueError(f"shared_steps lies in 0 .. {len(generator.sigmas) - 1}, not {config.shared_steps}")
        self.actor = config.direction.actor(generator, config.shared_steps)
        self.need = {"scores"} if needs.advantages or not needs.reward_gradient else set[str]()
        if config.advantage.perplexity:
            self.need.add("perplexity")
        self.learner = Learner(generator.model, config.learner)
        self.reference = frozen_copy(generator.model) if config.kl_coef else None
        self.critic: Learner[Critic] | None = None
        if config.advantage.critic and needs.advantages:
            observation, _ = env.reset(seed=config.seed)
            self.critic = Learner(critic_for(observation, env.layout.chunks + 1), config.critic)
        self.counts = ComputeUsage()

    def update(self) -> dict[str, float]:
        """Play, estimate advantages, and follow the direction `epochs` times.

        NonFiniteError where the generator makes latents or pixels that nobody can take any more, or too many gradients
        in a row are not finite.
        """
        try:
            return self._update()
        except (InvalidAction, PixelError) as error:
            raise NonFiniteError(
                f"after update {self.counts.updates} the generator makes clips that cannot be shown ({error}): lower "
                "the learning rate, or resume from an earlier checkpoint"
            ) from error

    def _update(self) -> dict[str, float]:
        with self.counts.timed():
            config, chunks = self.config, self.env.layout.chunks
            with self.learner.ranks.alike(InvalidAction, PixelError):
                played, keys = self._play()
            advantage, measured = self._estimate(played)
            with self.learner.ranks.alike(InvalidAction, PixelError):
                batch = config.direction.training_samples(played, keys, self.actor, self.env)
            rewards = played.rewards
            if batch.returns is not None:
                rewards = batch.returns[:, None] / chunks
                self.counts.reward_calls += played.chunks
            samples = [(number, sample) for one in batch.minibatches for number, sample in enumerate(one)]
            penalty = self._penalty(played, samples)
            olds, skipped = [sample.old_x0 for _, sample in samples], 0.0
            for _ in range(config.epochs):
                found = self._backward(played, samples, olds, penalty, advantage)
                measured |= {name: float(value) for name, value in found.items()} | self.learner.optimizer_step()
                skipped += measured["skipped"]
            measured["skipped"] = skipped
            self.counts.updates += 1
        spread = rewards.unflatten(0, (-1, config.group)).std(1, correction=0).mean()
        told = {
            "charts/episodic_return": float(rewards.mean()) * chunks,
            "charts/reward_std_within_group": float(spread),
        }
        return told | {"cache_evicted_frames": float(self.actor.evicted_in(chunks)), **measured}

    def _play(self) -> tuple[Rollout, Tensor]:
        config = self.config
        draw = update_seed(config.seed, self.counts.updates)
        _, texts = self.prompts(config.prompts, draw)
        keys = fold(stream_keys(config.seed, config.prompts * config.group, self.env.device), draw)
        first, keys = keys[:1], keys[self.streams]
        repeated = [row for row in texts[self.rows] for _ in range(config.group)]
        policy = GeneratorPolicy(self.actor, grad=config.direction.needs.graph and len(parts(len(keys))) == 1)
        played = rollout(
            self.env, policy, keys, repeated, config.group, config.prefix, config.shared_steps, self.need, first
        )
        self.counts.chunks += played.chunks
        self.counts.generator_calls += played.calls
        self.counts.reward_calls += played.scored
        return played, keys

    def _estimate(self, played: Rollout) -> tuple[Tensor, dict[str, float]]:
        """Advantage [B, steps]; the critic, where there is one, judges before it learns."""
        config, estimator, rewards = self.config, self.config.advantage, played.rewards
        if not config.direction.needs.advantages:
            return torch.zeros_like(rewards), {}
        before, after = self._values(played)
        if estimator.returns == "episode":
            returns = rewards.sum(1, keepdim=True).expand_as(rewards)
        else:
            gae_lambda = 0.0 if config.prefix == "local" else estimator.gae_lambda if estimator.bootstrap else 1.0
            returns = lambda_returns(rewards, after if estimator.bootstrap else torch.zeros_like(rewards), gae_lambda)
        measured = self._teach_critic(before, returns) if self.critic is not None else {}
        gather = self.learner.ranks.gather
        advantage = advantages(gather(returns), estimator, config.group, gather(before.detach()))
        elsewhere = config.group if config.prompts > 1 else 1
        advantage = advantage.roll(elsewhere, 0) if estimator.shuffle_advantages else advantage
        return advantage[self.streams], measured

    def _values(self, played: Rollout) -> tuple[Tensor, Tensor]:
        """The critic's value before every step, with its gradient, and after it [B, steps]; nothing follows the last
        chunk."""
        none = torch.zeros_like(played.rewards)
        if self.critic is None:
            return none, none
        critic, steps = self.critic.module, played.steps
        self.counts.critic_calls += none.numel() + none[:, 1:].numel()
        before = torch.stack([critic(step.observation) for step in steps], 1)
        with torch.no_grad():
            after = torch.stack([*(critic(step.next_observation) for step in steps[:-1]), none[:, 0]], 1)
        return before, after

    def _teach_critic(self, values: Tensor, returns: Tensor) -> dict[str, float]:
        assert self.critic is not None
        loss = (values - returns.detach()).square().mean()
        explained = 1 - loss.detach() / self.learner.ranks.gather(returns).var(correction=0).clamp_min(1e-12)
        self.critic.step(loss)
        return {"losses/value_loss": float(loss.detach()), "losses/explained_variance": float(explained)}

    def _penalty(self, played: Rollout, samples: Samples) -> KLPenalty | None:
        if self.reference is None:
            return None
        count, turn = self.config.prompts * self.config.group, self.counts.updates
        rows, weight = penalized(count, self.config.kl_every, turn, self.streams, self.env.device)
        penalty = KLPenalty.of(replace(self.actor, model=self.reference), played, samples, rows, weight)
        self.counts.reference_calls += penalty.calls
        return penalty

    def _backward(
        self,
        played: Rollout,
        samples: Samples,
        olds: list[Tensor | None],
        penalty: KLPenalty | None,
        advantage: Tensor,
    ) -> dict[str, Tensor]:
        """Gather the gradient of one update; fills in old predictions that are not known yet."""
        direction, logged = self.config.direction, dict[str, Tensor]()
        for place, (number, sample) in enumerate(samples):
            step = played.steps[number]
            split, x0 = parts(len(sample.x)), sample.x0
            if x0 is None:
                with torch.set_grad_enabled(len(split) == 1):
                    x0 = self._predict(sample, step, played)
            now, old = x0.detach(), olds[place]
            olds[place] = old = now if old is None else old
            gradient, measured = direction.loss_gradient(sample, now, old, advantage[:, number], step.weight)
            if penalty is not None:
                pull, measured["losses/kl_penalty"] = penalty.gradient(place, sample, now)
                gradient = gradient + self.config.kl_coef * pull
            minibatches = len(samples) // len(played.steps)
            for some, weight in split:
                again = x0 if len(split) == 1 else self._predict(sample, step, played, some)
                loss = surrogate(again, gradient[some]) * share(played, number) / minibatches
                self.learner.backward(loss * weight)
            logged = {name: logged.get(name, 0) + value / len(samples) for name, value in measured.items()}
        return logged

    def _predict(self, sample: TrainingSample, step: RolloutStep, played: Rollout, at: slice = slice(None)) -> Tensor:
        x, sigma, context = sample.x[at], sample.sigma[at], step.denoising_steps[0].context
        self.counts.generator_calls += len(x)
        if context is not None and len(x) < len(sample.x):
            context = context.take(torch.arange(at.start, at.stop, device=x.device))
        return self.generator.denoise(x, sigma, played.embeds[at, step.number], context)

    def state(self) -> State:
        """Everything that a bitwise resume needs; tensors are those in use, so copy them to keep them."""
        frozen = {} if self.reference is None else own_weights(self.reference)
        return pack(self.config, self.counts, self._learners(), frozen)

    def load_state(self, groups: Groups, meta: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        frozen = unpack(self.config, self.counts, self._learners(), groups, meta)
        if self.reference is not None:
            load_own_weights(self.reference, frozen)

    def _learners(self) -> dict[str, Learner[Any]]:
        return {"generator": self.learner} | ({"critic": self.critic} if self.critic is not None else {})
