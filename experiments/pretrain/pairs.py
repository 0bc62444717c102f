"""The tiny reward model from a user's own preference pairs of videos: Bradley-Terry with ties on every judged axis."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...checkpoint import sha256_file
from ...models.prompts import WordEncoder
from ...models.reward_net import REWARD_AXES, TinyReward, bradley_terry_with_ties
from ...rewards.windows import TINY_LAYOUT
from ...training.regression import Schedule
from .loop import Made, pretrain
from .pairs_accuracy import agreement, table
from .pairs_data import PAIR_GROUPS, Pairs, Split, encoder_of_prompts, load_pairs, read_table, split_pairs

WINDOW = TINY_LAYOUT.window_frames
"""Frames that are scored at once."""
MOST_WINDOWS = 8
"""Windows whose mean a video's score is, at most."""
_BATCH = 64
"""Windows scored in one pass."""


@dataclass(frozen=True)
class PairsRecipe:
    """A batch holds pairs; each of their videos is scored by one random window."""

    fps: float = 8.0
    """Frames per second at which videos are sampled."""
    size: int = 32
    """Frame side in pixels, a multiple of 8."""
    validation: float = 0.2
    """Share of the pairs that are put aside."""
    schedule: Schedule = field(
        default_factory=lambda: Schedule(steps=600, batch=16, learning_rate=1e-3, ema=0.99, muon_lr=0.01)
    )
    """Training length; the batch counts pairs."""

    def __post_init__(self) -> None:
        if self.size < 8 or self.size % 8:
            raise ValueError(f"size must be a multiple of 8, not {self.size}")
        if not 0 < self.validation < 1:
            raise ValueError(f"validation is a share of the pairs between 0 and 1, not {self.validation:g}")
        if not 0 < self.fps < float("inf"):
            raise ValueError(f"fps must be a positive number, not {self.fps}")

    def train_on(self, pairs_csv: Path, out: Path) -> Made:
        """Train on the table's pairs, calibrate the z-scores on their videos, and measure on the pairs put aside.

        ValueError for a table or video that cannot be used, CheckpointError when `out` has a checkpoint of other data.
        """
        seed, rows = self.schedule.seed, read_table(pairs_csv)
        sha256 = sha256_file(pairs_csv)
        pairs = load_pairs(pairs_csv, rows, self.fps, self.size)
        split = split_pairs(pairs.places, self.validation, seed)
        encoder, train = encoder_of_prompts(pairs.prompts), torch.tensor(split.train)

        def loss(model: TinyReward, generator: torch.Generator, share: slice) -> Tensor:
            drawn = train[torch.randint(len(train), (self.schedule.batch,), generator=generator)]
            starts = torch.rand(len(drawn), 2, generator=generator)
            return _pair_loss(model, encoder, pairs, drawn[share], starts[share])

        torch.manual_seed(seed)
        data = {"pairs": sha256, "fps": self.fps, "size": self.size, "validation": self.validation}
        model, seconds = pretrain("reward", TinyReward(encoder.dim), loss, self.schedule, out, data=data)
        model.eval()
        model.calibrate(look_windows(model, encoder, pairs.videos, list(dict.fromkeys(looks(pairs, split.train))))[0])
        quality = _measure(model, encoder, pairs, split.validation)
        return Made(model, {**quality, "seconds": seconds}, self._reads(pairs, split, encoder, sha256))

    def _reads(self, pairs: Pairs, split: Split, encoder: WordEncoder, sha256: str) -> dict[str, Any]:
        """What the manifest holds of the data, and what a reader of the weights has to know."""
        judged = pairs.judged[split.train].sum(dim=0).tolist()
        return {
            "pairs": True,
            "pairs_sha256": sha256,
            "split": split.kind,
            "judged": dict(zip(REWARD_AXES, judged, strict=True)),
            "fps": self.fps,
            "size": self.size,
            "vocab": list(encoder.vocab),
            "text_len": encoder.text_len,
        }


def _pair_loss(model: TinyReward, encoder: WordEncoder, pairs: Pairs, rows: Tensor, starts: Tensor) -> Tensor:
    """Mean Bradley-Terry loss of pairs `rows` [B] over all their judgements; starts [B, 2] in [0, 1): where in each
    video its window lies."""
    videos, prompts = pairs.places[rows].flatten().tolist(), [pairs.prompts[row] for row in rows.tolist()]
    windows = []
    for video, start in zip(videos, starts.flatten().tolist(), strict=True):
        frames = pairs.videos[video]
        first = int(start * (max(0, len(frames) - WINDOW) + 1))
        windows.append(frames[first : first + WINDOW])
    scores = score_windows(model, windows, encoder.encode(prompts).repeat_interleave(2, dim=0)).unflatten(0, (-1, 2))
    judged = pairs.judged[rows]
    each = bradley_terry_with_ties(scores[:, 0] - scores[:, 1], pairs.labels[rows])
    return (each * judged).sum() / judged.sum().clamp_min(1)


def score_windows(model: TinyReward, windows: Sequence[Tensor], embeds: Tensor) -> Tensor:
    """Raw scores [B, A] of B windows, uint8 [F, 3, S, S] each with its own F, under prompts [B, L, D]."""
    scores = torch.zeros(len(windows), len(REWARD_AXES))
    for length in {len(window) for window in windows}:
        rows = torch.tensor([row for row, window in enumerate(windows) if len(window) == length])
        clips = torch.stack([windows[row] for row in rows.tolist()]).float() / 255
        scores = scores.index_copy(0, rows, model(clips, embeds[rows]))
    return scores


def window_starts(frames: int) -> list[int]:
    """First frames of evenly spaced windows that cover a video: a chunk apart, or wider where that were too many."""
    last = max(0, frames - WINDOW)
    count = min(MOST_WINDOWS, -(-last // TINY_LAYOUT.frames_per_chunk) + 1)
    return [round(place * last / max(1, count - 1)) for place in range(count)]


_Look = tuple[int, str]
"""A video's place, and the prompt it is scored under."""


def looks(pairs: Pairs, rows: Sequence[int]) -> list[_Look]:
    """First and second video of each of N pairs under its prompt: 2 N."""
    return [(video, pairs.prompts[row]) for row in rows for video in pairs.places[row].tolist()]


@torch.no_grad()
def look_windows(
    model: TinyReward, encoder: WordEncoder, videos: Sequence[Tensor], wanted: Sequence[_Look]
) -> tuple[Tensor, Tensor]:
    """Raw scores [P, A] of all windows of K videos under their prompts, and whose each is: int64 [P] in 0..K-1."""
    parts = [(place, start) for place, look in enumerate(wanted) for start in window_starts(len(videos[look[0]]))]
    found = []
    for first in range(0, len(parts), _BATCH):
        batch = parts[first : first + _BATCH]
        windows = [videos[wanted[place][0]][start : start + WINDOW] for place, start in batch]
        embeds = encoder.encode([wanted[place][1] for place, _ in batch])
        found.append(score_windows(model, windows, embeds))
    scores = torch.cat(found) if found else torch.zeros(0, len(REWARD_AXES))
    return scores, torch.tensor([place for place, _ in parts], dtype=torch.long)


def score_looks(model: TinyReward, encoder: WordEncoder, videos: Sequence[Tensor], wanted: Sequence[_Look]) -> Tensor:
    """Raw scores [K, A] of K videos under their prompts: the mean over a video's windows."""
    scores, places = look_windows(model, encoder, videos, wanted)
    total = torch.zeros(len(wanted), len(REWARD_AXES)).index_add_(0, places, scores)
    return total / torch.bincount(places, minlength=len(wanted))[:, None]


def _measure(model: TinyReward, encoder: WordEncoder, pairs: Pairs, rows: Sequence[int]) -> dict[str, float]:
    """Agreement with the judgements on pairs `rows`, every figure named by its axis; thresholds are of raw scores."""
    wanted = looks(pairs, rows)
    distinct = {look: place for place, look in enumerate(dict.fromkeys(wanted))}
    scores = score_looks(model, encoder, pairs.videos, list(distinct))
    each = scores[[distinct[look] for look in wanted]].unflatten(0, (len(rows), 2)).double()
    d, labels, judged = each[:, 0] - each[:, 1], pairs.labels[rows], pairs.judged[rows]
    figures: dict[str, float] = {}
    for place, axis in enumerate(REWARD_AXES):
        known = judged[:, place]
        found = agreement(d[known, place].numpy(), labels[known, place].numpy())
        figures |= {f"{name}_{axis}": value for name, value in found.items()}
    return figures


def summary(made: Made) -> str:
    """What was measured on what, for a terminal."""
    judged: dict[str, int] = made.reads["judged"]
    lines = [f"trained on judgements: {', '.join(f'{axis} {count}' for axis, count in judged.items())}"]
    lines += [
        f"no training pair is judged on {axis}: its scores mean nothing" for axis in REWARD_AXES if not judged[axis]
    ]
    if made.reads["split"] == "videos":
        lines.append("measured on pairs of videos that training never saw (split by videos):")
    else:
        lines.append(f"measured on pairs whose videos training may have seen (split by pairs: fewer than {PAIR_GROUPS} "
                     "groups of pairs share no video), so the figures flatter:")  # fmt: skip
    return "\n".join([*lines, table(made.quality, REWARD_AXES)])
