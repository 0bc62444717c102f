"""From the results of single jobs to the flat rows of results.json. S seeds, P prompts, Q long streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .evaluate import AXES, EvalConfig, texts_of
from .presets import ABLATION, METHODS, label_of
from .stats import iqm, mean_interval, paired_difference, probability_of_improvement, sign_test
from .systems import REFERENCES
from .tables import Row

COUNTS = ("updates", "chunks", "generator_calls", "teacher_calls", "critic_calls", "reference_calls", "reward_calls")
_Results = Sequence[Mapping[str, Any]]
"""Of a row of the table, one per seed."""
_Runs = Mapping[str, _Results]
"""Results by row."""
PREREGISTERED = (
    ("stream-r1", "dmd"),
    ("forward", "start"),
    ("reward", "start"),
    ("dmd", "start"),
    ("dmd&reward", "dmd"),
    ("dmd&reward", "reward"),
    ("dmd&reward", "four-steps"),
)
"""Questions asked before the run."""
EXPLORATORY = (
    *((name, "start") for name in METHODS),
    ("forward", "raven"),
    ("forward", "dmd"),
    ("reward", "stream-r1"),
    ("dmd+forward", "forward"),
    ("stream-r1+reward", "reward"),
    ("consistency&reward", "consistency"),
    ("consistency&reward", "reward"),
    ("dmd", "consistency"),
    ("dmd&forward", "dmd"),
    ("dmd&forward", "forward"),
    ("dmd&reward", "reward+dmd"),
    *((name, "dmd") for name in ABLATION if name != "stream-r1"),
)
"""Others whose answers are shown."""


def table_rows(runs: _Runs) -> list[Row]:
    """One row per method, then one per contrast, one per method and edge slice, and one per run."""
    whole = runs["truth" if "truth" in runs else "start"]
    methods = [method_row(name, results, whole) for name, results in runs.items()]
    contrasts = [contrast_row(ours, theirs, runs) for ours, theirs in questions(runs)]
    edges = [row for name, results in runs.items() for row in slice_rows(name, results)]
    return [*methods, *contrasts, *edges, *(run_row(name, one) for name, results in runs.items() for one in results)]


def questions(runs: _Runs) -> list[tuple[str, str]]:
    """The declared ones, the described ones, and the best trained row against the next, as far as their rows are there.

    The last is chosen by the scores themselves, which makes a difference look surer than it is.
    """
    trained = sorted((name for name in runs if name not in REFERENCES), key=lambda name: -scores(runs[name]).mean())
    added = [(name, "start") for name in runs if name not in REFERENCES | METHODS]
    full = [(name, "four-steps") for name in trained]
    asked = dict.fromkeys((*PREREGISTERED, *EXPLORATORY, *added, *full, *pairwise(trained[:2])))
    return [(ours, theirs) for ours, theirs in asked if ours in runs and theirs in runs]


def method_row(name: str, results: _Results, truth: _Results) -> Row:
    """Means over seeds and prompts, the total with its interval, diversity relative to the truth's."""
    row = {"kind": "method", "method": name, "label": label_of(name), "seeds": len(results)}
    row |= _axes([result["scores"] for result in results]) | {"iqm": iqm(scores(results))}
    row |= {key: _mean(results, key) for key in results[0] if key.startswith(("late", "drift"))}
    prompts = len(results[0]["diversity"])  # the teacher is examined on fewer
    row["diversity"] = _ratio(_mean(results, "diversity"), _mean(truth, "diversity", prompts))
    row |= spent(results)
    if results[0].get("first_chunk") is not None:
        row |= {"steps": results[0]["steps"], "first_chunk": 1000 * min(result["first_chunk"] for result in results)}
    return row | {"fps": float(np.mean([result["fps"] for result in results])) if name != "truth" else None}


def spent(results: _Results) -> Row:
    """What one training took: counts, seconds and learning rate, means over seeds; nothing for what is not trained."""
    if not results or "counts" not in results[0]:
        return {}
    counts = {key: float(np.mean([result["counts"][key] for result in results])) for key in COUNTS}
    counts["seconds"] = float(
        np.mean([one["counts"].get("cpu_seconds") or one["counts"]["seconds"] for one in results])
    )
    return {**counts, "learning_rate": results[0]["learning_rate"]}


def contrast_row(ours: str, theirs: str, runs: _Runs) -> Row:
    """The paired difference of oracle totals of two rows of the table."""
    a, b = scores(runs[ours]), scores(runs[theirs])
    difference, declared = paired_difference(a, b), (ours, theirs) in PREREGISTERED
    against = "start" if theirs == "start" else label_of(theirs)
    row: Row = {"kind": "contrast", "ours": ours, "theirs": theirs}
    row["label"] = f"{label_of(ours)} - {against}" + (" *" if declared else "")
    row["question"] = f"{label_of(ours)} above {'the start' if theirs == 'start' else against}:"
    row |= {"declared": declared, "difference": difference.mean, "low": difference.low, "high": difference.high}
    verdict = difference.verdict if a.size > 1 else "unclear"  # one number tells nothing apart
    row |= {"verdict": verdict, "improvement": probability_of_improvement(a, b)}
    row["diversity_ratio"] = _ratio(_mean(runs[ours], "diversity"), _mean(runs[theirs], "diversity"))
    return row | {"sign_p": sign_test((a - b).mean(axis=1))}


def slice_rows(name: str, results: _Results) -> list[Row]:
    """Per edge slice the means over seeds and prompts, the total with its interval; none where none was examined."""
    rows: list[Row] = []
    for edge in results[0].get("slices", ()):
        found = [result["slices"][edge] for result in results]
        row: Row = {"kind": "slice", "method": name, "label": label_of(name), "slice": edge, "seeds": len(results)}
        rows.append(row | {"prompts": len(found[0]["total"])} | _axes(found))
    return rows


def run_row(name: str, result: Mapping[str, Any]) -> Row:
    """One seed of one row of the table."""
    row: Row = {"kind": "run", "method": name, "seed": result["seed"]}
    row |= {axis_key(axis): float(np.mean(found)) for axis, found in result["scores"].items()}
    row |= {key: _mean([result], key) for key in ("late", "drift", "diversity")}
    return row | {"fps": result["fps"]} | spent([result])


def curve_rows(name: str, result: Mapping[str, Any]) -> list[Row]:
    """The learning curve of one run; share: of its updates. Scores of prompts become one string, for rows are flat."""
    last = max(1, *(point["update"] for point in result["curve"]))
    start: Row = {"kind": "curve", "method": name, "seed": result["seed"]}
    rows: list[Row] = [{**start, "share": round(point["update"] / last, 4), **point} for point in result["curve"]]
    return [row | {"scores": " ".join(f"{x:.4f}" for x in row["scores"])} if "scores" in row else row for row in rows]


def clip_rows(exam: EvalConfig, shown: int) -> list[Row]:
    """Which prompts the report's pictures belong to."""
    prompts, most = exam.texts()[:shown], (shown + 1) // 2
    streams = exam.texts()[: min(most, exam.long_prompts)] if exam.rows else []
    if not (exam.rows or exam.world):
        streams = texts_of(exam.long_scripts()[:most])
    pictures = [("clips", prompts), ("long", streams), ("map", prompts)]
    return [{"kind": "clip", "of": of, "prompt": prompt} for of, texts in pictures for prompt in texts]


def axis_key(axis: str) -> str:
    """What an axis is called in a row: the oracle's by their names, those of other judges apart from all else."""
    return axis.lower() if axis in AXES else f"axis/{axis}"


def score_lines(runs: _Runs, exam: EvalConfig) -> list[str]:
    """Scores by clip as lines of CSV: method, seed, prompt and clip by their places, and every axis."""
    named = {name: results for name, results in runs.items() if results and results[0].get("by_clip")}
    axes = list(next(iter(named.values()))[0]["by_clip"]) if named else []
    lines = [",".join(["method", "seed", "prompt", "clip", *axes])]
    for name, results in named.items():
        for result in results:
            each = 1 if len(result["by_clip"][axes[0]]) == len(result["scores"][axes[0]]) else exam.clips
            columns = zip(*(result["by_clip"][axis] for axis in axes), strict=True)
            for place, found in enumerate(columns):
                where = (name, result["seed"], place // each, place % each)
                lines.append(",".join(map(str, (*where, *found))))
    return lines


def scores(results: _Results, axis: str = "total") -> NDArray[np.float64]:
    """Scores [S, P] of one axis."""
    return np.array([result["scores"][axis] for result in results], dtype=np.float64)


def _axes(found: Sequence[Mapping[str, Any]]) -> Row:
    """The mean of every axis, and the total's interval, of one score per axis and prompt for each seed."""
    total = mean_interval([score["total"] for score in found])
    means = {axis_key(axis): float(np.mean([score[axis] for score in found])) for axis in found[0]}
    return means | {"low": total.low, "high": total.high}


def _mean(results: _Results, key: str, first: int | None = None) -> float | None:
    values = np.array([result[key][:first] if first else result[key] for result in results], dtype=np.float64)
    return float(values.mean()) if values.size and np.isfinite(values).all() else None


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours is not None and theirs else None
