"""Clips of the world for pretraining: scripts, rendered video and prompts, all functions of a seed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...envs.worlds.grammar import GRAMMARS, Clause, Script, chunk_clauses, sample_scripts
from ...envs.worlds.render import render
from ...envs.worlds.scene import Scene, roll
from ...models.prompts import PromptBank, WordEncoder

CHUNKS = 4
FRAMES_PER_CHUNK = 3


@dataclass(frozen=True)
class Clips:
    """Rendered clips of one split.

    video: [N, F, 3, H, W] uint8   clauses: N rows of one clause per chunk   scene: what was drawn
    """

    video: Tensor
    clauses: list[tuple[Clause, ...]]
    scene: Scene

    def frames(self, rows: Tensor) -> Tensor:
        """Clips `rows` as float video in [0, 1]."""
        return self.video[rows].float() / 255


def scenes(scripts: list[Script], seed: int, chunks: int = CHUNKS) -> tuple[Scene, list[tuple[Clause, ...]]]:
    """Roll scripts into scenes of `chunks` chunks."""
    clauses = [chunk_clauses(script, chunks) for script in scripts]
    return roll(clauses, FRAMES_PER_CHUNK, torch.Generator().manual_seed(seed)), clauses


def make_clips(
    count: int, *, split: str, seed: int, grammar: str, chunks: int = CHUNKS, words: int | None = None
) -> Clips:
    """Sample, roll and render `count` clips; `words` fixes the number of clauses of each script."""
    scripts = sample_scripts(count, split=split, seed=seed, grammar=GRAMMARS[grammar], clauses=words)
    scene, clauses = scenes(scripts, seed, chunks)
    parts = []
    for start in range(0, count, 256):
        part = Scene(*(value[start : start + 256] for value in vars(scene).values()))
        parts.append((render(part) * 255).round().to(torch.uint8))
    return Clips(torch.cat(parts), clauses, scene)


def prompt_index(bank: PromptBank, clauses: list[tuple[Clause, ...]]) -> Tensor:
    """Bank rows [N, chunks] of each clip's prompts."""
    return torch.stack([bank.index([str(clause) for clause in row]) for row in clauses])


def clause_bank(encoder: WordEncoder, clauses: list[tuple[Clause, ...]]) -> PromptBank:
    """A bank that holds every clause of these clips, once."""
    return PromptBank.build(encoder, sorted({str(clause) for row in clauses for clause in row}))
