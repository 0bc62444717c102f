"""From the runs of `reelgym bench adaptation` to rows, tables and a picture. S seeds, R resamples.

A run arrives at the first look whose excess AUC on the new family is SHARE of what a full retrain of the same order and
seed ended with. How long half of the runs take is a span (rl_tables.py), open above where most did not arrive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from ..plots import HEIGHT, WIDTH, Line, line_chart
from ..stats import mean_interval
from ..tables import NOTHING, Column, Row, markdown_table, number, rows_of
from .adaptation_clips import FAMILIES
from .adaptation_runs import METHODS, ORDERS
from .rl_tables import Span, interval_of, median_span, ratio_span

SHARE = 0.95
"""Of a full retrain's excess AUC that counts as recovered."""
LEAST = 0.8
"""AUC that a full retrain must reach on the new family; else its order and seed do not count."""
FORGETS = 0.02
"""AUC on A that may be lost at most: the target."""
RESAMPLES = 1000
UNITS = ("fakes", "seconds")
ALL = "all"
"""Stands for all orders together."""
Runs = Mapping[tuple[str, str, int], Mapping[str, Any]]
"""Results of runs by order, method and seed."""
Arrival = tuple[Mapping[str, Any], bool]
"""The look at which a run arrived, or its last, and whether it did."""


def goal_of(retrain: Mapping[str, Any]) -> float | None:
    """The AUC on the new family that counts as recovered; None where the full retrain did not reach LEAST."""
    reached = retrain["looks"][-1]["new"]
    return 0.5 + SHARE * (reached - 0.5) if reached >= LEAST else None


def arrival(run: Mapping[str, Any], goal: float) -> Arrival:
    """The first look that reaches the goal."""
    found = next((look for look in run["looks"] if look["new"] >= goal), None)
    return (run["looks"][-1], False) if found is None else (found, True)


def table_rows(runs: Runs, orders: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> list[Row]:
    """Rows of kind "order", "method" and "ratio" (of each order and of all), "run" and "curve" (one look)."""
    goals = {(order, seed): goal_of(runs[order, "retrain", seed]) for order in orders for seed in seeds}
    rows = [_order_row(runs, order, seeds) for order in orders]
    for name in (*orders, *([ALL] if len(orders) > 1 else [])):
        chosen = orders if name == ALL else [name]
        counted = {seed: [order for order in chosen if goals[order, seed] is not None] for seed in seeds}
        counted = {seed: found for seed, found in counted.items() if found}
        if counted:
            there = [method for method in methods if all((order, method, seeds[0]) in runs for order in chosen)]
            arrived = {method: _arrivals(runs, method, counted, goals) for method in there}
            rows += [_method_row(runs, name, method, counted, arrived[method]) for method in there]
            rows += _ratio_rows(name, arrived)
    for (order, method, seed), run in runs.items():
        goal, own = goals[order, seed], {"order": order, "method": method, "seed": seed}
        at, whether = (run["looks"][-1], False) if goal is None else arrival(run, goal)
        spent = {unit: at[unit] for unit in UNITS}
        rows.append({"kind": "run", **own, **spent, "arrived": whether, "goal": goal, "sampling": run["sampling"]})
        rows += [{"kind": "curve", **own, "look": place, **look} for place, look in enumerate(run["looks"])]
    return rows


def _order_row(runs: Runs, order: str, seeds: Sequence[int]) -> Row:
    found = ORDERS[order]
    ends = [runs[order, "retrain", seed]["looks"][-1]["new"] for seed in seeds]
    starts = [runs[order, "frozen", seed]["looks"][0] for seed in seeds]
    row: Row = {"kind": "order", "order": order, "known": ", ".join(FAMILIES[name].label for name in found.known)}
    row |= {"new": FAMILIES[found.new].label, "later": FAMILIES[found.later].label, "seeds": len(seeds)}
    row |= {f"{key}_before": float(np.mean([start[key] for start in starts])) for key in ("known", "new", "later")}
    row |= {"retrained": float(np.mean(ends)), "counted": sum(end >= LEAST for end in ends)}
    return row | {"sampling": float(np.mean([runs[order, "frozen", seed]["sampling"] for seed in seeds]))}


def _arrivals(
    runs: Runs, method: str, counted: Mapping[int, Sequence[str]], goals: Mapping[tuple[str, int], float | None]
) -> dict[int, list[Arrival]]:
    """Of the runs that count, by seed."""
    return {
        seed: [arrival(runs[order, method, seed], goals[order, seed] or 1.0) for order in orders]
        for seed, orders in counted.items()
    }


def _method_row(
    runs: Runs, name: str, method: str, counted: Mapping[int, Sequence[str]], arrived: Mapping[int, Sequence[Arrival]]
) -> Row:
    every = [one for found in arrived.values() for one in found]
    row: Row = {"kind": "method", "order": name, "method": method, "label": METHODS[method], "runs": len(every)}
    row["arrived"] = sum(whether for _, whether in every)
    for unit in UNITS:
        low, high = span_of(every, unit)
        never = method == "frozen" and math.isinf(high)
        row |= {unit: None if math.isinf(high) else low, f"{unit}_at_least": None if never else low}
    pairs = [(order, seed) for seed, orders in counted.items() for order in orders]
    ends = [runs[order, method, seed]["looks"][-1] for order, seed in pairs]
    row |= {f"{key}_after": float(np.mean([end[key] for end in ends])) for key in ("known", "new", "later")}
    lost = mean_interval(
        [[np.mean([_lost(runs, order, method, seed) for order in found])] for seed, found in counted.items()]
    )
    row |= {"forgotten": lost.mean, "forgotten_low": lost.low, "forgotten_high": lost.high}
    before = [_before(runs, order, method, seed) for order, seed in pairs]
    row |= {f"{key}_before": float(np.mean([look[key] for look in before])) for key in ("known", "new", "later")}
    then = [start["known"] - at["known"] for start, (at, whether) in zip(before, every, strict=True) if whether]
    return row | {"forgotten_then": float(np.mean(then)) if then else None}


def _before(runs: Runs, order: str, method: str, seed: int) -> Mapping[str, Any]:
    """The look at the detector that goes on, or that a full retrain replaces, before the new family appears."""
    look: Mapping[str, Any] = runs[order, "frozen" if method == "retrain" else method, seed]["looks"][0]
    return look


def _lost(runs: Runs, order: str, method: str, seed: int) -> float:
    after: float = runs[order, method, seed]["looks"][-1]["known"]
    return float(_before(runs, order, method, seed)["known"] - after)


def span_of(arrived: Sequence[Arrival], unit: str) -> Span:
    """What half of the runs take: of fakes or of seconds."""
    return median_span([at[unit] for at, _ in arrived], [whether for _, whether in arrived])


def _ratio_rows(name: str, arrived: Mapping[str, Mapping[int, Sequence[Arrival]]]) -> list[Row]:
    """How many times longer a full retrain and fine-tuning take than each method that goes on. A full retrain was only
    tried with all fakes, so that how many it needs is not known."""
    rows: list[Row] = []
    for theirs in ("retrain", "finetune"):
        for ours in arrived:
            if ours in ("frozen", "retrain", theirs) or theirs not in arrived:
                continue
            row: Row = {"kind": "ratio", "order": name, "method": ours, "against": theirs}
            row |= {f"fakes{end}": None for end in ("", "_at_least", "_at_most", "_low", "_high")}
            for unit in UNITS if theirs == "finetune" else ("seconds",):
                them, us = ([one for found in arrived[m].values() for one in found] for m in (theirs, ours))
                low, high = ratio_span(span_of(them, unit), span_of(us, unit))
                ends = interval_of(_resampled(arrived[theirs], unit), _resampled(arrived[ours], unit))
                row |= {unit: low if low == high else None, f"{unit}_at_least": low, f"{unit}_at_most": high}
                row |= {f"{unit}_low": ends[0], f"{unit}_high": ends[1]}
            rows.append({key: None if value == math.inf else value for key, value in row.items()})
    return rows


def _resampled(arrived: Mapping[int, Sequence[Arrival]], unit: str) -> list[Span]:
    """`span_of` the runs of S seeds drawn anew, all orders of a seed together; the draws are the same for all methods,
    so that these stay paired."""
    found = list(arrived.values())
    draws = np.random.default_rng(0).integers(len(found), size=(RESAMPLES, len(found)))
    return [span_of([one for place in draw for one in found[place]], unit) for draw in draws]


def _taken(unit: str) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        if row[unit] is not None:
            return f"{row[unit]:,.0f}"
        return "never" if row[f"{unit}_at_least"] is None else f"> {row[f'{unit}_at_least']:,.0f}"

    return show


def _times(unit: str) -> Callable[[Row], str]:
    """A ratio with its interval; a bound where runs that never arrived leave it open."""

    def show(row: Row) -> str:
        low, high = (row[f"{unit}_{end}"] for end in ("low", "high"))
        ends = f" [{low:.1f}, {'open' if high is None else f'{high:.1f}'}]" if low is not None else ""
        if row[unit] is not None:
            return f"{row[unit]:.1f}{ends}"
        if row[f"{unit}_at_least"]:
            return f">= {row[f'{unit}_at_least']:.1f}{ends}"
        return NOTHING if row[f"{unit}_at_most"] is None else f"<= {row[f'{unit}_at_most']:.1f}"

    return show


def _forgotten(row: Row) -> str:
    return f"{row['forgotten']:+.3f} [{row['forgotten_low']:+.3f}, {row['forgotten_high']:+.3f}]"


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
    Column("counted", f"seeds whose full retrain reached {LEAST:g}", lambda row: f"{row['counted']}/{row['seeds']}"),
)
METHOD_COLUMNS = (
    Column("order", "", lambda row: row["order"]),
    Column("method", "how the detector met B", lambda row: row["label"]),
    Column("fakes", f"of B until {SHARE:g} of a full retrain's excess AUC (Kaplan-Meier median)", _taken("fakes")),
    Column("sec.", "until then: sampling those fakes and training; looks not counted, on one core", _taken("seconds")),
    Column("arrived", "runs that got so far", lambda row: f"{row['arrived']}/{row['runs']}"),
    Column("B after", "AUC on B after all fakes and updates", number("new_after", ".3f")),
    Column("A before", "AUC on A before B appeared", number("known_before", ".3f")),
    Column(
        "forgotten [95%]",
        "AUC on A, before less after all fakes and updates; of a full retrain, against the detector that it replaces",
        _forgotten,
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
RATIO_COLUMNS = (
    METHOD_COLUMNS[0],
    Column("slower / faster", "", lambda row: f"{METHODS[row['against']]} / {METHODS[row['method']]}"),
    Column(
        "times the seconds",
        "of medians [95%, bootstrap over seeds]; >= where most runs of the first never arrived, <= where the second's",
        _times("seconds"),
    ),
    Column("times the fakes", "the same", _times("fakes")),
)
COLUMNS = (*ORDER_COLUMNS, *METHOD_COLUMNS[1:], *RATIO_COLUMNS[2:])


def report(rows: Sequence[Row]) -> str:
    """The tables as Markdown, with what was left out."""
    results = {"rows": rows}
    orders, methods, ratios = (rows_of(results, kind) for kind in ("order", "method", "ratio"))
    parts = [markdown_table(ORDER_COLUMNS, orders), _uncounted(orders)]
    parts += [markdown_table(METHOD_COLUMNS, methods)] if methods else []
    parts += [markdown_table(RATIO_COLUMNS, ratios)] if ratios else []
    run = {row["method"] for row in rows_of(results, "run")}
    if "selfplay" not in run:
        parts.append(
            "Self-play's detectors are left out: none were given (`--detectors`), or leagues have met what is new."
        )
    left = [name for name in ORDERS if name not in {row["order"] for row in orders}]
    parts += [f"Orders not run: {', '.join(left)}."] if left else []
    return "\n\n".join(part for part in parts if part)


def _uncounted(orders: Sequence[Row]) -> str:
    """What a full retrain could not do either."""
    lost = [f"{row['order']} ({row['counted']} of {row['seeds']})" for row in orders if row["counted"] < row["seeds"]]
    return f"Seeds whose full retrain stays below {LEAST:g} do not count: {'; '.join(lost)}." if lost else ""


COLOURS = dict(zip(METHODS, ("#777777", "#0072b2", "#d55e00", "#008561", "#b8860b", "#a8488a"), strict=True))
AXES = {"new": "AUC on B, held out", "known": "AUC on A, held out"}


def curves_svg(rows: Sequence[Row]) -> str:
    """For every order AUC on B, and on A, against seconds; thin lines are runs, thick ones means at equal looks."""
    results = {"rows": rows}
    orders = [row["order"] for row in rows_of(results, "order")]
    charts = []
    for order in orders:
        for key, title in AXES.items():
            lines = [
                line for place, method in enumerate(METHODS) for line in _lines(results, order, method, place, key)
            ]
            charts.append(line_chart(lines, f"{order}: {title}", "seconds of sampling and training: 2 to the power of"))
    placed = (
        f'<g transform="translate({place % 2 * WIDTH} {place // 2 * HEIGHT})">'
        + chart.replace("<svg ", f'<svg width="{WIDTH}" height="{HEIGHT}" ', 1)
        + "</g>"
        for place, chart in enumerate(charts)
    )
    tall = len(orders) * HEIGHT
    box = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {tall + 24}" role="img">'
    drawn = {row["method"] for row in rows_of(results, "curve")}
    legend = "".join(
        f'<text x="{52 + place * 200}" y="{tall + 14}" style="fill: {COLOURS[method]}; font-weight: 600">'
        f"{escape(METHODS[method])}</text>"
        for place, method in enumerate(method for method in METHODS if method in drawn)
    )
    return "\n".join([box, _style(), *placed, legend, "</svg>"])


def _lines(results: Row, order: str, method: str, colour: int, key: str) -> list[Line]:
    """One for every seed, and their mean; what was there before the first second stands at 1 second."""
    found = [row for row in rows_of(results, "curve") if row["order"] == order and row["method"] == method]
    seeds = sorted({row["seed"] for row in found})
    runs = [[(math.log2(max(row["seconds"], 1.0)), row[key]) for row in found if row["seed"] == seed] for seed in seeds]
    if not runs:
        return []
    if method == "frozen":
        end = max(math.log2(max(row["seconds"], 1.0)) for row in rows_of(results, "curve") if row["order"] == order)
        runs = [[(0.0, run[0][1]), (end, run[0][1])] for run in runs]
    mean = tuple((float(x), float(y)) for x, y in np.mean(runs, 0))
    thin = [
        Line(f"{METHODS[method]}, seed {seed}", tuple(run), colour, True) for seed, run in zip(seeds, runs, strict=True)
    ]
    return [*thin, Line(METHODS[method], mean, colour)]


def _style() -> str:
    fixed = "text { font: 11px sans-serif; fill: #555; } .title { font-weight: 600; font-size: 12px; } "
    fixed += ".grid { stroke: #ddd; } .axis { stroke: #777; } polyline { fill: none; stroke-width: 2.5; } "
    fixed += ".faint { stroke-width: 1; opacity: .3; } "
    colours = " ".join(f".c{place} {{ stroke: {colour}; }}" for place, colour in enumerate(COLOURS.values()))
    return f"<style>{fixed}{colours}</style>"
