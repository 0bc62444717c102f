"""What one worker of `reelgym selfplay` does: make clips, train a held-out detector, fit the scorers, or play a league
and examine who came of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ...agents.detection import Detection, ReplayBuffer, uniform_sampler
from ...agents.league.build import DETECTION, league_of, rival_of
from ...agents.league.config import SIDES, LeagueConfig
from ...agents.league.league import League
from ...agents.league.match import apply_camera
from ...checkpoint import CheckpointError, has_checkpoint, load_checkpoint, save_checkpoint
from ...envs.game_rules import GameRules, ThresholdPolicy
from ...envs.stack import StackSpec
from ...models.classifiers import NetworkDetector
from ...models.detector import ClipDetector
from ...models.scorers import D3, ReStraV
from ...noise import SeedDomain
from ...rewards.windows import chunk_frames
from ...training.loop import fit
from ..evaluate import EvalConfig, evaluate
from ..evaluation.judged import exam_of, judged
from ..evaluation.judges import judge_for
from ..jobs import Job, Result
from ..pretrain.footage import Footage, film
from ..pretrain.own_footage import game_rules
from ..runs import grades_json
from ..systems import as_system
from .dataset import PANEL_SEES, SEEN, Budget, FamilyClips
from .measure import Recordings, detector_of, detector_report, generator_report, responses, standing

_SHOWN = 4
"""Prompts whose clips are kept for pictures."""
_ALONE = (0.0, 1.0, 0.0)
"""Everybody plays the newest."""


@dataclass(frozen=True)
class Variant:
    """One way to play. cost: how long it takes beside the others.   changes: of LeagueConfig."""

    label: str
    cost: float
    changes: Mapping[str, Any] = field(default_factory=dict)


VARIANTS = {
    "league": Variant("league: pools of past selves and exploiters", 4.0),
    "newest": Variant("newest against newest", 3.0, {"mix": _ALONE, "exploit_every": 0}),
    "frozen-detector": Variant("frozen detector", 2.0, {"mix": _ALONE, "exploit_every": 0, "learns": ("generator",)}),
    "frozen-generator": Variant("frozen generator", 2.0, {"mix": _ALONE, "exploit_every": 0, "learns": ("detector",)}),
}


@dataclass(frozen=True)
class SelfPlayTask:
    """One job. kind: "panel", "scorers", or the variant of a league.   seed: of it.   stack, budget: of all jobs.
    folder: of their results, where clips and held-out detectors lie."""

    kind: str
    seed: int
    stack: StackSpec
    budget: Budget
    folder: str

    @property
    def name(self) -> str:
        """Of the job."""
        return f"{self.kind}-{self.seed}"

    @property
    def clips(self) -> FamilyClips:
        """All clips."""
        return FamilyClips.load(self.folder, self.budget)

    def filmed(self) -> Recordings:
        """What nobody learns from."""
        stack = self.stack.load()
        return self.clips.filmed(self.rules, chunk_frames(stack.codec, stack.layout))

    @property
    def rules(self) -> GameRules:
        """Of the game."""
        return game_rules(self.stack.load())

    @property
    def config(self) -> LeagueConfig:
        """How the league of this variant is played."""
        budget, updates = self.budget, self.budget.generator_updates
        config = LeagueConfig(
            generator_updates=updates,
            detector_updates=budget.detector_updates,
            clips=budget.clips,
            exploiter_updates=updates,
            seed=self.seed,
        )
        return replace(config, **VARIANTS[self.kind].changes)


def work(task: Footage | SelfPlayTask) -> Result:
    """Do a task."""
    if isinstance(task, Footage):
        return film(task)
    return {"panel": panel, "scorers": scorers}.get(task.kind, league)(task)


def panel(task: SelfPlayTask) -> Result:
    """A detector that nobody plays against: another network with another seed, on the fakes that leagues begin with and
    two families more."""
    real, fakes = task.clips.train("real")["real"], task.clips.train(*PANEL_SEES)
    torch.manual_seed(SeedDomain.PANEL + task.seed)
    stack = task.stack.load()
    detector, chunk = ClipDetector(48, rival_of(stack).size), chunk_frames(stack.codec, stack.layout)
    config = replace(DETECTION, pool=task.rules.pool, seed=SeedDomain.PANEL + task.seed)
    fit(Detection(config, detector, uniform_sampler(real), ReplayBuffer(fakes), chunk), task.budget.panel_updates)
    return {"weights": detector.state_dict()}, {}


@torch.no_grad()
def scorers(task: SelfPlayTask) -> Result:
    """D3 and ReStraV fitted on the rival's features. JSON: `detector_report` of each, and of the rival as "start"."""
    stack = task.stack.load()
    clips = task.clips.train("real", *SEEN, most=task.budget.fakes)
    frames, rules = chunk_frames(stack.codec, stack.layout), task.rules
    shots = [apply_camera(video.float() / 255, rules, frames, 1, real=False) for video in clips.values()]
    real, *made = (shot.film.flatten(1, 2) / 255 for shot in shots)
    rival = rival_of(stack)
    restrav = ReStraV.fit(rival.features, real, torch.cat(made)[: len(real)])
    fitted = {"d3": D3.fit(rival.features, real), "restrav": restrav}
    whole = {name: NetworkDetector(one, frames * stack.layout.chunks, rival.size) for name, one in fitted.items()}
    players = {name: ThresholdPolicy(detector) for name, detector in whole.items()} | {"start": ThresholdPolicy(rival)}
    filmed = task.filmed()
    return {}, {name: detector_report(player, filmed, rules) for name, player in players.items()}


def league(task: SelfPlayTask) -> Result:
    """Play a league and examine it. Tensors: the newest detector's weights, what the newest generator shows, clips of
    the exam before and after uint8 [shown, F, H, W, 3]; JSON: all that is measured."""
    stack, filmed, (played, told) = task.stack.load(), task.filmed(), play(task)
    panel = [
        detector_of(load_checkpoint(Path(task.folder) / f"panel-{number}")[0]["weights"], rival_of(stack).size)
        for number in range(task.budget.panel)
    ]
    newest = {side: played.newest(side) for side in SIDES}
    exam = exam_of(EvalConfig(task.budget.prompts, 2, long_prompts=0), stack, judge_for(stack))
    generators, media = {}, {}
    for end, name in (("start", "generator-0"), ("end", newest["generator"])):
        system = as_system(stack, played.generator_named(name))
        if exam.rows:
            grades = judged(stack, system, exam, task.seed, long=False, keep=_SHOWN)
        else:
            grades = evaluate(system, exam, task.seed, long=False)
        generators[end] = generator_report(played, name, panel, filmed) | grades_json(grades)
        some = (grades.video[:_SHOWN, 0].clamp(0, 1) * 255).round().to(torch.uint8)
        media[end] = some.movedim(-3, -1).contiguous()
    shown = played.recorded(newest["generator"])
    groups = {
        "media": media,
        "detector": played.members[newest["detector"]].weights,
        "showing": {"film": shown.film, "quality": shown.quality},
    }
    result = {
        "newest": newest,
        "generators": generators,
        "detectors": {"end": detector_report(played.player(newest["detector"]), filmed, task.rules)},
        "league": standing(played),
        "responses": responses(played, filmed, task.budget.response, task.seed),
        "paused": played.paused,
    }
    return groups, result | told


def play(task: SelfPlayTask) -> tuple[League, dict[str, Any]]:
    """All rounds of a league, going on where an interrupted run stopped, unless code, weights or settings are others
    now; and `seconds` and `log` of them."""
    budget, clips = task.budget, task.clips
    fakes = dict(zip(("generator-0", "scripted"), clips.train(*SEEN, most=budget.fakes).values(), strict=True))
    scripted = clips.clips["validation", "scripted"][: budget.streams]
    real = clips.train("real")["real"]
    played = league_of(task.stack.load(), task.config, real, fakes, scripted, streams=budget.streams, rules=task.rules)
    place, digest = Path(task.folder).parent / "leagues" / task.name, Job(task.name, task).digest(work)
    told: dict[str, Any] = {"seconds": 0.0, "log": []}
    if has_checkpoint(place):
        try:
            groups, meta = load_checkpoint(place)
            if meta.get("digest") == digest:
                played.load_state(groups, meta["league"])
                told = meta["told"]
        except CheckpointError as error:
            raise CheckpointError(f"{error}; delete {place} to begin this league anew") from error
    while played.rounds < budget.rounds:
        began = time.monotonic()
        told["log"].append({"round": played.rounds, **played.play_round()})
        told["seconds"] += time.monotonic() - began
        groups, meta = played.state()
        save_checkpoint(place, groups, {"league": meta, "told": told, "digest": digest})
    return played, told
