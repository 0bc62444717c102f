"""How a clip is cut into chunks and reward windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.codec import Codec, Grid
from ..models.prompts import PromptBatch


@dataclass(frozen=True)
class ChunkLayout:
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


TINY_LAYOUT = ChunkLayout()


def clip_prompts(embeds: Tensor, texts: Sequence[Sequence[str]]) -> PromptBatch:
    """Prompts of B clips, embeds [B, n, L, D] and B rows of n texts, as one batch of B * n prompts, clip by clip."""
    return PromptBatch(tuple(text for row in texts for text in row), embeds.flatten(0, 1))


def prompt_columns(embeds: Tensor, texts: Sequence[Sequence[str]]) -> tuple[PromptBatch, ...]:
    """Prompts of B clips, embeds [B, n, L, D] and B rows of n texts, as one batch per chunk."""
    columns = zip(*texts, strict=True)
    return tuple(PromptBatch(tuple(column), embeds[:, chunk]) for chunk, column in enumerate(columns))


def chunk_of_frame(grid: Grid, layout: ChunkLayout) -> list[int]:
    """For each video frame of a clip's grid, the chunk that it belongs to."""
    return [int(latent) // layout.frames_per_chunk for latent in grid.latent_of_frame.tolist()]


def chunk_frames(codec: Codec, layout: ChunkLayout) -> int:
    """f: video frames of a chunk in mid-clip; a causal codec's first one has fewer."""
    return codec.frames_of(layout.frames_per_chunk, 1)


def held_back(video: Tensor, frames: int) -> Tensor:
    """Video [N, F, 3, H, W] of so many frames at least: the first one is held for those that are missing."""
    missing = frames - video.shape[1]
    return video if missing <= 0 else torch.cat((video[:, :1].expand(-1, missing, -1, -1, -1), video), 1)


def even_chunks(video: Tensor, codec: Codec, layout: ChunkLayout) -> Tensor:
    """Whole clips [N, F, 3, H, W] with n chunks of f frames each, as a detector is shown them."""
    return held_back(video, layout.chunks * chunk_frames(codec, layout))
