"""The tiny reward model: Bradley-Terry with ties over windows whose flaws are known.

Some of them are repainted by the teacher, so that a network's brushwork is no flaw by itself; some have climbed the
model's own gradient, which is one. The families in UNSEEN are left out of training.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ...envs.stack import Stack
from ...envs.worlds.clips import word_encoder
from ...envs.worlds.fakes import FAKES
from ...models.prompts import WordEncoder
from ...models.reward_net import TinyReward, bradley_terry_with_ties, smooth_minimum
from ...models.tiny import CHUNKS
from ...training.regression import Schedule
from .flawed import Batch, FlawedClips
from .loop import Made, pretrain
from .measure import words
from .retouched import gamed, repainted
from .reward_measure import UNSEEN_FLAWS, oracle_agreement, unseen_accuracy

TIE = 0.05
"""Worths closer than this tie."""
LENGTHS = (1.0, 3.0, 0.5, 1.0)
"""How often windows have 1, 2, 3 and 4 chunks; the environment scores the first chunk alone and then two at a time."""


@dataclass(frozen=True)
class RewardRecipe:
    """A batch holds clean and flawed windows of one length, some of them repainted by the teacher; every pair in it is
    compared on every axis."""

    grammar: str = "plain"
    """Sub-grammar of the world."""
    clips: int = 8192
    """Scripts and scenes to draw from."""
    remade: int = 512
    """Windows of each length that the teacher repaints, so that a network's brushwork is no flaw by itself."""
    painted: float = 0.4
    """Share of a batch that is repainted."""
    clean: float = 0.15
    """Share of a batch without any flaw."""
    gamed: float = 0.25
    """Share of a batch whose pixels have climbed the reward's own gradient: a flaw like any other."""
    schedule: Schedule = field(
        default_factory=lambda: Schedule(steps=1300, batch=48, learning_rate=1e-3, ema=0.998, muon_lr=0.01)
    )
    """Training length."""

    def train(self, name: str, stack: Stack, out: Path) -> Made:
        """Train on scripted and repainted windows of every length, calibrate the z-scores on them, and measure.

        The student's clips are never trained on: they only tell how the reward agrees with the oracle among them.
        """
        seed, encoder = self.schedule.seed, word_encoder(self.grammar)
        torch.manual_seed(seed)
        model, draw = TinyReward(encoder.dim), self._windows(stack, encoder)

        def loss(model: TinyReward, generator: torch.Generator, share: slice) -> Tensor:
            batch = draw(generator)
            rows = torch.randperm(len(batch.video), generator=generator)[share]
            climbing, rest = rows.tensor_split([round(self.gamed * len(rows))])
            batch = Batch.joined(gamed(model, batch.take(climbing), generator), batch.take(rest))
            quality, agreement = model.read(batch.video, batch.embeds)
            scores = torch.cat([quality, smooth_minimum(agreement[:, 0])], dim=1)
            return pair_loss(scores, batch.worth) + word_loss(agreement[:, 1:, 1:], batch.true)

        trained, seconds = pretrain(name, model, loss, self.schedule, out)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            batches = (draw(generator) for _ in range(40))
            trained.calibrate(torch.cat([trained(batch.video, batch.embeds[:, 0]) for batch in batches]))
        figures = unseen_accuracy(trained, encoder, self.grammar) | oracle_agreement(trained, stack, self.grammar)
        return Made(trained, {**figures, "seconds": seconds}, words(self.grammar))

    def _windows(self, stack: Stack, encoder: WordEncoder) -> Callable[[torch.Generator], Batch]:
        """Draws batches of windows of one length, a share of them repainted."""
        scripted = FlawedClips(
            encoder,
            clips=self.clips,
            grammar=self.grammar,
            split="train",
            seed=self.schedule.seed + 20,
            clean=self.clean,
            fakes=[name for name in FAKES if name not in UNSEEN_FLAWS.values()],
        )
        generator, null = torch.Generator().manual_seed(self.schedule.seed), encoder.encode([""])[0]
        remade = [
            repainted(stack.codec, stack.teacher, scripted.draw(self.remade, chunks, generator), null, generator)
            for chunks in range(1, CHUNKS + 1)
        ]

        def draw(generator: torch.Generator) -> Batch:
            chunks = int(torch.multinomial(torch.tensor(LENGTHS), 1, generator=generator)) + 1
            share = round(self.painted * self.schedule.batch)
            rows = torch.randint(self.remade, (share,), generator=generator)
            fresh = scripted.draw(self.schedule.batch - share, chunks, generator)
            return Batch.joined(fresh, remade[chunks - 1].take(rows))

        return draw


def pair_loss(scores: Tensor, worth: Tensor) -> Tensor:
    """Mean Bradley-Terry loss over all pairs of a batch and all axes; worths within TIE of each other tie.

    scores, worth: [B, A]
    """
    rows, columns = torch.triu_indices(scores.shape[0], scores.shape[0], 1)
    gap = worth[rows] - worth[columns]
    label = torch.where(gap.abs() < TIE, torch.zeros_like(gap), gap.sign())
    return bradley_terry_with_ties(scores[rows] - scores[columns], label).mean()


def word_loss(agreement: Tensor, true: Tensor) -> Tensor:
    """Binary cross-entropy of every word's agreement [B, K, L] with whether it holds; true: 1, 0, or -1 for unknown."""
    known = true >= 0
    loss = functional.binary_cross_entropy_with_logits(agreement[known], true[known].float(), reduction="sum")
    return loss / known.sum().clamp_min(1)
