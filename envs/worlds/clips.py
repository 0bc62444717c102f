"""Clips of the world to train on: scripts, rendered video, prompts and latents, all functions of a seed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.codec import Codec
from ...models.prompts import PromptBank, TextEncoder, WordEncoder
from ...models.tiny import CHUNKS, FRAMES_PER_CHUNK, TEXT_LEN
from .grammar import GRAMMARS, Clause, Script, chunk_clauses, sample_scripts
from .render import render
from .scene import Scene, roll


@dataclass(frozen=True)
class WorldClips:
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
) -> WorldClips:
    """Sample, roll and render `count` clips; `words` fixes the number of clauses of each script."""
    scripts = sample_scripts(count, split=split, seed=seed, grammar=GRAMMARS[grammar], clauses=words)
    scene, clauses = scenes(scripts, seed, chunks)
    rows = torch.arange(count).split(256)
    parts = [(render(scene.take(some)) * 255).round().to(torch.uint8) for some in rows]
    return WorldClips(torch.cat(parts), clauses, scene)


def prompt_index(bank: PromptBank, clauses: list[tuple[Clause, ...]]) -> Tensor:
    """Bank rows [N, chunks] of each clip's prompts."""
    return torch.stack([bank.index([str(clause) for clause in row]) for row in clauses])


def clause_bank(encoder: TextEncoder, clauses: list[tuple[Clause, ...]]) -> PromptBank:
    """A bank that holds every clause of these clips, once."""
    return PromptBank.build(encoder, sorted({str(clause) for row in clauses for clause in row}))


@dataclass(frozen=True)
class LatentClips:
    """Encoded clips. latents: [N, F, C, h, w]; prompts: [N, chunks], rows of embeds [M, L, D], whose first is null."""

    latents: Tensor
    prompts: Tensor
    embeds: Tensor

    def draw(self, count: int, generator: torch.Generator, drop: float = 0.0) -> tuple[Tensor, Tensor]:
        """`count` random clips: latents and prompts [count, chunks, L, D], a share `drop` under the null prompt."""
        rows = torch.randint(self.latents.shape[0], (count,), generator=generator)
        kept = (torch.rand(count, generator=generator) >= drop).long()
        return self.latents[rows], self.embeds[self.prompts[rows] * kept[:, None]]


def word_encoder(grammar: str) -> WordEncoder:
    """The prompt encoder of a sub-grammar."""
    return WordEncoder(GRAMMARS[grammar].vocabulary(), TEXT_LEN)


@torch.no_grad()
def encode_clips(codec: Codec, clips: WorldClips, encoder: TextEncoder) -> LatentClips:
    """Encode a pool once."""
    bank = clause_bank(encoder, clips.clauses)
    parts = torch.arange(clips.video.shape[0]).split(64)
    latents = torch.cat([codec.encode(clips.frames(rows)) for rows in parts])
    return LatentClips(latents, prompt_index(bank, clips.clauses), bank.embeds)
