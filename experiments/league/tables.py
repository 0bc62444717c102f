"""The tables of `reelgym selfplay`, views of its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ..tables import Column, Row, interval, number, rows_of, sections
from .dataset import SEEN
from .rows import QUESTIONS, START
from .runs import VARIANTS

VARIANT_LABELS = {
    START: "before any round",
    "d3": "D3 on the shipped detector's features",
    "restrav": "ReStraV on the shipped detector's features",
    **{name: one.label for name, one in VARIANTS.items()},
}
PART_LABELS = {
    "student": "student, 4 steps (where every generator starts)",
    "student-2": "student, 2 steps",
    "student-1": "student, 1 step",
    "teacher": "teacher",
    "scripted": "scripted fakes that training may see",
    "ghosting": "scripted, held out: ghosting",
    "energy_gain": "scripted, held out: energy gain",
}
ACROSS = "**Generators of one arm against detectors of another**: share of streams taken for real"


def _span(key: str, form: str) -> Callable[[Row], str]:
    return interval(key, form, f"{key}_")


def _paused(row: Row) -> str:
    return f"{row['paused_generator'] + row['paused_detector']:.1f}"


def _label(row: Row) -> str:
    return VARIANT_LABELS[row["arm"]]


DETECTOR_COLUMNS = (
    Column("detector of", "the newest detector of an arm; before any round: the shipped one", _label),
    Column("unseen AUC [95%]", "mean over families that no league learns from, 0.5 is chance", _span("unseen", ".3f")),
    Column("seen AUC", "mean over families that detectors begin with, on other prompts", number("seen", ".3f")),
    Column("TPR at 1%", "made clips of unseen families found at 1% false alarms", number("tpr", ".3f")),
    Column("false alarms", "real clips that its verdicts in the game call made", number("false_alarms", ".3f")),
    Column("chunks", "that its verdicts on real clips take, of 4", number("chunks", ".2f")),
    Column("cal. error", "expected calibration error of the logit's sigmoid", number("calibration_error", ".3f")),
    Column("floor", "AUC of real clips against other real clips; 0.5 is right", number("floor_same", ".3f")),
    Column("other camera", "AUC of real clips against real clips by another camera", number("floor_other", ".3f")),
)
GENERATOR_COLUMNS = (
    Column("generator of", "the newest generator of an arm; before any round: the shipped student", _label),
    Column(
        "held-out AUC [95%]",
        "of detectors trained apart, that nobody played against, on its clips; lower is better",
        _span("panel_auc", ".3f"),
    ),
    Column("fools them", "streams that these detectors take for real", number("panel_wins", ".3f")),
    Column("oracle [95%]", "oracle total on test prompts, higher is better", _span("total", ".3f")),
    Column("VQ", "oracle visual quality", number("VQ", ".3f")),
    Column("MQ", "oracle motion quality", number("MQ", ".3f")),
    Column("TA", "oracle text alignment", number("TA", ".3f")),
    Column("div.", "distance between clips of a prompt, in the oracle's own unit", number("diversity", ".3f")),
    Column("under floor", "clips whose quality reward lies under the game's floor", number("below_floor", ".3f")),
)
GAME_COLUMNS = (
    Column("arm", "", _label),
    Column("contested", "payoffs of the finished league between .1 and .9", number("contested", ".2f")),
    Column(
        "rise G",
        "rating of the newest generator less the first one's (openskill's mu)",
        number("rise_generator", "+.1f"),
    ),
    Column("rise D", "the same of the detector", number("rise_detector", "+.1f")),
    Column("response G [95%]", "what its best response gains in the game", _span("response_generator", "+.3f")),
    Column("response D [95%]", "the same of the detector", _span("response_detector", "+.3f")),
    Column("AUC", "newest detector on the newest generator", number("auc", ".3f")),
    Column("after response", "the same after the detector's best response", number("response_auc", ".3f")),
    Column("crossed", "pairs of generators that two detectors rank in opposite orders", number("intransitive", ".0f")),
    Column("of", "so many pairs of pairs", number("pairs", ",.0f")),
    Column("paused", "rounds for which one of the two paused", _paused),
    Column("sec.", "seconds of training and matches on one core", number("seconds", ",.0f")),
)
_CONTRAST_COLUMNS = (
    Column("question", "", lambda row: _question(row)),
    Column("arm", "", _label),
    Column("against", "", lambda row: VARIANT_LABELS[row["against"]]),
    Column("difference [95%]", "paired: same seeds, families, prompts and noise", _span("difference", "+.3f")),
    Column("better", "whether the arm is better: the interval lies on one side of 0", lambda row: row["better"]),
)
_FAMILY_COLUMNS = (
    Column("family", "what made the clips; the first two are learned from", lambda row: PART_LABELS[row["family"]]),
    Column("detector of", "", _label),
    *(Column(f"{k}", f"AUC after {k} of 4 chunks", number(f"auc_{k}", ".3f")) for k in range(1, 5)),
    Column("TPR at 1%", "", number("tpr", ".3f")),
)
RATING_COLUMNS = (
    Column(
        "player", "in the league of the first seed; the number is the round, x an exploiter", lambda row: row["name"]
    ),
    Column("role", "", lambda row: row["role"]),
    Column("rating", "openskill's mu; the first generator stays at 25", number("mu", ".1f")),
    Column("unsure", "openskill's sigma", number("sigma", ".1f")),
)
_FEW = (*_CONTRAST_COLUMNS[-2:], *_FAMILY_COLUMNS[2:3], *RATING_COLUMNS)
COLUMNS = (*DETECTOR_COLUMNS, *GENERATOR_COLUMNS, *GAME_COLUMNS, *_FEW)


def report(rows: Sequence[Row]) -> str:
    """The tables and what they say, as Markdown."""
    of = partial(rows_of, {"rows": rows})
    families = [row for row in of("family") if row["arm"] in (START, "league")]
    families.sort(key=lambda row: (list(PART_LABELS).index(row["family"]), row["arm"] != START))
    ratings = [row for row in of("rating") if row["arm"] == "league" and row["seed"] == of("run")[0]["seed"]]
    judge = next((str(row["words"]) for row in of("judge")), "")
    tables = sections(
        (f"**Detectors**, on {of('detector')[0]['reals']:,.0f} held-out real clips", DETECTOR_COLUMNS, of("detector")),
        (f"**Generators**{judge and f', judged by {judge}'}", _judged_columns(judge), of("generator")),
        ("**The games**", GAME_COLUMNS, of("game")),
        (ACROSS, *_across(of("across"))),
        ("**Differences**", _CONTRAST_COLUMNS, [row | {"judge": judge} for row in of("contrast")]),
        ("**AUC after so many chunks**", _FAMILY_COLUMNS, families),
        ("**Ratings**, a league of one seed", RATING_COLUMNS, sorted(ratings, key=lambda row: -row["mu"])),
    )
    said = "\n".join(f"- {line}" for line in sentences(rows))
    return f"{said}\n\n{tables}"


def sentences(rows: Sequence[Row]) -> list[str]:
    """What was asked of the game, answered in words."""
    begin = next(row for row in rows if row["kind"] == "family" and row["arm"] == START and row["family"] == SEEN[0])
    start = begin[f"auc_{max(int(key[4:]) for key in begin if key.startswith('auc_'))}"]
    inside = "inside" if 0.6 <= start <= 0.95 else "outside"
    lines = [f"At the start the detector's AUC on the student's clips is {start:.3f}, {inside} [.6, .95]."]
    for row in (row for row in rows if row["kind"] == "game" and row["arm"] == "league"):
        enough = "enough" if row["least_contested"] >= 0.3 else "too few"
        lines.append(
            f"Of the finished league's payoffs {row['contested']:.0%} are contested (least of the seeds "
            f"{row['least_contested']:.0%}); {enough} against 30%."
        )
    judge = any(row["kind"] == "judge" for row in rows)
    for row in [row | {"judge": judge} for row in rows]:
        if row["kind"] == "contrast" and "league" == row["arm"]:
            label = _question(row)
            said = {"yes": "better than", "no": "worse than", "unclear": "not told apart from"}[row["better"]]
            lines.append(
                f"{label[0].upper()}{label[1:]}: the league is {said} {VARIANT_LABELS[row['against']]} "
                f"({row['difference']:+.3f} [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}])."
            )
    return lines


def _question(row: Row) -> str:
    """In words; of another judge's total where the oracle did not judge."""
    label = QUESTIONS[row["question"]][0]
    return label.replace("oracle total", "the judge's total") if row.get("judge") else label


def _judged_columns(judge: str) -> Sequence[Column]:
    """Of generators: those of the oracle, or of another judge."""
    if not judge:
        return GENERATOR_COLUMNS
    told = {"oracle [95%]": ("total [95%]", "of the judge, on test prompts, higher is better")}
    told |= {axis: (axis, "of the judge") for axis in ("VQ", "MQ", "TA")}
    told["div."] = ("div.", "distance of pixels between clips of a prompt")
    renamed = [Column(*told.get(c.title, (c.title, c.caption)), c.show, True) for c in GENERATOR_COLUMNS]
    return renamed


def _across(rows: Sequence[Row]) -> tuple[list[Column], list[Row]]:
    """A line for every generator, a column for every detector."""
    columns = [Column("generator of", "", _label)]
    columns += [
        Column(VARIANT_LABELS[name], "", number(name, ".3f")) for name in dict.fromkeys(r["detector_of"] for r in rows)
    ]
    lines: dict[str, Row] = {}
    for row in rows:
        lines.setdefault(row["generator_of"], {"arm": row["generator_of"]})[row["detector_of"]] = row["payoff"]
    return columns, list(lines.values())
