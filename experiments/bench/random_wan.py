"""A streaming generator of Wan2.1-T2V-1.3B's shape with random weights: what it costs can be measured without them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...models.codec import WanCodec
from ...models.stream_files import StreamSettings, joined
from ...models.streaming import StreamingGenerator

WAN_1_3B: dict[str, Any] = {
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 8960,
    "num_layers": 30,
    "cross_attn_norm": True,
}
"""Arguments of diffusers' transformer, from the model's published config.json."""


class NoEncoder:
    """Stands for UMT5: a text becomes [L, D] numbers that depend on it and mean nothing."""

    def __init__(self, text_len: int, dim: int) -> None:
        self.text_len, self.dim = text_len, dim

    def encode(self, texts: Sequence[str]) -> Tensor:
        """[M, L, D]."""
        seeds = [zlib.crc32(text.encode()) for text in texts]
        rows = [torch.randn(self.text_len, self.dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows)


def random_wan(
    settings: StreamSettings,
    device: torch.device,
    dtype: torch.dtype,
    config: Mapping[str, Any] = WAN_1_3B,
    vae: Mapping[str, Any] | None = None,
) -> StreamingGenerator:
    """Transformer and codec made on the device in dtype; config, vae: their arguments, vae by default Wan2.1's own."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    torch.manual_seed(0)
    with torch.device(device):
        parts: list[nn.Module] = [WanTransformer3DModel(**config), AutoencoderKLWan(**(vae or {}))]
    transformer, codec = (part.to(dtype).requires_grad_(False).eval() for part in parts)
    encoder = NoEncoder(settings.text_len, config["text_dim"])
    return StreamingGenerator.of(joined(transformer, WanCodec(codec, settings.size).to(device), encoder, settings))
