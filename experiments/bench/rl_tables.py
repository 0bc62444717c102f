"""From the runs of `reelgym bench rl` to rows, tables and a picture. S seeds, R resamples.

How long half of the runs take is a span (at least, at most): one number where it was seen, open above where most runs
gave up. So is a ratio of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..plots import COLOURS, Line, line_chart, stacked_svg
from ..stats import Interval, censored_median, paired_difference
from ..tables import NOTHING, Column, Row, markdown_table, number, rows_of
from .rl_runs import BASELINES, OURS, SETTINGS, arrival

Span = tuple[float, float]
Runs = Sequence[Mapping[str, Any]]
"""The results of one setting, one per seed."""
RESAMPLES = 1000
UNITS = ("chunks", "seconds")
PARTS = {"": 1.0, "half_": 0.5}
"""Shares of the gain that times are taken to, by the prefix of their keys; a run goes on to the whole."""


def times_of(runs: Runs, goal: float, unit: str) -> tuple[list[float], list[bool]]:
    """For every run when it arrived or gave up, and whether it arrived. A run that diverged before it did never
    will: it outlasts all."""
    found = [arrival(run["looks"], goal) for run in runs]
    times = [float((run if at is None else at)[unit]) for run, at in zip(runs, found, strict=True)]
    longest = max(times)
    lost = [run["diverged"] and at is None for run, at in zip(runs, found, strict=True)]
    return [longest if never else time for never, time in zip(lost, times, strict=True)], [
        at is not None for at in found
    ]


def median_span(times: Sequence[float], reached: Sequence[bool]) -> Span:
    """The Kaplan-Meier median, or, where too few arrived, what half of the runs exceed at least."""
    median = censored_median(times, reached)
    return (median, median) if math.isfinite(median) else (sorted(times)[(len(times) - 1) // 2], math.inf)


def ratio_span(theirs: Span, ours: Span) -> Span:
    """theirs / ours; (0, inf) where neither is known, inf where ours is nothing and theirs is not."""
    return _divided(theirs[0], ours[1]), _divided(theirs[1], ours[0])


def _divided(theirs: float, ours: float) -> float:
    if ours:
        return theirs / ours
    return math.inf if theirs else 1.0


def resampled(times: Sequence[float], reached: Sequence[bool], resamples: int = RESAMPLES) -> list[Span]:
    """`median_span` of S runs drawn anew; the draws are the same for all settings of S seeds, so that these stay
    paired."""
    draws = np.random.default_rng(0).integers(len(times), size=(resamples, len(times)))
    when, whether = np.asarray(times), np.asarray(reached)
    return [median_span(when[draw].tolist(), whether[draw].tolist()) for draw in draws]


def interval_of(theirs: Sequence[Span], ours: Sequence[Span], level: float = 0.95) -> Span:
    """Percentile interval of the ratio; an end that the runs leave open is taken as far out as it can be."""
    spans = [ratio_span(a, b) for a, b in zip(theirs, ours, strict=True)]
    out = math.floor((1 - level) / 2 * len(spans))
    return sorted(low for low, _ in spans)[out], sorted(high for _, high in spans)[-1 - out]


def part_of(start: float, goal: float, share: float) -> float:
    """The oracle total at which a run has gained that share of what it is to gain."""
    return start + share * (goal - start)


def ratio_rows(found: Mapping[str, Runs], goal: float, gain: float) -> list[Row]:
    """How many times more chunks and seconds each baseline takes to the goal than each of ours. gain: to note down."""
    pairs = [(theirs, ours) for theirs in BASELINES for ours in OURS if theirs in found and ours in found]
    wanted = {name for pair in pairs for name in pair}
    times = {(name, unit): times_of(found[name], goal, unit) for name in wanted for unit in UNITS}
    draws = {key: resampled(*value) for key, value in times.items()}
    rows: list[Row] = []
    for theirs, ours in pairs:
        row: Row = {"kind": "ratio", "setting": theirs, "against": ours, "gain": gain}
        for unit in UNITS:
            span = ratio_span(median_span(*times[theirs, unit]), median_span(*times[ours, unit]))
            ends = interval_of(draws[theirs, unit], draws[ours, unit])
            row |= _ends(unit, span) | {f"{unit}_low": ends[0], f"{unit}_high": _known(ends[1])}
        rows.append(row)
    return rows


def table_rows(
    found: Mapping[str, Runs], references: Mapping[str, Mapping[str, Any]], seeds: Sequence[int], goal: float
) -> list[Row]:
    """Rows of kind "reference" (start, teacher), "setting", "ratio", "run" and "curve" (one look)."""
    start = references["start"]
    rows = [_reference_row(name, result, goal) for name, result in references.items()]
    rows += [_setting_row(name, runs, start, goal) for name, runs in found.items()]
    begun = start["looks"][0]["oracle"]
    for share in PARTS.values():
        rows += ratio_rows(found, part_of(begun, goal, share), share * (goal - begun))
    for name, runs in found.items():
        for seed, run, exam in zip(seeds, runs, start["exams"], strict=True):
            spent = {key: run[key] for key in ("chunks", "seconds", "updates", "diverged")}
            gain = float(np.mean(run["exam"]["total"]) - np.mean(exam["total"]))
            arrived = arrival(run["looks"], goal) is not None
            rows.append({"kind": "run", "setting": name, "seed": seed, **spent, "arrived": arrived, "gain": gain})
            rows += [{"kind": "curve", "setting": name, "seed": seed, **look} for look in run["looks"]]
    return rows


def _reference_row(name: str, result: Mapping[str, Any], goal: float) -> Row:
    exams = [exam["total"] for exam in result["exams"]]
    return {"kind": "reference", "row": name, **result["looks"][0], "exam": float(np.mean(exams)), "goal": goal}


def _setting_row(name: str, runs: Runs, start: Mapping[str, Any], goal: float) -> Row:
    recipe = SETTINGS[name].recipe
    row: Row = {"kind": "setting", "setting": name, "label": SETTINGS[name].label, "seeds": len(runs)}
    for prefix, share in PARTS.items():
        for unit in UNITS:
            times, reached = times_of(runs, part_of(start["looks"][0]["oracle"], goal, share), unit)
            row |= _ends(prefix + unit, median_span(times, reached)) | {f"{prefix}arrived": sum(reached)}
    gain = _gain(runs, start)
    row |= {"gain": gain.mean, "low": gain.low, "high": gain.high, "verdict": gain.verdict}
    spread = [np.mean([one["diversity"] for one in exams]) for exams in ([run["exam"] for run in runs], start["exams"])]
    row["diversity_ratio"] = float(spread[0] / spread[1]) if spread[1] > 0 else None
    for key in ("reward", "heldout"):
        row[f"{key}_gain"] = _last_gain(runs, start["looks"][0], key)
    row |= {"updates": float(np.mean([run["updates"] for run in runs])), "learning_rate": recipe.learner.learning_rate}
    return row | {"prompts": recipe.prompts, "group": recipe.group, "diverged": sum(run["diverged"] for run in runs)}


def _gain(runs: Runs, start: Mapping[str, Any]) -> Interval:
    return paired_difference(
        [run["exam"]["total"] for run in runs],
        [exam["total"] for exam in start["exams"]],
    )


def _last_gain(runs: Runs, start: Mapping[str, Any], key: str) -> float | None:
    last = [run["looks"][-1][key] for run in runs if run["looks"]]
    return float(np.mean(last)) - start[key] if last and start[key] is not None else None


def _ends(unit: str, span: Span) -> Row:
    """A span as numbers that JSON holds: None is an open end, `unit` itself is None unless both ends agree."""
    exact = span[0] if span[0] == span[1] else None
    return {unit: exact, f"{unit}_at_least": span[0], f"{unit}_at_most": _known(span[1])}


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _taken(unit: str) -> Callable[[Row], str]:
    return lambda row: f"> {row[f'{unit}_at_least']:,.0f}" if row[unit] is None else f"{row[unit]:,.0f}"


def _share(key: str) -> Callable[[Row], str]:
    return lambda row: f"{row[key]}/{row['seeds']}"


def _times(unit: str) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        if row[unit] is not None:
            high = row[f"{unit}_high"]
            ends = f"{row[f'{unit}_low']:.1f}, " + ("open" if high is None else f"{high:.1f}")
            return f"{row[unit]:.1f} [{ends}]"
        if row[f"{unit}_at_least"]:
            return f">= {row[f'{unit}_at_least']:.1f}"
        return NOTHING if row[f"{unit}_at_most"] is None else f"<= {row[f'{unit}_at_most']:.1f}"

    return show


SETTING_COLUMNS = (
    Column("setting", "how the starting student was trained", lambda row: row["label"]),
    Column("chunks", "generated until half of the runs had gained enough (Kaplan-Meier)", _taken("chunks")),
    Column("sec.", "of training until then, looks not counted, on one of two busy cores", _taken("seconds")),
    Column("arrived", "runs that gained enough before they had to give up", _share("arrived")),
    Column("half: chunks", "the same for half of that gain", _taken("half_chunks")),
    Column("half: sec.", "", _taken("half_seconds")),
    Column("half: arrived", "", _share("half_arrived")),
    Column(
        "gain [95%]",
        "oracle total above the start's on other prompts, where training stopped; paired over seeds and prompts",
        lambda row: f"{row['gain']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
    ),
    Column("above the start", "yes: interval above zero; no: below zero; else unclear", lambda row: row["verdict"]),
    Column(
        "div. ratio", "diversity relative to the start's, same prompts; .9 keeps it", number("diversity_ratio", ".2f")
    ),
    Column("reward", "gain of the trained reward at the last look", number("reward_gain", "+.2f")),
    Column("held-out reward", "gain of a reward that nobody maximised", number("heldout_gain", "+.2f")),
    Column("updates", "until training stopped, mean", number("updates", ",.0f")),
    Column("rate", "learning rate", number("learning_rate", ".1e")),
)
RATIO_COLUMNS = (
    Column("baseline / ours", "", lambda r: f"{SETTINGS[r['setting']].label} / {SETTINGS[r['against']].label}"),
    Column("gain", "of the oracle total that is compared", number("gain", "+.3f")),
    Column(
        "times the chunks",
        "of medians [95%, bootstrap over seeds]; >= where most of the baseline's runs gave up, <= where ours did",
        _times("chunks"),
    ),
    Column("times the seconds", "the same, of training on one core", _times("seconds")),
)
COLUMNS = (*SETTING_COLUMNS, *RATIO_COLUMNS)


def report(rows: Sequence[Row]) -> str:
    """The tables as Markdown, with what was asked and what was left out."""
    results = {"rows": rows}
    settings, ratios, curve = (rows_of(results, kind) for kind in ("setting", "ratio", "curve"))
    if not settings:
        return ""
    known = {row["row"]: row for row in rows_of(results, "reference")}
    start, goal = known["start"], known["start"]["goal"]
    gain = goal - start["oracle"]
    said = f"Oracle totals of a look: start {start['oracle']:.3f}, teacher {known['teacher']['oracle']:.3f}. "
    said += f"Enough is {goal:.3f}, a gain of {gain:.3f}; half of it is timed as well. "
    said += "A run is looked at after the first update that brings it to "
    said += f"{', '.join(str(rung) for rung in sorted({row['rung'] for row in curve}))} chunks, and arrives at the "
    said += "first look that is enough: times are no finer than that."
    parts = [said, markdown_table(SETTING_COLUMNS, settings)]
    parts += [markdown_table(RATIO_COLUMNS, ratios)] if ratios else []
    left = [setting.label for name, setting in SETTINGS.items() if name not in {row["setting"] for row in settings}]
    return "\n\n".join([*parts, *([f"Not run, for want of time: {'; '.join(left)}."] if left else [])])


def curves_svg(rows: Sequence[Row]) -> str:
    """Gain of the oracle, and below it of the trained reward, against chunks; thin lines are runs, thick ones means.

    Eight settings at most. A run that has stopped stays where it was, in the mean too.
    """
    results = {"rows": rows}
    names = [row["setting"] for row in rows_of(results, "setting")][: len(COLOURS)]
    start = next(row for row in rows_of(results, "reference") if row["row"] == "start")
    charts = []
    for key, title in (("oracle", "Oracle total gained (held out)"), ("reward", "Trained reward gained")):
        lines = [line for place, name in enumerate(names) for line in _lines(results, name, place, key, start[key])]
        charts.append(line_chart(lines, title, "chunks generated: 2 to the power of", baseline=0.0))
    return stacked_svg(charts, [SETTINGS[name].label for name in names])


def _lines(results: Row, name: str, colour: int, key: str, start: float) -> list[Line]:
    runs: dict[int, dict[int, float]] = {}
    for row in rows_of(results, "curve"):
        if row["setting"] == name:
            runs.setdefault(row["seed"], {})[row["rung"]] = row[key] - start
    rungs = sorted({rung for run in runs.values() for rung in run})
    lines = [
        Line(f"{SETTINGS[name].label}, seed {seed}", tuple((math.log2(x), y) for x, y in run.items()), colour, True)
        for seed, run in runs.items()
    ]
    shared = [rung for rung in rungs if all(min(run) <= rung for run in runs.values())]
    mean = [(math.log2(rung), float(np.mean([_held(run, rung) for run in runs.values()]))) for rung in shared]
    return [*lines, Line(SETTINGS[name].label, tuple(mean), colour)] if mean else lines


def _held(run: Mapping[int, float], rung: int) -> float:
    """A run's value at its last look up to `rung`."""
    return run[max(at for at in run if at <= rung)]
