"""Detectors: is a clip real or made, and how sure is that after every chunk?

B clips, F frames, n chunks, H x W pixels, E width of a frame's features. A logit above 0 says "made".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional


def sides_of(size: int | Sequence[int]) -> tuple[int, int]:
    """(H, W) of frames of a size: the side of squares, or both sides."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


class Detector(Protocol):
    """What a game asks of a detector; whoever has these two takes part."""

    def open(self, count: int, device: torch.device) -> DetectorState:
        """Before the first frame of `count` clips."""
        ...

    def watch(self, video: Tensor, state: DetectorState) -> tuple[Tensor, DetectorState]:
        """Logits [B] after one more chunk, video [B, f, 3, H, W] in [0, 1], and the state behind it."""
        ...


@dataclass(frozen=True)
class DetectorState:
    """What a detector remembers of B clips, as tensors [B, ...]."""

    parts: tuple[Tensor, ...]

    def take(self, rows: Tensor) -> DetectorState:
        """The clips at rows [M] (int64), in that order; a row may occur several times (a fork)."""
        return DetectorState(tuple(part[rows] for part in self.parts))

    def where(self, mask: Tensor, other: DetectorState) -> DetectorState:
        """The rows of `other` where mask [B], these elsewhere."""
        pairs = zip(self.parts, other.parts, strict=True)
        return DetectorState(tuple(torch.where(mask.view(-1, *[1] * (old.ndim - 1)), new, old) for old, new in pairs))


class ClipDetector(nn.Module):
    """A small clip network with streaming verdicts: convolutions over a frame and its first and second difference in
    time, a recurrent net over frames. What it says of a chunk does not depend on later ones.

    width: E. size: side of a frame in pixels, or (H, W), at least 4. `open` and `watch` go chunk by chunk; calling it
    with whole clips [B, F, 3, H, W] gives the logits after every frame [B, F], the same to rounding.
    """

    def __init__(self, width: int = 64, size: int | Sequence[int] = 16) -> None:
        super().__init__()
        self.width, self.size = width, size if isinstance(size, int) else tuple(size)
        self.eye = nn.Sequential(
            nn.Conv2d(9, 32, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 48, 4, stride=2, padding=1),
            nn.GroupNorm(4, 48),
            nn.SiLU(),
            nn.Conv2d(48, width, 3, padding=1),
            nn.SiLU(),
        )
        self.frame = nn.Linear(2 * width, width)
        self.memory = nn.GRU(width, width, batch_first=True)
        self.judge = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))

    @classmethod
    def from_config(cls, **config: Any) -> ClipDetector:
        """Untrained, with the arguments that `config` holds."""
        return cls(**config)

    @property
    def config(self) -> dict[str, Any]:
        """What `from_config` takes to make it again."""
        return {"width": self.width, "size": self.size}

    def open(self, count: int, device: torch.device) -> DetectorState:
        """Before the first frame: how many were seen, the last two, and the memory."""
        frames = torch.zeros(count, 2, 3, *sides_of(self.size), device=device)
        seen = torch.zeros(count, dtype=torch.int64, device=device)
        return DetectorState((seen, frames, torch.zeros(count, self.width, device=device)))

    def watch(self, video: Tensor, state: DetectorState) -> tuple[Tensor, DetectorState]:
        """Logits [B] after one more chunk [B, f, 3, H, W], and the state behind it."""
        logits, state = self._read(video, state)
        return logits[:, -1], state

    def forward(self, video: Tensor) -> Tensor:
        """[B, F]."""
        return self._read(video, self.open(len(video), video.device))[0]

    def features(self, video: Tensor) -> Tensor:
        """Of every frame [B, F, E], before the memory."""
        seen, frames, _ = self.open(len(video), video.device).parts
        return self._look(video, seen, frames)

    def _read(self, video: Tensor, state: DetectorState) -> tuple[Tensor, DetectorState]:
        seen, frames, memory = state.parts
        found, memory = self.memory(self._look(video, seen, frames), memory[None].contiguous())
        logits = self.judge(found)[..., 0]
        last = torch.cat((frames, video.detach()), 1)[:, -2:]
        return logits, DetectorState((seen + video.shape[1], last, memory[0]))

    def _look(self, video: Tensor, seen: Tensor, frames: Tensor) -> Tensor:
        """[B, F, E]. Where no frame came before, a difference is 0."""
        whole = torch.cat((frames, video), 1)
        steps = whole[:, 1:] - whole[:, :-1]
        number = seen[:, None] + torch.arange(video.shape[1], device=video.device)
        first = steps[:, 1:] * (number >= 1)[..., None, None, None]
        second = (steps[:, 1:] - steps[:, :-1]) * (number >= 2)[..., None, None, None]
        seen_now = torch.cat((2 * video - 1, 4 * first, 4 * second), 2)
        cells = self.eye(seen_now.flatten(0, 1)).flatten(2)
        pooled = torch.cat((cells.mean(2), cells.amax(2)), 1)
        return functional.silu(self.frame(pooled)).unflatten(0, video.shape[:2])


def d3_score(features: Tensor) -> Tensor:
    """D3 (2508.00701) on features [B, F, E]: spread of the first differences of how alike consecutive frames are.

    [B], low where motion is unnaturally even. At least 3 frames.
    """
    if features.shape[1] < 3:
        raise ValueError(f"D3 needs at least 3 frames, not {features.shape[1]}")
    alike = functional.cosine_similarity(features[:, 1:], features[:, :-1], dim=-1)
    return (alike[:, 1:] - alike[:, :-1]).std(1, correction=0)


def restrav_features(features: Tensor) -> Tensor:
    """ReStraV (2507.00583) on features [B, F, E]: the length of every step, every turning angle, and of each mean,
    spread, least and most: [B, (F - 1) + (F - 2) + 8]. At least 3 frames."""
    if features.shape[1] < 3:
        raise ValueError(f"ReStraV needs at least 3 frames, not {features.shape[1]}")
    steps = features[:, 1:] - features[:, :-1]
    lengths = steps.norm(dim=-1)
    turns = functional.cosine_similarity(steps[:, 1:], steps[:, :-1], dim=-1).clamp(-1, 1).acos()
    told = [
        torch.stack((part.mean(1), part.std(1, correction=0), part.amin(1), part.amax(1)), 1)
        for part in (lengths, turns)
    ]
    return torch.cat((lengths, turns, *told), 1)
