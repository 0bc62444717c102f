"""What one worker of `reelgym bench adaptation` does once the clips are made: train a detector on known families, and
bring it to a new one by one of several methods, with a look every few updates.

F frames, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ...agents.detection import Detection, DetectionConfig, ReplayBuffer
from ...checkpoint import load_checkpoint
from ...envs.self_play import pooled_film
from ...envs.stack import StackSpec
from ...envs.worlds.camera import CAMERAS, shoot
from ...envs.worlds.scene import SIDE
from ...models.detector import ClipDetector
from ...noise import SeedDomain
from ...training.learner import LearnerConfig
from ..jobs import Result
from ..pretrain.footage import REAL_FOOTAGE
from ..stats import auc
from .adaptation_clips import ClipsTask, make_family_clips

FIRST_RUNG = 8
"""Added to seeds: for the draws of real clips, trainings that go on, and the order in which fakes arrive."""
"""Seed of the film of all test clips: the same for every look, so that looks are paired."""


@dataclass(frozen=True)
class DomainSequence:
    """known: families that a detector is trained on first. new: the one that then appears. later: one that it never
    meets."""

    known: tuple[str, ...]
    new: str
    later: str

    @property
    def families(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.known, self.new, self.later)


ORDERS = {
    "student": DomainSequence(("flicker", "jitter", "hue_drift"), "student", "tuned"),
    "ghosting": DomainSequence(("flicker", "jitter", "student"), "ghosting", "student-2"),
    "teleport": DomainSequence(("flicker", "jitter", "student"), "teleport", "ghosting"),
    "hue-drift": DomainSequence(("flicker", "teleport", "student-2"), "hue_drift", "student"),
}
"""What can be run. The teacher is never new: so near the world are its clips that a full retrain hardly reaches .8."""
ADAPTATIONS = {
    "frozen": "frozen",
    "retrain": "full retrain",
    "finetune": "fine-tuning without replay",
    "replay": "replay",
    "rival": "shipped rival, then replay",
    "selfplay": "self-play, then replay",
}
"""Ways to meet a new family: not at all; from scratch on all families and all fakes; on with the new family alone; on
with all families; that from the detector that self-play begins with, and from one that `reelgym selfplay` has trained.
The last two know more families than the others do before they begin: it is with each other that they are compared."""
FROM_PARTS = ("rival", "selfplay")
"""Methods that begin with a part of a stack."""
BASE = "base"
"""What those begin with that need a detector of the known families."""


@dataclass(frozen=True)
class DetectorSchedule:
    """How detectors learn and how often they are looked at."""

    fakes: int = 256
    """Clips of the new family at most; as many of every known one."""
    test: int = 128
    """Clips of a family, of other prompts, on which AUC is taken."""
    scratch: int = 350
    """Updates of a training from scratch: of the first detector, and of a full retrain."""
    rung: int = 20
    """Updates with 8, 16, 32, ... fakes each."""
    last: int = 250
    """Updates with all of them; a detector that goes on then has as many in all as one from scratch."""
    every: int = 10
    """Updates between two looks where a detector goes on; from scratch it is looked at as often as that in all."""
    batch: int = 16
    """Clips of each kind an update."""
    camera: str = "dusk"
    """Through which all clips pass."""

    @property
    def detection(self) -> DetectionConfig:
        """Of all trainings but for the seed; averaged weights are what is looked at."""
        return DetectionConfig(LearnerConfig(learning_rate=2e-3, ema=0.9), self.batch, self.camera)

    @property
    def eval_points(self) -> list[tuple[int, int]]:
        """Looks of a detector that goes on: the fakes that it has, and the updates since it got them."""
        found = detector_eval_schedule(self.fakes)
        lengths = [self.rung] * (len(found) - 1) + [self.last]
        looks = [range(self.every, length + 1, self.every) for length in lengths]
        return [(fakes, number) for fakes, numbers in zip(found, looks, strict=True) for number in numbers]


def detector_eval_schedule(fakes: int) -> list[int]:
    """8, 16, 32, ... and `fakes` itself, the last."""
    below = [FIRST_RUNG << power for power in range(max(fakes // FIRST_RUNG, 1).bit_length())]
    return [rung for rung in below if rung < fakes] + [fakes]


@dataclass(frozen=True)
class AdaptationTask:
    """Meet the new family of an order by one method; BASE: train from scratch on the known families alone."""

    method: str
    order: DomainSequence
    seed: int
    plan: DetectorSchedule
    clips: str
    """Folder of the jobs that made the clips."""
    start: str = ""
    """Folder of the detector that goes on: a base job's, the shipped rival's, or one of `reelgym selfplay`; empty from
    scratch."""
    stack: StackSpec = StackSpec()
    """What the clips were made with."""

    @property
    def depends_on(self) -> list[Path]:
        """The weights of a detector that no job here has trained."""
        return [Path(self.start) / "weights.safetensors"] if self.method in FROM_PARTS else []


def work(task: ClipsTask | AdaptationTask) -> Result:
    """Do a task. A run's result holds its looks and the seconds that one fake took to sample; a base's, its weights."""
    if isinstance(task, ClipsTask):
        return make_family_clips(task)
    clips = OrderClips.load(task.clips, task.order, task.plan.detection)
    if task.method == BASE:
        trainer, _ = _from_scratch(task, clips, 0)
        return {"weights": dict(trainer.learner.ema_model().state_dict())}, {"seconds": trainer.counts.seconds}
    if task.method == "retrain":
        _, looks = _from_scratch(task, clips, task.plan.fakes)
    else:
        detector = _started(task)
        looks = [{"fakes": 0, "updates": 0, "seconds": 0.0, **clips.evaluate(detector)}]
        looks += [] if task.method == "frozen" else _went_on(task, clips, detector)
    return {}, {"looks": looks, "sampling": clips.seconds[task.order.new]}


@dataclass(frozen=True)
class OrderClips:
    """What the runs of an order train on and are looked at with.

    train: uint8 clips by family, the world's too. film: test clips as a detector sees them. seconds: to sample one.
    """

    order: DomainSequence
    train: Mapping[str, Tensor]
    film: Mapping[str, Tensor]
    seconds: Mapping[str, float]

    @classmethod
    def load(cls, folder: str, order: DomainSequence, detection: DetectionConfig) -> OrderClips:
        """From what the clip jobs wrote."""
        found = {name: load_checkpoint(Path(folder) / clips_job(name)) for name in (REAL_FOOTAGE, *order.families)}
        film, camera = {}, CAMERAS[detection.camera]
        for name, (groups, _) in found.items():
            random = torch.Generator().manual_seed(SeedDomain.POINT_FILMS)
            seen = shoot(groups["clips"]["test"].float() / 255, camera, random)
            film[name] = pooled_film(seen, detection.pool) / 255
        train = {name: found[name][0]["clips"]["train"] for name in (REAL_FOOTAGE, *order.known, order.new)}
        return cls(order, train, film, {name: meta["result"]["seconds"] for name, (_, meta) in found.items()})

    def real(self, count: int, step: int) -> Tensor:
        """Real clips [count, F, 3, H, W] in [0, 1]; they cost nothing."""
        random = torch.Generator().manual_seed(step + SeedDomain.REAL_DRAW)
        clips = self.train[REAL_FOOTAGE]
        return clips[torch.randint(len(clips), (count,), generator=random)].float() / 255

    def pool(self, known: bool, fakes: int, seed: int = 0) -> ReplayBuffer:
        """All training clips of the known families, `fakes` of the new one, and where there are both, both equally
        often. The seed says in which order fakes of the new family arrive: more of them are those that were there, and
        others."""
        clips = {"known": torch.cat([self.train[name] for name in self.order.known])} if known else {}
        new = self.train[self.order.new]
        arrive = torch.randperm(len(new), generator=torch.Generator().manual_seed(SeedDomain.ARRIVALS + seed))
        return ReplayBuffer(clips | ({"new": new[arrive[:fakes]]} if fakes else {}))

    @torch.no_grad()
    def evaluate(self, detector: ClipDetector) -> dict[str, float]:
        """AUC of verdicts on whole test clips: "known" is the mean over the known families."""
        scores = {name: detector(film)[:, -1].tolist() for name, film in self.film.items()}
        found = {name: auc(scores[REAL_FOOTAGE], scores[name]) for name in self.order.families}
        known = sum(found[name] for name in self.order.known) / len(self.order.known)
        return {"known": known, "new": found[self.order.new], "later": found[self.order.later]}


def clips_job(family: str) -> str:
    """The job that makes a family's clips."""
    return f"clips-{family}"


def _from_scratch(task: AdaptationTask, clips: OrderClips, fakes: int) -> tuple[Detection, list[dict[str, float]]]:
    """On the known families, with all fakes of the new one from the first update on; with fakes looked at as often as
    those that go on."""
    plan, total = task.plan, len(task.plan.eval_points) if fakes else 0
    detector, detection = _untrained(task.seed, plan.detection), replace(plan.detection, seed=task.seed)
    trainer = Detection(detection, detector, clips.real, clips.pool(True, fakes))
    looks, due = list[dict[str, float]](), {round(plan.scratch * (place + 1) / total) for place in range(total)}
    while trainer.counts.updates < plan.scratch:
        trainer.update()
        if trainer.counts.updates in due:
            looks.append(_looked(trainer, clips, fakes))
    return trainer, looks


def _went_on(task: AdaptationTask, clips: OrderClips, detector: ClipDetector) -> list[dict[str, float]]:
    """Step by step more fakes of the new family; without replay there is nothing beside them."""
    detection = replace(task.plan.detection, seed=task.seed + SeedDomain.GOES_ON)
    trainer = Detection(detection, detector, clips.real, ReplayBuffer())
    looks = list[dict[str, float]]()
    for fakes, number in task.plan.eval_points:
        if number == task.plan.every:
            trainer.fakes = clips.pool(task.method != "finetune", fakes, task.seed)
        for _ in range(task.plan.every):
            trainer.update()
        looks.append(_looked(trainer, clips, fakes))
    return looks


def _looked(trainer: Detection, clips: OrderClips, fakes: int) -> dict[str, float]:
    """A look after so many fakes of the new family, and the clock: seconds of sampling them and of training."""
    seconds = fakes * clips.seconds[clips.order.new] + trainer.counts.seconds
    spent = {"fakes": fakes, "updates": trainer.counts.updates, "seconds": seconds}
    return spent | clips.evaluate(trainer.learner.ema_model())


def _untrained(seed: int, detection: DetectionConfig) -> ClipDetector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ClipDetector(size=SIDE // detection.pool)


def _started(task: AdaptationTask) -> ClipDetector:
    """The detector that goes on, of its first training or of self-play."""
    if task.method in FROM_PARTS:
        part = task.stack.load().with_weights(rival=Path(task.start)).rival
        return cast(ClipDetector, part).train().requires_grad_(True)
    detector = _untrained(task.seed, task.plan.detection)
    detector.load_state_dict(load_checkpoint(Path(task.start))[0]["weights"])
    return detector
