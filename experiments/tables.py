"""Tables of a comparison: one list of columns, three dresses (plain text, Markdown, HTML), views of results.json."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ..envs.worlds.slices import SLICES

Row = dict[str, Any]
NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """title: the head. caption: what it means and which direction is better. show: a row's cell as text."""

    title: str
    caption: str
    show: Callable[[Row], str]


def number(key: str, form: str) -> Callable[[Row], str]:
    """Shows a row's number under `key` in the format `form`; a dash where there is none."""
    return lambda row: NOTHING if row.get(key) is None else format(row[key], form)


def _interval(mean: str, form: str) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        if row.get(mean) is None:
            return NOTHING
        return f"{row[mean]:{form}} [{row['low']:{form}}, {row['high']:{form}}]"

    return show


METHOD_COLUMNS = (
    Column("method", "what made the clips", lambda row: row["label"]),
    Column("VQ", "oracle visual quality, 0 to 1, higher is better", number("vq", ".3f")),
    Column("MQ", "oracle motion quality, gated by the prompted speed, higher is better", number("mq", ".3f")),
    Column("TA", "oracle text alignment over the prompt's slots, higher is better", number("ta", ".3f")),
    Column("total [95%]", "the oracle's total with its interval, higher is better", _interval("total", ".3f")),
    Column("late", "total over the last 15% of a stream 4 times longer, higher is better", number("late", ".3f")),
    Column("drift", "how far late lies from the total over the first 15%; 0 is best", number("drift", ".3f")),
    Column("div.", "within-prompt diversity relative to the world's, which is 1", number("diversity", ".2f")),
    Column("updates", "optimiser steps of the generator", number("updates", ",.0f")),
    Column("chunks", "chunks that the generator made in training", number("chunks", ",.0f")),
    Column("teacher", "chunks that went through the teacher in training", number("teacher_calls", ",.0f")),
    Column("reward", "windows that the reward model scored in training", number("reward_calls", ",.0f")),
    Column("sec.", "seconds of training on one core (mean over seeds)", number("seconds", ",.0f")),
    Column("fps", "frames a second, generation and decoding, one core; higher is better", number("fps", ",.0f")),
)

CONTRAST_COLUMNS = (
    Column("question", "declared before the run where marked *, else descriptive", lambda row: row["label"]),
    Column(
        "difference [95%]",
        "paired difference of oracle totals: same seeds, prompts and noise",
        _interval("difference", "+.3f"),
    ),
    Column("answer", "yes: interval above zero; no: below zero; else unclear", lambda row: row["verdict"]),
    Column(
        "div. ratio", "diversity of the first relative to the second; .9 keeps it", number("diversity_ratio", ".2f")
    ),
    Column("sign test p", "two-sided, over the seeds", number("sign_p", ".2f")),
)


def _slice(name: str) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        if name not in row:
            return NOTHING
        mean, low, high = (f"{row[name][key]:.2f}" for key in ("total", "low", "high"))
        return f"{mean} [{low}, {high}]"

    return show


SLICE_COLUMNS = (
    METHOD_COLUMNS[0],
    *(Column(name.replace("_", " "), f"edge slice: {edge.meaning}", _slice(name)) for name, edge in SLICES.items()),
)
SLICES_NOTE = (
    "Edge slices, oracle totals with 95% intervals: the world gives the first chunk, which does not count; a generator "
    "hears the prompt in its own words and goes on; the true prompt judges. The teacher makes whole clips only and "
    "cannot go on."
)


def slice_table_rows(results: Row) -> list[Row]:
    """One row per method, with the row of each edge slice under its name; none where no slice was examined."""
    found: dict[str, Row] = {}
    for row in rows_of(results, "slice"):
        found.setdefault(row["method"], {})[row["slice"]] = row
    shown = rows_of(results, "method") if found else []
    return [{"label": row["label"], **found.get(row["method"], {})} for row in shown]


def rows_of(results: Row, kind: str) -> list[Row]:
    """The rows of one kind ("method", "contrast", "slice", "run", "curve", "search", "clip") in their order."""
    return [row for row in results["rows"] if row.get("kind") == kind]


def plain_table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """Aligned columns for a terminal; the first column to the left, the others to the right."""
    cells = [[column.title for column in columns], *([column.show(row) for column in columns] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown_table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """The same table for a README."""
    head = "| " + " | ".join(column.title for column in columns) + " |"
    rule = "|" + "|".join(" :-- " if place == 0 else " --: " for place in range(len(columns))) + "|"
    body = ["| " + " | ".join(column.show(row) for column in columns) + " |" for row in rows]
    return "\n".join([head, rule, *body])


def html_table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """The same table for a page; captions appear over the heads."""
    head = "".join(f'<th title="{escape(column.caption)}">{escape(column.title)}</th>' for column in columns)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{escape(column.show(row))}</td>" for column in columns) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def legend(columns: Sequence[Column]) -> str:
    """What the columns mean, one line of HTML each."""
    return "".join(f"<div><b>{escape(column.title)}</b> {escape(column.caption)}</div>" for column in columns)


def verdict_lines(results: Row) -> list[str]:
    """One sentence per contrast, made from its numbers."""
    return [_sentence(row) for row in rows_of(results, "contrast")]


def _sentence(row: Row) -> str:
    numbers = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
    line = f"{row['question']} {row['verdict']} ({numbers})"
    if row.get("diversity_ratio") is None:
        return line + "."
    kept = "kept" if row["diversity_ratio"] >= 0.9 else "lost"
    return f"{line}; diversity {kept} ({row['diversity_ratio']:.2f} of it)."
