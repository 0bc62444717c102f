"""What one worker of `reelgym bench adaptation` does: make a family's clips, train a detector on known families, and
bring it to a new one by one of several methods, with a look every few updates.

M clips, F frames, H x W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...agents.detection import Detection, DetectionConfig, FakePool
from ...agents.finetune import FineTune
from ...agents.finetune_recipes import FINETUNE
from ...agents.fit import fit
from ...agents.learner import LearnerConfig
from ...checkpoint import load_checkpoint
from ...envs.detect_bank import STRENGTH, Source, scripted
from ...envs.self_play import coded, stored
from ...envs.worlds.camera import CAMERAS, shoot
from ...envs.worlds.fakes import FAKES
from ...envs.worlds.grammar import GRAMMARS, Script, chunk_clauses, sample_scripts
from ...envs.worlds.render import render
from ...envs.worlds.scene import SIDE, roll
from ...models.detector import ClipDetector
from ...models.sampler import step_sigmas
from ...models.tiny import SAMPLER_SHIFT, WEIGHTS, load_tiny
from ...noise import stream_keys
from ..jobs import Result
from ..methods import Stack
from ..stats import auc

REAL = "real"
SCRIPTED = ("flicker", "jitter", "hue_drift", "swap", "teleport", "growing_blur", "texture_noise", "shrink", "blank")
"""Fakes that training may see and that show on every clip."""
SPLITS = ("train", "test")
AT_ONCE = 32
FIRST_RUNG = 8
REAL_DRAW, GOES_ON = 2**30, 10_000
"""Added to seeds: for the draws of real clips, and for trainings that go on."""
LOOK_FILM = 1_000_005
"""Seed of the film of all test clips: the same for every look, so that looks are paired."""


@dataclass(frozen=True)
class Family:
    """One way to make clips. steps: of the student's sampler, in place of its own. updates: of RL by the recipe
    "reward" before it is sampled. pace: seconds a clip on one idle core, for the estimate."""

    label: str
    pace: float = 0.035
    steps: int = 0
    updates: int = 0


FAMILIES = {
    REAL: Family("the world"),
    **{name: Family(name.replace("_", " ")) for name in SCRIPTED},
    "student": Family("student, 4 steps", 0.09),
    "student-2": Family("student, 2 steps", 0.07, steps=2),
    "student-1": Family("student, 1 step", 0.06, steps=1),
    "tuned": Family("student after RL", 0.09, updates=60),
    "teacher": Family("teacher, 32 guided steps", 0.65),
}
"""What can be in an order; the scripted ones that training may see, and generators."""


@dataclass(frozen=True)
class ClipsTask:
    """Make a family's clips, `train` of them of training prompts and `test` of test prompts."""

    family: str
    train: int
    test: int
    weights: str = ""
    """Folder of the pretrained stack; empty: the shipped one."""
    made_from: str = ""
    """Hash of code and weights."""


def make_clips(task: ClipsTask) -> Result:
    """Groups of uint8 clips, and the seconds that one took to sample."""
    stack = _stack(task.weights)
    sampler = sampler_of(stack, task.family)
    clips: dict[str, Tensor] = {}
    seconds = 0.0
    for number, split in enumerate(SPLITS):
        count, parts = getattr(task, split), list[Tensor]()
        if not count:
            continue
        scripts = sample_scripts(count, split=split, seed=_own(task.family), grammar=GRAMMARS[stack.grammar])
        for start in range(0, count, AT_ONCE):
            begun = time.monotonic()
            made = sampler(scripts[start : start + AT_ONCE], _own(task.family) + 2 * start + number)
            seconds += time.monotonic() - begun
            parts.append((made.clamp(0, 1) * 255).round().to(torch.uint8))
        clips[split] = torch.cat(parts)
    return {"clips": clips}, {"seconds": seconds / (task.train + task.test)}


def _own(family: str) -> int:
    return 7_000_000 + 10_000 * list(FAMILIES).index(family)


Sampler = Callable[[Sequence[Script], int], Tensor]


def sampler_of(stack: Stack, family: str) -> Sampler:
    """`sampler(scripts, seed)`: clips [M, F, 3, H, W] of a family. All have come out of the codec, so that what it
    leaves behind tells nothing apart."""
    if family in FAKES or family == REAL:
        return lambda scripts, seed: _of_the_world(stack, family, scripts, seed)
    if family == "teacher":
        teacher, chunks = stack.system("teacher"), stack.clock.chunks

        def taught(scripts: Sequence[Script], seed: int) -> Tensor:
            with torch.no_grad():
                return teacher([chunk_clauses(script, chunks) for script in scripts], stream_keys(seed, len(scripts)))

        return taught
    known = FAMILIES[family]
    generator = stack.student() if known.updates else stack.start
    if known.updates:
        recipe = FINETUNE["reward"]
        trainer = FineTune(recipe, generator, stack.env(recipe.prompts * recipe.group), stack.prompts())
        fit(trainer, known.updates)
    if known.steps:
        generator = replace(generator, sigmas=step_sigmas(known.steps, SAMPLER_SHIFT))
    source = Source(generator, stack.codec, stack.encoder, stack.grammar)
    return lambda scripts, seed: source(scripts, stack.clock.chunks, seed)


def _of_the_world(stack: Stack, family: str, scripts: Sequence[Script], seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    clauses = [chunk_clauses(script, stack.clock.chunks) for script in scripts]
    scene = roll(clauses, stack.clock.frames_per_chunk, random)
    video = render(scene)
    if family != REAL:
        video = scripted(scene, video, (family,), STRENGTH, random)[0]
    return coded(video, stack.codec)


@dataclass(frozen=True)
class Order:
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
    "student": Order(("flicker", "jitter", "hue_drift"), "student", "tuned"),
    "teleport": Order(("flicker", "jitter", "student"), "teleport", "teacher"),
    "hue-drift": Order(("flicker", "teleport", "student-2"), "hue_drift", "student"),
}
"""What can be run. The teacher is never new: so near the world are its clips that a full retrain hardly reaches .8."""
METHODS = {
    "frozen": "frozen",
    "retrain": "full retrain",
    "finetune": "fine-tuning without replay",
    "replay": "replay",
    "selfplay": "self-play, then replay",
}
"""Ways to meet a new family: not at all; from scratch on all families and all fakes; on with the new family alone; on
with all families; that from a detector of `reelgym selfplay`."""


@dataclass(frozen=True)
class Plan:
    """How detectors learn and how often they are looked at."""

    detection: DetectionConfig = field(
        default_factory=lambda: DetectionConfig(LearnerConfig(learning_rate=2e-3, ema=0.9), batch=16, camera="dusk")
    )
    """Of all trainings but for the seed; averaged weights are what is looked at."""
    scratch: int = 350
    """Updates of a training from scratch: of the first detector, and of a full retrain."""
    rung: int = 20
    """Updates with every number of fakes of the new family."""
    last: int = 250
    """Updates with all of them; a detector that goes on then has as many in all as one from scratch."""
    every: int = 10
    """Updates between two looks where a detector goes on; from scratch it is looked at as often as that in all."""
    fakes: int = 256
    """Of the new family at most; the first rung has 8, and each other twice as many as the one before. Of known
    families there are as many."""
    test: int = 128
    """Clips of a family in a look."""

    @property
    def due(self) -> list[tuple[int, int]]:
        """Looks of a detector that goes on: the fakes that it has, and the updates since it got them."""
        found = rungs(self.fakes)
        lengths = [self.rung] * (len(found) - 1) + [self.last]
        looks = [range(self.every, length + 1, self.every) for length in lengths]
        return [(fakes, number) for fakes, numbers in zip(found, looks, strict=True) for number in numbers]


def rungs(fakes: int) -> list[int]:
    """8, 16, 32, ... and `fakes` itself, the last."""
    below = [FIRST_RUNG << power for power in range(max(fakes // FIRST_RUNG, 1).bit_length())]
    return [rung for rung in below if rung < fakes] + [fakes]


@dataclass(frozen=True)
class BaseTask:
    """Train a detector from scratch on the known families of an order."""

    order: Order
    seed: int
    plan: Plan
    clips: str
    """Folder of the jobs that made the clips."""
    made_from: str = ""


@dataclass(frozen=True)
class RunTask:
    """Meet the new family of an order by one method."""

    method: str
    order: Order
    seed: int
    plan: Plan
    clips: str
    start: str = ""
    """Folder of the detector that goes on: a base job's, or one of `reelgym selfplay`; empty for a full retrain."""
    made_from: str = ""


def work(task: ClipsTask | BaseTask | RunTask) -> Result:
    """Do a task. A run's result holds its looks and the seconds that one fake took to sample."""
    if isinstance(task, ClipsTask):
        return make_clips(task)
    known = Reel.load(task.clips, task.order, task.plan.detection)
    if isinstance(task, BaseTask):
        return _base(task, known)
    return {}, _run(task, known)


@dataclass(frozen=True)
class Reel:
    """What the runs of an order train on and are looked at with.

    train: uint8 clips by family, the world's too. film: test clips as a detector sees them. seconds: to sample one.
    """

    order: Order
    train: Mapping[str, Tensor]
    film: Mapping[str, Tensor]
    seconds: Mapping[str, float]

    @classmethod
    def load(cls, folder: str, order: Order, detection: DetectionConfig) -> Reel:
        """From what the clip jobs wrote."""
        found = {name: load_checkpoint(Path(folder) / clips_job(name)) for name in (REAL, *order.families)}
        film = {name: _filmed(groups["clips"]["test"], detection) for name, (groups, _) in found.items()}
        train = {name: found[name][0]["clips"]["train"] for name in (REAL, *order.known, order.new)}
        return cls(order, train, film, {name: meta["result"]["seconds"] for name, (_, meta) in found.items()})

    def real(self, count: int, step: int) -> Tensor:
        """Real clips [count, F, 3, H, W] in [0, 1]; they cost nothing."""
        random = torch.Generator().manual_seed(step + REAL_DRAW)
        clips = self.train[REAL]
        return clips[torch.randint(len(clips), (count,), generator=random)].float() / 255

    def pool(self, known: bool, fakes: int) -> FakePool:
        """All training clips of the known families, the first `fakes` of the new one, and where there are both, both
        equally often."""
        clips = {"known": torch.cat([self.train[name] for name in self.order.known])} if known else {}
        return FakePool(clips | ({"new": self.train[self.order.new][:fakes]} if fakes else {}))

    @torch.no_grad()
    def look(self, detector: ClipDetector) -> dict[str, float]:
        """AUC of verdicts on whole test clips: "known" is the mean over the known families."""
        scores = {name: detector(film)[:, -1].tolist() for name, film in self.film.items()}
        found = {name: auc(scores[REAL], scores[name]) for name in self.order.families}
        known = sum(found[name] for name in self.order.known) / len(self.order.known)
        return {"known": known, "new": found[self.order.new], "later": found[self.order.later]}


def clips_job(family: str) -> str:
    """The job that makes a family's clips."""
    return f"clips-{family}"


def _filmed(clips: Tensor, detection: DetectionConfig) -> Tensor:
    random = torch.Generator().manual_seed(LOOK_FILM)
    return stored(shoot(clips.float() / 255, CAMERAS[detection.camera], random), detection.pool) / 255


def _base(task: BaseTask, reel: Reel) -> Result:
    detector = _untrained(task.seed, task.plan.detection)
    trainer = Detection(replace(task.plan.detection, seed=task.seed), detector, reel.real, reel.pool(True, 0))
    for _ in range(task.plan.scratch):
        trainer.update()
    ready = trainer.learner.averaged()
    return {"weights": dict(ready.state_dict())}, {**reel.look(ready), "seconds": trainer.counts.seconds}


def _run(task: RunTask, reel: Reel) -> dict[str, Any]:
    if task.method == "retrain":
        looks = _retrained(task, reel)
    else:
        detector = _started(task)
        looks = [{"fakes": 0, "updates": 0, "seconds": 0.0, **reel.look(detector)}]
        looks += [] if task.method == "frozen" else _went_on(task, reel, detector)
    return {"looks": looks, "sampling": reel.seconds[task.order.new]}


def _retrained(task: RunTask, reel: Reel) -> list[dict[str, float]]:
    """From scratch with all fakes from the first update on, looked at as often as those that go on."""
    plan, total = task.plan, len(task.plan.due)
    detector = _untrained(task.seed, plan.detection)
    detection = replace(plan.detection, seed=task.seed)
    trainer = Detection(detection, detector, reel.real, reel.pool(True, plan.fakes))
    looks, sampled = list[dict[str, float]](), plan.fakes * reel.seconds[task.order.new]
    due = {round(plan.scratch * (place + 1) / total) for place in range(total)}
    while trainer.counts.updates < plan.scratch:
        trainer.update()
        if trainer.counts.updates in due:
            looks.append(_looked(trainer, reel, plan.fakes, sampled))
    return looks


def _went_on(task: RunTask, reel: Reel, detector: ClipDetector) -> list[dict[str, float]]:
    """Rung by rung more fakes of the new family; without replay there is nothing beside them."""
    detection = replace(task.plan.detection, seed=task.seed + GOES_ON)
    trainer = Detection(detection, detector, reel.real, FakePool())
    looks = list[dict[str, float]]()
    for fakes, number in task.plan.due:
        if number == task.plan.every:
            trainer.fakes = reel.pool(task.method != "finetune", fakes)
        for _ in range(task.plan.every):
            trainer.update()
        looks.append(_looked(trainer, reel, fakes, fakes * reel.seconds[task.order.new]))
    return looks


def _looked(trainer: Detection, reel: Reel, fakes: int, sampled: float) -> dict[str, float]:
    """A look after so many fakes of the new family, and the clock: seconds of sampling them and of training."""
    spent = {"fakes": fakes, "updates": trainer.counts.updates, "seconds": sampled + trainer.counts.seconds}
    return spent | reel.look(trainer.learner.averaged())


def _untrained(seed: int, detection: DetectionConfig) -> ClipDetector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ClipDetector(size=SIDE // detection.pool)


def _started(task: RunTask) -> ClipDetector:
    """The detector that goes on, of its first training or of self-play."""
    if task.method == "selfplay":
        return load_tiny("rival", task.start).train().requires_grad_(True)
    detector = _untrained(task.seed, task.plan.detection)
    detector.load_state_dict(load_checkpoint(Path(task.start))[0]["weights"])
    return detector


@lru_cache(maxsize=1)
def _stack(weights: str) -> Stack:
    return Stack.load(weights or WEIGHTS)
