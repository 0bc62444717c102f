"""Training a detector on real clips and on made ones, both through one camera, with what it saw long ago kept in play.

B clips of each kind, F frames, f frames a chunk, n chunks, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ..envs.self_play import pooled_film
from ..envs.worlds.camera import CAMERAS, shoot
from ..models.detector import ClipDetector
from ..noise import SeedDomain, fold, update_seed
from ..training.learner import Groups, Learner, LearnerConfig
from ..training.state import State, pack, unpack
from ..training.usage import ComputeUsage

ClipSampler = Callable[[int, int], Tensor]
"""`clips(count, step)`: real clips [count, F, 3, H, W] in [0, 1], a pure function."""


@dataclass(frozen=True)
class DetectionConfig:
    """How a detector learns."""

    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(learning_rate=1e-3))
    batch: int = 32
    """B, of each kind."""
    camera: str = "night"
    """Through which all clips pass."""
    pool: int = 2
    """Side of the squares of pixels that the detector sees averaged."""
    smooth: float = 0.02
    """Labels lie by so much off 0 and 1, which keeps logits where they can be calibrated."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.batch, self.pool) < 1 or not 0 <= self.smooth < 0.5:
            raise ValueError(f"batch and pool are at least 1, smooth in [0, .5): {self}")
        if self.camera not in CAMERAS:
            raise ValueError(f"unknown camera {self.camera!r}; use one of: {', '.join(CAMERAS)}")


def uniform_sampler(pool: Tensor) -> ClipSampler:
    """Draws from real clips uint8 [M, F, 3, H, W], by a seed that the fakes of a step do not have."""

    def draw(count: int, step: int) -> Tensor:
        own = fold(torch.tensor([step]), SeedDomain.REAL_DRAW)
        random = torch.Generator().manual_seed(int(own))
        return pool[torch.randint(len(pool), (count,), generator=random)].float() / 255

    return draw


@dataclass
class ReplayBuffer:
    """Made clips by family, uint8, the same share of a batch for each: old families stay in play (replay).

    families: names to clips [M, F, 3, H, W] in uint8.
    """

    families: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, video: Tensor) -> None:
        """Clips [M, F, 3, H, W] in [0, 1] of a family; later ones of a name stand behind the earlier."""
        found = (video.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
        known = self.families.get(name)
        self.families[name] = found if known is None else torch.cat((known, found))

    def draw(self, count: int, random: torch.Generator, weights: Mapping[str, float] | None = None) -> Tensor:
        """[count, F, 3, H, W] in [0, 1]: of all families alike, or of some by their weights; ValueError where there is
        nothing to draw from."""
        shares = dict.fromkeys(self.families, 1.0) if weights is None else weights
        missing = [name for name in shares if name not in self.families]
        if missing:
            raise ValueError(f"no clips of {', '.join(missing)} in the pool of fakes")
        if not shares or not sum(shares.values()) > 0:
            raise ValueError("the pool of fakes is empty: add clips before training")
        which = torch.multinomial(torch.tensor(list(shares.values())), count, replacement=True, generator=random)
        rows = [self.families[list(shares)[place]] for place in which.tolist()]
        picks = [int(torch.randint(len(clips), (1,), generator=random)) for clips in rows]
        return torch.stack([clips[pick] for clips, pick in zip(rows, picks, strict=True)]).float() / 255


class Detection:
    """Trains a detector by its logits after every chunk; a `Trainer`, so `fit` resumes it bit for bit.

    detector: trained in place. real: draws real clips. fakes: the pool. chunk: f, frames after which it is asked.
    """

    def __init__(
        self, config: DetectionConfig, detector: ClipDetector, real: ClipSampler, fakes: ReplayBuffer, chunk: int = 3
    ) -> None:
        self.config, self.detector, self.real, self.fakes, self.chunk = config, detector, real, fakes, chunk
        self.weights: Mapping[str, float] | None = None
        """Of the pool's families in a batch; None: all alike."""
        self.learner = Learner(detector, config.learner)
        self.counts = ComputeUsage()

    def update(self) -> dict[str, float]:
        """As many real clips as made ones, filmed together, one step of cross-entropy."""
        with self.counts.timed():
            config = self.config
            step = update_seed(config.seed, self.counts.updates)
            random = torch.Generator().manual_seed(step)
            video = torch.cat((self.real(config.batch, step), self.fakes.draw(config.batch, random, self.weights)))
            film = pooled_film(shoot(video, CAMERAS[config.camera], random), config.pool) / 255
            film = film.to(next(self.detector.parameters()).device)
            label = torch.arange(len(film), device=film.device) >= config.batch
            logits = self.detector(film)[:, self.chunk - 1 :: self.chunk]
            wanted = label.float() * (1 - 2 * config.smooth) + config.smooth
            loss = binary_cross_entropy_with_logits(logits, wanted[:, None].expand_as(logits))
            measured = self.learner.step(loss)
            right = ((logits[:, -1] > 0) == label).float().mean()
            self.counts.chunks += logits.numel()
            self.counts.updates += 1
        return {**measured, "right": float(right)}

    def state(self) -> State:
        """Everything that a bitwise resume needs; the pool is the caller's to keep."""
        return pack(self.config, self.counts, {"detector": self.learner})

    def load_state(self, groups: Groups, meta: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        unpack(self.config, self.counts, {"detector": self.learner}, groups, meta)
