"""Columns of a comparison's tables where another than the oracle judged: the judge's axes, captions that say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..findings import CONTRAST_COLUMNS, METHOD_COLUMNS
from ..tables import Column, Row, number, rows_of

_TOTAL = "total [95%]"
_ORACLES = ("VQ", "MQ", "TA")
_CAPTIONS = {
    _TOTAL: "the judge's total with its interval, higher is better",
    "late": "total of the end, as long as a clip, of a stream 4 times longer",
    "drift": "how far late lies from the total of that stream's beginning; 0 is best",
    "div.": "distance of pixels between clips of a prompt, relative to the start's, which is 1",
    "difference [95%]": "paired difference of the judge's totals: same seeds, prompts and noise",
    "fps": "frames a second, generation and decoding; higher is better",
}


def judge_of(results: Row) -> str:
    """Who judged, in words; empty where it was the oracle."""
    return str(results.get("config", {}).get("judge", ""))


def method_columns(results: Row) -> Sequence[Column]:
    """Of the table of methods."""
    if not judge_of(results):
        return METHOD_COLUMNS
    first = next(iter(rows_of(results, "method")), {})
    own = [Column(axis, "of the judge", number(axis.lower(), ".3f")) for axis in _ORACLES if axis.lower() in first]
    own += [
        Column(key.removeprefix("axis/"), "of the judge", number(key, ".3g"))
        for key in first
        if key.startswith("axis/")
    ]
    kept = _told([column for column in METHOD_COLUMNS if column.title not in _ORACLES])
    place = next(place for place, column in enumerate(kept) if column.title == _TOTAL)
    return (*kept[: place + 1], *own, *kept[place + 1 :])


def contrast_columns(results: Row) -> Sequence[Column]:
    """Of the table of differences."""
    return _told(CONTRAST_COLUMNS) if judge_of(results) else CONTRAST_COLUMNS


def level_titles(results: Row) -> Sequence[tuple[str, str]]:
    """What learning curves show: names in rows, and titles."""
    reward = ("reward", "Trained reward (z), same clips")
    if judge_of(results):
        return (("judged", "The judge's total, validation prompts"), reward)
    return (("oracle", "Oracle total, validation prompts"), reward)


def _told(columns: Sequence[Column]) -> Sequence[Column]:
    return [replace(column, caption=_CAPTIONS.get(column.title, column.caption)) for column in columns]
