"""From the runs of `reelgym bench adaptation` to rows, tables and a picture. S seeds.

A run arrives at the first look whose excess AUC on the new family is SHARE of what a full retrain of the same order and
seed ended with. How long half of the runs take is a span (evaluation/time_to_target.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..evaluation.time_to_target import Times, first_at, ratio_cells, ratio_shown, span_of, time_shown
from ..plots import curve_lines, line_chart, stacked_svg
from ..stats import mean_interval
from ..tables import Column, Row, interval, markdown_table, number, rows_of
from .adaptation_clips import FAMILIES
from .adaptation_runs import ADAPTATIONS, ORDERS

_SHARE = 0.95
"""Of a full retrain's excess AUC that counts as recovered."""
_LEAST = 0.8
"""AUC that a full retrain must reach on the new family; else its order and seed do not count."""
FORGETS = 0.02
"""AUC on A that may be lost at most: the target."""
_UNITS = ("fakes", "seconds")
ALL = "all"
"""Stands for all orders together."""
_Runs = Mapping[tuple[str, str, int], Mapping[str, Any]]
"""Results of runs by order, method and seed."""
Point = Mapping[str, Any]
Arrivals = Mapping[int, Sequence[tuple[Point, bool]]]
"""By seed, of each of its runs that counts: the look at which it arrived, or its last, and whether it did."""
LOOKED = ("known", "new", "later")


def auc_target(retrain: Mapping[str, Any]) -> float | None:
    """The AUC on the new family that counts as recovered; None where the full retrain did not reach LEAST."""
    reached = retrain["looks"][-1]["new"]
    return 0.5 + _SHARE * (reached - 0.5) if reached >= _LEAST else None


def arrival(run: Mapping[str, Any], target: float | None) -> tuple[Point, bool]:
    """The first look that reaches the target; else, and without a target, the last."""
    found = None if target is None else first_at(run["looks"], "new", target)
    return (run["looks"][-1], False) if found is None else (found, True)


def adaptation_times(arrived: Arrivals, unit: str) -> Times:
    """In fakes or in seconds."""
    return tuple(tuple((float(at[unit]), whether) for at, whether in runs) for runs in arrived.values())


def _means(points: Sequence[Point], when: str, keys: Sequence[str] = LOOKED) -> Row:
    return {f"{key}_{when}": float(np.mean([point[key] for point in points])) for key in keys}


def adaptation_rows(runs: _Runs, orders: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> list[Row]:
    """Rows of kind "order", "method" and "ratio" (of each order and of all), "run" and "curve" (one look)."""
    targets = {(order, seed): auc_target(runs[order, "retrain", seed]) for order in orders for seed in seeds}
    rows = [_order_row(runs, order, seeds) for order in orders]
    for name in (*orders, *([ALL] if len(orders) > 1 else [])):
        chosen = orders if name == ALL else [name]
        counted = {seed: [order for order in chosen if targets[order, seed] is not None] for seed in seeds}
        counted = {seed: found for seed, found in counted.items() if found}
        if counted:
            there = [method for method in methods if all((order, method, seeds[0]) in runs for order in chosen)]
            arrived = {
                method: {
                    seed: [arrival(runs[order, method, seed], targets[order, seed]) for order in found]
                    for seed, found in counted.items()
                }
                for method in there
            }
            rows += [_method_row(runs, name, method, counted, arrived[method]) for method in there]
            rows += _ratio_rows(name, arrived)
    for (order, method, seed), run in runs.items():
        target, own = targets[order, seed], {"order": order, "method": method, "seed": seed}
        at, whether = arrival(run, target)
        spent = {unit: at[unit] for unit in _UNITS}
        rows.append({"kind": "run", **own, **spent, "arrived": whether, "goal": target, "sampling": run["sampling"]})
        rows += [{"kind": "curve", **own, "look": place, **look} for place, look in enumerate(run["looks"])]
    return rows


def _order_row(runs: _Runs, order: str, seeds: Sequence[int]) -> Row:
    found = ORDERS[order]
    ends = [runs[order, "retrain", seed]["looks"][-1]["new"] for seed in seeds]
    row: Row = {"kind": "order", "order": order, "known": ", ".join(FAMILIES[name].label for name in found.known)}
    row |= {"new": FAMILIES[found.new].label, "later": FAMILIES[found.later].label, "seeds": len(seeds)}
    row |= _means([runs[order, "frozen", seed]["looks"][0] for seed in seeds], "before")
    row |= {"retrained": float(np.mean(ends)), "counted": sum(end >= _LEAST for end in ends)}
    return row | {"sampling": float(np.mean([runs[order, "frozen", seed]["sampling"] for seed in seeds]))}


def _method_row(runs: _Runs, name: str, method: str, counted: Mapping[int, Sequence[str]], arrived: Arrivals) -> Row:
    every = [one for found in arrived.values() for one in found]
    row: Row = {"kind": "method", "order": name, "method": method, "label": ADAPTATIONS[method], "runs": len(every)}
    row["arrived"] = sum(whether for _, whether in every)
    for unit in _UNITS:
        low, high = span_of(adaptation_times(arrived, unit))
        never = method == "frozen" and math.isinf(high)
        row |= {unit: None if math.isinf(high) else low, f"{unit}_at_least": None if never else low}
    # Before: the detector that goes on, or that a full retrain replaces, when the new family appears.
    begun = "frozen" if method == "retrain" else method
    before = {seed: [runs[order, begun, seed]["looks"][0] for order in found] for seed, found in counted.items()}
    after = {seed: [runs[order, method, seed]["looks"][-1] for order in found] for seed, found in counted.items()}
    firsts, lasts = ([point for points in side.values() for point in points] for side in (before, after))
    row |= _means(lasts, "after")
    gone = {seed: zip(before[seed], after[seed], strict=True) for seed in counted}
    lost = mean_interval([[np.mean([start["known"] - end["known"] for start, end in pair])] for pair in gone.values()])
    row |= {"forgotten": lost.mean, "forgotten_low": lost.low, "forgotten_high": lost.high, **_means(firsts, "before")}
    then = [start["known"] - at["known"] for start, (at, whether) in zip(firsts, every, strict=True) if whether]
    return row | {"forgotten_then": float(np.mean(then)) if then else None}


def _ratio_rows(name: str, arrived: Mapping[str, Arrivals]) -> list[Row]:
    """How many times longer a full retrain and fine-tuning take than each method that goes on. A full retrain was only
    tried with all fakes, so that how many it needs is not known."""
    rows: list[Row] = []
    for theirs in ("retrain", "finetune"):
        for ours in arrived:
            if ours in ("frozen", "retrain", theirs) or theirs not in arrived:
                continue
            row: Row = {"kind": "ratio", "order": name, "method": ours, "against": theirs}
            row |= {f"fakes{end}": None for end in ("", "_at_least", "_at_most", "_low", "_high")}
            for unit in _UNITS if theirs == "finetune" else ("seconds",):
                row |= ratio_cells(unit, adaptation_times(arrived[theirs], unit), adaptation_times(arrived[ours], unit))
            rows.append(row)
    return rows


def _kept(row: Row) -> str:
    if row["forgotten_high"] <= FORGETS:
        return "yes"
    return "no" if row["forgotten_low"] > FORGETS else "unclear"


ORDER_COLUMNS = (
    Column("order", "", lambda row: row["order"]),
    Column("A", "families that the detector was trained on", lambda row: row["known"]),
    Column("B", "the family that then appears", lambda row: row["new"]),
    Column("C", "a family that it never meets", lambda row: row["later"]),
    Column("sec. a fake", "to sample one clip of B on one core", number("sampling", ".3f")),
    Column(
        "A before", "AUC on held-out clips of A before B appears, mean over families", number("known_before", ".3f")
    ),
    Column("B before", "the same on B, which it has never seen", number("new_before", ".3f")),
    Column("B retrained", "AUC on B of a full retrain", number("retrained", ".3f")),
    Column("counted", f"seeds whose full retrain reached {_LEAST:g}", lambda row: f"{row['counted']}/{row['seeds']}"),
)
ADAPTATION_COLUMNS = (
    Column("order", "", lambda row: row["order"]),
    Column("method", "how the detector met B", lambda row: row["label"]),
    Column("fakes", f"of B until {_SHARE:g} of a full retrain's excess AUC (Kaplan-Meier median)", time_shown("fakes")),
    Column(
        "sec.", "until then: sampling those fakes and training; looks not counted, on one core", time_shown("seconds")
    ),
    Column("arrived", "runs that got so far", lambda row: f"{row['arrived']}/{row['runs']}"),
    Column("B after", "AUC on B after all fakes and updates", number("new_after", ".3f")),
    Column("A before", "AUC on A before B appeared", number("known_before", ".3f")),
    Column(
        "forgotten [95%]",
        "AUC on A, before less after all fakes and updates; of a full retrain, against the detector that it replaces",
        interval("forgotten", "+.3f", "forgotten_"),
    ),
    Column("kept", f"whether that is {FORGETS:g} at most: its whole interval, none of it, else unclear", _kept),
    Column(
        "at arrival",
        "the same where B was recovered, mean of the runs that got so far",
        number("forgotten_then", "+.3f"),
    ),
    Column("C before", "AUC on C before B appeared", number("later_before", ".3f")),
    Column("C after", "AUC on C at the end", number("later_after", ".3f")),
)
_RATIO_COLUMNS = (
    ADAPTATION_COLUMNS[0],
    Column("slower / faster", "", lambda row: f"{ADAPTATIONS[row['against']]} / {ADAPTATIONS[row['method']]}"),
    Column(
        "times the seconds",
        "of medians [95%, bootstrap over seeds]; >= where most runs of the first never arrived, <= where the second's",
        ratio_shown("seconds"),
    ),
    Column("times the fakes", "the same", ratio_shown("fakes")),
)
COLUMNS = (*ORDER_COLUMNS, *ADAPTATION_COLUMNS[1:], *_RATIO_COLUMNS[2:])


ABSENT = "Self-play's detectors are left out: none were given (`--detectors`), or leagues have met what is new."


def report(rows: Sequence[Row]) -> str:
    """The tables as Markdown, with what was left out."""
    results = {"rows": rows}
    orders, methods, ratios = (rows_of(results, kind) for kind in ("order", "method", "ratio"))
    parts = [markdown_table(ORDER_COLUMNS, orders)]
    lost = [f"{row['order']} ({row['counted']} of {row['seeds']})" for row in orders if row["counted"] < row["seeds"]]
    parts += [f"Seeds whose full retrain stays below {_LEAST:g} do not count: {'; '.join(lost)}."] if lost else []
    parts += [markdown_table(ADAPTATION_COLUMNS, methods)] if methods else []
    parts += [markdown_table(_RATIO_COLUMNS, ratios)] if ratios else []
    if all(row["method"] != "selfplay" for row in rows_of(results, "run")):
        parts.append(ABSENT)
    left = [name for name in ORDERS if name not in {row["order"] for row in orders}]
    return "\n\n".join([*parts, *([f"Orders not run: {', '.join(left)}."] if left else [])])


_AXES = {"new": "AUC on B, held out", "known": "AUC on A, held out"}


def adaptation_curves_svg(rows: Sequence[Row]) -> str:
    """For every order AUC on B, and on A, against seconds; thin lines are runs, thick ones means. What was there before
    the first second stands at 1 second; what is frozen stays as it is."""
    curve = rows_of({"rows": rows}, "curve")
    labels = {name: label for name, label in ADAPTATIONS.items() if any(row["method"] == name for row in curve)}
    charts = []
    for order in (row["order"] for row in rows_of({"rows": rows}, "order")):
        own = [row | {"x": math.log2(max(row["seconds"], 1.0))} for row in curve if row["order"] == order]
        last = max(row["x"] for row in own)
        own += [row | {"x": last} for row in own if row["method"] == "frozen"]
        for key, title in _AXES.items():
            lines = curve_lines(own, "method", labels, "x", key)
            charts.append(line_chart(lines, f"{order}: {title}", "seconds of sampling and training: 2 to the power of"))
    return stacked_svg(charts, list(labels.values()), columns=2)
