"""Detectors of the tiny stack: `detector`, which `reelgym score` asks, and `rival`, which self-play starts from.

Both see clips through a camera and averaged over squares of pixels, as in the game. M clips, F frames, n chunks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ...agents.detection import Detection, DetectionConfig, FakePool, drawn
from ...envs.self_play import stored
from ...envs.worlds.camera import CAMERAS, shoot
from ...envs.worlds.clips import FRAMES_PER_CHUNK
from ...envs.worlds.scene import FPS, SIDE
from ...models.calibration import Calibration
from ...models.detector import ClipDetector
from ...training.learner import LearnerConfig
from ...training.loop import fit
from .detector_measure import mixed, quality_of, trajectory_quality
from .footage import FAMILIES, REAL, footage

AT_ONCE = 64
STRONG = {"student": 0.35, "student-2": 0.15, "student-1": 0.1, "teacher": 0.1, "scripted": 0.3}
WEAK = {"student": 0.5, "scripted": 0.5}


@dataclass(frozen=True)
class Length:
    """How long to train."""

    steps: int
    """Updates."""
    seed: int = 0
    """Everything drawn at an update follows from it."""
    stop: int | None = None
    """Update at which training ends, if before `steps`."""
    checkpoint_every: int = 50

    @property
    def end(self) -> int:
        """The last update."""
        return self.steps if self.stop is None else min(self.stop, self.steps)


@dataclass(frozen=True)
class DetectorRecipe:
    """What a detector learns from, and what it is calibrated and measured on."""

    camera: str = "phone"
    """Through which it sees all clips."""
    pool: int = 2
    """Side of the squares of pixels that it sees averaged."""
    batch: int = 32
    """Clips of each kind in an update."""
    learning_rate: float = 2e-3
    """Of AdamW."""
    ema: float = 0.98
    """Decay of the averaged weights, which are what is shipped."""
    weights: Mapping[str, float] = field(default_factory=lambda: dict(STRONG))
    """How often each family of made clips is drawn."""
    real: int = 1536
    """Real clips to learn from."""
    made: int = 512
    """Clips of the student, and scripted ones, to learn from; of its shorter versions half as many."""
    slow: int = 32
    """Clips of the teacher, which takes its time, in every split."""
    calibrated: int = 1024
    """Real clips of the validation split to calibrate on."""
    measured: int = 2048
    """Real clips of the test split to measure on."""
    judged: int = 192
    """Made clips of every family beside them, in either split."""
    schedule: Length = field(default_factory=lambda: Length(500))
    """Training length."""

    def detection(self) -> DetectionConfig:
        """How it learns."""
        learner = LearnerConfig(learning_rate=self.learning_rate, ema=self.ema)
        return DetectionConfig(learner, self.batch, self.camera, self.pool, seed=self.schedule.seed)

    def learned(self) -> dict[str, int]:
        """Clips of every family to learn from."""
        few = {"teacher": self.slow, "student-2": self.made // 2, "student-1": self.made // 2}
        return {REAL: self.real, **{name: few.get(name, self.made) for name in self.weights}}

    def examined(self, real: int, families: Iterable[str]) -> dict[str, int]:
        """Clips of every family to be held against real ones."""
        return {REAL: real, **{name: self.slow if name == "teacher" else self.judged for name in families}}


RECIPES = {
    "detector": DetectorRecipe(),
    "rival": DetectorRecipe(camera="night", weights=dict(WEAK), schedule=Length(600)),
}


def train_detector(
    name: str, recipe: DetectorRecipe, weights: Path, out: Path
) -> tuple[ClipDetector, dict[str, float], dict[str, Any]]:
    """Train, calibrate on validation clips, measure on test clips; and what readers of the weights have to know.

    weights: folder of the parts that make clips. out: for log, checkpoint and clips, which are kept.
    """
    seed = recipe.schedule.seed

    def clips(wanted: Mapping[str, int], split: str) -> dict[str, Tensor]:
        print(f"train {name}: {sum(wanted.values())} clips of the {split} split", file=sys.stderr)
        return footage(wanted, split, seed, weights, out / "clips")

    learned = clips(recipe.learned(), "train")
    torch.manual_seed(seed)
    detector = ClipDetector(size=SIDE // recipe.pool)
    fakes = FakePool({family: learned[family] for family in recipe.weights})
    trainer = Detection(recipe.detection(), detector, drawn(learned[REAL]), fakes, FRAMES_PER_CHUNK)
    trainer.weights = recipe.weights
    _fit(name, trainer, recipe.schedule, out)
    trained = trainer.learner.averaged().eval()

    def films(split: str, real: int, families: Iterable[str]) -> dict[str, Tensor]:
        found = clips(recipe.examined(real, families), split)
        return {family: filmed(video, recipe.camera, recipe.pool, seed) for family, video in found.items()}

    known, new = films("validation", recipe.calibrated, recipe.weights), films("test", recipe.measured, FAMILIES)
    calibration = Calibration.fit(*mixed(judged(trained, known), recipe.weights))
    quality = quality_of(judged(trained, new), calibration, recipe.weights)
    quality |= trajectory_quality(trained.features, known, new)
    reads = {"camera": recipe.camera, "pool": recipe.pool, "chunk": FRAMES_PER_CHUNK, "fps": FPS}
    return trained, {**quality, "seconds": trainer.counts.seconds}, {**reads, **calibration.to_manifest()}


def filmed(video: Tensor, camera: str, pool: int, seed: int) -> Tensor:
    """Clips uint8 [M, F, 3, H, W] as a detector sees them, [M, F, 3, H / pool, W / pool] in [0, 1]."""
    random = torch.Generator().manual_seed(seed)
    parts = [shoot(part.float() / 255, CAMERAS[camera], random) for part in video.split(AT_ONCE)]
    return torch.cat([stored(part, pool) for part in parts]) / 255


@torch.no_grad()
def judged(detector: ClipDetector, films: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Logits [M, n] after every chunk of films [M, F, 3, h, w], by family."""
    return {
        family: torch.cat([detector(part) for part in film.split(AT_ONCE)])[:, FRAMES_PER_CHUNK - 1 :: FRAMES_PER_CHUNK]
        for family, film in films.items()
    }


def _fit(name: str, trainer: Detection, length: Length, out: Path) -> None:
    """Train to the end of the schedule, with a bar, a log and a checkpoint that a killed run goes on from."""
    with (out / "log.txt").open("a") as file, tqdm(desc=f"train {name}", total=length.end, mininterval=5) as bar:

        def log(found: Mapping[str, float], update: int) -> None:
            figures = " ".join(f"{key}={value:.5f}" for key, value in found.items())
            print(f"step={update} {figures}", file=file)
            bar.update(update - bar.n)

        every = length.checkpoint_every
        fit(trainer, length.end, log=log, checkpoint=out / "checkpoint", checkpoint_every=every)
