"""RL fine-tuning of a streaming generator: one trainer for every direction, acting in StreamGen as any agent would.

B streams (prompts x group), n chunks, f latent frames a chunk.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from gymnasium.error import InvalidAction
from torch import Tensor

from ..envs.prompt_source import Draw
from ..envs.stack import Stack
from ..envs.stream_gen import StreamGenVectorEnv
from ..models.critic import Critic, critic_for
from ..models.generator import Generator, prediction
from ..models.prompts import PromptBatch
from ..models.sampler import x0_from_v
from ..noise import fold, stream_keys
from ..rewards.stream_reward import PixelError, StreamReward
from ..training.learner import Groups, Learner, LearnerConfig, NonFiniteError
from ..training.loop import own_draw
from ..training.state import State, pack, unpack
from ..training.surrogate import surrogate
from ..training.usage import ComputeUsage
from .credit import Credit, advantages, bootstrapped, one_of
from .direction import Ask, reference_direction
from .forward_process import ForwardProcess
from .policy_gradient import PolicyGradient
from .reward_gradient import RewardGradient
from .rollout import GeneratorPolicy, Prefix, Rollout, Turn, rollout

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class FineTuneConfig:
    """A recipe; the environment must have prompts * group streams."""

    direction: PolicyGradient | ForwardProcess | RewardGradient = field(default_factory=ForwardProcess)
    """Where predictions are pushed."""
    credit: Credit = field(default_factory=Credit)
    """What a chunk answers for; a reward gradient asks for none."""
    prefix: Prefix = "local"
    """What the clips of a group share (`rollout`): "own" nothing; "local" at every chunk all that came before it;
    "full" an opening of random length."""
    shared_steps: int = 0
    """Denoising steps of a chunk, from the first, that continuations of a prefix share too; prefix "local" alone."""
    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(learning_rate=5e-5))
    critic: LearnerConfig = field(default_factory=lambda: LearnerConfig(learning_rate=1e-3))
    """Of the critic, where credit wants one."""
    prompts: int = 2
    """Prompts an update."""
    group: int = 8
    """Clips of each prompt."""
    epochs: int = 1
    """Updates of the weights on one rollout; the policy gradient wants `clip` for more than one."""
    reference: float = 0.0
    """Weight of the pull towards the starting generator; 0 leaves it out."""
    reference_every: int = 4
    """The pull is taken on one stream in so many, in turn, and weighed up to match; it costs passes of its own."""
    seed: int = 0

    @property
    def learning_rate(self) -> float:
        """Of the generator."""
        return self.learner.learning_rate

    def trainer(self, stack: Stack, generator: Generator) -> FineTune:
        """In StreamGen, with the stack's codec, reward and training prompts."""
        prompts, clips = stack.prompts(), self.prompts * self.group
        env = StreamGenVectorEnv(clips, stack.codec, stack.reward, prompts, clock=stack.clock, device=stack.device)
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
        if min(self.prompts, self.group, self.epochs, self.reference_every) < 1:
            raise ValueError(f"prompts, group, epochs and reference_every are at least 1: {self}")
        one_of("prefix", self.prefix, Prefix)
        if self.reference < 0:
            raise ValueError(f"reference is not below 0: {self.reference}")
        if isinstance(self.direction, PolicyGradient) and self.epochs > 1 and not self.direction.clip:
            raise ValueError("several epochs leave the policy that acted behind: set the policy gradient's clip")
        if not isinstance(self.direction, RewardGradient):
            self.credit.check(self.prompts, self.group)
        if isinstance(self.direction, RewardGradient) and (self.credit.perplexity or self.credit.placebo):
            raise ValueError("a reward gradient asks for no credit: leave out perplexity and placebo")
        if isinstance(self.direction, RewardGradient) and (self.prefix != "own" or self.epochs > 1):
            raise ValueError("a reward gradient belongs to whole clips, once: it takes prefix='own' and epochs=1")
        if self.shared_steps and self.prefix != "local":
            raise ValueError(f"shared_steps={self.shared_steps}: only prefix='local' shares denoising steps")
        if self.prefix != "own" and self.credit.reach == "clip":
            raise ValueError(f"with prefix={self.prefix!r} a chunk does not answer for the whole clip: reach='togo'")


class FineTune:
    """Trains a generator through StreamGen.

    config, generator (its model is trained), env (of prompts * group streams), prompts: draws the prompts of an update.
    """

    def __init__(
        self,
        config: FineTuneConfig,
        generator: Generator,
        env: StreamGenVectorEnv,
        prompts: Draw,
        accelerator: Accelerator | None = None,
    ) -> None:
        if env.num_envs != config.prompts * config.group:
            given = f"{env.num_envs} streams were given"
            raise ValueError(f"{config.prompts} prompts x {config.group} clips need as many streams: {given}")
        wanted = isinstance(config.direction, RewardGradient) or config.credit.perplexity
        if wanted and not isinstance(env.reward, StreamReward):
            raise TypeError(f"gradients and perplexity need a StreamReward, not {type(env.reward).__name__}")
        self.config, self.generator, self.env, self.prompts = config, generator, env, prompts
        if not 0 <= config.shared_steps < len(generator.sigmas):
            raise ValueError(f"shared_steps lies in 0 .. {len(generator.sigmas) - 1}, not {config.shared_steps}")
        self.actor = config.direction.actor(generator, config.shared_steps)
        self.learner = Learner(generator.model, config.learner, accelerator)
        self.reference = copy.deepcopy(generator.model).requires_grad_(False) if config.reference else None
        self.critic: Learner[Critic] | None = None
        if config.credit.critic and not isinstance(config.direction, RewardGradient):
            seen, _ = env.reset(seed=config.seed)
            self.critic = Learner(critic_for(seen, env.clock.chunks + 1), config.critic, accelerator)
        self.counts = ComputeUsage()

    def update(self) -> dict[str, float]:
        """Play, give credit, and follow the direction `epochs` times.

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
        started, config = time.monotonic(), self.config
        played, keys = self._play()
        advantage, measured = self._credit(played)
        weights = self._weights(played)
        passes = config.direction.asks(played, keys, self.actor, self.env)
        if isinstance(config.direction, RewardGradient):
            self.counts.reward_calls += played.chunks
        olds: list[Tensor | None] = [ask.old for asks in passes for ask in asks]
        skipped = 0.0
        for _ in range(config.epochs):
            found = self._push(played, passes, olds, advantage, weights)
            measured |= {name: float(value) for name, value in found.items()} | self.learner.apply()
            skipped += measured["skipped"]
        measured["skipped"] = skipped
        self.counts.updates += 1
        self.counts.seconds += time.monotonic() - started
        rewards = played.rewards
        spread = rewards.unflatten(0, (-1, config.group)).std(1, correction=0).mean()
        told = {"reward": float(rewards.mean()) * self.env.clock.chunks, "reward_spread": float(spread)}
        return told | {"evicted": float(self.actor.evicted_in(self.env.clock.chunks)), **measured}

    def _play(self) -> tuple[Rollout, Tensor]:
        config = self.config
        draw = own_draw(config.seed, self.counts.updates, self.learner.accelerator)
        _, texts = self.prompts(config.prompts, draw)
        keys = fold(stream_keys(config.seed, self.env.num_envs, self.env.device), draw)
        repeated = [row for row in texts for _ in range(config.group)]
        policy = GeneratorPolicy(self.actor, grad=isinstance(config.direction, RewardGradient))
        played = rollout(self.env, policy, keys, repeated, config.group, config.prefix, config.shared_steps)
        self.counts.chunks += played.chunks
        self.counts.generator_calls += played.calls
        self.counts.reward_calls += played.chunks
        return played, keys

    def _credit(self, played: Rollout) -> tuple[Tensor, dict[str, float]]:
        """Advantage [B, turns]; the critic, where there is one, judges before it learns."""
        config, credit, rewards = self.config, self.config.credit, played.rewards
        if isinstance(config.direction, RewardGradient):
            return torch.zeros_like(rewards), {}
        before, after = self._values(played)
        if credit.reach == "clip":
            returns = rewards.sum(1, keepdim=True).expand_as(rewards)
        else:
            decay = 0.0 if config.prefix == "local" else credit.decay if credit.bootstrap else 1.0
            returns = bootstrapped(rewards, after if credit.bootstrap else torch.zeros_like(rewards), decay)
        measured = self._teach_critic(before, returns) if self.critic is not None else {}
        advantage = advantages(returns, credit, config.group, before.detach())
        elsewhere = config.group if config.prompts > 1 else 1
        return advantage.roll(elsewhere, 0) if credit.placebo else advantage, measured

    def _values(self, played: Rollout) -> tuple[Tensor, Tensor]:
        """The critic's value before every turn, with its gradient, and after it [B, turns]; nothing follows the last
        chunk."""
        none = torch.zeros_like(played.rewards)
        if self.critic is None:
            return none, none
        critic, turns = self.critic.module, played.turns
        self.counts.critic_calls += none.numel() + none[:, 1:].numel()
        before = torch.stack([critic(turn.seen) for turn in turns], 1)
        with torch.no_grad():
            after = torch.stack([*(critic(turn.after) for turn in turns[:-1]), none[:, 0]], 1)
        return before, after

    def _teach_critic(self, values: Tensor, returns: Tensor) -> dict[str, float]:
        assert self.critic is not None
        loss = (values - returns.detach()).square().mean()
        explained = 1 - loss.detach() / returns.var(correction=0).clamp_min(1e-12)
        self.critic.step(loss)
        return {"critic_loss": float(loss.detach()), "critic_explains": float(explained)}

    def _weights(self, played: Rollout) -> list[Tensor | float]:
        """Per turn what elements weigh: 1, or perplexity [B, f, 1, h, w]."""
        if not self.config.credit.perplexity:
            return [1.0] * len(played.turns)
        self.counts.reward_calls += len(played.turns) * len(played.embeds)
        found: list[Tensor | float] = []
        for turn in played.turns:
            texts = tuple(row[turn.number] for row in played.texts)
            prompts = PromptBatch(texts, played.embeds[:, turn.number])
            clips = torch.cat((turn.past, turn.chunk.detach()), 1)
            found.append(self.env.clips.credit(clips, prompts)[:, :, None])
        return found

    def _push(
        self,
        played: Rollout,
        passes: list[list[Ask]],
        olds: list[Tensor | None],
        advantage: Tensor,
        weights: list[Tensor | float],
    ) -> dict[str, Tensor]:
        """Gather the gradient of one update; fills in old predictions that are not known yet."""
        config = self.config
        logged: dict[str, Tensor] = {}
        for place, (ask, number) in enumerate((ask, at) for asks in passes for at, ask in enumerate(asks)):
            turn = played.turns[number]
            x0 = self._predict(ask, turn, played) if ask.live is None else ask.live
            now, old = x0.detach(), olds[place]
            olds[place] = old = now if old is None else old
            direction, measured = config.direction.push(ask, now, old, advantage[:, number], weights[number])
            if self.reference is not None:
                pull, distance = self._pull(ask, turn, played, now)
                direction, measured = direction + config.reference * pull, {**measured, "reference_distance": distance}
            self.learner.backward(surrogate(x0, direction) * share(played, number) / len(passes))
            logged = {name: logged.get(name, 0) + value / len(olds) for name, value in measured.items()}
        return logged

    def _predict(self, ask: Ask, turn: Turn, played: Rollout) -> Tensor:
        self.counts.generator_calls += len(ask.x)
        context = turn.transitions[0].context
        v = self.generator.model(ask.x, ask.sigma, played.embeds[:, turn.number], cache=context)
        return x0_from_v(ask.x, v, ask.sigma)

    def _pull(self, ask: Ask, turn: Turn, played: Rollout, now: Tensor) -> tuple[Tensor, Tensor]:
        """Away from the reference, on some of the rows, and the mean square of the distance there."""
        assert self.reference is not None
        count = len(now)
        every = min(self.config.reference_every, count)
        rows = torch.arange(self.counts.updates % every, count, every, device=now.device)
        self.counts.reference_calls += len(rows) * (turn.number + 1)
        start = replace(self.actor, model=self.reference)
        frozen = prediction(start, ask.x[rows], ask.sigma[rows], turn.past[rows], played.embeds[rows])
        pull = reference_direction(now[rows], frozen, ask.stiffness[rows])
        away = torch.zeros_like(now).index_add(0, rows, count / len(rows) * pull)
        return away, (now[rows] - frozen).square().mean()

    def state(self) -> State:
        """Everything that a bitwise resume needs; tensors are those in use, so copy them to keep them."""
        frozen = {} if self.reference is None else dict(self.reference.state_dict())
        return pack(self.config, self.counts, self._learners(), frozen)

    def load_state(self, groups: Groups, meta: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        frozen = unpack(self.config, self.counts, self._learners(), groups, meta)
        if self.reference is not None:
            self.reference.load_state_dict(frozen)

    def _learners(self) -> dict[str, Learner[Any]]:
        return {"generator": self.learner} | ({"critic": self.critic} if self.critic is not None else {})


def share(played: Rollout, number: int) -> float:
    """What the rollout's turn of that number weighs; all chunks of a clip the same, on the average over rollouts.

    Behind a shared opening, of 0 to n - 1 chunks alike often, chunk k is there in (k + 1) of n rollouts.
    """
    return 1 / (played.turns[number].number + 1) if played.prefix == "full" else 1 / len(played.turns)
