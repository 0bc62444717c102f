"""`reelgym stack cache FILE`: encode a stack's own prompts and clips once, ahead of its first training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from ...envs.encoded import data_of
from ...envs.stack import Stack
from ..console import publish
from ..results import pick_device
from ..tables import Row


@dataclass(frozen=True)
class Config:
    """What to encode; several processes may do it at a time, and a killed one goes on where it was."""

    file: Annotated[str, tyro.conf.Positional]
    """A stack.toml with prompts or clips."""
    seed: int | None = None
    """Of the order in which this process encodes; by default it is another one in every process."""
    device: str = "auto"
    """auto, cpu or cuda."""
    out: Path = Path("runs/stack-cache")
    """Folder for results.json, which names all that was left out, and why."""


def run(config: Config) -> None:
    """Encode what the cache lacks; print how much there is, by split."""
    device = pick_device(config.device)
    stack = Stack.load(config.file, device)
    if not stack.data:
        raise ValueError(f'{config.file}: names no data; say prompts = "FILE" or clips = "FOLDER" in the toml')
    data, rows, lines = replace(data_of(stack), seed=config.seed), list[Row](), list[str]()
    for name, counts in data.fill().items():
        said = ", ".join(f"{count} {split}" for split, count in counts.items())
        lines.append(f"{stack.data[name]}: {sum(counts.values())} {name} ({said})")
        rows.append({"kind": "encoded", "name": name, **counts})
    rows += [{"kind": "left out", "name": name, "why": why} for why, names in data.left_out.items() for name in names]
    text = "\n".join([*lines, f"cache: {data.folder}"])
    publish(["reelgym", "stack", "cache", config.file], config, [config.seed or 0], rows, text, device)
