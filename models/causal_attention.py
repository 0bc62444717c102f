"""What makes Wan's self-attention causal: a context per call, rotation on read, caches, masks, a prompt per chunk.

B streams, S new tokens, K cached tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from .cache import KVCache

THETA = 10000.0
"""Base of Wan's rotary frequencies."""
RotaryTable = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Recall:
    """A cache as attention reads it.

    turn: rotation of its K keys.   dtype: what it is read in.   rooms: per layer the rotated keys and the values,
    [B, K + S, heads, dim], with room behind them for the S tokens of a chunk; every pass that carries no gradient puts
    its own there. None: each pass rotates and joins for itself.
    """

    cache: KVCache
    turn: RotaryTable
    dtype: torch.dtype
    rooms: tuple[tuple[Tensor, Tensor], ...] | None = None

    def with_rooms(self, tokens: int) -> Recall:
        """Rotated once for all passes of a chunk of so many tokens."""
        return replace(self, rooms=tuple(map(self._room, self.cache.keys, self.cache.values, repeat(tokens))))

    def _room(self, key: Tensor, value: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        shape = (key.shape[0], key.shape[1] + tokens, *key.shape[2:])
        keys, values = (torch.empty(shape, dtype=self.dtype, device=key.device) for _ in range(2))
        keys[:, : key.shape[1]] = rotated(key, self.turn)
        values[:, : key.shape[1]] = value
        return keys, values

    def followed_by(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys, rotated, and values, the past's and then these (key already rotated)."""
        cached = self.cache.keys[layer].shape[1]
        fits = self.rooms is not None and self.rooms[layer][0].shape[1] == cached + key.shape[1]
        if self.rooms is None or not fits or torch.is_grad_enabled() or torch.compiler.is_compiling():
            past = rotated(self.cache.keys[layer], self.turn).to(self.dtype), self.cache.values[layer].to(self.dtype)
            return torch.cat((past[0], key), 1), torch.cat((past[1], value), 1)
        keys, values = self.rooms[layer]
        keys[:, cached:] = key
        values[:, cached:] = value
        return keys, values


@dataclass(frozen=True)
class CallContext:
    """What one transformer call tells its self-attention layers; it travels as diffusers' `rotary_emb`.

    turn: rotation of the new queries and keys, see `rotary_turn`.
    past: the K tokens that came before, or None.
    bias: [S, K + S], or [B, 1, 1, K + S], added to the attention logits (0 or -inf), or None.
    new: where layer i puts its new (unrotated key, value) under i, or None. Writing the same again is harmless, so
      gradient checkpointing may run a layer twice.
    """

    turn: RotaryTable
    past: Recall | None = None
    bias: Tensor | None = None
    new: dict[int, tuple[Tensor, Tensor]] | None = None


class Rope(nn.Module):
    """Stands where the transformer's rotary embedding stood; returns the context that CausalWan left for this call."""

    def __init__(self, dim: int, patch: tuple[int, ...], theta: float = THETA) -> None:
        super().__init__()
        self.dim, self.patch, self.theta = dim, patch, theta
        self.context: CallContext | None = None

    def forward(self, x: Tensor) -> CallContext:
        context, self.context = self.context, None
        if context is None:
            h, w = x.shape[-2] // self.patch[0], x.shape[-1] // self.patch[1]
            context = CallContext(rotary_turn(tuple(range(x.shape[2])), h, w, self.dim, x.device, self.theta))
        return context


class _Attention:
    """What both processors share: the backend that diffusers' dispatcher takes (`set_attention_backend` sets it)."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Attention of query [B, S, heads, dim] over key, value [B, K, heads, dim]; [B, S, heads * dim]."""
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        out: Tensor = dispatch_attention_fn(query, key, value, bias, backend=self._attention_backend)
        return out.flatten(2)


class SelfAttention(_Attention):
    """attn1's processor: reads cache, rotation and mask from the call's context.

    hidden is [B, S, d], or [B * F, S / F, d] where every frame is a row with a noise level of its own.
    """

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def __call__(
        self, attn: Any, hidden: Tensor, text: None = None, mask: None = None, rotary_emb: CallContext | None = None
    ) -> Tensor:
        assert rotary_emb is not None
        context, shape = rotary_emb, (-1, rotary_emb.turn[0].shape[0], attn.heads, attn.inner_dim // attn.heads)
        query = attn.norm_q(attn.to_q(hidden)).view(shape)
        key = attn.norm_k(attn.to_k(hidden)).view(shape)
        value = attn.to_v(hidden).view(shape)
        if context.new is not None:
            context.new[self.layer] = (key, value)
        query, key = rotated(query, context.turn), rotated(key, context.turn)
        if context.past is not None:
            key, value = context.past.followed_by(self.layer, key, value)
        return attn.to_out[1](attn.to_out[0](self.attend(query, key, value, context.bias).view(hidden.shape)))


class CrossAttention(_Attention):
    """attn2's processor: the n-th part of the sequence reads the n-th prompt."""

    def __init__(self, text_len: int) -> None:
        self.text_len = text_len

    def __call__(self, attn: Any, hidden: Tensor, text: Tensor, mask: None = None, rotary_emb: None = None) -> Tensor:
        batch = text.shape[0] * (text.shape[1] // self.text_len)
        query = attn.norm_q(attn.to_q(hidden)).view(batch, -1, attn.heads, attn.inner_dim // attn.heads)
        key = attn.norm_k(attn.to_k(text)).view(batch, self.text_len, attn.heads, -1)
        value = attn.to_v(text).view(batch, self.text_len, attn.heads, -1)
        return attn.to_out[1](attn.to_out[0](self.attend(query, key, value, None).view(hidden.shape)))


def rotated(x: Tensor, turn: RotaryTable) -> Tensor:
    """x [B, S, heads, dim], each pair of neighbouring channels rotated by the angle of turn.

    The cosine and sine products are rounded apart, as diffusers does: results are bitwise the same.
    """
    cos, i_sin, sin = turn
    full = x.float()
    if torch.compiler.is_compiling():  # which has no complex numbers to fuse
        even, odd = full.unflatten(-1, (-1, 2)).unbind(-1)
        return (full * cos + torch.stack((-odd * sin, even * sin), -1).flatten(-2)).type_as(x)
    turned = torch.view_as_complex(full.unflatten(-1, (-1, 2))) * i_sin
    return (full * cos).add_(torch.view_as_real(turned).flatten(-2)).type_as(x)


@lru_cache(maxsize=32)
def rotary_turn(
    frames: tuple[int, ...], h: int, w: int, dim: int, device: torch.device, theta: float = THETA
) -> RotaryTable:
    """Wan's rotary factors of every token of the given frames; S = len(frames) * h * w.

    Returns the cosine for each channel, float [S, 1, dim], i times the sine for each pair, complex [S, 1, dim/2], and
    that sine, float.
    Channels are split as in diffusers: dim // 6 pairs each for height and width, the rest for time. Frames may be any
    integers: there is no table that could end.
    """
    side = dim // 6
    time = dim // 2 - 2 * side
    with torch.inference_mode(False), torch.no_grad():
        axes = (
            _angles(torch.tensor(frames), time, theta).view(-1, 1, 1, time),
            _angles(torch.arange(h), side, theta).view(1, h, 1, side),
            _angles(torch.arange(w), side, theta).view(1, 1, w, side),
        )
        waves = ([wave(one).float().to(device, non_blocking=True) for one in axes] for wave in (torch.cos, torch.sin))
        cos, sin = (torch.cat([part.expand(len(frames), h, w, -1) for part in parts], -1) for parts in waves)
        sin = sin.view(-1, 1, dim // 2)
        return cos.view(-1, 1, dim // 2).repeat_interleave(2, -1), torch.complex(torch.zeros_like(sin), sin), sin


def _angles(positions: Tensor, pairs: int, theta: float) -> Tensor:
    steps = torch.arange(0, 2 * pairs, 2, dtype=torch.float64) / (2 * pairs)
    return torch.outer(positions.double(), 1.0 / theta**steps)


@lru_cache(maxsize=32)
def causal_bias(
    frames: int, tokens: int, sight: tuple[int, int, int], forcing: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """0 where a token may look and -inf where not; sight = (frames_per_chunk, sink_frames, window_frames).

    [S, S] for `frames` clean frames of `tokens` each; with forcing, `frames` counts clean and noisy ones.
    """
    per_chunk, sink, window = sight
    clips = 2 if forcing else 1
    frame = torch.arange(frames // clips)
    chunk = frame // per_chunk
    query, key = chunk[:, None], chunk[None]
    own = query == key
    past = key < query
    if window >= 0:
        oldest = query * per_chunk - (window - per_chunk - sink)
        past &= (frame < sink)[None] | (frame[None] >= oldest)
    seen = own | past
    if forcing:
        seen = torch.cat((torch.cat((seen, torch.zeros_like(own)), 1), torch.cat((past, own), 1)))
    seen = seen.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
    with torch.inference_mode(False), torch.no_grad():
        return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, float("-inf")).to(device, non_blocking=True)


def past_bias(past: Tensor, cached: int, new: int, tokens: int, dtype: torch.dtype) -> Tensor:
    """[B, 1, 1, K + S]: -inf at the tokens of all but the newest past[i] of `cached` frames, for each row i.

    `new` frames follow, all seen; a frame has `tokens` tokens.
    """
    frame = torch.arange(cached + new, device=past.device).repeat_interleave(tokens)
    hidden = frame < cached - past[:, None]
    bias = torch.zeros(hidden.shape, dtype=dtype, device=past.device)
    return bias.masked_fill_(hidden, float("-inf"))[:, None, None]
