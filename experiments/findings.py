"""What a comparison found: columns of its tables, sentences made from its numbers, and its marked blocks in docs."""

from __future__ import annotations

from collections.abc import Sequence

from ..envs.worlds.slices import SLICES
from .map import map_block
from .tables import Column, Row, interval, legend, made_by, markdown_table, number, rows_of

PICTURES = ("clips.webp",)
PROMPTS = 4
"""Shown in that picture."""
KEPT = 0.9
"""A row that has this share of another's diversity has kept it."""

METHOD_COLUMNS = (
    Column("method", "what made the clips", lambda row: row["label"]),
    Column("steps", "denoising steps of a chunk", number("steps", "d"), added=True),
    Column("first", "ms until a stream's first chunk is there, one core", number("first_chunk", ",.0f"), added=True),
    Column("VQ", "oracle visual quality, 0 to 1, higher is better", number("vq", ".3f")),
    Column("MQ", "oracle motion quality, gated by the prompted speed, higher is better", number("mq", ".3f")),
    Column("TA", "oracle text alignment over the prompt's slots, higher is better", number("ta", ".3f")),
    Column("total [95%]", "the oracle's total with its interval, higher is better", interval("total", ".3f")),
    Column("IQM", "mean of the middle half of the totals, over seeds and prompts", number("iqm", ".3f"), added=True),
    Column("late", "total over the last 15% of a stream 4 times longer, higher is better", number("late", ".3f")),
    Column("drift", "how far late lies from the total over the first 15%; 0 is best", number("drift", ".3f")),
    Column("late 1x", "late of clips: the total over their second half", number("late_1", ".3f"), added=True),
    Column("drift 1x", "drift of clips, between their halves", number("drift_1", ".3f"), added=True),
    Column("late 16x", "late of streams 16 times longer than a clip", number("late_16", ".3f"), added=True),
    Column("drift 16x", "drift of these", number("drift_16", ".3f"), added=True),
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
        "P(better)",
        "probability that a run of the first beats one of the second on a prompt; ties count half",
        number("improvement", ".2f"),
        added=True,
    ),
    Column(
        "div. ratio", "diversity of the first relative to the second; .9 keeps it", number("diversity_ratio", ".2f")
    ),
    Column("sign test p", "two-sided, over the seeds", number("sign_p", ".2f")),
)
SLICE_COLUMNS = (
    METHOD_COLUMNS[0],
    *(
        Column(name.replace("_", " "), f"edge slice: {edge.meaning}", interval(name, ".2f", f"{name}_"))
        for name, edge in SLICES.items()
    ),
)
SLICES_NOTE = (
    "Edge slices, oracle totals with 95% intervals: the world gives the first chunk, which does not count; a generator "
    "hears the prompt in its own words and goes on; the true prompt judges. The teacher makes whole clips only and "
    "cannot go on."
)


def slice_table_rows(results: Row) -> list[Row]:
    """One row per method, with the total of each edge slice under its name; none where no slice was examined."""
    found: dict[str, Row] = {}
    for row in rows_of(results, "slice"):
        cells = {row["slice"]: row["total"]} | {f"{row['slice']}_{end}": row[end] for end in ("low", "high")}
        found.setdefault(row["method"], {}).update(cells)
    shown = rows_of(results, "method") if found else []
    return [{"label": row["label"], **found.get(row["method"], {})} for row in shown]


def verdict_lines(results: Row, declared: bool = False) -> list[str]:
    """One sentence per contrast, made from its numbers; of those alone that were declared beforehand, if asked."""
    return [_sentence(row) for row in rows_of(results, "contrast") if row.get("declared") or not declared]


def _sentence(row: Row) -> str:
    kept = _kept(row)
    return f"{row['question']} {row['verdict']} ({_signed(row)})" + (f"; diversity {kept}." if kept else ".")


def _kept(row: Row) -> str:
    ratio = row.get("diversity_ratio")
    return "" if ratio is None else f"{'kept' if ratio >= KEPT else 'lost'} ({ratio:.2f} of it)"


def findings(results: Row) -> list[tuple[str, list[str]]]:
    """What a comparison found, in sentences made from its numbers: heads with what stands below them."""
    trained = [row for row in rows_of(results, "method") if row.get("updates") is not None]
    trained.sort(key=lambda row: -row["total"])
    if not trained:
        return [("What won", ["Nothing was trained."])]
    asked = [row for row in rows_of(results, "contrast") if "ours" in row]
    answers: dict[str, list[str]] = {"declared": [], "in turn": [], "other": []}
    for row in asked:
        kind = "declared" if row["declared"] else "in turn" if {*"+&"} & {*row["ours"]} else "other"
        answers[kind].append(_answer(results, row))
    parts = [
        ("What won", _ranking(results, trained)),
        ("The questions asked before the run", answers["declared"]),
        ("Was diversity kept?", _diversity(results, trained)),
        ("What two together added", answers["in turn"]),
        ("Other differences", answers["other"]),
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
    told = f"{by}{_in_seeds(results, pair)}. {sure}"
    if other["method"] == "start":
        return f"First, {best['label']}, against the start: {told}"
    chosen = "The scores themselves chose these two, which makes their difference look surer than it is."
    return f"First against the next, {other['label']}: {told} {chosen}"


def _answer(results: Row, row: Row) -> str:
    """A question, its answer with the interval, in how many seeds, and what became of diversity."""
    kept = _kept(row)
    answer = f"{_question(row)}? {_SAID[row['verdict']]}: {_signed(row)}{_in_seeds(results, row)}."
    return f"{answer} Diversity {kept}." if kept else answer


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
    lines = [
        f"{_question(row)}: a difference beyond {max(-row['low'], row['high']):.3f} either way is unlikely."
        for row in asked
        if row["verdict"] == "unclear"
    ]
    if ends := _at_an_end(results):
        tried = "the smallest or the largest of those tried, so a better one may lie beyond"
        lines.append(f"The learning rate that won was {tried}: {'; '.join(ends)}.")
    count = len(results["seeds"])
    least = f"With {count} seeds a sign test can reach p = {2 / 2**count:.2g} at best."
    return [*lines, f"Other budgets, worlds and sizes of model, of which this says nothing. {least}"]


def _at_an_end(results: Row) -> list[str]:
    """Methods whose search ended at an end of its range."""
    labels = {row["method"]: row["label"] for row in rows_of(results, "method")}
    tries: dict[str, dict[float, float]] = {}
    for row in rows_of(results, "search"):
        name = row["try"].removeprefix("search-").rsplit("-", 1)[0]
        tries.setdefault(name, {})[row["learning_rate"]] = row["oracle"]
    best = {name: max(rates, key=lambda rate: rates[rate]) for name, rates in tries.items() if len(rates) > 1}
    return [labels.get(name, name) for name, rate in best.items() if rate in (min(tries[name]), max(tries[name]))]


_SAID = {"yes": "Yes", "no": "No, it lies below", "unclear": "This cannot be told"}
_SURE = {
    "yes": "The whole interval lies above zero.",
    "no": "The whole interval lies below zero.",
    "unclear": "The interval holds zero, so this may be chance.",
}
_signed = interval("difference", "+.3f")
_of_total = interval("total", ".3f")


def table_block(results: Row) -> str:
    """Where, how and with what it was measured, the methods, an answer to what was declared, what the columns mean."""
    config, rows = results["config"], rows_of(results, "method")
    answers = _list(verdict_lines(results, declared=True))
    asked = f"Asked before the run:\n\n{answers}\n\n" if answers else ""
    exam = f"{config['prompts']} test prompts, {config['clips']} clips each, {len(results['seeds'])} seeds."
    table = f"{markdown_table(METHOD_COLUMNS, rows)}\n\n{asked}{legend(METHOD_COLUMNS, rows)}"
    return f"{_made(results)} {exam}\n\n{table}"


def answers_block(results: Row) -> str:
    """An answer to each question that was declared."""
    return _list(verdict_lines(results, declared=True))


def verdict_block(results: Row) -> str:
    """What a comparison found, in sentences and differences, and which runs say so."""
    config, contrasts = results["config"], rows_of(results, "contrast")
    seeds = ", ".join(str(seed) for seed in results["seeds"])
    exam = f"{config['prompts']} test prompts, {config['clips']} clips each, seeds {seeds}."
    parts = [(head, _list(lines)) for head, lines in findings(results)]
    if contrasts:
        shown = f"{markdown_table(CONTRAST_COLUMNS, contrasts)}\n\n{legend(CONTRAST_COLUMNS, contrasts)}"
        parts.append(("All differences in one table", shown))
    parts.append(("How it was run", _list(config["notes"])))
    return "\n\n".join([f"{_made(results)} {exam}", *(f"### {head}\n\n{text}" for head, text in parts)])


def pictures_block(results: Row) -> str:
    """The picture and what is to be seen in it."""
    prompts = [row["prompt"] for row in rows_of(results, "clip") if row["of"] == "clips"][:PROMPTS]
    lines = "\n".join(f"{number}. {prompt}" for number, prompt in enumerate(prompts, 1))
    caption = "One prompt a row, one noise for the whole row. Not selected: the first test prompts of the run below."
    return f"![Clips of every row of the table, side by side](docs/images/{PICTURES[0]})\n\n{caption}\n\n{lines}"


def slices_block(results: Row) -> str:
    """The edge slices: where and how they were measured, and the table."""
    count = results["config"]["preset"]["exam"]["slice_prompts"]
    made = f"{_made(results)} {count} test prompts a slice, {len(results['seeds'])} seeds."
    return f"{made}\n\n{markdown_table(SLICE_COLUMNS, slice_table_rows(results))}\n\n{SLICES_NOTE}"


BLOCKS = {
    "table": table_block,
    "answers": answers_block,
    "verdict": verdict_block,
    "pictures": pictures_block,
    "slices": slices_block,
    "map": map_block,
}


def _made(results: Row) -> str:
    return f"{made_by(results)}, {results['config']['workers']} worker processes of one thread."


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
