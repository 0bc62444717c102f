"""What both audits look at: true clips of the world, and prompts as the reward reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from ...envs.stack import Stack
from ...envs.worlds.clips import WorldClips, make_clips
from ...envs.worlds.grammar import COLOURS, Clause
from ...envs.worlds.scene import RGB
from ...models.prompts import PromptBatch
from ...rewards.windows import clip_prompts
from ..systems import encode_clauses


def clip_texts(stack: Stack, clauses: list[Clause]) -> PromptBatch:
    """One prompt a clip."""
    texts = [str(clause) for clause in clauses]
    return PromptBatch(tuple(texts), stack.encoder.encode(texts).to(stack.device))


def chunk_texts(stack: Stack, clauses: list[tuple[Clause, ...]]) -> PromptBatch:
    """The prompts of every chunk of every clip, as a windowed reward wants them."""
    texts = [[str(clause) for clause in row] for row in clauses]
    return clip_prompts(encode_clauses(stack.encoder, clauses).to(stack.device), texts)


def real_clips(count: int, split: str, seed: int, grammar: str = "plain") -> WorldClips:
    """True clips of a split's prompts. ValueError for fewer than one."""
    if count < 1:
        raise ValueError(f"clips must be at least 1, not {count}")
    return make_clips(count, split=split, seed=seed + 31, grammar=grammar)


def colours(clauses: list[Clause]) -> Tensor:
    """The colour that each clause names, [B, 3] in [0, 1]."""
    return torch.tensor([RGB[COLOURS.index(clause.colour)] for clause in clauses])
