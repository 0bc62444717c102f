"""The tiny tier: its architectures in one place, and its shipped weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..checkpoint import CheckpointError, has_checkpoint, load_checkpoint, save_checkpoint
from .cache import CacheConfig
from .codec import Codec, FrameCodec
from .detector import ClipDetector
from .generator import Generator
from .local_reward import LocalReward
from .prompts import WordEncoder
from .reward_net import TinyReward
from .sampler import SAMPLER_SHIFT, TeacherSampling, step_sigmas
from .wan import CausalWan

Part = Literal["codec", "teacher", "student", "reward", "heldout", "local", "detector", "rival"]
KINDS: dict[str, Any] = {
    "codec": FrameCodec,
    "transformer": CausalWan,
    "local": LocalReward,
    "reward": TinyReward,
    "detector": ClipDetector,
}
"""What a manifest may name as its architecture: modules with a `config` and a `from_config` that takes it."""
PARTS: dict[str, str] = {
    "codec": "codec",
    "teacher": "transformer",
    "student": "transformer",
    "reward": "reward",
    "heldout": "reward",
    "local": "local",
    "detector": "detector",
    "rival": "detector",
}
"""Of which kind every part of a stack is."""
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

WEIGHTS = Path(__file__).parent / "weights"
SHIPPED_REWARDS = {"local": WEIGHTS / "local"}
"""Shipped rewards by name, beside the stack's own."""
FRAMES_PER_CHUNK = 3
CHUNKS = 4
TEXT_LEN = 8
TINY_FPS = 8.0
"""Frames a second of the video that this tier is trained on."""
STEPS = 4
TEACHER_SAMPLING = TeacherSampling(steps=32, guidance=2.0, shift=SAMPLER_SHIFT, slope=1.0)
ROPE_THETA = 16.0
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


def build_codec() -> FrameCodec:
    """Untrained frame-wise codec: 32x32 video to latents [B, F, 8, 8, 8]."""
    return FrameCodec.from_config(CODEC)


def build_wan(text_dim: int, cache: CacheConfig = STREAMING_CACHE) -> CausalWan:
    """Untrained transformer of teacher and student for prompts of width text_dim (words + positions)."""
    return CausalWan.from_config({"text_dim": text_dim, **TRANSFORMER}, FRAMES_PER_CHUNK, TEXT_LEN, cache, ROPE_THETA)


def build_generator(model: CausalWan, codec: Codec, steps: int = STEPS, shift: float = SAMPLER_SHIFT) -> Generator:
    """A sampler of so many steps around a causal transformer, in the latents of a codec."""
    grid = codec.grid(1)
    sigmas = step_sigmas(steps, shift)
    return Generator(model, sigmas, (codec.channels, grid.h, grid.w), model.frames_per_chunk)


def build_reward(text_dim: int) -> TinyReward:
    """Untrained reward model for prompts of width text_dim (words + positions)."""
    return TinyReward(text_dim)


def save_tiny(folder: str | Path, module: nn.Module, manifest: Mapping[str, Any]) -> None:
    """Write a part's weights and manifest, atomically, to a folder that `load_tiny` reads.

    manifest: what JSON holds of how it was made (recipe, seed, steps, measured quality) and, for a part that reads
    prompts, "vocab": its words, and "text_len" if not TEXT_LEN. The architecture and the weights' SHA-256 are added.
    """
    kind = next((kind for kind, network in KINDS.items() if isinstance(module, network)), None)
    if kind is None:
        raise ValueError(f"{type(module).__name__} is no part of the tiny tier: choose from {', '.join(PARTS)}")
    described: Any = module
    meta = {**manifest, "architecture": {"kind": kind, **described.config}}
    save_checkpoint(folder, {"weights": module.state_dict()}, meta)


def load_tiny(name: Part, folder: str | Path | None = None, device: torch.device | str = "cpu") -> Any:
    """A trained part in evaluation mode, from its folder (by default the one shipped with the package).

    Raises CheckpointError when there is none, when a file is damaged, or when the folder holds another part.
    """
    tensors, meta = _read(name, folder)
    kind = meta["architecture"].pop("kind")
    if kind not in KINDS or not issubclass(KINDS[kind], KINDS[PARTS[name]]):
        raise CheckpointError(f"{folder or WEIGHTS / name}: holds a {kind} model, which is no {name}")
    module = KINDS[kind].from_config(**meta["architecture"])
    try:
        module.load_state_dict(tensors["weights"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{folder or WEIGHTS / name}: the weights do not fit their architecture") from error
    return module.to(device).eval()


def load_manifest(name: Part, folder: str | Path | None = None) -> dict[str, Any]:
    """How a part was made and what it measured, as given to `save_tiny`, with its architecture."""
    return _read(name, folder)[1]


def load_encoder(name: Part, folder: str | Path | None = None) -> WordEncoder:
    """The word encoder that a part was trained with; CheckpointError for a part that reads no prompts."""
    meta = load_manifest(name, folder)
    if "vocab" not in meta:
        raise CheckpointError(f"{folder or WEIGHTS / name}: the manifest has no vocabulary")
    return WordEncoder(meta["vocab"], meta.get("text_len", meta["architecture"].get("text_len", TEXT_LEN)))


def _read(name: Part, folder: str | Path | None) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    if name not in PARTS:
        raise ValueError(f"no part {name!r} in the tiny tier: choose from {', '.join(PARTS)}")
    place = Path(folder) if folder is not None else WEIGHTS / name
    if not has_checkpoint(place):
        raise CheckpointError(f"{place}: no {name} weights here; make them with `reelgym train {name}`")
    tensors, meta = load_checkpoint(place)
    if "architecture" not in meta:
        raise CheckpointError(f"{place}: a checkpoint, but not one of a tiny part")
    return tensors, meta
