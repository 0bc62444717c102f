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


def interval(mean: str, form: str, ends: str = "") -> Callable[[Row], str]:
    """Shows a row's number under `mean` with its interval, under `low` and `high` with `ends` before them."""

    def show(row: Row) -> str:
        if row.get(mean) is None:
            return NOTHING
        return f"{row[mean]:{form}} [{row[f'{ends}low']:{form}}, {row[f'{ends}high']:{form}}]"

    return show


METHOD_COLUMNS = (
    Column("method", "what made the clips", lambda row: row["label"]),
    Column("VQ", "oracle visual quality, 0 to 1, higher is better", number("vq", ".3f")),
    Column("MQ", "oracle motion quality, gated by the prompted speed, higher is better", number("mq", ".3f")),
    Column("TA", "oracle text alignment over the prompt's slots, higher is better", number("ta", ".3f")),
    Column("total [95%]", "the oracle's total with its interval, higher is better", interval("total", ".3f")),
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
        interval("difference", "+.3f"),
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


def verdict_lines(results: Row, declared: bool = False) -> list[str]:
    """One sentence per contrast, made from its numbers; of those alone that were declared beforehand, if asked."""
    return [_sentence(row) for row in rows_of(results, "contrast") if row.get("declared") or not declared]


def _sentence(row: Row) -> str:
    line = f"{row['question']} {row['verdict']} ({_signed(row)})"
    if row.get("diversity_ratio") is None:
        return line + "."
    kept = "kept" if row["diversity_ratio"] >= KEPT else "lost"
    return f"{line}; diversity {kept} ({row['diversity_ratio']:.2f} of it)."


KEPT = 0.9
"""A row that has this share of another's diversity has kept it."""


def findings(results: Row) -> list[tuple[str, list[str]]]:
    """What a comparison found, in sentences made from its numbers: heads with what stands below them."""
    trained = sorted(
        (row for row in rows_of(results, "method") if row.get("updates") is not None), key=lambda row: -row["total"]
    )
    if not trained:
        return [("What won", ["Nothing was trained."])]
    asked = [row for row in rows_of(results, "contrast") if "ours" in row]
    declared = [row for row in asked if row["declared"]]
    in_turn = [row for row in asked if "+" in row["ours"] and not row["declared"]]
    others = [row for row in asked if row not in declared and row not in in_turn]
    parts = [
        ("What won", _ranking(results, trained)),
        ("The questions asked before the run", [_answer(results, row) for row in declared]),
        ("Was diversity kept?", _diversity(results, trained)),
        ("What a sequence added", [_answer(results, row) for row in in_turn]),
        ("Other differences", [_answer(results, row) for row in others]),
        ("What each spent", [_spent(row) for row in trained]),
        ("What remains unclear", _unclear(results, asked)),
    ]
    return [(head, lines) for head, lines in parts if lines]


def _ranking(results: Row, trained: Sequence[Row]) -> list[str]:
    """The order by total, what the first won by, and what there was to win."""
    known = {row["method"]: row for row in rows_of(results, "method")}
    best, start = trained[0], known.get("start")
    rows = sorted([*trained, *([start] if start else [])], key=lambda row: -row["total"])
    order = "; ".join(f"{row['label']} {_of_total(row)}" for row in rows)
    lines = [f"By the oracle's total: {order}."]
    lines += [_first_against(results, best, row) for row in (start, *trained[1:2]) if row]
    if start and "codec" in known:
        low, high = start["total"], known["codec"]["total"]
        share = (best["total"] - low) / (high - low) if high > low else 0.0
        lines.append(
            f"The first went {share:.0%} of the way from the start ({low:.3f}) to the codec's ceiling ({high:.3f})."
        )
    late = [f"{row['label']} {row['late']:.3f}" for row in rows if row.get("late") is not None]
    return [*lines, *([f"Over the last 15% of streams four times longer: {'; '.join(late)}."] if late else [])]


def _first_against(results: Row, best: Row, other: Row) -> str:
    """By how much the first leads another row, and how sure that is."""
    pair = {"ours": best["method"], "theirs": other["method"]}
    found = next((row for row in rows_of(results, "contrast") if pair.items() <= row.items()), None)
    by = f"{best['total'] - other['total']:+.3f}" if found is None else _signed(found)
    sure = "No interval was taken of it." if found is None else _SURE[found["verdict"]]
    if other["method"] == "start":
        return f"First, {best['label']}, against the start: {by}{_in_seeds(results, pair)}. {sure}"
    chosen = "The scores themselves chose these two, which makes their difference look surer than it is."
    return f"First against the next, {other['label']}: {by}{_in_seeds(results, pair)}. {sure} {chosen}"


def _answer(results: Row, row: Row) -> str:
    """A question, its answer with the interval, in how many seeds, and what became of diversity."""
    ratio = row.get("diversity_ratio")
    spread = "" if ratio is None else f" Diversity {'kept' if ratio >= KEPT else 'lost'} ({ratio:.2f} of it)."
    return f"{_question(row)}? {_SAID[row['verdict']]}: {_signed(row)}{_in_seeds(results, row)}.{spread}"


def _question(row: Row) -> str:
    text = str(row["question"]).rstrip(":")
    return text[:1].upper() + text[1:]


def _in_seeds(results: Row, row: Row) -> str:
    """In how many seeds the first row lay above the second."""
    totals = {(run["method"], run["seed"]): run["total"] for run in rows_of(results, "run")}
    pairs = [(totals.get((row["ours"], seed)), totals.get((row["theirs"], seed))) for seed in results["seeds"]]
    both = [(ours, theirs) for ours, theirs in pairs if ours is not None and theirs is not None]
    return f", above in {sum(ours > theirs for ours, theirs in both)} of {len(both)} seeds" if both else ""


def _diversity(results: Row, trained: Sequence[Row]) -> list[str]:
    """Each trained row's diversity as a share of the start's."""
    start = next((row.get("diversity") for row in rows_of(results, "method") if row["method"] == "start"), None)
    shares = {row["label"]: row["diversity"] / start for row in trained if start and row.get("diversity") is not None}
    if not shares:
        return []
    lost = [f"{label} ({share:.2f})" for label, share in shares.items() if share < KEPT]
    least = min(shares, key=lambda label: shares[label])
    kept = f"All rows kept at least {KEPT:g} of the start's; the least is {least} with {shares[least]:.2f}."
    return [f"Lost, below {KEPT:g} of the start's: {'; '.join(lost)}. All others kept it." if lost else kept]


def _spent(row: Row) -> str:
    calls = (("chunks", "chunks made"), ("teacher_calls", "through the teacher"), ("reward_calls", "windows scored"))
    spent = "".join(f", {row[key]:,.0f} {what}" for key, what in calls if row.get(key))
    return f"{row['label']} ({row['total']:.3f}): {row['updates']:,.0f} updates{spent}; {row['seconds']:,.0f} s."


def _unclear(results: Row, asked: Sequence[Row]) -> list[str]:
    """Questions without an answer, and how much a difference may be; searches that ended at an end of their range."""
    lines = []
    for row in asked:
        if row["verdict"] == "unclear":
            most = max(-row["low"], row["high"])
            lines.append(f"{_question(row)}: a difference beyond {most:.3f} either way is unlikely.")
    if ends := _at_an_end(results):
        tried = "the smallest or the largest of those tried, so a better one may lie beyond"
        lines.append(f"The learning rate that won was {tried}: {'; '.join(ends)}.")
    count = len(results["seeds"])
    least = f"With {count} seeds a sign test can reach p = {2 / 2**count:.2g} at best."
    return [*lines, f"Other budgets, worlds and sizes of model, of which this says nothing. {least}"]


def _at_an_end(results: Row) -> list[str]:
    """Methods whose search ended at an end of its range."""
    labels = {row["method"]: row["label"] for row in rows_of(results, "method")}
    tries: dict[str, list[Row]] = {}
    for row in rows_of(results, "search"):
        tries.setdefault(row["try"].removeprefix("search-").rsplit("-", 1)[0], []).append(row)
    found = []
    for name, rows in tries.items():
        rates = [row["learning_rate"] for row in rows]
        best = max(rows, key=lambda row: row["oracle"])["learning_rate"]
        found += [labels.get(name, name)] if len(rates) > 1 and best in (min(rates), max(rates)) else []
    return found


_SAID = {"yes": "Yes", "no": "No, it lies below", "unclear": "This cannot be told"}
_SURE = {
    "yes": "The whole interval lies above zero.",
    "no": "The whole interval lies below zero.",
    "unclear": "The interval holds zero, so this may be chance.",
}


def _signed(row: Row) -> str:
    return f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def _of_total(row: Row) -> str:
    return f"{row['total']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
