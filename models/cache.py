"""Self-attention keys and values of the frames that a stream has already produced."""

from __future__ import annotations

from collections.abc import Callable
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
      (Reward Forcing, 2512.04678: S <- decay S + (1 - decay) K_evicted, once per eviction). Such a cache is kept in
      float32: in bfloat16 a step of .001 would round to nothing.
    positions: rotary positions of the keys when they are read: "absolute" frame index, or "relative" to the window,
      counted without the gap that eviction leaves.
    on_prompt_switch: "keep" what was read under the old prompt, or "recache": read what the cache holds anew under the
      new one (LongLive, 2509.22622). A sink that has blended evicted frames cannot be read anew and is kept.
    """

    sink_frames: int = 0
    window_frames: int = -1
    eviction: Literal["drop", "ema"] = "drop"
    ema_decay: float = 0.999
    positions: Literal["absolute", "relative"] = "absolute"
    on_prompt_switch: Literal["keep", "recache"] = "keep"

    def __post_init__(self) -> None:
        words = {"eviction": ("drop", "ema"), "positions": ("absolute", "relative")}
        for name, known in (words | {"on_prompt_switch": ("keep", "recache")}).items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {known[0]!r} or {known[1]!r}, not {getattr(self, name)!r}")
        if self.sink_frames < 0 or self.window_frames < -1:
            raise ValueError(
                f"sink_frames={self.sink_frames}, window_frames={self.window_frames}: count frames from 0 upwards; "
                "a window of -1 keeps everything"
            )
        if not 0 <= self.ema_decay <= 1:
            raise ValueError(f"ema_decay lies in 0 .. 1, not {self.ema_decay}")
        if self.eviction == "ema" and self.window_frames >= 0 and self.sink_frames == 0:
            raise ValueError("eviction='ema' blends into the sink: set sink_frames to at least 1")

    def room(self, frames_per_chunk: int) -> int | None:
        """Frames that may stay in the cache so that the next chunk fits the window; None means all of them."""
        return None if self.window_frames < 0 else self.window_frames - frames_per_chunk

    def evicts(self, frames: int, frames_per_chunk: int) -> int:
        """Frames that are gone when the last chunk of a clip of so many frames is made."""
        room = self.room(frames_per_chunk)
        return 0 if room is None else max(0, frames - frames_per_chunk - room)

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
    latents: the clean latents of these frames [B, len(frames), C, h, w].
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    frames: tuple[int, ...]
    next_frame: int
    latents: Tensor

    @property
    def evicted(self) -> int:
        """Frames of the stream that are no longer kept."""
        return self.next_frame - len(self.frames)

    def take(self, rows: Tensor) -> KVCache:
        """The streams at rows [M] (int64), in that order; a row may occur several times (a fork)."""
        return self._mapped(lambda tensor: tensor.index_select(0, rows))

    def where(self, rows: Tensor, other: KVCache) -> KVCache:
        """The streams at rows (bool [B]) as they are here, the others as in `other`, which keeps the same frames."""
        theirs = iter((*other.keys, *other.values, other.latents))
        return self._mapped(lambda tensor: torch.where(rows.view(-1, *(1,) * (tensor.ndim - 1)), tensor, next(theirs)))

    def first(self, frames: int) -> KVCache:
        """The oldest frames alone."""
        tokens = self.keys[0].shape[1] // len(self.frames) * frames
        keys, values = (tuple(tensor[:, :tokens] for tensor in part) for part in (self.keys, self.values))
        return KVCache(keys, values, self.frames[:frames], self.next_frame, self.latents[:, :frames])

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> KVCache:
        keys, values = tuple(map(change, self.keys)), tuple(map(change, self.values))
        return KVCache(keys, values, self.frames, self.next_frame, change(self.latents))


def appended(
    cache: KVCache | None,
    new: list[tuple[Tensor, Tensor]],
    frames: tuple[int, ...],
    latents: Tensor,
    dtype: torch.dtype | None = None,
) -> KVCache:
    """The cache followed by new frames with these latents; `new` holds (key, value) per layer. All is detached here.

    dtype: what keys and values are kept in.
    """
    keys, values = (tuple(pair[part].detach().to(dtype) for pair in new) for part in (0, 1))
    latents = latents.detach()
    if cache is None:  # a graph on a GPU may write the same memory again
        keys, values = (tuple(tensor.clone() for tensor in part) for part in (keys, values))
    else:
        keys = tuple(torch.cat(pair, 1) for pair in zip(cache.keys, keys, strict=True))
        values = tuple(torch.cat(pair, 1) for pair in zip(cache.values, values, strict=True))
        frames, latents = cache.frames + frames, torch.cat((cache.latents, latents), 1)
    return KVCache(keys, values, frames, frames[-1] + 1, latents)


def evicted(cache: KVCache, config: CacheConfig, frames_per_chunk: int) -> KVCache:
    """The cache cut to what config leaves room for: the sink and the newest frames."""
    room = config.room(frames_per_chunk)
    excess = 0 if room is None else len(cache.frames) - room
    if excess <= 0:
        return cache
    sink = config.sink_frames

    def cut(tensor: Tensor, blend: bool) -> Tensor:
        kept, gone, recent = tensor.split((sink, excess, tensor.shape[1] - sink - excess), 1)
        if blend:
            kept = torch.lerp(gone if excess == sink else gone.mean(1, keepdim=True), kept, config.ema_decay)
        return torch.cat((kept, recent), 1)

    def cut_tokens(tensor: Tensor) -> Tensor:
        return cut(tensor.unflatten(1, (len(cache.frames), -1)), config.eviction == "ema").flatten(1, 2)

    return KVCache(
        tuple(map(cut_tokens, cache.keys)),
        tuple(map(cut_tokens, cache.values)),
        cache.frames[:sink] + cache.frames[sink + excess :],
        cache.next_frame,
        cut(cache.latents, False),
    )


def blocks(frames: tuple[int, ...], size: int) -> list[int]:
    """How frames fall into parts that were read together: runs without a gap, cut into `size` from their end on."""
    parts: list[int] = []
    start = 0
    for place in range(1, len(frames) + 1):
        if place == len(frames) or frames[place] != frames[place - 1] + 1:
            odd = (place - start) % size
            parts += [odd] * (odd > 0) + [size] * ((place - start) // size)
            start = place
    return parts
