"""The map of RL against distillation: what leads after how much training, for students of how many steps.

It is drawn from results of `reelgym compare`, one for each number of steps: a rung. Rows of kind "curve" say where a
run stood after so many seconds of training; between them it goes straight, after them it stays where it was. S seeds, P
validation prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .evaluation.time_to_target import Times, span_cells, span_of, time_shown
from .plots import curve_lines, line_chart, stacked_svg
from .presets import kind_of, label_of
from .stats import mean_interval, paired_difference
from .tables import NOTHING, Column, Row, interval, legend, made_by, markdown_table, number, rows_of

MAP_PICTURE = "comparison-map.svg"
_FULL = "four-steps"
"""The row of an untrained student of four steps, on rungs of fewer."""
_GRID = (15, 30, 60, 120, 240, 480)
"""Seconds of training: the rows of the map."""
_WIDTH = 400
_STYLES = {"distillation": "dashed", "both": "dotted"}


@dataclass(frozen=True)
class Curve:
    """Where the S runs of one method stood: seconds [N] and scores [N, P] of each."""

    method: str
    label: str
    seconds: Sequence[NDArray[np.float64]]
    scores: Sequence[NDArray[np.float64]]

    @property
    def kind(self) -> str:
        """What the method learns from, as `kind_of` has it."""
        return kind_of(self.method)

    @property
    def ends(self) -> NDArray[np.float64]:
        """Seconds [S] that the runs took."""
        return np.array([times[-1] for times in self.seconds])

    def at(self, seconds: ArrayLike) -> NDArray[np.float64]:
        """Scores [S, P] after so many seconds, of all runs or [S] of each."""
        runs = zip(np.broadcast_to(seconds, len(self.seconds)), self.seconds, self.scores, strict=True)
        return np.array([[np.interp(at, times, prompt) for prompt in scores.T] for at, times, scores in runs])

    def ended(self, seconds: float) -> bool:
        """Whether half of the runs took less."""
        return bool(np.median(self.ends) < seconds)

    def told(self, seconds: float) -> str:
        """Its label, and when it ended if that was before."""
        return f"{self.label} (ended at {np.median(self.ends):.0f} s)" if self.ended(seconds) else self.label

    def reached(self, target: float) -> Times:
        """When the mean over prompts reached the target."""
        found: list[tuple[tuple[float, bool]]] = []
        for times, means in zip(self.seconds, (scores.mean(1) for scores in self.scores), strict=True):
            above = np.flatnonzero(means >= target)
            pair = slice(max(int(above[0]) - 1, 0), int(above[0]) + 1) if above.size else slice(-1, None)
            found.append(((float(np.interp(target, means[pair], times[pair])), bool(above.size)),))
        return tuple(found)


@dataclass(frozen=True)
class Rung:
    """What a comparison found. target: the total of an untrained student of four steps; None where `start` is one."""

    steps: int
    trained: Sequence[Curve]
    start: Curve
    target: float | None
    made: str

    @classmethod
    def of(cls, results: Row) -> Rung:
        """From results.json. Where curves do not tell seconds, they are those of the run by the share of its updates;
        without the scores of every prompt intervals are over seeds alone; without a look at four steps on validation
        prompts, they are taken to lie as far above the start there as on test prompts."""
        methods = {row["method"]: row for row in rows_of(results, "method")}
        runs = {(row["method"], row["seed"]): row for row in rows_of(results, "run")}
        points: dict[str, dict[int, list[tuple[float, list[float]]]]] = {}
        for row in rows_of(results, "curve"):
            run = runs.get((row["method"], row["seed"]), {})
            seconds = row.get("seconds", row["share"] * run.get("cpu_seconds", run.get("seconds", 0.0)))
            scores = [float(score) for score in row["scores"].split()] if "scores" in row else [row["oracle"]]
            points.setdefault(row["method"], {}).setdefault(row["seed"], []).append((seconds, scores))
        curves = {}
        for name, seeds in points.items():
            parts = ([np.array([point[part] for point in run]) for run in seeds.values()] for part in (0, 1))
            curves[name] = Curve(name, label_of(name), *parts)
        full = curves.pop(_FULL, None)
        trained = list(curves.values())
        if not trained:
            raise ValueError(f"{results['command']}: a map is drawn of learning curves, and it has none")
        begun = [scores[:1] for scores in trained[0].scores]
        start = Curve("start", label_of("start"), [np.array([math.inf])] * len(begun), begun)
        target = float(full.at(0).mean()) if full else None
        if full is None and _FULL in methods:
            target = float(start.at(0).mean()) + methods[_FULL]["total"] - methods["start"]["total"]
        return cls(results["config"].get("steps", 4), trained, start, target, made_by(results))

    @property
    def name(self) -> str:
        """As heads say it."""
        return f"{self.steps} step{'s' * (self.steps > 1)}"

    @property
    def about(self) -> str:
        """Where it starts, and what made it."""
        four = "" if self.target is None else f", a start of four steps {self.target:.3f}"
        seeds = len(self.start.seconds)
        return f"{self.name}: the start has {self.start.at(0).mean():.3f}{four}. {seeds} seeds. {self.made}."

    def first(self, seconds: float, kind: str = "", but: str = "") -> Curve | None:
        """What is highest after so many seconds: of one kind, or of all but one, the start among them."""
        asked = (curve for curve in (*self.trained, self.start) if curve.kind == kind or not kind and curve.kind != but)
        return max(asked, key=lambda curve: float(curve.at(seconds).mean()), default=None)


END_COLUMNS = (
    Column("student", "", lambda row: row["rung"]),
    Column("method", "", lambda row: row["label"]),
    Column("kind", "what it learns from", lambda row: "RL" if row["kind"] == "rl" else row["kind"]),
    Column("total", "of the oracle, on validation prompts, when training ended", number("total", ".3f")),
    Column("sec.", "of training on one core, median of the runs", number("seconds", ",.0f")),
    Column(
        "sec. to four steps",
        "until half of the runs had the total of an untrained student of four steps (Kaplan-Meier)",
        lambda row: NOTHING if "reach" not in row else time_shown("reach")(row),
    ),
    Column("last third [95%]", "what the last third of the seconds added", interval("risen", "+.3f", "risen_")),
    Column(
        "still rising", "whether that is surely above zero", lambda row: "yes" if row["risen_low"] > 0 else "unclear"
    ),
)


def map_block(*found: Row) -> str:
    """What leads at each rung and time, RL against distillation, the curves, and where every method ended."""
    rungs = _rungs(found)
    grid = [at for at in _GRID if any(not curve.ended(at) for rung in rungs for curve in rung.trained)]
    heads = [
        Column("sec.", "", number("seconds", "d")),
        *(Column(rung.name, "", number(rung.name, "")) for rung in rungs),
    ]
    leads, duels = (
        [{"seconds": at} | {rung.name: show(rung, at) for rung in rungs} for at in grid] for show in (_lead, _duel)
    )
    ends = [_end_row(rung, curve) for rung in rungs for curve in rung.trained]
    parts = [
        "\n".join(f"- {rung.about}" for rung in rungs),
        "What leads after so many seconds of training on one core, its total on validation prompts, and its lead over "
        "the best of another kind. The scores themselves choose these two, which makes a lead look surer than it is.",
        markdown_table(heads, leads),
        "The best of RL against the best of distillation:",
        markdown_table(heads, duels),
        f"![Learning curves of every method, a chart for each number of steps](images/{MAP_PICTURE})",
        "Means of the seeds, with one standard error. Distillation is dashed, both at once or in turn dotted.",
        markdown_table(END_COLUMNS, ends),
        legend(END_COLUMNS, ends),
    ]
    return "\n\n".join(parts)


def map_svg(*found: Row) -> str:
    """The curves of all methods, a chart for every rung."""
    rungs = _rungs(found)
    curves = {curve.method: curve for rung in rungs for curve in rung.trained}
    styles = {curve.label: _STYLES.get(curve.kind, "") for curve in curves.values()}
    labels, charts = {name: curve.label for name, curve in curves.items()}, []
    for rung in rungs:
        rows = [
            {"method": curve.method, "seed": seed, "seconds": float(at), "total": float(prompts.mean())}
            for curve in rung.trained
            for seed, (times, scores) in enumerate(zip(curve.seconds, curve.scores, strict=True))
            for at, prompts in zip(times, scores, strict=True)
        ]
        lines = curve_lines(rows, "method", labels, "seconds", "total", band=True)
        drawn = [line if line.style else replace(line, style=styles[line.name]) for line in lines]
        levels = [
            ("start", float(rung.start.at(0).mean())),
            *([("start of four steps", rung.target)] if rung.target else []),
        ]
        charts.append(line_chart(drawn, rung.name, "seconds of training on one core", levels, _WIDTH))
    return stacked_svg(charts, list(labels.values()), len(charts), _WIDTH)


def _rungs(found: Sequence[Row]) -> list[Rung]:
    return sorted(map(Rung.of, found), key=lambda rung: rung.steps)


def _lead(rung: Rung, seconds: float) -> str:
    """The first of all against the first of another kind."""
    first = rung.first(seconds)
    return _cell(rung, seconds, first, rung.first(seconds, but=first.kind) if first else None)


def _duel(rung: Rung, seconds: float) -> str:
    return _cell(rung, seconds, rung.first(seconds, "rl"), rung.first(seconds, "distillation"))


def _cell(rung: Rung, seconds: float, ours: Curve | None, theirs: Curve | None) -> str:
    """By how much one leads the other; nothing where all runs have ended."""
    if ours is None or theirs is None or all(curve.ended(seconds) for curve in rung.trained):
        return NOTHING
    mine = ours.at(seconds)
    lead = paired_difference(mine, theirs.at(seconds))
    by = f"{lead.mean:+.3f} [{lead.low:+.3f}, {lead.high:+.3f}]"
    return f"{ours.told(seconds)} {mine.mean():.3f}; {by} above {theirs.told(seconds)}: {lead.verdict}"


def _end_row(rung: Rung, curve: Curve) -> Row:
    """Where the runs of one method ended, when they had the target, and whether they still rose."""
    last = curve.at(curve.ends)
    row: Row = {"rung": rung.name, "label": curve.label, "kind": curve.kind, "total": float(last.mean())}
    row |= {"seconds": float(np.median(curve.ends))}
    row |= span_cells("reach", span_of(curve.reached(rung.target))) if rung.target is not None else {}
    return row | mean_interval(last - curve.at(curve.ends * 2 / 3)).cells("risen")
