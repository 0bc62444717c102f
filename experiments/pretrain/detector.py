"""Detectors of the tiny stack: `detector`, which `reelgym score` asks, and `rival`, which self-play starts from.

Both see clips through a camera and averaged over squares of pixels, as in the game. M clips, F frames, n chunks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ...agents.detection import Detection, DetectionConfig, ReplayBuffer, uniform_sampler
from ...agents.league.match import apply_camera
from ...envs.clip_dataset import HELD_OUT
from ...envs.game_rules import GameRules
from ...envs.stack import Stack, StackSpec
from ...models.calibration import Calibration
from ...models.detector import ClipDetector
from ...models.fit import size_of
from ...models.tiny import FRAMES_PER_CHUNK
from ...rewards.windows import chunk_frames
from ...training.learner import LearnerConfig
from ...training.regression import Schedule
from .detector_measure import mixed, quality_of, trajectory_quality
from .footage import LEARNED, REAL_FOOTAGE, footage
from .loop import Made, train
from .own_footage import OWN_HELD_OUT, game_rules

_AT_ONCE = 64
STRONG = {"student": 0.35, "student-2": 0.15, "student-1": 0.1, "teacher": 0.1, "scripted": 0.3}
WEAK = {"student": 0.5, "scripted": 0.5}
LENGTH = Schedule(steps=500, batch=32, learning_rate=2e-3, ema=0.98, checkpoint_every=50)


@dataclass(frozen=True)
class DetectorRecipe:
    """What a detector learns from, and what it is calibrated and measured on."""

    camera: str = "phone"
    """Through which it sees all clips."""
    pool: int = 2
    """Side of the squares of pixels that it sees averaged."""
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
    schedule: Schedule = LENGTH
    """Training length; the batch counts clips of each kind, the learning rate is constant."""

    def detection(self) -> DetectionConfig:
        """How it learns."""
        length = self.schedule
        learner = LearnerConfig(length.learning_rate, max_grad_norm=length.max_grad_norm, ema=length.ema)
        return DetectionConfig(learner, length.batch, self.camera, self.pool, seed=length.seed)

    def learned(self) -> dict[str, int]:
        """Clips of every family to learn from."""
        few = {"teacher": self.slow, "student-2": self.made // 2, "student-1": self.made // 2}
        return {REAL_FOOTAGE: self.real, **{name: few.get(name, self.made) for name in self.weights}}

    def examined(self, real: int, families: Iterable[str]) -> dict[str, int]:
        """Clips of every family to be held against real ones."""
        return {REAL_FOOTAGE: real, **{name: self.slow if name == "teacher" else self.judged for name in families}}

    def train(self, name: str, stack: Stack, out: Path, source: StackSpec | None = None) -> Made:
        """Train, calibrate on validation clips, measure on test clips; the clips are kept in `out`. source: of a stack
        of one's own, whose clips are the real ones."""
        seed, pool = self.schedule.seed, self.pool if stack.has("grammar") else game_rules(stack).pool
        held_out = HELD_OUT if stack.has("grammar") else OWN_HELD_OUT
        height, width = (side // pool for side in size_of(stack.codec, stack.device))
        chunk = chunk_frames(stack.codec, stack.layout)

        def clips(wanted: Mapping[str, int], split: str) -> dict[str, Tensor]:
            print(f"train {name}: {sum(wanted.values())} clips of the {split} split", file=sys.stderr)
            return footage(wanted, split, seed, source or stack.folder, out / "clips")

        learned = clips(self.learned(), "train")
        torch.manual_seed(seed)
        fakes = ReplayBuffer({family: learned[family] for family in self.weights})
        detector = ClipDetector(size=height if height == width else (height, width))
        how = replace(self.detection(), pool=pool)
        trainer = Detection(how, detector, uniform_sampler(learned[REAL_FOOTAGE]), fakes, chunk)
        trainer.weights = self.weights
        train(name, trainer, self.schedule, out)
        trained = trainer.learner.ema_model().eval()

        def films(split: str, real: int, families: Iterable[str]) -> dict[str, Tensor]:
            found = clips(self.examined(real, families), split)
            return {family: filmed(video, self.camera, pool, seed, chunk) for family, video in found.items()}

        known = films("validation", self.calibrated, self.weights)
        new = films("test", self.measured, (*LEARNED, *held_out))
        calibration = Calibration.fit(*mixed(_judged(trained, known, chunk), self.weights))
        quality = quality_of(_judged(trained, new, chunk), calibration, self.weights)
        quality |= trajectory_quality(trained.features, known, new)
        reads = {"camera": self.camera, "pool": pool, "chunk": chunk, "fps": stack.fps}
        return Made(trained, {**quality, "seconds": trainer.counts.seconds}, {**reads, **calibration.to_manifest()})


DETECTOR_RECIPES = {
    "detector": DetectorRecipe(),
    "rival": DetectorRecipe(camera="night", weights=dict(WEAK), schedule=replace(LENGTH, steps=600)),
}


def filmed(video: Tensor, camera: str, pool: int, seed: int, chunk: int = FRAMES_PER_CHUNK) -> Tensor:
    """Clips uint8 [M, F, 3, H, W] as a detector sees them, [M, F, 3, H / pool, W / pool] in [0, 1]."""
    rules = GameRules(camera=camera, pool=pool)
    return apply_camera(video.float() / 255, rules, chunk, seed, real=True).film.flatten(1, 2) / 255


@torch.no_grad()
def _judged(detector: ClipDetector, films: Mapping[str, Tensor], chunk: int) -> dict[str, Tensor]:
    """Logits [M, n] after every chunk of so many frames of films [M, F, 3, h, w], by family."""
    return {
        family: torch.cat([detector(part) for part in film.split(_AT_ONCE)])[:, chunk - 1 :: chunk]
        for family, film in films.items()
    }
