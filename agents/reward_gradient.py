"""Reward gradient (ReFL, DRaFT-1): ascend the reward through the codec, on the last denoising step of every chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..envs.streaming import StreamingEnv
from ..models.codec import Codec
from ..models.generator import Generator
from ..models.prompts import PromptBatch
from ..noise import fold, normal, uniform
from ..rewards.stream_reward import NoGradientError, StreamReward
from ..rewards.windows import ChunkLayout, clip_prompts
from ..training.microbatches import parts
from .direction import Needs, TrainingBatch, TrainingSample
from .rollout import Rollout


class Decodes(Protocol):
    """The half of a codec that a reward gradient goes through."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, F, C, h, w] to video [B, F', 3, H, W]."""
        ...


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
    latents: Tensor, prompts: PromptBatch, reward: StreamReward, codec: Decodes, keys: Tensor, noise: float, shift: int
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
        assert isinstance(env.reward, StreamReward), "a trainer looks at it when it is made"
        latents, keys, told = played.latents.detach(), fold(keys, 1), list[tuple[Tensor, Tensor]]()
        for rows, _ in parts(len(latents)):
            prompts = clip_prompts(played.embeds[rows], played.texts[rows])
            told.append(self.direction(latents[rows], prompts, keys[rows], env.reward, env))
        found, returns = map(torch.cat, zip(*told, strict=True))
        samples = []
        for step, direction in zip(played.steps, found.chunk(len(played.steps), 1), strict=True):
            last = step.denoising_steps[-1]
            sigma = torch.full((len(last.x),), last.sigma, device=last.x.device)
            samples.append(TrainingSample(last.x, sigma, direction, x0=step.chunk))
        return TrainingBatch([samples], returns)

    def direction(
        self, latents: Tensor, prompts: PromptBatch, keys: Tensor, reward: StreamReward, env: StreamingEnv
    ) -> tuple[Tensor, Tensor]:
        """`reward_direction` of whole clips, through all their windows."""
        whole = reward.windowed(env.layout, env.codec)
        return reward_direction(latents, prompts, whole, env.codec, keys, self.noise, self.shift)

    def loss_gradient(
        self, sample: TrainingSample, x0: Tensor, old_x0: Tensor, advantage: Tensor, weight: Tensor | float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The direction, of unit size per clip."""
        return weight * sample.target, {}


@dataclass(frozen=True)
class WindowGradient(RewardGradient):
    """The gradient of one window of a clip, drawn at random from those that the reward can see, in place of all.

    Decoder and reward then hold the activations of a window's frames alone. In the mean over draws it is the gradient
    of the whole clip, but for what latents before a window do to its frames through the codec's memory: that part is
    left out. Its size is that of the whole clip's.
    """

    kind: Literal["window"] = "window"  # type: ignore[assignment]

    def direction(
        self, latents: Tensor, prompts: PromptBatch, keys: Tensor, reward: StreamReward, env: StreamingEnv
    ) -> tuple[Tensor, Tensor]:
        """Zero outside of the window; and the reward [B] of the window alone."""
        codec, layout = env.codec, env.layout
        ends = seen_windows(reward, codec, layout)
        drawn = (uniform(fold(keys, 2), 0, 0, ()) * len(ends)).long()
        found, returns = torch.zeros_like(latents), latents.new_zeros(len(latents))
        for place in sorted(set(drawn.tolist())):
            rows, span = (drawn == place).nonzero()[:, 0], frames_of_window(layout, ends[place])
            some, own = prompts.take(rows * layout.chunks + ends[place]), latents[rows]
            tail = WindowCodec(codec, own[:, : span.start])
            way, returns[rows] = reward_direction(own[:, span], some, reward, tail, keys[rows], self.noise, self.shift)
            found[rows, span] = way * (latents.shape[1] / way.shape[1]) ** 0.5
        return found, returns


class WindowCodec:
    """Decodes what comes after latents [B, F, C, h, w], through which no gradient goes."""

    def __init__(self, codec: Codec, before: Tensor) -> None:
        self.codec, self.state = codec, codec.open()
        if before.shape[1]:
            with torch.no_grad():
                _, self.state = codec.decode_stream(before, self.state)

    def decode(self, latents: Tensor) -> Tensor:
        """The video of the latents that follow."""
        video: Tensor = self.codec.decode_stream(latents, self.state)[0]
        return video


def frames_of_window(layout: ChunkLayout, end: int) -> slice:
    """The latent frames of the window that ends with a chunk."""
    window = layout.window(end)
    return slice(window[0] * layout.frames_per_chunk, (window[-1] + 1) * layout.frames_per_chunk)


def seen_windows(reward: StreamReward, codec: Codec, layout: ChunkLayout) -> list[int]:
    """The last chunks of those windows that are long enough for the reward."""
    spans = {end: frames_of_window(layout, end) for end in range(layout.chunks)}
    return [end for end, s in spans.items() if codec.frames_of(s.stop - s.start, s.start) >= reward.min_frames]
