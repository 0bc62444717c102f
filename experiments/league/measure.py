"""What is measured on a league when it is over: both sides against opponents that nobody trained against, how much a
best response gains, everybody against everybody, and what the oracle says of the clips.

S streams, n chunks a clip, K prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...agents.league.league import SIDES, League
from ...agents.league.match import RecordedClips, apply_camera, detector_logits, resolve_match
from ...agents.league.payoffs import contested, intransitive
from ...agents.league.ratings import rated
from ...checkpoint import load_checkpoint
from ...envs.game_rules import GameRules, ThresholdPolicy
from ...envs.stack import Stack
from ...envs.stream_detect import FAKE
from ...models.detector import ClipDetector
from ..evaluate import as_system, examine
from ..jobs import Result
from ..runs import plain
from ..stats import auc, calibration_error, tpr_at

if TYPE_CHECKING:
    from .runs import Common, LeagueTask

FILM_SEED = 9_000
"""Of the camera that films what is held out: the same for every detector, so that differences are paired."""
OTHER_CAMERA = "webcam"
RESPONSE_SEED = 500_000


def examined(stack: Stack, league: League, task: LeagueTask) -> Result:
    """Tensors: the newest detector's weights, what the newest generator shows, clips; JSON: all that is measured."""
    size = task.common.size
    shots = filmed(task.common, league.game.rules, stack.clock.frames_per_chunk)
    panel = [detector_of(load_checkpoint(folder)[0]["weights"]) for folder in task.panel]
    newest = {side: league.newest(side) for side in SIDES}
    found: dict[str, Any] = {"generators": {}, "newest": newest}
    found["detectors"] = {"end": looks_of(league.player(newest["detector"]), shots, league.game.rules)}
    groups: dict[str, dict[str, Tensor]] = {"media": {}}
    for end, generator in (("start", "generator-0"), ("end", newest["generator"])):
        own, some = generator_report(stack, league, generator, panel, shots["real"], task)
        found["generators"][end], groups["media"][end] = own, some
    found["league"] = standing(league)
    found["responses"] = responses(league, shots["real"], size.response, task.seed)
    groups["detector"] = league.members[newest["detector"]].weights
    shown = league.recorded(newest["generator"])
    groups["showing"] = {"film": shown.film, "quality": shown.quality}
    return groups, found


def filmed(common: Common, rules: GameRules, frames: int) -> dict[str, RecordedClips]:
    """What nobody learns from, through the game's camera: "real", every family of fakes, and the real clips through
    another camera ("other camera")."""
    from .runs import footage

    clips = {family: video for (split, family), video in footage(common).items() if split == "test"}
    shots = {
        family: apply_camera(video.float() / 255, rules, frames, FILM_SEED + place, real=family == "real")
        for place, (family, video) in enumerate(sorted(clips.items()))
    }
    some = clips["real"][: len(clips["real"]) // 4].float() / 255
    again = GameRules(camera=OTHER_CAMERA, pool=rules.pool)
    return shots | {"other camera": apply_camera(some, again, frames, FILM_SEED - 1, real=True)}


def looks_of(judge: ThresholdPolicy, shots: Mapping[str, RecordedClips], rules: GameRules) -> dict[str, Any]:
    """How well a detector tells real from made: AUC after every chunk and detections at 1% false alarms by family,
    the real-versus-real floor, false alarms of its verdicts, chunks that they take, and its calibration."""
    logits = {name: _numpy(detector_logits(judge.detector, showing)) for name, showing in shots.items()}
    real = logits["real"]
    families = [name for name, showing in shots.items() if not showing.real.any()]
    half = len(real) // 2
    verdicts = resolve_match(shots["real"], judge, rules)
    made = np.concatenate([logits[name][:, -1] for name in families])
    balance = real[: len(made), -1]
    probability = 1 / (1 + np.exp(-np.concatenate((balance, made[: len(balance)]))))
    label = np.arange(len(probability)) >= len(balance)
    return {
        "auc": {name: [auc(real[:, k], logits[name][:, k]) for k in range(real.shape[1])] for name in families},
        "tpr": {name: tpr_at(real[:, -1], logits[name][:, -1]) for name in families},
        "floor_same": auc(real[:half, -1], real[half:, -1]),
        "floor_other": auc(real[:, -1], logits["other camera"][:, -1]),
        "false_alarms": float((verdicts.verdict == FAKE).float().mean()),
        "chunks": float(verdicts.shown.float().mean()),
        "calibration_error": calibration_error(probability, label),
        "reals": len(real),
    }


def generator_report(
    stack: Stack, league: League, name: str, panel: Sequence[ClipDetector], real: RecordedClips, task: LeagueTask
) -> tuple[dict[str, Any], Tensor]:
    """How often the panel is fooled by a generator and how well it tells it from real clips, what the quality reward
    and the oracle say of its clips; and some of them, uint8 [shown, F, H, W, 3]."""
    showing = league.recorded(name)
    judges = [ThresholdPolicy(detector, league.config.confidence) for detector in panel]
    won = [resolve_match(showing, judge, league.game.rules) for judge in judges]
    told = [
        auc(
            _numpy(detector_logits(judge.detector, real))[:, -1],
            _numpy(detector_logits(judge.detector, showing))[:, -1],
        )
        for judge in judges
    ]
    grades = examine(as_system(stack, league.generator_named(name)), task.exam, task.seed, long=False)
    quality = showing.quality[:, -1]
    some = (grades.video[: task.shown, 0].clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1).contiguous()
    return {
        "panel_wins": [one.wins / one.games for one in won],
        "panel_auc": told,
        "quality": float(quality.mean()),
        "below_floor": float((quality < league.game.rules.floor).float().mean()),
        **plain(grades),
    }, some


def standing(league: League) -> dict[str, Any]:
    """Everybody against everybody: payoffs, ratings on a scale that the first generator holds in place, and of those
    who learned, how many payoffs are contested, and how often two detectors rank two generators in opposite orders."""
    rows, columns = league.names("generator"), league.names("detector")
    table = league.payoffs.table(rows, columns)
    ratings = rated(league.payoffs, ["generator-0"])
    scripted = [[league.members[name].role == "anchor" for name in names] for names in (rows, columns)]
    own = table[~np.array(scripted[0])][:, ~np.array(scripted[1])]
    return {
        "generators": rows,
        "detectors": columns,
        "payoffs": table.round(4).tolist(),
        "ratings": {name: [rating.mu, rating.sigma] for name, rating in ratings.items()},
        "roles": {name: league.members[name].role for name in (*rows, *columns)},
        "contested": contested(own),
        "intransitive": intransitive(own, MARGIN),
        "pairs": comb(own.shape[0], 2) * comb(own.shape[1], 2),
        "games": min(league.payoffs.games.values()),
    }


MARGIN = 0.2
"""Of a payoff, below which two generators count as alike: more than twice the standard error of the difference of two
independent rates of 64 streams each, .09 at most."""


def responses(league: League, real: RecordedClips, updates: int, seed: int) -> dict[str, float]:
    """What each side gains in the game against the newest opponent by going on against that opponent alone: a lower
    bound of how much it can be exploited."""
    rules = league.game.rules
    generator, detector = (league.newest(side) for side in SIDES)
    judge, showing = league.player(detector), league.recorded(generator)
    some = real.take(torch.arange(len(real.real)) < len(showing.real))
    at_rest = resolve_match(showing, judge, rules).returns[:, 0].mean()
    better = league.generator_against([detector], updates, generator, RESPONSE_SEED + seed)
    improved = resolve_match(league.record(better), judge, rules)
    clips = league.make_clips(league.generator_named(generator), 4 * league.config.clips, RESPONSE_SEED + seed)
    sharper = ThresholdPolicy(
        league.detector_against(clips, 10 * updates, detector, RESPONSE_SEED + seed), judge.confidence
    )
    wins = resolve_match(showing, judge, rules)
    return {
        "generator": float(improved.returns[:, 0].mean() - at_rest),
        "generator_wins": improved.wins / improved.games - wins.wins / wins.games,
        "detector": _earned(sharper, showing, some, rules) - _earned(judge, showing, some, rules),
        "detector_auc": auc(*(_numpy(detector_logits(sharper.detector, one))[:, -1] for one in (real, showing))),
        "auc": auc(*(_numpy(detector_logits(judge.detector, one))[:, -1] for one in (real, showing))),
    }


def _earned(judge: ThresholdPolicy, made: RecordedClips, real: RecordedClips, rules: GameRules) -> float:
    """Of a detector, half of whose streams are real."""
    return float(sum(resolve_match(one, judge, rules).returns[:, 1].mean() for one in (made, real)) / 2)


def across(
    showings: Sequence[RecordedClips], detectors: Sequence[ThresholdPolicy], rules: GameRules
) -> NDArray[np.float64]:
    """Share of streams that every generator wins against every detector [G, D]."""
    table = [[resolve_match(showing, judge, rules) for judge in detectors] for showing in showings]
    return np.array([[one.wins / one.games for one in row] for row in table])


def detector_of(weights: Mapping[str, Tensor]) -> ClipDetector:
    """A frozen detector with these weights."""
    detector = ClipDetector(width=weights["frame.weight"].shape[0])
    detector.load_state_dict(weights)
    return detector.requires_grad_(False)


def _numpy(values: Tensor) -> NDArray[np.float64]:
    found: NDArray[np.float64] = values.double().numpy()
    return found
