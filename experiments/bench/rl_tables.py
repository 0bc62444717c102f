"""From the runs of `reelgym bench rl` to rows, tables and a picture; times as in evaluation/."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...training.recipe import Recipe
from ..evaluation.time_to_target import Times, first_at, ratio_cells, ratio_shown, span_cells, span_of, time_shown
from ..plots import curve_lines, line_chart, stacked_svg
from ..stats import iqm, paired_difference, probability_of_improvement
from ..tables import Column, Row, interval, markdown_table, number, rows_of
from .rl_runs import BASELINES, OURS, RL_SETTINGS

_Runs = Sequence[Mapping[str, Any]]
"""The results of one setting, one per seed."""
_UNITS = ("chunks", "seconds")
_PARTS = {"": 1.0, "half_": 0.5}
"""Shares of the gain that times are taken to, by the prefix of their keys; a run goes on to the whole."""


def rl_times(runs: _Runs, target: float, unit: str) -> Times:
    """For every run when it arrived or gave up, and whether it arrived. A run that diverged before it did never
    will: it outlasts all."""
    found = [first_at(run["looks"], "oracle", target) for run in runs]
    times = [float((run if at is None else at)[unit]) for run, at in zip(runs, found, strict=True)]
    lost = [run["diverged"] and at is None for run, at in zip(runs, found, strict=True)]
    ends = [max(times) if never else time for never, time in zip(lost, times, strict=True)]
    return tuple(((time, at is not None),) for time, at in zip(ends, found, strict=True))


def part_of(start: float, target: float, share: float) -> float:
    """The oracle total at which a run has gained that share of what it is to gain."""
    return start + share * (target - start)


def ratio_rows(found: Mapping[str, _Runs], target: float, gain: float) -> list[Row]:
    """How many times more chunks and seconds each baseline takes to the target than each of ours, and than each recipe
    of the user's own. gain: to note down."""
    own = [name for name in found if name in OURS or name not in RL_SETTINGS]
    pairs = [(theirs, ours) for theirs in BASELINES for ours in sorted(own, key=_place) if theirs in found]
    rows: list[Row] = []
    for theirs, ours in pairs:
        row: Row = {"kind": "ratio", "setting": theirs, "against": ours, "gain": gain}
        for unit in _UNITS:
            row |= ratio_cells(unit, *(rl_times(found[name], target, unit) for name in (theirs, ours)))
        rows.append(row)
    return rows


def _place(name: str) -> int:
    return OURS.index(name) if name in OURS else len(OURS)


def _label_of(name: str) -> str:
    """A setting in words; a recipe of the user's own by its import path."""
    return RL_SETTINGS[name].label if name in RL_SETTINGS else name


def rl_rows(
    found: Mapping[str, _Runs],
    recipes: Mapping[str, Recipe],
    references: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    target: float,
) -> list[Row]:
    """Rows of kind "reference" (start, teacher), "setting", "ratio", "run" and "curve" (one look)."""
    start = references["start"]
    rows: list[Row] = []
    for name, result in references.items():
        exam = float(np.mean([exam["total"] for exam in result["exams"]]))
        rows.append({"kind": "reference", "row": name, **result["looks"][0], "exam": exam, "goal": target})
    rows += [_setting_row(name, runs, recipes[name], start, target) for name, runs in found.items()]
    begun = start["looks"][0]["oracle"]
    for share in _PARTS.values():
        rows += ratio_rows(found, part_of(begun, target, share), share * (target - begun))
    for name, runs in found.items():
        for seed, run, exam in zip(seeds, runs, start["exams"], strict=True):
            spent = {key: run[key] for key in ("chunks", "seconds", "updates", "diverged")}
            gain = float(np.mean(run["exam"]["total"]) - np.mean(exam["total"]))
            arrived = first_at(run["looks"], "oracle", target) is not None
            rows.append({"kind": "run", "setting": name, "seed": seed, **spent, "arrived": arrived, "gain": gain})
            rows += [{"kind": "curve", "setting": name, "seed": seed, **look} for look in run["looks"]]
    return rows


def _setting_row(name: str, runs: _Runs, recipe: Recipe, start: Mapping[str, Any], target: float) -> Row:
    row: Row = {"kind": "setting", "setting": name, "label": _label_of(name), "seeds": len(runs)}
    last, begun = [run["looks"][-1] for run in runs if run["looks"]], start["looks"][0]
    for prefix, share in _PARTS.items():
        for unit in _UNITS:
            times = rl_times(runs, part_of(begun["oracle"], target, share), unit)
            arrived = sum(reached for seed in times for _, reached in seed)
            row |= span_cells(prefix + unit, span_of(times)) | {f"{prefix}arrived": arrived}
    totals = [run["exam"]["total"] for run in runs], [exam["total"] for exam in start["exams"]]
    gain = paired_difference(*totals)
    row |= gain.cells("gain", "") | {"verdict": gain.verdict}
    row |= {"gain_iqm": iqm(totals[0]) - iqm(totals[1]), "improvement": probability_of_improvement(*totals)}
    spread = [np.mean([one["diversity"] for one in exams]) for exams in ([run["exam"] for run in runs], start["exams"])]
    row["diversity_ratio"] = float(spread[0] / spread[1]) if spread[1] > 0 else None
    for key in ("reward", "heldout"):
        known = last and begun[key] is not None
        row[f"{key}_gain"] = float(np.mean([look[key] for look in last])) - begun[key] if known else None
    row |= {"updates": float(np.mean([run["updates"] for run in runs])), "learning_rate": recipe.learning_rate}
    row |= {key: getattr(recipe, key, None) for key in ("prompts", "group")}
    return row | {"diverged": sum(run["diverged"] for run in runs)}


def _share(key: str) -> Callable[[Row], str]:
    return lambda row: f"{row[key]}/{row['seeds']}"


SETTING_COLUMNS = (
    Column("setting", "how the starting student was trained", lambda row: row["label"]),
    Column("chunks", "generated until half of the runs had gained enough (Kaplan-Meier)", time_shown("chunks")),
    Column("sec.", "of training until then, looks not counted, on one of two busy cores", time_shown("seconds")),
    Column("arrived", "runs that gained enough before they had to give up", _share("arrived")),
    Column("half: chunks", "the same for half of that gain", time_shown("half_chunks")),
    Column("half: sec.", "", time_shown("half_seconds")),
    Column("half: arrived", "", _share("half_arrived")),
    Column(
        "gain [95%]",
        "oracle total above the start's on other prompts, where training stopped; paired over seeds and prompts",
        interval("gain", "+.3f"),
    ),
    Column("gain of IQM", "the same of the mean of the middle half", number("gain_iqm", "+.3f"), added=True),
    Column(
        "P(better)",
        "probability that a run beats a run of the start on a prompt; ties count half",
        number("improvement", ".2f"),
        added=True,
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
    Column("baseline / ours", "", lambda row: f"{_label_of(row['setting'])} / {_label_of(row['against'])}"),
    Column("gain", "of the oracle total that is compared", number("gain", "+.3f")),
    Column(
        "times the chunks",
        "of medians [95%, bootstrap over seeds]; >= where most of the baseline's runs gave up, <= where ours did",
        ratio_shown("chunks", bounded=False),
    ),
    Column("times the seconds", "the same, of training on one core", ratio_shown("seconds", bounded=False)),
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
    left = [setting.label for name, setting in RL_SETTINGS.items() if name not in {row["setting"] for row in settings}]
    return "\n\n".join([*parts, *([f"Not run, for want of time: {'; '.join(left)}."] if left else [])])


def rl_curves_svg(rows: Sequence[Row]) -> str:
    """Gain of the oracle, and below it of the trained reward, against chunks; thin lines are runs, thick ones means."""
    results = {"rows": rows}
    labels = {row["setting"]: _label_of(row["setting"]) for row in rows_of(results, "setting")}
    start = next(row for row in rows_of(results, "reference") if row["row"] == "start")
    charts = []
    for key, title in (("oracle", "Oracle total gained (held out)"), ("reward", "Trained reward gained")):
        gained = (row | {"x": math.log2(row["rung"]), key: row[key] - start[key]} for row in rows_of(results, "curve"))
        lines = curve_lines(gained, "setting", labels, "x", key)
        charts.append(line_chart(lines, title, "chunks generated: 2 to the power of", [("", 0.0)]))
    return stacked_svg(charts, list(labels.values()))
