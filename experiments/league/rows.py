"""From the runs of `reelgym selfplay` to the rows of results.json. S seeds, F families, K prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..stats import mean_interval, paired_difference
from ..tables import Row
from .dataset import SEEN, UNSEEN

_Runs = Sequence[Mapping[str, Any]]
"""The results of one arm, one a seed."""
START = "start"


def all_rows(
    found: Mapping[str, _Runs], seeds: Sequence[int], cross: Sequence[Row], scorers: Mapping[str, Any]
) -> list[Row]:
    """Rows of kind "detector", "generator" and "game" (means with intervals over seeds and families, detectors or
    prompts), "contrast", "family", "rating", "payoff", "run" and, as given, "across"."""
    first = next(iter(found.values()))
    rows = [_detector_row(START, first, "start"), *(_detector_row(arm, runs, "end") for arm, runs in found.items())]
    rows += [_detector_row(name, [{"detectors": {"end": report}}], "end") for name, report in scorers.items()]
    rows += [_generator_row(START, first, "start"), *(_generator_row(arm, runs, "end") for arm, runs in found.items())]
    rows += [_game_row(arm, runs) for arm, runs in found.items()]
    for arm, runs in found.items():
        rows += [_contrast(name, arm, START, runs, "start", runs) for name in QUESTIONS]
    for arm in [name for name in found if name != "league" and "league" in found]:
        rows += [_contrast(name, "league", arm, found["league"], "end", found[arm]) for name in QUESTIONS]
    for arm, runs in ((START, first), *found.items()):
        rows += _family_rows(arm, runs, "start" if arm == START else "end")
    for arm, runs in found.items():
        for seed, run in zip(seeds, runs, strict=True):
            rows += _standing_rows(arm, seed, run["league"])
            rows.append({"kind": "run", "arm": arm, "seed": seed, "seconds": run["seconds"], **run["responses"]})
    return [*rows, *cross]


def _read(runs: _Runs, side: str, end: str, read: Callable[[Any], Any]) -> NDArray[np.float64]:
    """A number, or a row of them, of every run's report [S, ...]."""
    return np.array([read(run[side][end]) for run in runs], dtype=np.float64)


def _whole(families: Sequence[str]) -> Callable[[Any], Any]:
    """A detector's AUC on whole clips, by family."""
    return lambda report: [report["auc"][name][-1] for name in families if name in report["auc"]]


QUESTIONS: dict[str, tuple[str, str, Callable[[Any], Any], bool]] = {
    "detector": ("detector: AUC on unseen families", "detectors", _whole(UNSEEN), True),
    "fooled": (
        "generator: AUC of held-out detectors on its clips (lower is better)",
        "generators",
        itemgetter("panel_auc"),
        False,
    ),
    "oracle": ("generator: oracle total", "generators", lambda report: report["scores"]["total"], True),
}
"""What is asked: in words, of whose report, what of it (by family, held-out detector or prompt), and whether higher is
better."""


def answers(question: str, runs: _Runs, end: str) -> NDArray[np.float64]:
    """[S, families, held-out detectors or prompts]."""
    _, side, read, _ = QUESTIONS[question]
    return _read(runs, side, end, read)


def _means(runs: _Runs, side: str, end: str, *keys: str) -> Row:
    return {key: float(_read(runs, side, end, itemgetter(key)).mean()) for key in keys}


def _detector_row(arm: str, runs: _Runs, end: str) -> Row:
    row: Row = {"kind": "detector", "arm": arm, "seeds": len(runs)}
    row |= mean_interval(answers("detector", runs, end)).cells("unseen")
    row["seen"] = float(_read(runs, "detectors", end, _whole(SEEN)).mean())
    there = [name for name in UNSEEN if name in runs[0]["detectors"][end]["tpr"]]
    row["tpr"] = float(_read(runs, "detectors", end, lambda report: [report["tpr"][name] for name in there]).mean())
    keys = ("false_alarms", "chunks", "calibration_error", "floor_same", "floor_other", "reals")
    return row | _means(runs, "detectors", end, *keys)


def _generator_row(arm: str, runs: _Runs, end: str) -> Row:
    row: Row = {"kind": "generator", "arm": arm, "seeds": len(runs)}
    row |= mean_interval(answers("fooled", runs, end)).cells("panel_auc")
    row |= mean_interval(answers("oracle", runs, end)).cells("total")
    axes = [axis for axis in ("VQ", "MQ", "TA") if axis in runs[0]["generators"][end]["scores"]]
    row |= {axis: float(np.mean([run["generators"][end]["scores"][axis] for run in runs])) for axis in axes}
    return row | _means(runs, "generators", end, "panel_wins", "diversity", "quality", "below_floor")


def _game_row(arm: str, runs: _Runs) -> Row:
    def mean(part: str, key: str) -> float:
        return float(np.mean([run[part][key] for run in runs]))

    def rise(run: Mapping[str, Any], side: str) -> float:
        ratings = run["league"]["ratings"]
        return float(ratings[run["newest"][side]][0] - ratings[f"{side}-0"][0])

    row: Row = {"kind": "game", "arm": arm, "seeds": len(runs), "contested": mean("league", "contested")}
    row["least_contested"] = min(run["league"]["contested"] for run in runs)
    row |= {key: mean("league", key) for key in ("intransitive", "pairs")}
    for side in ("generator", "detector"):
        row |= mean_interval([[run["responses"][side]] for run in runs]).cells(f"response_{side}")
        row[f"rise_{side}"] = float(np.mean([rise(run, side) for run in runs]))
        row[f"paused_{side}"] = mean("paused", side)
    row |= {"response_auc": mean("responses", "detector_auc"), "auc": mean("responses", "auc")}
    return row | {"seconds": float(np.mean([run["seconds"] for run in runs]))}


FLIPPED = {"yes": "no", "no": "yes", "unclear": "unclear"}


def _contrast(name: str, arm: str, against: str, ours: _Runs, other_end: str, theirs: _Runs) -> Row:
    """The paired difference of one question's measure, and whether `arm` is better; of a single cell nobody can say."""
    difference = paired_difference(answers(name, ours, "end"), answers(name, theirs, other_end))
    verdict = difference.verdict if difference.low < difference.high else "unclear"
    better = verdict if QUESTIONS[name][-1] else FLIPPED[verdict]
    row: Row = {"kind": "contrast", "question": name, "arm": arm, "against": against, "better": better}
    return row | difference.cells("difference")


def _family_rows(arm: str, runs: _Runs, end: str) -> list[Row]:
    def row(name: str) -> Row:
        curve = _read(runs, "detectors", end, lambda report: report["auc"][name]).mean(0)
        tpr = float(_read(runs, "detectors", end, lambda report: report["tpr"][name]).mean())
        after = {f"auc_{chunks}": float(value) for chunks, value in enumerate(curve, 1)}
        return {"kind": "family", "arm": arm, "family": name, "tpr": tpr, **after}

    return [row(name) for name in (*SEEN, *UNSEEN) if name in runs[0]["detectors"][end]["auc"]]


def _standing_rows(arm: str, seed: int, league: Mapping[str, Any]) -> list[Row]:
    whose: Row = {"arm": arm, "seed": seed}
    ratings = league["ratings"].items()
    rows = [
        {"kind": "rating", **whose, "name": name, "role": league["roles"][name], "mu": mu, "sigma": sigma}
        for name, (mu, sigma) in ratings
    ]
    return rows + [
        {"kind": "payoff", **whose, "generator": generator, "detector": detector, "payoff": payoff}
        for generator, payoffs in zip(league["generators"], league["payoffs"], strict=True)
        for detector, payoff in zip(league["detectors"], payoffs, strict=True)
    ]
