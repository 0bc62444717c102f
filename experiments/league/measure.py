"""What is measured on a league when it is over: both sides against opponents that nobody trained against, how much a
best response gains, everybody against everybody, and what the oracle says of the clips.

S streams, n chunks a clip, K prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...agents.league.config import SIDES
from ...agents.league.league import League
from ...agents.league.match import detector_logits, resolve_match
from ...agents.league.payoffs import contested, intransitive
from ...agents.league.ratings import rated
from ...envs.game_rules import GameRules, ThresholdPolicy
from ...envs.self_play import RecordedClips
from ...envs.stream_detect import FAKE
from ...models.detector import ClipDetector, Detector
from ...noise import SeedDomain
from ..stats import auc, calibration_error, tpr_at

Recordings = Mapping[str, RecordedClips]
"""What `FamilyClips.filmed` gives."""
_MARGIN = 0.2
"""Of a payoff, below which two generators count as alike: more than twice the standard error of the difference of two
independent rates of 64 streams each, .09 at most."""


def detector_report(player: ThresholdPolicy, clips: Recordings, rules: GameRules) -> dict[str, Any]:
    """How well a detector tells real from made: AUC after every chunk and detections at 1% false alarms by family,
    the real-versus-real floor, false alarms of its verdicts, chunks that they take, and its calibration."""
    logits = {name: _logits(player.detector, recorded) for name, recorded in clips.items()}
    real, families = logits["real"], [name for name, recorded in clips.items() if not recorded.real.any()]
    half = len(real) // 2
    verdicts = resolve_match(clips["real"], player, rules)
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


def generator_report(league: League, name: str, panel: Sequence[ClipDetector], clips: Recordings) -> dict[str, Any]:
    """How often the panel is fooled by a generator, how well it tells it from real clips, and what the quality reward
    says of its clips."""
    own = league.recorded(name)
    quality = own.quality[:, -1]
    players = [ThresholdPolicy(detector, league.config.confidence) for detector in panel]
    return {
        "panel_wins": [_win_rate(own, player, league.game.rules) for player in players],
        "panel_auc": [_last_auc(detector, clips["real"], own) for detector in panel],
        "quality": float(quality.mean()),
        "below_floor": float((quality < league.game.rules.floor).float().mean()),
    }


def standing(league: League) -> dict[str, Any]:
    """Everybody against everybody: payoffs, ratings on a scale that the first generator holds in place, and of those
    who learned, how many payoffs are contested, and how often two detectors rank two generators in opposite orders."""
    rows, columns = league.names("generator"), league.names("detector")
    table = league.payoffs.table(rows, columns)
    scripted = [[league.members[name].role == "anchor" for name in names] for names in (rows, columns)]
    own = table[~np.array(scripted[0])][:, ~np.array(scripted[1])]
    return {
        "generators": rows,
        "detectors": columns,
        "payoffs": table.round(4).tolist(),
        "ratings": {name: [one.mu, one.sigma] for name, one in rated(league.payoffs, ["generator-0"]).items()},
        "roles": {name: league.members[name].role for name in (*rows, *columns)},
        "contested": contested(own),
        "intransitive": intransitive(own, _MARGIN),
        "pairs": comb(own.shape[0], 2) * comb(own.shape[1], 2),
        "games": min(league.payoffs.games.values()),
    }


def responses(league: League, clips: Recordings, updates: int, seed: int) -> dict[str, float]:
    """What each side gains in the game against the newest opponent by going on against that opponent alone: a lower
    bound of how much it can be exploited."""
    rules, seed = league.game.rules, SeedDomain.BEST_RESPONSES + seed
    generator, detector = (league.newest(side) for side in SIDES)
    player, own, real = league.player(detector), league.recorded(generator), clips["real"]
    some = real.take(torch.arange(min(len(own.real), len(real.real))))
    better = league.record(league.generator_against([detector], updates, generator, seed))
    fakes = league.make_clips(league.generator_named(generator), 4 * league.config.clips, seed)
    sharper = ThresholdPolicy(league.detector_against(fakes, 10 * updates, detector, seed), player.confidence)
    before, after = (resolve_match(one, player, rules).returns[:, 0].mean() for one in (own, better))
    return {
        "generator": float(after - before),
        "generator_wins": _win_rate(better, player, rules) - _win_rate(own, player, rules),
        "detector": _earned(sharper, own, some, rules) - _earned(player, own, some, rules),
        "detector_auc": _last_auc(sharper.detector, real, own),
        "auc": _last_auc(player.detector, real, own),
    }


def across(
    generators: Sequence[RecordedClips], detectors: Sequence[ThresholdPolicy], rules: GameRules
) -> NDArray[np.float64]:
    """Share of streams that every generator wins against every detector [G, D]."""
    return np.array([[_win_rate(clips, player, rules) for player in detectors] for clips in generators])


def detector_of(weights: Mapping[str, Tensor], size: int | Sequence[int] = 16) -> ClipDetector:
    """A frozen detector with these weights, of frames of this size."""
    detector = ClipDetector(weights["frame.weight"].shape[0], size)
    detector.load_state_dict(weights)
    return detector.requires_grad_(False)


def _win_rate(made: RecordedClips, player: ThresholdPolicy, rules: GameRules) -> float:
    """Of a generator."""
    came = resolve_match(made, player, rules)
    return came.wins / came.games


def _earned(player: ThresholdPolicy, made: RecordedClips, real: RecordedClips, rules: GameRules) -> float:
    """Of a detector, half of whose streams are real."""
    return float(sum(resolve_match(one, player, rules).returns[:, 1].mean() for one in (made, real)) / 2)


def _last_auc(detector: Detector, real: RecordedClips, made: RecordedClips) -> float:
    """After the last chunk."""
    return auc(*(_logits(detector, clips)[:, -1] for clips in (real, made)))


def _logits(detector: Detector, clips: RecordedClips) -> NDArray[np.float64]:
    logits: NDArray[np.float64] = detector_logits(detector, clips).double().numpy()
    return logits
