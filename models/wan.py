"""diffusers' unmodified Wan transformer made causal: chunk after chunk, with cached keys and values."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..checkpoint import given_arguments
from .cache import CacheConfig, KVCache, appended, blocks, evicted
from .causal_attention import (
    THETA,
    CallContext,
    CrossAttention,
    Recall,
    Rope,
    RotaryTable,
    SelfAttention,
    causal_bias,
    past_bias,
    rotary_turn,
)

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

__all__ = ["CacheConfig", "CausalWan", "KVCache"]

KEEP_ALL = CacheConfig()


class CausalWan(nn.Module):
    """A Wan transformer that generates in chunks; bidirectional inside a chunk.

    Args:
        transformer: diffusers' WanTransformer3DModel (text to video, patches of one frame). Its `rope` and attention
            processors are replaced; parameters and their names stay.
        frames_per_chunk: latent frames in a chunk.
        text_len: tokens of a prompt; shorter embeddings are padded with zeros.
        cache: what is remembered from chunk to chunk.
        rope_theta: base of the rotary frequencies. Wan's 10000 suits grids of many tokens; on one of 4x4 most of its
            frequencies are constant, so small models want one near the length of the axes.
    """

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        frames_per_chunk: int,
        text_len: int,
        cache: CacheConfig = KEEP_ALL,
        rope_theta: float = THETA,
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
        self.rope_theta = rope_theta
        transformer.rope = Rope(config.attention_head_dim, self.patch, rope_theta)
        for layer, block in enumerate(transformer.blocks):
            block.attn1.set_processor(SelfAttention(layer))
            block.attn2.set_processor(CrossAttention(text_len))
        self.transformer = transformer

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        frames_per_chunk: int,
        text_len: int,
        cache: CacheConfig | Mapping[str, Any] = KEEP_ALL,
        rope_theta: float = THETA,
    ) -> CausalWan:
        """Untrained. config: WanTransformer3DModel's arguments; the rest as above."""
        from diffusers import WanTransformer3DModel

        kept = cache if isinstance(cache, CacheConfig) else CacheConfig(**cache)
        return cls(WanTransformer3DModel(**config), frames_per_chunk, text_len, kept, rope_theta)

    @property
    def config(self) -> dict[str, Any]:
        """What `from_config` takes to make it again, as JSON holds it."""
        return {
            "config": given_arguments(self.transformer.config),
            "frames_per_chunk": self.frames_per_chunk,
            "text_len": self.text_len,
            "cache": asdict(self.cache_config),
            "rope_theta": self.rope_theta,
        }

    def forward(
        self,
        x: Tensor,
        sigma: float | Tensor,
        embeds: Tensor,
        *,
        cache: KVCache | Recall | None = None,
        start_frame: int | None = None,
        mask: Literal["none", "causal"] | None = None,
        clean: Tensor | None = None,
        clean_sigma: float = 0.0,
        past: Tensor | None = None,
    ) -> Tensor:
        """Velocity (noise minus clean) of noisy latents x [B, F, C, h, w]; same shape.

        Args:
            sigma: noise level in [0, 1]: a number, [B], or per frame [B, F].
            embeds: one prompt [B, L, D], or one per chunk [B, n, L, D] with F = n * frames_per_chunk.
            cache: keys and values of earlier frames; every frame of x sees them all. `recall` spares several passes
                over one cache some work.
            start_frame: absolute index of the first frame; by default the one after the cache.
            mask: "causal": a chunk of x sees no later chunk, and what the cache window lets it see of earlier ones.
            clean: [B, F, C, h, w]: teacher forcing, see `teacher_forcing`.
            past: int64 [B], how many frames of the cache, the newest, each row sees; by default all.
        """
        frames = self._frames(x, cache, start_frame)
        if clean is None and mask != "causal":
            return self._run(x, sigma, embeds, self._context(x, frames, cache, past=past))
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
    def write(self, x0: Tensor, embeds: Tensor, cache: KVCache | Recall | None) -> KVCache:
        """The cache after the clean chunk x0 [B, F, C, h, w]: one pass at sigma 0, then eviction."""
        grown = self._appended(x0, embeds, cache, self._frames(x0, cache, None))
        return evicted(grown, self.cache_config, self.frames_per_chunk)

    @torch.no_grad()
    def recall(self, cache: KVCache | None, frames: int | None = None) -> Recall | None:
        """The cache with its keys rotated, for all passes over a chunk of so many frames (by default frames_per_chunk).

        A pass without gradient writes the chunk's own keys behind it, so that one stream at a time may use it.
        """
        if cache is None:
            return None
        tokens = cache.keys[0].shape[1] // len(cache.frames)
        return self._recall(cache, cache.latents).with_rooms(tokens * (frames or self.frames_per_chunk))

    @torch.no_grad()
    def recache(self, cache: KVCache, embeds: Tensor) -> KVCache:
        """The frames that the cache keeps, read anew under other prompts [B, L, D], oldest first.

        Where nothing is evicted and the prompts are those it was written under, the result is the same. What evicted
        frames had told the others is gone from it. A sink into which evicted frames were blended is kept as it is.
        """
        blended = self.cache_config.eviction == "ema" and cache.evicted > 0
        done = self.cache_config.sink_frames if blended else 0
        fresh = cache.first(done) if done else None
        for size in blocks(cache.frames[done:], self.frames_per_chunk):
            part = slice(done, done + size)
            fresh = self._appended(cache.latents[:, part], embeds, fresh, cache.frames[part])
            done += size
        assert fresh is not None
        return fresh

    def with_cache(self, cache: CacheConfig, frames_per_chunk: int | None = None) -> CausalWan:
        """The same weights, not a copy of them, with another cache, and chunks of another length if one is given."""
        twin = copy.copy(self)
        twin.cache_config, twin.frames_per_chunk = cache, frames_per_chunk or self.frames_per_chunk
        cache.check(twin.frames_per_chunk)
        return twin

    def shard_blocks(self) -> list[nn.Module]:
        """What sharded weights are gathered by: each block, and what is around them."""
        return [*self.transformer.blocks, self.transformer]

    def _appended(self, x0: Tensor, embeds: Tensor, cache: KVCache | Recall | None, frames: tuple[int, ...]) -> KVCache:
        new: dict[int, tuple[Tensor, Tensor]] = {}
        self._run(x0, 0.0, embeds, self._context(x0, frames, cache, new=new))
        kept = cache.cache if isinstance(cache, Recall) else cache
        dtype = torch.float32 if self.cache_config.eviction == "ema" else self.dtype
        return appended(kept, [new[layer] for layer in range(len(new))], frames, x0, dtype)

    def _frames(self, x: Tensor, cache: KVCache | Recall | None, start: int | None) -> tuple[int, ...]:
        if start is None:
            kept = cache.cache if isinstance(cache, Recall) else cache
            start = 0 if kept is None else kept.next_frame
        return tuple(range(start, start + x.shape[1]))

    def _recall(self, cache: KVCache, x: Tensor) -> Recall:
        relative = self.cache_config.positions == "relative"
        turn = self._turn(tuple(range(len(cache.frames))) if relative else cache.frames, x)
        return Recall(cache, turn, self.dtype)

    def _turn(self, frames: tuple[int, ...], x: Tensor) -> RotaryTable:
        h, w = x.shape[-2] // self.patch[0], x.shape[-1] // self.patch[1]
        return rotary_turn(frames, h, w, self.transformer.config.attention_head_dim, x.device, self.rope_theta)

    def _context(
        self,
        x: Tensor,
        frames: tuple[int, ...],
        cache: KVCache | Recall | None,
        mask: str | None = None,
        new: dict[int, tuple[Tensor, Tensor]] | None = None,
        past: Tensor | None = None,
    ) -> CallContext:
        recall = self._recall(cache, x) if isinstance(cache, KVCache) else cache
        kept = 0 if recall is None else len(recall.cache.frames)
        if kept and self.cache_config.positions == "relative":
            frames = tuple(range(kept, kept + len(frames)))
        tokens = x.shape[-2] // self.patch[0] * (x.shape[-1] // self.patch[1])
        bias = None
        if mask is not None:
            sight = (self.frames_per_chunk, self.cache_config.sink_frames, self.cache_config.window_frames)
            bias = causal_bias(len(frames), tokens, sight, mask == "forcing", self.dtype, x.device)
        elif past is not None and kept:
            bias = past_bias(past, kept, len(frames), tokens, self.dtype)
        return CallContext(self._turn(frames, x), recall, bias, new)

    @property
    def dtype(self) -> torch.dtype:
        """What the transformer computes in; latents of another dtype are converted on the way in and out."""
        return self.transformer.patch_embedding.weight.dtype

    def _run(self, x: Tensor, sigma: float | Tensor, embeds: Tensor, context: CallContext) -> Tensor:
        prompts = self._prompts(embeds, x.shape[1]).to(self.dtype)
        latents = x.to(self.dtype)
        self.transformer.rope.context = context
        if isinstance(sigma, Tensor) and sigma.ndim == 2:
            rows, levels = latents.flatten(0, 1).unsqueeze(2), sigma.expand(x.shape[:2]).flatten()
            out = self.transformer(rows, levels * 1000, prompts, return_dict=False)[0]
            return out.reshape(x.shape).type_as(x)
        if not isinstance(sigma, Tensor):
            sigma = torch.full((1,), sigma, device=x.device)
        levels = sigma.expand(x.shape[0])
        out = self.transformer(latents.transpose(1, 2), levels * 1000, prompts, return_dict=False)[0]
        return out.transpose(1, 2).type_as(x)

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
