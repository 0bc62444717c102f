"""Self-attention keys and values of the frames that a stream has already produced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class CacheConfig:
    """What a causal generator remembers, in latent frames.

    sink_frames: the first frames of a stream, never evicted.
    window_frames: frames that a chunk attends to in all: sink, recent frames and the chunk itself; -1 keeps everything.
    eviction: "drop" forgets the oldest frame after the sink; "ema" blends it into the sink
      (Reward Forcing, 2512.04678: S <- decay S + (1 - decay) K_evicted, once per eviction).
    positions: rotary positions of the keys when they are read: "absolute" frame index, or "relative" to the window,
      counted without the gap that eviction leaves.
    """

    sink_frames: int = 0
    window_frames: int = -1
    eviction: Literal["drop", "ema"] = "drop"
    ema_decay: float = 0.999
    positions: Literal["absolute", "relative"] = "absolute"

    def __post_init__(self) -> None:
        if self.eviction not in ("drop", "ema"):
            raise ValueError(f"eviction is 'drop' or 'ema', not {self.eviction!r}")
        if self.positions not in ("absolute", "relative"):
            raise ValueError(f"positions is 'absolute' or 'relative', not {self.positions!r}")
        if self.eviction == "ema" and self.window_frames >= 0 and self.sink_frames == 0:
            raise ValueError("eviction='ema' blends into the sink: set sink_frames to at least 1")

    def room(self, frames_per_chunk: int) -> int | None:
        """Frames that may stay in the cache so that the next chunk fits the window; None means all of them."""
        return None if self.window_frames < 0 else self.window_frames - frames_per_chunk

    def check(self, frames_per_chunk: int) -> None:
        """Raise ValueError if sink and one chunk do not fit the window."""
        room = self.room(frames_per_chunk)
        if room is not None and room < self.sink_frames:
            raise ValueError(
                f"window_frames={self.window_frames} is too small: it must hold {self.sink_frames} sink frames "
                f"and a chunk of {frames_per_chunk}"
            )


@dataclass(frozen=True)
class KVCache:
    """Keys and values of past frames; never written in place.

    keys, values: one tensor per layer, [B, len(frames) * tokens_per_frame, heads, dim]; keys before rotation.
    frames: absolute index of each frame that is kept, oldest first.
    next_frame: absolute index of the frame that follows.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    frames: tuple[int, ...]
    next_frame: int

    def take(self, rows: Tensor) -> KVCache:
        """The streams at rows [M] (int64), in that order; a row may occur several times (a fork)."""
        return KVCache(
            tuple(k.index_select(0, rows) for k in self.keys),
            tuple(v.index_select(0, rows) for v in self.values),
            self.frames,
            self.next_frame,
        )


def appended(cache: KVCache | None, new: list[tuple[Tensor, Tensor]], frames: tuple[int, ...]) -> KVCache:
    """The cache followed by new frames; `new` holds (key, value) per layer, detached here."""
    keys = tuple(k.detach() for k, _ in new)
    values = tuple(v.detach() for _, v in new)
    if cache is not None:
        keys = tuple(torch.cat(pair, 1) for pair in zip(cache.keys, keys, strict=True))
        values = tuple(torch.cat(pair, 1) for pair in zip(cache.values, values, strict=True))
        frames = cache.frames + frames
    return KVCache(keys, values, frames, frames[-1] + 1)


def evicted(cache: KVCache, config: CacheConfig, frames_per_chunk: int) -> KVCache:
    """The cache cut to what config leaves room for: the sink and the newest frames."""
    room = config.room(frames_per_chunk)
    excess = 0 if room is None else len(cache.frames) - room
    if excess <= 0:
        return cache
    sink = config.sink_frames

    def cut(tensor: Tensor) -> Tensor:
        token = tensor.unflatten(1, (len(cache.frames), -1))
        kept, gone, recent = token.split((sink, excess, len(cache.frames) - sink - excess), 1)
        if config.eviction == "ema":
            kept = torch.lerp(gone if excess == sink else gone.mean(1, keepdim=True), kept, config.ema_decay)
        return torch.cat((kept, recent), 1).flatten(1, 2)

    return KVCache(
        tuple(map(cut, cache.keys)),
        tuple(map(cut, cache.values)),
        cache.frames[:sink] + cache.frames[sink + excess :],
        cache.next_frame,
    )
