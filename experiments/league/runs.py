"""What one worker of `reelgym selfplay` does: train a held-out detector, or play a league and examine who came of it.

M clips, F frames, f frames a chunk, n chunks a clip, H x W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...agents.detection import Detection, DetectionConfig, FakePool, drawn
from ...agents.finetune import FineTune
from ...agents.finetune_recipes import FINETUNE
from ...agents.league.league import League, LeagueConfig
from ...agents.league.match import apply_camera
from ...agents.league.reward import OpponentReward
from ...checkpoint import CheckpointError, has_checkpoint, load_checkpoint, save_checkpoint
from ...envs.detect_bank import HELD_OUT, Source
from ...envs.game_rules import GameRules, ThresholdPolicy
from ...envs.prompt_source import world_prompts
from ...envs.self_play import SelfPlayGame
from ...envs.stack import Stack
from ...envs.stream_gen import StreamGenVectorEnv
from ...envs.worlds.grammar import GRAMMARS, sample_scripts
from ...models.classifiers import NetworkDetector
from ...models.detector import ClipDetector
from ...models.generator import Generator
from ...models.scorers import D3, ReStraV
from ...models.tiny import CHUNKS, WEIGHTS, load_tiny
from ...rewards.stream_reward import StreamReward
from ...rewards.windows import TINY
from ...training.learner import LearnerConfig
from ...training.loop import fit
from ...training.state import plain
from ..evaluate import Exam
from ..jobs import Result
from . import measure

ALONE = (0.0, 1.0, 0.0)
"""Everybody plays the newest."""


@dataclass(frozen=True)
class Arm:
    """One way to play. changes: of LeagueConfig."""

    label: str
    changes: Mapping[str, Any] = field(default_factory=dict)


ARMS = {
    "league": Arm("league: pools of past selves and exploiters"),
    "newest": Arm("newest against newest", {"mix": ALONE, "exploit_every": 0}),
    "frozen-detector": Arm("frozen detector", {"mix": ALONE, "exploit_every": 0, "learns": ("generator",)}),
    "frozen-generator": Arm("frozen generator", {"mix": ALONE, "exploit_every": 0, "learns": ("detector",)}),
}
RULES = GameRules(floor=-1.0)
SEEN = ("student", "scripted")
"""Families of fakes that every league's detector begins with."""
UNSEEN = ("student-2", "student-1", "teacher", *HELD_OUT)
"""Families that no league learns from."""
PANEL_SEES = (*SEEN, "student-2", "student-1")
"""What held-out detectors learn from."""
LEARNS = DetectionConfig(learner=LearnerConfig(learning_rate=2e-3), camera=RULES.camera, pool=RULES.pool)


@dataclass(frozen=True)
class Size:
    """How much is played and measured."""

    rounds: int = 6
    generator_updates: int = 4
    detector_updates: int = 40
    clips: int = 48
    """Of the newest generator that join the pool in a round."""
    streams: int = 64
    """Of a match."""
    reals: int = 1024
    """Real clips that detectors learn from."""
    fakes: int = 512
    """Of each family that detectors begin with."""
    heldout_reals: int = 2048
    heldout_fakes: int = 128
    """Of each family."""
    panel: int = 4
    """Detectors trained apart, that nobody plays against."""
    panel_updates: int = 400
    response: int = 8
    """Updates of a generator's best response; a detector's takes ten times as many."""
    prompts: int = 24
    """Test prompts of the oracle's exam, two clips each."""


@dataclass(frozen=True)
class Common:
    """What every job is told. footage: folders of the jobs that made the clips. weights: of the pretrained stack.
    made_from: hash of code and weights."""

    size: Size
    footage: tuple[str, ...]
    weights: str
    made_from: str


@dataclass(frozen=True)
class PanelTask:
    """Train a detector that nobody plays against."""

    seed: int
    common: Common


@dataclass(frozen=True)
class LeagueTask:
    """Play one league. place: folder of its checkpoint, which every round replaces."""

    arm: str
    seed: int
    exam: Exam
    place: str
    common: Common
    panel: tuple[str, ...] = ()
    """Folders of the panel's jobs."""
    shown: int = 0
    """Prompts whose clips are kept for pictures."""


@dataclass(frozen=True)
class ScorersTask:
    """Fit D3 and ReStraV on the shipped rival's features, and examine them and the rival."""

    common: Common


def work(task: PanelTask | ScorersTask | LeagueTask) -> Result:
    """Do a task."""
    if isinstance(task, LeagueTask):
        return league(task)
    return panel(task) if isinstance(task, PanelTask) else scorers(task)


def panel(task: PanelTask) -> Result:
    """Another network with another seed, on the fakes that leagues begin with and two families more."""
    size, clips = task.common.size, footage(task.common)
    pool = FakePool()
    for family in PANEL_SEES:
        pool.families[family] = clips["train", family]
    torch.manual_seed(PANEL_SEED + task.seed)
    detector = ClipDetector(width=48)
    config = replace(LEARNS, seed=PANEL_SEED + task.seed)
    fit(Detection(config, detector, drawn(clips["train", "real"]), pool), size.panel_updates)
    return {"weights": detector.state_dict()}, {}


PANEL_SEED = 5_000


@torch.no_grad()
def scorers(task: ScorersTask) -> Result:
    """JSON: what `measure.looks_of` finds of each by name, and of the shipped rival as "start"."""
    clips, frames = footage(task.common), TINY.frames_per_chunk
    some = slice(0, task.common.size.fakes)
    shots = [apply_camera(_clips(clips, family)[some], RULES, frames, 1, real=False) for family in ("real", *SEEN)]
    real, *made = (shot.film.flatten(1, 2) / 255 for shot in shots)
    features = rival(task.common).features
    fitted = {"d3": D3.fit(features, real), "restrav": ReStraV.fit(features, real, torch.cat(made)[: len(real)])}
    seen = measure.filmed(task.common, RULES, frames)
    judges = {
        name: ThresholdPolicy(NetworkDetector(one, TINY.clip_frames, ClipDetector().size))
        for name, one in fitted.items()
    }
    judges["start"] = ThresholdPolicy(rival(task.common))
    return {}, {name: measure.looks_of(judge, seen, RULES) for name, judge in judges.items()}


def league(task: LeagueTask) -> Result:
    """Play all rounds, going on where an interrupted run stopped, unless code, weights or size are others now; then
    measure."""
    stack = _stack(task.common.weights)
    played, place = build(stack, task), Path(task.place)
    spent, log = 0.0, list[dict[str, float]]()
    made_from = [task.common.made_from, plain(asdict(task.common.size))]
    if has_checkpoint(place):
        try:
            groups, meta = load_checkpoint(place)
            if meta.get("made_from") == made_from:
                played.load_state(groups, meta["league"])
                spent, log = meta["seconds"], meta["log"]
        except CheckpointError as error:
            raise CheckpointError(f"{error}; delete {place} to begin this league anew") from error
    while played.rounds < task.common.size.rounds:
        began = time.monotonic()
        log.append({"round": played.rounds, **played.play_round()})
        spent += time.monotonic() - began
        groups, meta = played.state()
        save_checkpoint(place, groups, {"league": meta, "seconds": spent, "log": log, "made_from": made_from})
    groups, result = measure.examined(stack, played, task)
    return groups, {**result, "seconds": spent, "log": log, "paused": played.paused}


def build(stack: Stack, task: LeagueTask) -> League:
    """A league of the shipped student and the shipped rival, before its first round."""
    size, clips = task.common.size, footage(task.common)
    frames = stack.clock.frames_per_chunk
    judged = OpponentReward(stack.reward.model, RULES)
    recipe = replace(FINETUNE["reward"], seed=task.seed)
    env = StreamGenVectorEnv(
        recipe.prompts * recipe.group, stack.codec, StreamReward(judged), stack.prompts(), clock=stack.clock
    )
    fakes = FakePool({name: clips["train", family][: size.fakes] for name, family in zip(BEGIN, SEEN, strict=True)})
    first = rival(task.common).requires_grad_(True).train()
    detector = Detection(replace(LEARNS, seed=task.seed), first, drawn(clips["train", "real"]), fakes)
    prompts = world_prompts(stack.encoder, stack.clock.chunks, stack.grammar, "validation")
    game = SelfPlayGame(
        size.streams,
        stack.codec,
        stack.reward,
        prompts,
        truth=_nothing,
        rules=replace(RULES, share=0.0),
        clock=stack.clock,
    )
    shown = apply_camera(_clips(clips, "scripted", "validation")[: size.streams], RULES, frames, 0, real=False)
    real = apply_camera(_clips(clips, "real")[: size.fakes], RULES, frames, 1, real=True).film.flatten(1, 2) / 255
    d3 = NetworkDetector(D3.fit(rival(task.common).features, real, D3_ALARMS), stack.clock.clip_frames, first.size)
    config = LeagueConfig(
        generator_updates=size.generator_updates,
        detector_updates=size.detector_updates,
        clips=size.clips,
        exploiter_updates=size.generator_updates,
        seed=task.seed,
    )
    return League(
        replace(config, **ARMS[task.arm].changes),
        FineTune(recipe, stack.student(), env, stack.prompts()),
        detector,
        judged,
        game,
        clip_maker(stack),
        policies={"d3": ThresholdPolicy(d3, PATIENT)},
        recordings={"scripted": shown},
    )


BEGIN = ("generator-0", "scripted")
"""What the families that a detector begins with are called in a league."""


D3_ALARMS = 0.2
"""Real clips that the scripted detector of a league takes for made."""
PATIENT = float("inf")
"""Confidence of who decides at the end."""


def rival(common: Common) -> ClipDetector:
    """The detector that every league begins with."""
    return load_tiny("rival", Path(common.weights or WEIGHTS) / "rival").requires_grad_(False)


def clip_maker(stack: Stack) -> Callable[[Generator, int, int], Tensor]:
    """Clips [M, F, 3, H, W] in [0, 1] of a generator, of training scripts that a seed draws."""

    def make(generator: Generator, count: int, seed: int) -> Tensor:
        scripts = sample_scripts(count, split="train", seed=seed, grammar=GRAMMARS[stack.grammar])
        return Source(generator, stack.codec, stack.encoder, stack.grammar)(scripts, CHUNKS, seed)

    return make


@lru_cache(maxsize=1)
def footage(common: Common) -> dict[tuple[str, str], Tensor]:
    """Clips uint8 [M, F, 3, H, W] by split and family."""
    found: dict[tuple[str, str], list[Tensor]] = {}
    for place in common.footage:
        groups, meta = load_checkpoint(place)
        made = meta["config"]
        found.setdefault((made["split"], made["family"]), []).append(groups["clips"]["video"])
    return {key: torch.cat(parts) for key, parts in found.items()}


def _clips(clips: Mapping[tuple[str, str], Tensor], family: str, split: str = "train") -> Tensor:
    return clips[split, family].float() / 255


def _nothing(scripts: Any, seed: int) -> Tensor:
    """True clips of a game in which every stream is made."""
    return torch.zeros(len(scripts), TINY.clip_frames, 3, 32, 32)


@lru_cache(maxsize=1)
def _stack(weights: str) -> Stack:
    return Stack.load(weights or "tiny")
