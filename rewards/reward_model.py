"""What a reward model is, and a model of whole clips made of one of windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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
                for (chunk, _), part in zip(members, found.chunk(len(members)), strict=True):
                    scores[chunk] = part
        return torch.stack(list(scores.values()), 1)

    def _prompts_of(self, prompts: PromptBatch, chunks: Sequence[int]) -> PromptBatch:
        step = self.layout.chunks
        text = tuple(text for chunk in chunks for text in prompts.text[chunk::step])
        return PromptBatch(text, torch.cat([prompts.embeds[chunk::step] for chunk in chunks]))
