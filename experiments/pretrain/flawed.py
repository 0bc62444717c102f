"""Scripted windows with flaws, and what is known of them: the reward model's training data.

Labels come from how a window was made (strength of its flaws, distance of its path from the lawful one, exchanged
words), never from an oracle.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...envs.rows import Rows
from ...envs.worlds.clips import make_clips
from ...envs.worlds.fakes import FAKES
from ...envs.worlds.grammar import GRAMMARS, Clause, Grammar
from ...envs.worlds.render import render
from ...envs.worlds.scene import Scene
from ...models.prompts import WordEncoder
from ...models.tiny import CHUNKS, FRAMES_PER_CHUNK
from .flaws import PIXEL_FLAWS, SCENE_FLAWS, stumble, wobble, wrong_pace

WRONG = 0.2
"""Share of flawed windows whose prompt has a wrong word."""
READINGS = 4
"""Prompts with other words that each window is read by, beside its own."""
_LEAST = 0.05
"""Strength of the weakest flaw."""
KNOWN = 0.7
"""Alignment above which the words of the true prompt hold."""
MOTION = 2.0
"""How much more often than others come the flaws of the pace, which are what generators suffer from most."""
AXIS_OF_FAKE = {"VQ": (0,), "MQ": (1,), "TA": (2,), "physics": (1,)}


@dataclass(frozen=True)
class Batch(Rows):
    """Windows, and what is known of how they were made.

    video: [B, F, 3, H, W]   embeds: [B, 1 + K, L, D], the prompt and K readings with other words   worth: [B, 3] in
    [0, 1] per axis   true: [B, K, L], 1 where a word of a reading holds at the window's end, 0 where not, -1 unknown
    """

    video: Tensor
    embeds: Tensor
    worth: Tensor
    true: Tensor

    @classmethod
    def joined(cls, *parts: "Batch") -> "Batch":
        """All windows of the parts."""
        return cls(*(torch.cat(values) for values in zip(*(vars(part).values() for part in parts), strict=True)))


class FlawedClips:
    """Draws scripted windows: what was asked for, what was drawn, and what it is worth."""

    def __init__(
        self,
        encoder: WordEncoder,
        *,
        clips: int,
        grammar: str,
        split: str,
        seed: int,
        clean: float,
        fakes: Sequence[str],
    ) -> None:
        """clips: scripts and scenes to draw from. clean: share of windows without a flaw. fakes: families to use."""
        made = make_clips(clips, split=split, seed=seed, grammar=grammar)
        self.scene, self.clauses, self.encoder, self.clean = made.scene, made.clauses, encoder, clean
        self.grammar = GRAMMARS[grammar]
        axes = {name: (0, 1, 2) if name == "blank" else AXIS_OF_FAKE[FAKES[name].axis] for name in fakes}
        scene_fakes = [(bend, axes[name]) for name in fakes if (bend := FAKES[name].scene)]
        self.scene_flaws = [*SCENE_FLAWS.values(), *scene_fakes]
        self.video_fakes = [(paint, axes[name]) for name in fakes if (paint := FAKES[name].video)]
        self.rate = 1.6 / (len(self.scene_flaws) + len(PIXEL_FLAWS) + len(self.video_fakes))

    def draw(self, count: int, chunks: int, generator: torch.Generator) -> Batch:
        """`count` windows of `chunks` chunks that end with one (random) chunk of their scripts."""
        rows = torch.randint(len(self.clauses), (count,), generator=generator)
        last = int(torch.randint(chunks, CHUNKS + 1, (1,), generator=generator))
        scene = self.scene.take(rows).frames((last - chunks) * FRAMES_PER_CHUNK, last * FRAMES_PER_CHUNK)
        clean = torch.rand(count, generator=generator) < self.clean
        video, worth = self._flawed(scene, clean, generator)
        told = [self.clauses[row][last - 1] for row in rows.tolist()]
        embeds, true = self._told(told, clean, worth, generator)
        return Batch(video, embeds, worth, true)

    def _flawed(self, scene: Scene, clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Videos of scenes [B] with flaws (none where clean), and what is left of their worth, [B, 3]."""
        worth, true_path = torch.ones(len(clean), 3), scene.position

        def strength(often: float = 1.0) -> Tensor:
            hit = (torch.rand(len(clean), generator=generator) < often * self.rate) & ~clean
            return hit * (_LEAST + (1 - _LEAST) * torch.rand(len(clean), generator=generator).square())

        for flaw, axes in self.scene_flaws:
            amount = strength(MOTION if flaw in (wrong_pace, wobble, stumble) else 1.0)
            changed = flaw(scene, amount, generator)
            worth[:, list(axes)] *= (1 - amount * _looks_changed(scene, changed))[:, None]
            scene = changed
        evenness, course = path_worth(true_path, scene.position)
        worth[:, 1] *= evenness
        worth[:, 2] *= course
        video = render(scene)
        for paint, axes in PIXEL_FLAWS.values():
            amount = strength()
            video = paint(scene, video, amount, generator)
            worth[:, list(axes)] *= (1 - amount)[:, None]
        for edit, axes in self.video_fakes:
            amount = strength()
            video = edit(video, amount, generator)
            worth[:, list(axes)] *= (1 - amount)[:, None]
        return video, worth

    def _told(
        self, told: list[Clause], clean: Tensor, worth: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Prompts and readings of B windows, [B, 1 + K, L, D], and which words hold, [B, K, L]; a window that gets a
        wrong word is worth nothing on TA from then on."""
        draws = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
        known = (worth[:, 2] > KNOWN).tolist()
        prompts = []
        for row, clause in enumerate(told):
            if not clean[row] and draws.random() < WRONG:
                clause = misread(clause, self.grammar, draws, 1)
                worth[row, 2] = 0
            others = [misread(told[row], self.grammar, draws, draws.randint(0, 3)) for _ in range(READINGS)]
            prompts.append([clause, *others])
        embeds = torch.stack([self.encoder.encode([str(clause) for clause in row]) for row in prompts])
        true = torch.full((len(told), READINGS, self.encoder.text_len), -1)
        for row, clause in enumerate(told):
            if known[row]:
                for column, reading in enumerate(prompts[row][1:]):
                    held = words_that_hold(reading, clause)
                    true[row, column, : len(held)] = torch.tensor(held)
        return embeds, true


def misread(clause: Clause, grammar: Grammar, draws: random.Random, words: int) -> Clause:
    """The clause with `words` of its shape, colour and motion (or direction) exchanged for others of the grammar."""
    for word in draws.sample(("shape", "colour", "motion"), words):
        options = [replace(clause, **{word: other}) for other in getattr(grammar, f"{word}s")]
        if word == "motion":
            options = [replace(clause, motion="rests", direction=None, speed="medium")]
            options += [replace(clause, motion="moves", direction=way) for way in grammar.directions]
        clause = draws.choice([option for option in options if option != clause])
    return clause


def words_that_hold(reading: Clause, clause: Clause) -> list[int]:
    """For every word of a reading: 1 if the clause has it too, 0 if not, -1 for an article."""
    held = str(clause).split()
    return [-1 if word in ("a", "an") else int(word in held) for word in str(reading).split()]


def _looks_changed(before: Scene, after: Scene) -> Tensor:
    """[B]: whether a flaw touched more than the path."""
    size = (after.radius != before.radius).any(1)
    return size | (after.rgb != before.rgb).flatten(1).any(1) | (after.shape != before.shape).any(1)


def path_worth(true: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of a path that was bent, in (0, 1], from the paths true and drawn [B, F, 2] in pixels.

    evenness [B] (for MQ, which knows no prompt): no jolt and no change of pace that the true path, played at the drawn
    one's mean pace, has not. course [B] (for TA): it goes where it was to go, as far as it was to go.
    """
    step, due = drawn.diff(dim=1), true.diff(dim=1)
    pace, due_pace = step.norm(dim=-1), due.norm(dim=-1)
    share = (pace * due_pace).sum(1, keepdim=True) / due_pace.square().sum(1, keepdim=True).clamp_min(1e-3)
    share = torch.where(due_pace.sum(1, keepdim=True) > 1e-3, share, torch.ones_like(share))
    jolt = (step.diff(dim=1) - share[..., None] * due.diff(dim=1)).square().sum(-1).mean(1).sqrt()
    uneven = (pace - share * due_pace).square().mean(1).sqrt()
    off = drawn - true
    astray = (off - off.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt()
    extent = (true - true.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt()
    return torch.exp(-jolt / 1.5 - uneven), torch.exp(-astray / (0.5 + 0.4 * extent))
