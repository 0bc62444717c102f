"""What both audits look at: clips of the world, prompts as the reward reads them, and the reward under audit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...envs.worlds.clips import Clips, make_clips
from ...envs.worlds.grammar import COLOURS, Clause
from ...envs.worlds.scene import RGB
from ...models.codec import FrameCodec
from ...models.prompts import PromptBatch, WordEncoder
from ...models.tiny import WEIGHTS, load_encoder, load_tiny
from ...rewards.stream_reward import StreamReward

GRAMMAR = "plain"


@dataclass(frozen=True)
class Audited:
    """The reward under audit, with the codec and the words that it was trained with."""

    reward: StreamReward
    codec: FrameCodec
    encoder: WordEncoder

    @classmethod
    def load(cls, folder: Path | None, device: torch.device) -> Audited:
        """From a folder with codec and reward, by default the shipped one."""
        folder = folder or WEIGHTS
        reward = StreamReward(load_tiny("reward", folder / "reward", device))
        return cls(reward, load_tiny("codec", folder / "codec", device), load_encoder("reward", folder / "reward"))

    def prompts(self, clauses: list[Clause], device: torch.device) -> PromptBatch:
        """One prompt a clip."""
        texts = [str(clause) for clause in clauses]
        return PromptBatch(tuple(texts), self.encoder.encode(texts).to(device))


def real_clips(count: int, split: str, seed: int) -> Clips:
    """True clips of a split's prompts. ValueError for fewer than one."""
    if count < 1:
        raise ValueError(f"clips must be at least 1, not {count}")
    return make_clips(count, split=split, seed=seed + 31, grammar=GRAMMAR)


def colours(clauses: list[Clause]) -> Tensor:
    """The colour that each clause names, [B, 3] in [0, 1]."""
    return torch.tensor([RGB[COLOURS.index(clause.colour)] for clause in clauses])
