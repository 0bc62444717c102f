"""Reward gradient (ReFL, DRaFT-1): ascend the reward through the codec, on the last denoising step of every chunk."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..envs.prompt_source import Draw
from ..envs.stream_gen import StreamGenVectorEnv
from ..envs.windows import clip_prompts, clip_reward
from ..models.codec import Codec
from ..models.generator import Generator
from ..models.prompts import PromptBatch
from ..noise import fold, normal, stream_keys, uniform
from ..rewards.stream_reward import StreamReward
from .direction import surrogate
from .fit import Counts, State, own_draw, pack, unpack
from .learner import Groups, Learner, LearnerConfig
from .rollout import GeneratorPolicy, Rollout, chosen, predictions, rollout

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class RewardGradientConfig:
    """A recipe; the environment has as many streams as an update has prompts."""

    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(learning_rate=5e-5))
    reference: float = 1.0
    """Weight of the pull towards the starting generator's prediction; the reward's direction has unit size."""
    noise: float = 0.03
    """Standard deviation of pixel noise (pixels in [0, 1]) under which the gradient is taken."""
    shift: int = 1
    """Clips are moved by up to so many pixels before the gradient is taken."""
    seed: int = 0


def augmented(video: Tensor, keys: Tensor, noise: float, shift: int) -> Tensor:
    """Video [B, F, 3, H, W] moved by up to `shift` pixels (edges repeat), with noise; keys int64 [B] decide."""
    height, width = video.shape[-2:]
    if shift:
        first = (uniform(keys, 0, 0, (2,)) * (2 * shift + 1)).long()
        rows = first[:, :1] + torch.arange(height, device=video.device)
        columns = first[:, 1:] + torch.arange(width, device=video.device)
        wide = pad(video.flatten(0, 1), (shift,) * 4, mode="replicate").unflatten(0, video.shape[:2])
        batch = torch.arange(len(video), device=video.device)[:, None, None]
        video = wide[batch, :, :, rows[:, :, None], columns[:, None]].permute(0, 3, 4, 1, 2)
    return video + noise * normal(keys, 0, 1, tuple(video.shape[1:])) if noise else video


def reward_direction(
    latents: Tensor, prompts: PromptBatch, reward: StreamReward, codec: Codec, keys: Tensor, noise: float, shift: int
) -> Tensor:
    """Minus d reward / d latents through codec and augmentation, divided by its root mean square per clip.

    latents [B, F, C, h, w]; reward scores whole clips (`clip_reward`). A clip without gradient gets 0.
    """
    leaf = latents.detach().requires_grad_()
    with torch.enable_grad():
        video = augmented(codec.decode(leaf), keys, noise, shift)
        total = reward(video, prompts, need={"scores"}).reward.sum()
        (gradient,) = torch.autograd.grad(total, leaf)
    size = gradient.square().mean(dim=(1, 2, 3, 4), keepdim=True).sqrt()
    return -gradient / size.clamp_min(1e-12)


class RewardGradient:
    """Trains a generator through StreamGen, whose reward must be a StreamReward of a differentiable model.

    config, generator (its model is trained), env, prompts: draws the prompts of an update.
    """

    def __init__(
        self,
        config: RewardGradientConfig,
        generator: Generator,
        env: StreamGenVectorEnv,
        prompts: Draw,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.config, self.generator, self.env, self.prompts = config, generator, env, prompts
        self.reward = clip_reward(env.reward, env.codec, env.clock)
        self.learner = Learner(generator.model, config.learner, accelerator)
        self.reference = copy.deepcopy(generator.model).requires_grad_(False) if config.reference else None
        self.counts = Counts()

    def update(self) -> dict[str, float]:
        """Roll out with the last denoising step on the graph, and follow the reward's gradient."""
        started, config, env = time.monotonic(), self.config, self.env
        draw = own_draw(config.seed, self.counts.updates, self.learner.accelerator)
        _, texts = self.prompts(env.num_envs, draw)
        keys = fold(stream_keys(config.seed, env.num_envs, env.device), draw)
        played = rollout(env, GeneratorPolicy(self.generator, grad=True), keys, texts)
        x0, prompts = played.latents, clip_prompts(played.embeds, played.texts)
        direction = reward_direction(x0, prompts, self.reward, env.codec, fold(keys, 1), config.noise, config.shift)
        measured = {"reward": float(played.rewards.sum(1).mean())}
        if self.reference is not None:
            away = x0.detach() - self._reference_x0(played)
            direction = direction + config.reference * away
            measured["reference_distance"] = float(away.square().mean())
        measured |= self.learner.step(surrogate(x0, direction))
        chunks = env.num_envs * env.clock.chunks
        self.counts.chunks += chunks
        self.counts.generator_calls += chunks * (len(self.generator.sigmas) + 1)
        self.counts.reward_calls += 2 * chunks
        self.counts.updates += 1
        self.counts.seconds += time.monotonic() - started
        return measured

    def _reference_x0(self, played: Rollout) -> Tensor:
        assert self.reference is not None
        last = torch.full((len(played.rewards),), len(self.generator.sigmas) - 1, device=played.latents.device)
        choices = [chosen(transitions, last) for transitions in played.transitions]
        self.counts.reference_calls += len(last) * (2 * len(choices) - 1)
        return torch.cat(predictions(self.reference, choices, played.latents.detach(), played.embeds), 1)

    def state(self) -> State:
        """Everything that a bitwise resume needs; tensors are those in use, so copy them to keep them."""
        weights = {} if self.reference is None else dict(self.reference.state_dict())
        return pack(self.config, self.counts, {"generator": self.learner}, weights)

    def load_state(self, groups: Groups, meta: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        extra = unpack(self.config, self.counts, {"generator": self.learner}, groups, meta)
        if self.reference is not None:
            self.reference.load_state_dict(extra)
