"""`reelgym stack cache FILE`: encode a stack's own prompts and clips once, ahead of its first training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from ...envs.encoded import data_of
from ...envs.stack import Stack
from ..results import pick_device


@dataclass(frozen=True)
class Config:
    """What to encode; several processes may do it at a time, and a killed one goes on where it was."""

    file: Annotated[str, tyro.conf.Positional]
    """A stack.toml with prompts or clips."""
    device: str = "auto"
    """auto, cpu or cuda."""


def run(config: Config) -> None:
    """Encode what the cache lacks; print how much there is, by split."""
    stack = Stack.load(config.file, pick_device(config.device))
    if not stack.data:
        raise ValueError(f'{config.file}: names no data; say prompts = "FILE" or clips = "FOLDER" in the toml')
    data = data_of(stack)
    for name, counts in data.fill().items():
        said = ", ".join(f"{count} {split}" for split, count in counts.items())
        print(f"{stack.data[name]}: {sum(counts.values())} {name} ({said})")
    print(f"cache: {data.folder}")
