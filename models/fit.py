"""Whether parts of a generator fit each other: sizes of the video, channels of latents, widths of prompts."""

from __future__ import annotations

import re
from typing import Any

import torch

from ..checkpoint import CheckpointError
from .codec import Codec
from .wan import CausalWan


def size_of(codec: Codec, device: torch.device | str = "cpu") -> tuple[int, int]:
    """(H, W) of a codec's video in pixels: what its `size` says, or else what it decodes to."""
    said: Any = getattr(codec, "size", None)
    if isinstance(said, int):
        return said, said
    if said is not None:
        return int(said[0]), int(said[1])
    grid = codec.grid(1)
    with torch.no_grad():
        height, width = codec.decode(torch.zeros(1, 1, codec.channels, grid.h, grid.w, device=device)).shape[-2:]
    return height, width


def parse_size(text: str) -> tuple[int, int]:
    """(H, W) of "WIDTHxHEIGHT"; ValueError for anything else."""
    found = re.fullmatch(r"(\d+)x(\d+)", text.strip())
    if found is None:
        raise ValueError(f"size {text!r}: write WIDTHxHEIGHT, as in 832x480")
    return int(found[2]), int(found[1])


def size_text(size: tuple[int, int]) -> str:
    """(H, W) as people write it, WIDTHxHEIGHT."""
    return f"{size[1]}x{size[0]}"


def refuse_unfit(model: CausalWan, codec: Codec, width: int | None = None) -> None:
    """ValueError where a transformer does not fit a codec's latents or its video's size, or prompts of this width D."""
    config, (h, w) = model.transformer.config, size_of(codec)
    if factor := getattr(codec, "factor", None):
        step_h, step_w = (factor * patch for patch in model.patch)
        if h < 1 or w < 1 or h % step_h or w % step_w:
            near = tuple(max(step, round(side / step) * step) for side, step in ((h, step_h), (w, step_w)))
            raise ValueError(
                f"size {size_text((h, w))}: codec and transformer take multiples of {size_text((step_h, step_w))} "
                f"pixels; the nearest is {size_text((near[0], near[1]))}"
            )
    if config.in_channels != codec.channels:
        raise CheckpointError(
            f"the transformer makes latents of {config.in_channels} channels, the codec reads {codec.channels}"
        )
    if width is not None and config.text_dim != width:
        raise CheckpointError(
            f"the transformer reads prompts of width {config.text_dim}, the encoder's are {width} wide"
        )
