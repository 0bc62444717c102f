"""A streaming generator of Wan2.1-T2V-1.3B's shape with random weights: what it costs can be measured without them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...models.codec import WanCodec
from ...models.stream_files import StreamSettings, joined
from ...models.streaming import StreamingGenerator
from ...models.videoreward import VideoReward

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


QWEN_2B: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4},
    "video_token_id": 151656,
}
"""Of Qwen2VLConfig, from the published config.json of Qwen2-VL-2B."""
QUALITY, MOTION, ALIGNMENT = 151657, 151658, 151659
"""Tokens where VideoReward reads its scores."""


class NoEncoder:
    """Stands for UMT5: a text becomes [L, D] numbers that depend on it and mean nothing."""

    def __init__(self, text_len: int, dim: int) -> None:
        self.text_len, self.dim = text_len, dim

    def encode(self, texts: Sequence[str]) -> Tensor:
        """[M, L, D]."""
        seeds = [zlib.crc32(text.encode()) for text in texts]
        rows = [torch.randn(self.text_len, self.dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows)


def stand_in_chat(video_token: int, special: tuple[int, int, int]) -> Callable[[str, int], list[int]]:
    """Stands for a tokenizer and a template, which are not shipped: tokens of no meaning around the video's."""

    def chat(text: str, video_tokens: int) -> list[int]:
        filler = [(7 * place) % 490 for place in range(200)]
        quality, motion, alignment = special
        return [1, *[video_token] * video_tokens, *filler, quality, *filler, motion, *filler, alignment]

    return chat


def hollow_videoreward(fps: float) -> VideoReward:
    """VideoReward on the meta device, in bfloat16; fps: of the clips."""
    from transformers import Qwen2VLConfig

    from ...models.videoreward.load import empty_backbone

    sizes = Qwen2VLConfig(**QWEN_2B)
    special = (QUALITY, MOTION, ALIGNMENT)
    chat: Any = stand_in_chat(sizes.video_token_id, special)
    model = VideoReward(empty_backbone(sizes), special, chat=chat, source_fps=fps)
    model.backbone.to(torch.bfloat16)
    return model.requires_grad_(False).eval()


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
