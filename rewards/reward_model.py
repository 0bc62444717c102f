"""What a reward model is, and a model of whole clips made of one of windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..models.codec import Codec
from ..models.prompts import PromptBatch
from .windows import ChunkLayout, chunk_of_frame


class RewardModel(Protocol):
    """What StreamReward asks of a video reward model. axes: names of its scores; mean, std [A]: for z-scores;
    min_frames: the shortest clip it scores."""

    axes: tuple[str, ...]
    min_frames: int

    @property
    def mean(self) -> Tensor: ...

    @property
    def std(self) -> Tensor: ...

    def score(self, video: Tensor, prompts: PromptBatch) -> Tensor:
        """video [B, F, 3, H, W] in [0, 1]. Returns raw scores [B, A]; rows do not interact."""


class RewardError(ValueError):
    """What a reward returned is not one finite number a clip, or a clip and axis; the message names the reward."""


def reward_name(reward: Any) -> str:
    """What messages call a reward: the name of its function, or of its class."""
    while isinstance(reward, WindowedModel):
        reward = reward.model
    inner = getattr(reward, "function", reward)
    return getattr(inner, "__name__", type(inner).__name__)


def read_reward(found: Any, video: Tensor, axes: Sequence[str] | None, name: str) -> Tensor:
    """What the reward `name` returned for a video of B clips, a tensor or an array or list of numbers, as a floating
    tensor on the video's device: [B] where axes is None, else [B, A] (of one axis [B] is taken). RewardError for the
    rest."""
    shape = [len(video)] if axes is None else [len(video), len(axes)]
    expected = f"for {len(video)} clips: expected {shape}, floating point"
    expected += f", one column for each of {', '.join(axes)}" if axes else ""
    try:
        values = torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RewardError(f"the reward {name} returned a {type(found).__name__} {expected}") from error
    if not isinstance(found, Tensor) and not values.is_complex():
        values = values.float()
    if not values.is_floating_point():
        raise RewardError(f"the reward {name} returned {values.dtype} {list(values.shape)} {expected}")
    columns = values[:, None] if values.ndim == 1 and len(shape) == 2 and shape[1] == 1 else values
    if list(columns.shape) != shape:
        raise RewardError(f"the reward {name} returned {list(values.shape)} {expected}")
    return columns.to(video.device)


def require_finite(values: Tensor, name: str) -> None:
    """RewardError where a row of values [B] or [B, A] that the reward `name` returned holds NaN or infinity."""
    bad = ~values.detach().isfinite().reshape(len(values), -1).all(1)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise RewardError(f"the reward {name} of row {row} is {values[row].tolist()}: expected finite numbers")


class WindowedModel(nn.Module):
    """A reward model of whole clips: the mean over chunks of the scores of the window that ends with the chunk.

    It is the environment's return before z-scoring; windows shorter than the model's minimum count as its mean score,
    which is 0 after z-scoring. Prompts are those of `clip_prompts`. Windows of one length are scored in one pass.

    apart: only the windows that end with the clip, a window before that, and so on. Every frame then stands in one
    window, where otherwise those of the last chunk stand in fewer than the rest and get the less saliency for it.
    """

    def __init__(self, model: RewardModel, codec: Codec, layout: ChunkLayout, apart: bool = False) -> None:
        super().__init__()
        self.model, self.layout = model, layout
        self.ends = range(layout.chunks)[:: -layout.window_chunks if apart else -1][::-1]
        self.grid_of = codec.grid
        self.axes, self.min_frames = model.axes, model.min_frames

    @property
    def mean(self) -> Tensor:
        return self.model.mean

    @property
    def std(self) -> Tensor:
        return self.model.std

    def score(self, video: Tensor, prompts: PromptBatch) -> Tensor:
        """video [B, F, 3, H, W], B * n prompts. Returns raw scores [B, A]."""
        return self.windows(video, prompts).mean(1)

    def windows(self, video: Tensor, prompts: PromptBatch) -> Tensor:
        """Raw scores [B, m, A] of the m windows, n or, apart, fewer."""
        chunks = chunk_of_frame(self.grid_of(video.shape[1]), self.layout)
        spans: dict[int, list[tuple[int, int]]] = {}
        for chunk in self.ends:
            first, end = chunks.index(self.layout.window(chunk)[0]), len(chunks) - chunks[::-1].index(chunk)
            spans.setdefault(end - first, []).append((chunk, first))
        scores = dict.fromkeys(self.ends, self.model.mean.expand(len(video), -1))
        for length, members in spans.items():
            if length >= self.min_frames:
                clips = torch.cat([video[:, first : first + length] for _, first in members])
                found = self.model.score(clips, self._prompts_of(prompts, [chunk for chunk, _ in members]))
                found = read_reward(found, clips, self.axes, reward_name(self))
                for (chunk, _), part in zip(members, found.chunk(len(members)), strict=True):
                    scores[chunk] = part
        return torch.stack(list(scores.values()), 1)

    def _prompts_of(self, prompts: PromptBatch, chunks: Sequence[int]) -> PromptBatch:
        step = self.layout.chunks
        text = tuple(text for chunk in chunks for text in prompts.text[chunk::step])
        return PromptBatch(text, torch.cat([prompts.embeds[chunk::step] for chunk in chunks]))
