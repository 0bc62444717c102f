"""Time to a target, where some runs never get there: censored medians, ratios of two, and their intervals.

How long half of the runs take is a span (at least, at most): one number where it was seen, open above where most runs
gave up. So is a ratio of two. S seeds, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..stats import censored_median
from ..tables import NOTHING, Row

Span = tuple[float, float]
Times = tuple[tuple[tuple[float, bool], ...], ...]
"""Of S seeds the runs of each: when it reached the target or gave up, and whether it reached it."""
_RESAMPLES = 1000


def first_at(curve: Iterable[Mapping[str, Any]], axis: str, target: float) -> Mapping[str, Any] | None:
    """The first point of a learning curve that reaches the target on this axis."""
    return next((point for point in curve if point[axis] >= target), None)


def median_span(times: Sequence[float], reached: Sequence[bool]) -> Span:
    """The Kaplan-Meier median, or, where too few reached the target, what half of the runs exceed at least."""
    median = censored_median(times, reached)
    return (median, median) if math.isfinite(median) else (sorted(times)[(len(times) - 1) // 2], math.inf)


def span_of(times: Times) -> Span:
    """`median_span` of all runs."""
    when, whether = zip(*(run for seed in times for run in seed), strict=True)
    return median_span(when, whether)


def ratio_span(theirs: Span, ours: Span) -> Span:
    """theirs / ours; (0, inf) where neither is known, inf where ours is nothing and theirs is not."""
    return _divided(theirs[0], ours[1]), _divided(theirs[1], ours[0])


def _divided(theirs: float, ours: float) -> float:
    if ours:
        return theirs / ours
    return math.inf if theirs else 1.0


@lru_cache(maxsize=256)
def resampled(times: Times, resamples: int = _RESAMPLES) -> tuple[Span, ...]:
    """`span_of` the runs of S seeds drawn anew, [R]; the draws are the same wherever there are S seeds, so that two
    methods stay paired."""
    draws = np.random.default_rng(0).integers(len(times), size=(resamples, len(times)))
    return tuple(span_of(tuple(times[place] for place in draw)) for draw in draws)


def interval_of(theirs: Sequence[Span], ours: Sequence[Span], level: float = 0.95) -> Span:
    """Percentile interval of the ratio; an end that the runs leave open is taken as far out as it can be."""
    spans = [ratio_span(a, b) for a, b in zip(theirs, ours, strict=True)]
    out = math.floor((1 - level) / 2 * len(spans))
    return sorted(low for low, _ in spans)[out], sorted(high for _, high in spans)[-1 - out]


def span_cells(unit: str, span: Span) -> Row:
    """A span in a row: None is an open end, `unit` itself is None unless both ends agree."""
    return {
        unit: _known(span[0]) if span[0] == span[1] else None,
        f"{unit}_at_least": _known(span[0]),
        f"{unit}_at_most": _known(span[1]),
    }


def ratio_cells(unit: str, theirs: Times, ours: Times) -> Row:
    """How many times longer theirs take than ours, with its interval over seeds, in a row."""
    low, high = interval_of(resampled(theirs), resampled(ours))
    cells = span_cells(unit, ratio_span(span_of(theirs), span_of(ours)))
    return cells | {f"{unit}_low": _known(low), f"{unit}_high": _known(high)}


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def time_shown(unit: str) -> Callable[[Row], str]:
    """Shows a time; what it exceeds where most runs gave up, "never" where nothing was tried."""

    def show(row: Row) -> str:
        if row[unit] is not None:
            return f"{row[unit]:,.0f}"
        return "never" if row[f"{unit}_at_least"] is None else f"> {row[f'{unit}_at_least']:,.0f}"

    return show


def ratio_shown(unit: str, bounded: bool = True) -> Callable[[Row], str]:
    """Shows a ratio with its interval; a bound where runs that never arrived leave it open, with its interval if
    `bounded`."""

    def show(row: Row) -> str:
        low, high = (row[f"{unit}_{end}"] for end in ("low", "high"))
        ends = "" if low is None else f" [{low:.1f}, {'open' if high is None else f'{high:.1f}'}]"
        if row[unit] is not None:
            return f"{row[unit]:.1f}{ends}"
        if row[f"{unit}_at_least"]:
            return f">= {row[f'{unit}_at_least']:.1f}{ends if bounded else ''}"
        return NOTHING if row[f"{unit}_at_most"] is None else f"<= {row[f'{unit}_at_most']:.1f}"

    return show
