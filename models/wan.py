"""diffusers' unmodified Wan transformer made causal: chunk after chunk, with cached keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from .cache import CacheConfig, KVCache, appended, evicted

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

__all__ = ["CacheConfig", "CallContext", "CausalWan", "KVCache"]

THETA = 10000.0
Turn = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class CallContext:
    """What one transformer call tells its self-attention layers; it travels as diffusers' `rotary_emb`.

    query_turn: rotation of the queries, see `rotary_turn`.
    key_turn: rotation of the cached keys and of the new ones.
    bias: [S, K + S] added to the attention logits (0 or -inf), or None.
    cache: the K tokens that came before, or None.
    new: where layer i puts its new (unrotated key, value) under i, or None. Writing the same again is harmless, so
      gradient checkpointing may run a layer twice.
    """

    query_turn: Turn
    key_turn: Turn
    bias: Tensor | None = None
    cache: KVCache | None = None
    new: dict[int, tuple[Tensor, Tensor]] | None = None


class CausalWan(nn.Module):
    """A Wan transformer that generates in chunks; bidirectional inside a chunk.

    Args:
        transformer: diffusers' WanTransformer3DModel (text to video, patches of one frame). Its `rope` and attention
            processors are replaced; parameters and their names stay.
        frames_per_chunk: latent frames in a chunk.
        text_len: tokens of a prompt; shorter embeddings are padded with zeros.
        cache: what is remembered from chunk to chunk.
    """

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        frames_per_chunk: int,
        text_len: int,
        cache: CacheConfig = CacheConfig(),
    ) -> None:
        super().__init__()
        config = transformer.config
        if config.patch_size[0] != 1:
            raise ValueError(f"patches must span one frame, these span {config.patch_size[0]}")
        if config.image_dim is not None or config.added_kv_proj_dim is not None:
            raise ValueError("image-to-video transformers are not supported: load a text-to-video one")
        cache.check(frames_per_chunk)
        self.frames_per_chunk, self.text_len, self.cache_config = frames_per_chunk, text_len, cache
        self.patch = tuple(config.patch_size[1:])
        rope = Rope(config.attention_head_dim, self.patch)
        transformer.rope = rope
        transformer.condition_embedder.register_forward_hook(rope.spread_over_tokens)
        for layer, block in enumerate(transformer.blocks):
            block.attn1.set_processor(SelfAttention(layer))
            block.attn2.set_processor(CrossAttention(text_len))
        self.transformer = transformer

    def forward(
        self,
        x: Tensor,
        sigma: float | Tensor,
        embeds: Tensor,
        *,
        cache: KVCache | None = None,
        start_frame: int | None = None,
        mask: Literal["none", "causal"] | None = None,
        clean: Tensor | None = None,
        clean_sigma: float = 0.0,
    ) -> Tensor:
        """Velocity (noise minus clean) of noisy latents x [B, F, C, h, w]; same shape.

        Args:
            sigma: noise level in [0, 1]: a number, [B], or per frame [B, F].
            embeds: one prompt [B, L, D], or one per chunk [B, n, L, D] with F = n * frames_per_chunk.
            cache: keys and values of earlier frames; every frame of x sees them all.
            start_frame: absolute index of the first frame; by default the one after the cache.
            mask: "causal": a chunk of x sees no later chunk, and what the cache window lets it see of earlier ones.
            clean: [B, F, C, h, w]: teacher forcing, see `teacher_forcing`.
        """
        frames = self._frames(x, cache, start_frame)
        if clean is None and mask != "causal":
            return self._run(x, sigma, embeds, self._context(x, frames, cache))
        if cache is not None:
            raise ValueError("a causal mask covers a whole clip: pass it without a cache")
        self._check_maskable(len(frames))
        if clean is None:
            return self._run(x, sigma, embeds, self._context(x, frames, None, "causal"))
        count = len(frames)
        levels = torch.cat((self._levels(clean_sigma, clean), self._levels(sigma, x)), 1)
        twice = torch.cat((embeds, embeds), 1) if embeds.ndim == 4 and embeds.shape[1] > 1 else embeds
        context = self._context(x, frames + frames, None, "forcing")
        return self._run(torch.cat((clean, x), 1), levels, twice, context)[:, count:]

    def teacher_forcing(
        self, noisy: Tensor, clean: Tensor, sigma: float | Tensor, embeds: Tensor, clean_sigma: float = 0.0
    ) -> Tensor:
        """Velocity of noisy [B, F, C, h, w], each chunk seeing the clean chunks before it.

        One pass over clean and noisy frames: a clean chunk sees clean chunks up to itself, a noisy one the earlier
        clean chunks and itself. It equals chunk-by-chunk prediction with the cache written from `clean`.
        sigma as in `forward`; clean_sigma is the level that the clean frames are labelled with.
        """
        return self(noisy, sigma, embeds, clean=clean, clean_sigma=clean_sigma)

    @torch.no_grad()
    def write(self, x0: Tensor, embeds: Tensor, cache: KVCache | None) -> KVCache:
        """The cache after the clean chunk x0 [B, F, C, h, w]: one pass at sigma 0, then eviction."""
        frames = self._frames(x0, cache, None)
        new: dict[int, tuple[Tensor, Tensor]] = {}
        self._run(x0, 0.0, embeds, self._context(x0, frames, cache, new=new))
        grown = appended(cache, [new[layer] for layer in range(len(new))], frames)
        return evicted(grown, self.cache_config, self.frames_per_chunk)

    def _frames(self, x: Tensor, cache: KVCache | None, start: int | None) -> tuple[int, ...]:
        if start is None:
            start = 0 if cache is None else cache.next_frame
        return tuple(range(start, start + x.shape[1]))

    def _context(
        self,
        x: Tensor,
        frames: tuple[int, ...],
        cache: KVCache | None,
        mask: str | None = None,
        new: dict[int, tuple[Tensor, Tensor]] | None = None,
    ) -> CallContext:
        h, w = x.shape[-2] // self.patch[0], x.shape[-1] // self.patch[1]
        keys = frames if cache is None else cache.frames + frames
        if self.cache_config.positions == "relative" and cache is not None:
            keys = tuple(range(len(keys)))
            frames = keys[-len(frames) :]
        dim = self.transformer.config.attention_head_dim
        turn = rotary_turn(frames, h, w, dim, x.device)
        key_turn = turn if cache is None else rotary_turn(keys, h, w, dim, x.device)
        bias = None
        if mask is not None:
            sight = (self.frames_per_chunk, self.cache_config.sink_frames, self.cache_config.window_frames)
            bias = causal_bias(len(frames), h * w, sight, mask == "forcing", x.dtype, x.device)
        return CallContext(turn, key_turn, bias, cache, new)

    def _run(self, x: Tensor, sigma: float | Tensor, embeds: Tensor, context: CallContext) -> Tensor:
        prompts = self._prompts(embeds, x.shape[1])
        if not isinstance(sigma, Tensor):
            sigma = torch.full((x.shape[0],), sigma, device=x.device)
        self.transformer.rope.context = context
        out = self.transformer(x.transpose(1, 2), sigma.expand(x.shape[0], *sigma.shape[1:]) * 1000, prompts,
                               return_dict=False)[0]
        return out.transpose(1, 2)

    def _prompts(self, embeds: Tensor, frames: int) -> Tensor:
        if embeds.ndim == 3:
            embeds = embeds.unsqueeze(1)
        count, length = embeds.shape[1:3]
        if count > 1 and count * self.frames_per_chunk != frames:
            raise ValueError(f"{count} prompts for {frames} frames in chunks of {self.frames_per_chunk}")
        if length > self.text_len:
            raise ValueError(f"prompt embeddings have {length} tokens, this model reads {self.text_len}")
        if length < self.text_len:
            embeds = pad(embeds, (0, 0, 0, self.text_len - length))
        return embeds.flatten(1, 2)

    def _levels(self, sigma: float | Tensor, x: Tensor) -> Tensor:
        if not isinstance(sigma, Tensor):
            return torch.full(x.shape[:2], sigma, device=x.device)
        return sigma if sigma.ndim == 2 else sigma.view(-1, 1).expand(x.shape[:2])

    def _check_maskable(self, frames: int) -> None:
        if frames % self.frames_per_chunk:
            raise ValueError(f"{frames} frames are not whole chunks of {self.frames_per_chunk}")
        config = self.cache_config
        moves = config.eviction == "ema" or config.positions == "relative"
        if moves and 0 <= config.window_frames < frames:
            raise ValueError(
                f"one masked pass over {frames} frames cannot express eviction={config.eviction!r} with "
                f"positions={config.positions!r} beyond window_frames={config.window_frames}: run chunk by chunk"
            )


class Rope(nn.Module):
    """Stands where the transformer's rotary embedding stood; returns the context that CausalWan left for this call."""

    def __init__(self, dim: int, patch: tuple[int, ...]) -> None:
        super().__init__()
        self.dim, self.patch = dim, patch
        self.context: CallContext | None = None
        self.tokens = 0

    def forward(self, x: Tensor) -> CallContext:
        context, self.context = self.context, None
        if context is None:
            h, w = x.shape[-2] // self.patch[0], x.shape[-1] // self.patch[1]
            turn = rotary_turn(tuple(range(x.shape[2])), h, w, self.dim, x.device)
            context = CallContext(turn, turn)
        self.tokens = context.query_turn[0].shape[0]
        return context

    def spread_over_tokens(self, module: nn.Module, args: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Hook after the time embedding: levels given per frame [B, F, ...] become one per token [B, S, ...]."""
        temb, projected, *rest = output
        if temb.ndim == 2 or temb.shape[1] == self.tokens:
            return output
        repeats = self.tokens // temb.shape[1]
        return (temb.repeat_interleave(repeats, 1), projected.repeat_interleave(repeats, 1), *rest)


class SelfAttention:
    """attn1's processor: reads cache, rotation and mask from the call's context."""

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def __call__(
        self, attn: Any, hidden: Tensor, text: None = None, mask: None = None, rotary_emb: CallContext | None = None
    ) -> Tensor:
        assert rotary_emb is not None
        context, shape = rotary_emb, (*hidden.shape[:2], attn.heads, -1)
        query = attn.norm_q(attn.to_q(hidden)).view(shape)
        key = attn.norm_k(attn.to_k(hidden)).view(shape)
        value = attn.to_v(hidden).view(shape)
        if context.new is not None:
            context.new[self.layer] = (key, value)
        if context.cache is not None:
            key = torch.cat((context.cache.keys[self.layer], key), 1)
            value = torch.cat((context.cache.values[self.layer], value), 1)
        out = attend(rotated(query, context.query_turn), rotated(key, context.key_turn), value, context.bias)
        return attn.to_out[1](attn.to_out[0](out))


class CrossAttention:
    """attn2's processor: the n-th part of the sequence reads the n-th prompt."""

    def __init__(self, text_len: int) -> None:
        self.text_len = text_len

    def __call__(self, attn: Any, hidden: Tensor, text: Tensor, mask: None = None, rotary_emb: None = None) -> Tensor:
        batch = hidden.shape[0] * (text.shape[1] // self.text_len)
        query = attn.norm_q(attn.to_q(hidden)).view(batch, -1, attn.heads, attn.inner_dim // attn.heads)
        key = attn.norm_k(attn.to_k(text)).view(batch, self.text_len, attn.heads, -1)
        value = attn.to_v(text).view(batch, self.text_len, attn.heads, -1)
        out = attend(query, key, value, None).view(hidden.shape[0], hidden.shape[1], -1)
        return attn.to_out[1](attn.to_out[0](out))


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Attention of query [B, S, heads, dim] over key, value [B, K, heads, dim]; [B, S, heads * dim]."""
    out = scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), bias)
    return out.transpose(1, 2).flatten(2)


def rotated(x: Tensor, turn: Turn) -> Tensor:
    """x [B, S, heads, dim], each pair of neighbouring channels rotated by the angle of turn.

    The cosine and sine products are rounded apart, as diffusers does: results are bitwise the same.
    """
    cos, i_sin = turn
    full = x.float()
    turned = torch.view_as_complex(full.unflatten(-1, (-1, 2))) * i_sin
    return (full * cos).add_(torch.view_as_real(turned).flatten(-2)).type_as(x)


@lru_cache(maxsize=32)
def rotary_turn(frames: tuple[int, ...], h: int, w: int, dim: int, device: torch.device) -> Turn:
    """Wan's rotary factors of every token of the given frames; S = len(frames) * h * w.

    Returns the cosine for each channel, float [S, 1, dim], and i times the sine for each pair, complex [S, 1, dim/2].
    Channels are split as in diffusers: dim // 6 pairs each for height and width, the rest for time. Frames may be any
    integers: there is no table that could end.
    """
    side = dim // 6
    time = dim // 2 - 2 * side
    with torch.inference_mode(False), torch.no_grad():
        axes = ((torch.tensor(frames), time), (torch.arange(h), side), (torch.arange(w), side))
        grids = torch.meshgrid(*(positions.double() for positions, _ in axes), indexing="ij")
        angle = torch.cat([_angles(grid, pairs) for grid, (_, pairs) in zip(grids, axes, strict=True)], -1)
        cos = angle.cos().float().repeat_interleave(2, -1).unsqueeze(1)
        sin = angle.sin().float().unsqueeze(1)
        return cos.to(device), torch.complex(torch.zeros_like(sin), sin).to(device)


def _angles(positions: Tensor, pairs: int) -> Tensor:
    steps = torch.arange(0, 2 * pairs, 2, dtype=torch.float64) / (2 * pairs)
    return torch.outer(positions.flatten(), 1.0 / THETA**steps)


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
        return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, float("-inf")).to(device)
