"""Options of streams that several commands share."""

import re
from dataclasses import replace
from typing import Any

from ..models.cache import CacheConfig

POLICY = ("sink_frames", "window_frames", "eviction", "positions", "on_prompt_switch")
"""Fields of CacheConfig that commands have as options of the same name; None: as the generator ships."""


def cache_of(config: Any, shipped: CacheConfig) -> CacheConfig:
    """The shipped cache policy with what a command's config asks for."""
    asked = {name: getattr(config, name, None) for name in POLICY}
    return replace(shipped, **{name: value for name, value in asked.items() if value is not None})


def parse_size(text: str) -> tuple[int, int]:
    """(H, W) of "WIDTHxHEIGHT"; ValueError for anything else."""
    found = re.fullmatch(r"(\d+)x(\d+)", text.strip())
    if found is None:
        raise ValueError(f"size {text!r}: write WIDTHxHEIGHT, as in 832x480")
    return int(found[2]), int(found[1])
