"""Reward gradient (ReFL, DRaFT-1): ascend the reward through the codec, on the last denoising step of every chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..envs.streaming import StreamingEnv
from ..models.codec import Codec
from ..models.generator import Generator
from ..models.prompts import PromptBatch
from ..noise import fold, normal, uniform
from ..rewards.stream_reward import NoGradientError, StreamReward
from ..rewards.windows import clip_prompts
from ..training.microbatches import parts
from .direction import Needs, TrainingBatch, TrainingSample
from .rollout import Rollout


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
) -> tuple[Tensor, Tensor]:
    """Minus d reward / d latents through codec and augmentation, divided by its root mean square per clip; and the
    reward [B] of the augmented clips.

    latents [B, F, C, h, w]; reward scores whole clips (`windowed`). A clip whose gradient is 0 gets 0.
    NoGradientError for a reward without any.
    """
    leaf = latents.detach().requires_grad_()
    with torch.enable_grad():
        video = augmented(codec.decode(leaf), keys, noise, shift)
        returns = reward.score(video, prompts).reward
        if not returns.requires_grad:
            raise NoGradientError("no score depends on the pixels by a gradient: train by the reward's value alone")
        (gradient,) = torch.autograd.grad(returns.sum(), leaf)
    size = gradient.square().mean(dim=(1, 2, 3, 4), keepdim=True).sqrt()
    return -gradient / size.clamp_min(1e-12), returns.detach()


@dataclass(frozen=True)
class RewardGradient:
    """It wants a StreamReward of a differentiable model, and no credit: the gradient says what each chunk did."""

    needs: ClassVar[Needs] = Needs(graph=True, whole_clips=True, advantages=False, reward_gradient=True)
    kind: Literal["reward"] = "reward"
    noise: float = 0.03
    """Standard deviation of pixel noise (pixels in [0, 1]) under which the gradient is taken."""
    shift: int = 1
    """Clips are moved by up to so many pixels before the gradient is taken."""

    def __post_init__(self) -> None:
        if self.noise < 0 or self.shift < 0:
            raise ValueError(f"noise and shift are not below 0: {self}")

    def check(self, config: Any) -> None:
        """What it needs says it all."""

    def actor(self, generator: Generator, shared_steps: int = 0) -> Generator:
        """The generator itself."""
        return generator

    def training_samples(self, played: Rollout, keys: Tensor, actor: Generator, env: StreamingEnv) -> TrainingBatch:
        """One minibatch; its targets are the direction, and clips are scored as they are augmented."""
        latents = played.latents.detach()
        assert isinstance(env.reward, StreamReward), "a trainer looks at it when it is made"
        reward = env.reward.windowed(env.layout, env.codec)
        keys, told = fold(keys, 1), list[tuple[Tensor, Tensor]]()
        for rows, _ in parts(len(latents)):
            prompts, augment = clip_prompts(played.embeds[rows], played.texts[rows]), (self.noise, self.shift)
            told.append(reward_direction(latents[rows], prompts, reward, env.codec, keys[rows], *augment))
        found, returns = map(torch.cat, zip(*told, strict=True))
        samples = []
        for step, direction in zip(played.steps, found.chunk(len(played.steps), 1), strict=True):
            last = step.denoising_steps[-1]
            sigma = torch.full((len(last.x),), last.sigma, device=last.x.device)
            samples.append(TrainingSample(last.x, sigma, direction, x0=step.chunk))
        return TrainingBatch([samples], returns)

    def loss_gradient(
        self, sample: TrainingSample, x0: Tensor, old_x0: Tensor, advantage: Tensor, weight: Tensor | float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The direction, of unit size per clip."""
        return weight * sample.target, {}
