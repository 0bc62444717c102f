"""What a world is to training and evaluation: it words prompts, shows the truth, and may say who judges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

PromptRows = Sequence[Sequence[str]]
"""B rows of one prompt per chunk."""


class World(Protocol):
    """A world of one's own. ShapeStream, the procedural world of this package, is built in.

    judge: import path `module:function` of what scores clips, `function(video [B, F, 3, H, W], rows, frames_per_chunk)
    -> {axis: [B]}` with scores in [0, 1], one of them "total". It is a path, not a function, so that nothing that
    trains imports it: evaluation alone resolves it.
    """

    judge: str

    def prompts(self, count: int, *, chunks: int, split: str, seed: int) -> PromptRows:
        """`count` rows of `chunks` prompts, in words that the stack's encoder knows; a pure function. split: "train",
        "validation" or "test", which share no row."""
        ...

    def video(self, rows: PromptRows, frames_per_chunk: int, seeds: Sequence[int]) -> Tensor:
        """The true clips [B, F, 3, H, W] in [0, 1]; row i is a function of rows[i] and seeds[i] alone."""
        ...
