"""How a clip is cut into chunks and reward windows, and a whole clip's reward made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..models.codec import Codec, Grid
from ..models.prompts import PromptBatch
from ..rewards.stream_reward import RewardModel, StreamReward


@dataclass(frozen=True)
class Clock:
    """chunks: n a clip.   frames_per_chunk: latent frames each.   window_chunks: chunks that a reward looks back on."""

    chunks: int = 4
    frames_per_chunk: int = 3
    window_chunks: int = 2

    def __post_init__(self) -> None:
        if min(self.chunks, self.frames_per_chunk, self.window_chunks) < 1:
            raise ValueError(f"chunks, frames_per_chunk and window_chunks are at least 1, not {self}")

    @property
    def window_frames(self) -> int:
        """Latent frames of a full window."""
        return self.window_chunks * self.frames_per_chunk

    @property
    def clip_frames(self) -> int:
        """Latent frames of a clip."""
        return self.chunks * self.frames_per_chunk

    def window(self, chunk: int) -> range:
        """The chunks of the window that ends with `chunk`."""
        return range(max(0, chunk + 1 - self.window_chunks), chunk + 1)


TINY = Clock()


def clip_prompts(embeds: Tensor, texts: Sequence[Sequence[str]]) -> PromptBatch:
    """Prompts of B clips, embeds [B, n, L, D] and B rows of n texts, as one batch of B * n prompts, clip by clip."""
    return PromptBatch(tuple(text for row in texts for text in row), embeds.flatten(0, 1))


def prompt_columns(embeds: Tensor, texts: Sequence[Sequence[str]]) -> tuple[PromptBatch, ...]:
    """Prompts of B clips, embeds [B, n, L, D] and B rows of n texts, as one batch per chunk."""
    columns = zip(*texts, strict=True)
    return tuple(PromptBatch(tuple(column), embeds[:, chunk]) for chunk, column in enumerate(columns))


def chunk_of_frame(grid: Grid, clock: Clock) -> list[int]:
    """For each video frame of a clip's grid, the chunk that it belongs to."""
    return [int(latent) // clock.frames_per_chunk for latent in grid.latent_of_frame.tolist()]


class WindowedModel(nn.Module):
    """A reward model of whole clips: the mean over chunks of the scores of the window that ends with the chunk.

    It is the environment's return before z-scoring; windows shorter than the model's minimum count as its mean score,
    which is 0 after z-scoring. Prompts are those of `clip_prompts`. Windows of one length are scored in one pass.
    """

    def __init__(self, model: RewardModel, codec: Codec, clock: Clock) -> None:
        super().__init__()
        self.model, self.clock = model, clock
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
        """Raw scores [B, n, A] of every window."""
        chunks = chunk_of_frame(self.grid_of(video.shape[1]), self.clock)
        spans: dict[int, list[tuple[int, int]]] = {}
        for chunk in range(self.clock.chunks):
            first, end = chunks.index(self.clock.window(chunk)[0]), len(chunks) - chunks[::-1].index(chunk)
            spans.setdefault(end - first, []).append((chunk, first))
        scores = [self.model.mean.expand(len(video), -1)] * self.clock.chunks
        for length, members in spans.items():
            if length >= self.min_frames:
                clips = torch.cat([video[:, first : first + length] for _, first in members])
                found = self.model.score(clips, self._prompts_of(prompts, [chunk for chunk, _ in members]))
                for (chunk, _), part in zip(members, found.chunk(len(members)), strict=True):
                    scores[chunk] = part
        return torch.stack(scores, 1)

    def _prompts_of(self, prompts: PromptBatch, chunks: Sequence[int]) -> PromptBatch:
        step = self.clock.chunks
        text = tuple(text for chunk in chunks for text in prompts.text[chunk::step])
        return PromptBatch(text, torch.cat([prompts.embeds[chunk::step] for chunk in chunks]))


def clip_reward(reward: object, codec: Codec, clock: Clock) -> StreamReward:
    """`reward` for whole clips and their `clip_prompts`; its `.reward` is the environment's return.

    TypeError for a reward that is no StreamReward: it has no gradient to offer.
    """
    if not isinstance(reward, StreamReward):
        raise TypeError(f"gradients and perplexity need a StreamReward, not {type(reward).__name__}")
    return StreamReward(WindowedModel(reward.model, codec, clock), reward.settings)
