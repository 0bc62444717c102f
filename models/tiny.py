"""The tiny tier: its architectures in one place, and its shipped weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .cache import CacheConfig
from .codec import FrameCodec
from .wan import CausalWan

CODEC: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (16, 32, 64),
    "layers_per_block": 1,
    "latent_channels": 8,
    "norm_num_groups": 8,
    "sample_size": 32,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "mid_block_add_attention": False,
}


def build_codec() -> FrameCodec:
    """Untrained frame-wise codec: 32x32 video to latents [B, F, 8, 8, 8]."""
    return FrameCodec.from_config(**CODEC)

WEIGHTS = Path(__file__).parent / "weights"
FRAMES_PER_CHUNK = 3
CHUNKS = 4
TEXT_LEN = 8
SAMPLER_SHIFT = 2.0
STEPS = 4
TRANSFORMER: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": 8,
    "out_channels": 8,
    "freq_dim": 64,
    "ffn_dim": 512,
    "num_layers": 4,
    "cross_attn_norm": True,
}
STREAMING_CACHE = CacheConfig(window_frames=CHUNKS * FRAMES_PER_CHUNK, positions="relative")


def build_wan(text_dim: int, cache: CacheConfig = STREAMING_CACHE) -> CausalWan:
    """Untrained transformer of teacher and student for prompts of width text_dim (words + positions)."""
    from diffusers import WanTransformer3DModel

    return CausalWan(WanTransformer3DModel(text_dim=text_dim, **TRANSFORMER), FRAMES_PER_CHUNK, TEXT_LEN, cache)
