"""The tiny tier: its architectures in one place, and its shipped weights."""

from __future__ import annotations

from typing import Any

from .codec import FrameCodec

CODEC: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (24, 48, 64),
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
