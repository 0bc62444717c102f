"""What the parts of a stack are, how large, and whether they fit each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..models.codec import FrameCodec, WanCodec
from ..models.fit import refuse_unfit, size_of, size_text
from ..models.generator import Generator
from ..models.lora import lora_words
from ..models.prompts import WordEncoder
from ..models.umt5 import UMT5TextEncoder
from ..models.wan import CausalWan
from ..rewards.stream_reward import StreamReward
from .stack import Stack

DOES = {
    "codec": ("channels", "encode", "decode", "open", "decode_stream", "grid", "frames_of"),
    "encoder": ("text_len", "dim", "encode"),
    "detector": ("open", "watch"),
    "rival": ("open", "watch"),
}
"""What is asked of parts of one's own."""


@dataclass(frozen=True)
class PartSize:
    """A loaded part. what: in words.   parameters: how many.   bytes: of parameters and buffers."""

    name: str
    what: str
    parameters: int
    bytes: int


def part_size(name: str, part: Any) -> PartSize:
    """What a part is."""
    network = _network(part)
    if network is None:
        return PartSize(name, _words(part), 0, 0)
    tensors = [*network.parameters(), *network.buffers()]
    count = sum(tensor.numel() for tensor in network.parameters())
    return PartSize(name, _words(part), count, sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def misfits(stack: Stack, parts: Mapping[str, Any]) -> list[str]:
    """One line for each thing that does not fit another; parts: those of the stack that could be loaded."""
    codec, encoder = parts.get("codec"), parts.get("encoder")
    width, layout = getattr(encoder, "dim", None), stack.layout
    found = []
    for name, part in parts.items():
        if lacking := [word for word in DOES.get(name, ()) if not hasattr(part, word)]:
            found.append(f"{name}: a {type(part).__name__} without {', '.join(lacking)}")
    if found:
        return found
    for name in ("student", "teacher"):
        model = parts.get(name)
        if not isinstance(model, CausalWan):
            continue
        if codec is not None:
            try:
                refuse_unfit(model, codec, width)
            except ValueError as error:
                found.append(f"{name}: {error}")
        if encoder is not None and encoder.text_len > model.text_len:
            found.append(f"{name}: reads {model.text_len} tokens, the encoder writes up to {encoder.text_len}")
        if name == "student" and model.frames_per_chunk != layout.frames_per_chunk:
            frames = model.frames_per_chunk
            found.append(f"student: makes chunks of {frames} frames, [layout] says {layout.frames_per_chunk}")
    for name in ("reward", "heldout"):
        if name in parts:
            found += [f"{name}: {fault}" for fault in _reward_misfits(parts[name], codec, width, stack)]
    return found


def clip_words(stack: Stack) -> str:
    """A clip of the stack, in words."""
    layout, codec = stack.layout, stack.codec
    frames = codec.frames_of(layout.clip_frames)
    length = f"{frames} frames, {frames / stack.fps:.2f} s at {stack.fps:g} a second"
    chunks = f"{layout.chunks} chunks of {layout.frames_per_chunk} latent frames"
    return f"{chunks}: {length}, of {size_text(size_of(codec, stack.device))} pixels"


def _reward_misfits(reward: StreamReward, codec: Any, width: int | None, stack: Stack) -> list[str]:
    found = []
    reads = getattr(reward.model, "text_dim", None)
    if None not in (reads, width) and reads != width:
        found.append(f"reads prompts of width {reads}, the encoder's are {width} wide")
    if codec is not None:
        window = codec.frames_of(min(stack.layout.window_frames, stack.layout.clip_frames))
        if reward.min_frames > window:
            found.append(f"scores no fewer than {reward.min_frames} frames, a window of [layout] has {window}")
    return found


def _network(part: Any) -> nn.Module | None:
    """Where a part's weights are."""
    for inside in (part, *(getattr(part, name, None) for name in ("model", "encoder"))):
        if isinstance(inside, nn.Module):
            return inside
    return None


def _words(part: Any) -> str:
    if isinstance(part, Generator):
        return f"{_words(part.model)}, {len(part.sigmas)} steps"
    if isinstance(part, CausalWan):
        config = part.transformer.config
        width = config.num_attention_heads * config.attention_head_dim
        patch = "x".join(map(str, config.patch_size))
        return (
            f"Wan, {config.num_layers} layers of width {width}, patch {patch}, {config.in_channels} channels, "
            f"{part.text_len} tokens of width {config.text_dim}, {_dtype(part)}{lora_words(part)}"
        )
    if isinstance(part, WanCodec):
        cell = f"{part.factor}x{part.factor} pixels and {part.frames_per_latent} frames"
        return f"AutoencoderKLWan, {part.channels} channels, a latent cell for {cell}, {_dtype(part.vae)}"
    if isinstance(part, FrameCodec):
        return f"AutoencoderKL, {part.channels} channels, a latent cell for {part.factor}x{part.factor} pixels"
    if isinstance(part, UMT5TextEncoder):
        layers = part.encoder.config.num_layers
        return f"UMT5, {layers} layers, {part.text_len} tokens of width {part.dim}, {_dtype(part.encoder)}"
    if isinstance(part, WordEncoder):
        return f"{len(part.vocab)} words, {part.text_len} tokens of width {part.dim}"
    if isinstance(part, StreamReward):
        axes = ", ".join(part.axes)
        return f"{type(part.model).__name__}: {axes}, of {part.min_frames} frames or more"
    return type(part).__name__


def _dtype(module: nn.Module) -> str:
    """What most of a module's weights are."""
    counts: dict[str, int] = {}
    for parameter in module.parameters():
        name = str(parameter.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + parameter.numel()
    return max(counts, key=lambda name: counts[name]) if counts else "no weights"
