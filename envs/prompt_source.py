"""Where an environment's and a trainer's prompts come from: scripts turned into one prompt per chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..models.prompts import TextEncoder
from .worlds.grammar import GRAMMARS, chunk_prompts, sample_scripts, script_text
from .worlds.render import render
from .worlds.slices import heard, slice_named, slice_scene, slice_scripts

Texts = tuple[tuple[str, ...], ...]
"""B rows of one prompt per chunk."""


class PromptSampler(Protocol):
    """What trainers and environments ask for: `draw(batch, step)`, a pure function of its arguments."""

    def __call__(self, batch: int, step: int) -> tuple[Tensor, Texts]:
        """Prompt embeddings [batch, n, L, D], and their texts."""
        ...


@dataclass(frozen=True)
class ScriptPrompts:
    """Scripts of a world, encoded; each text is encoded once.

    encoder: of prompts.   chunks: n, prompts per clip.
    sample: `sample(count, seed)` -> count scripts ("... ; then ..."), or rows of n prompts; a pure function.
    """

    encoder: TextEncoder
    chunks: int
    sample: Callable[[int, int], Sequence[Any]]
    _known: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, batch: int, step: int) -> tuple[Tensor, Texts]:
        """See PromptSampler."""
        return self.encode(self.sample(batch, step))

    def encode(self, scripts: Sequence[str | Sequence[str]]) -> tuple[Tensor, Texts]:
        """Scripts, or rows of n prompts, as embeddings [B, n, L, D] and texts; ValueError where the count differs."""
        texts = tuple(self.spread(row) if isinstance(row, str) else tuple(row) for row in scripts)
        for row in texts:
            if len(row) != self.chunks:
                raise ValueError(f"a row of {len(row)} prompts was given where a clip has {self.chunks} chunks: {row}")
        return torch.stack([torch.stack([self._embed(text) for text in row]) for row in texts]), texts

    def spread(self, script: str) -> tuple[str, ...]:
        """One prompt for each chunk; PromptError for a script that the world does not know."""
        return tuple(chunk_prompts(script, self.chunks))

    def _embed(self, text: str) -> Tensor:
        if text not in self._known:
            self._known[text] = self.encoder.encode([text])[0]
        return self._known[text]


@dataclass(frozen=True, kw_only=True)
class OpenedPrompts(ScriptPrompts):
    """Scripts of clips whose first chunk the world gives.

    begin: `begin(count, seed)` -> video [count, F0, 3, H, W] in [0, 1] of that chunk, for the very scripts of `sample`.
    """

    begin: Callable[[int, int], Tensor]

    def opening(self, batch: int, step: int) -> Tensor:
        """The first chunk of the clips that the same call of `draw` asks for."""
        return self.begin(batch, step)


@dataclass(frozen=True)
class WorldScripts:
    """`sample` of ScriptPrompts: scripts drawn from a grammar's split."""

    grammar: str
    split: str

    def __call__(self, count: int, seed: int) -> list[str]:
        drawn = sample_scripts(count, split=self.split, seed=seed, grammar=GRAMMARS[self.grammar])
        return [script_text(script) for script in drawn]


@dataclass(frozen=True)
class SliceScripts:
    """`sample` and `begin` of OpenedPrompts: an edge slice's scripts in a grammar's words, and how they begin."""

    name: str
    grammar: str
    split: str
    chunks: int
    frames_per_chunk: int

    def __call__(self, count: int, seed: int) -> list[str]:
        drawn = slice_scripts(self.name, count, split=self.split, seed=seed)
        return [script_text(tuple(heard(clause, GRAMMARS[self.grammar]) for clause in script)) for script in drawn]

    def begin(self, count: int, seed: int) -> Tensor:
        """See OpenedPrompts."""
        drawn = slice_scripts(self.name, count, split=self.split, seed=seed)
        scene = slice_scene(self.name, drawn, self.chunks, self.frames_per_chunk, seed)
        return render(scene.frames(0, self.frames_per_chunk))


def world_prompts(encoder: TextEncoder, chunks: int, grammar: str = "plain", split: str = "train") -> ScriptPrompts:
    """Prompts of ShapeStream: scripts drawn from a grammar's split."""
    if grammar not in GRAMMARS:
        raise ValueError(f"unknown grammar '{grammar}'; use one of: {', '.join(GRAMMARS)}")
    return ScriptPrompts(encoder, chunks, WorldScripts(grammar, split))


def slice_prompts(
    encoder: TextEncoder,
    chunks: int,
    frames_per_chunk: int,
    name: str,
    *,
    grammar: str = "plain",
    split: str = "train",
) -> OpenedPrompts:
    """An edge slice of ShapeStream: its scripts in the words of a grammar that the encoder knows, and how they begin.

    frames_per_chunk counts frames of the video. ValueError for an unknown slice, and for clips of a single chunk.
    """
    slice_named(name)
    if chunks < 2:
        raise ValueError(f"the first chunk of a slice is given: a clip needs at least 2, not {chunks}")
    scripts = SliceScripts(name, grammar, split, chunks, frames_per_chunk)
    return OpenedPrompts(encoder=encoder, chunks=chunks, sample=scripts, begin=scripts.begin)
