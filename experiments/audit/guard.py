"""`reelgym audit guard`: does a training hack its reward without the guard, and not with it?

The shipped student climbs the reward's gradient with everything that holds it back switched off: no shifts and no noise
under the gradient, no pull to the start, too high a rate, and where a case says so but one axis of the reward. The same
runs again with the guard. The oracle, which neither training nor guard sees, judges start and ends on test prompts.
S seeds, P prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...training.guard import GuardConfig
from ..evaluate import EvalConfig
from ..jobs import Job
from ..options import StudyOptions
from ..stats import exam_scores, mean_interval, paired_difference
from ..study import Results, Study, run_study, seeds_of
from ..tables import Column, Row, interval, markdown_table, number
from .guard_runs import CASES, HACKED_AXES, Case, GuardTask, work

__all__ = ["COLUMNS", "Config", "report", "run"]
CONDITIONS = {"start": "start", "without": "end without the guard", "with": "end with the guard"}
CONTRASTS = (("without", "start"), ("with", "start"), ("with", "without"))


@dataclass(frozen=True)
class Config(StudyOptions):
    """What is demonstrated; a run that was killed goes on with the jobs that are not finished."""

    cases: tuple[Case, ...] = ("motion", "all")
    """What is trained on: one axis of the reward or all, by its gradient; forward: by the forward process."""
    rate: float | None = None
    """Learning rate; by default each case's own."""
    updates: int | None = None
    """Of a run that nobody stops; by default each case's own."""
    every: int = 4
    """Updates between looks of the guard."""
    watched: int = 12
    """Validation prompts of a look, two clips each."""
    seeds: int = 5
    """Runs without the guard, and as many with it."""
    prompts: int = 32
    """Test prompts, two clips each."""
    validation: int = 16
    """Validation prompts on which the oracle follows a run."""
    seed: int = 20
    """The first of the seeds; rates and lengths of the cases were chosen on 0 to 3, the guard's ceiling of KL on 3 and
    10 to 14."""
    out: Path = Path("runs/audit-guard")
    """Folder for results.json and the jobs."""


def run(config: Config) -> None:
    """Run every job, print the tables, write results.json."""
    run_study(STUDY, config)


def jobs_of(config: Config, results: Results) -> list[Job]:
    """The start once for every seed, and every case without and with the guard; ValueError for what cannot be."""
    if config.seeds < 1 or (config.updates is not None and config.updates < 1):
        raise ValueError(f"seeds and updates are at least 1, not {config.seeds} and {config.updates}")
    if any((config.updates or CASES[case].updates) % config.every for case in config.cases):
        raise ValueError(f"a run ends with a look: its updates are whole multiples of --every, {config.every}")
    seeds, grammar = seeds_of(config), config.spec.load().grammar
    exam = EvalConfig(prompts=config.prompts, clips=2, long_prompts=0, grammar=grammar)
    validation = EvalConfig(prompts=config.validation, clips=1, long_prompts=0, split="validation", grammar=grammar)
    made: dict[str, Any] = {"exam": exam, "validation": validation, "stack": config.spec}
    guard = GuardConfig(every=config.every, prompts=config.watched)
    jobs = [Job(_name("start", "", s), GuardTask("start", "all", s, 0, 0.0, guard, **made), 0.5) for s in seeds]
    for case in config.cases:
        for end, cost in (("without", 2.0), ("with", 1.0)):
            given = (config.updates or CASES[case].updates, config.rate or CASES[case].rate, guard)
            jobs += [Job(_name(end, case, s), GuardTask(end, case, s, *given, **made), cost) for s in seeds]
    return jobs


def _name(end: str, case: str, seed: int) -> str:
    return f"{end}-{seed}" if end == "start" else f"{case}-{end}-{seed}"


_MEANS = ("VQ", "MQ", "TA", "diversity", "trained", "heldout")


def _rows_of(config: Config, results: Results) -> list[Row]:
    """Rows of kind "row" (means with intervals), "contrast", "run" (one seed) and "curve" (one look of one run)."""
    rows: list[Row] = []
    seeds = seeds_of(config)
    for case in config.cases:
        found = {end: [_climbed(results[_name(end, case, seed)][1], case) for seed in seeds] for end in CONDITIONS}
        rows += [_mean_row(case, end, runs) for end, runs in found.items()]
        rows += [_contrast(case, found, *pair) for pair in CONTRASTS]
        for end, runs in found.items():
            for seed, result in zip(seeds, runs, strict=True):
                labels = {"case": case, "end": end, "seed": seed}
                means = {key: float(np.mean(result["exam"][key])) for key in ("total", *_MEANS)}
                told = {key: result.get(key) for key in ("updates", "kept", "seconds", "why")}
                told["guard_seconds"] = result["guard"]["seconds"] if "guard" in result else None
                rows.append({"kind": "run", **labels, **means, **told})
                rows += [{"kind": "curve", **labels, **point} for point in result.get("curve", [])]
    return rows


def _climbed(result: Mapping[str, Any], case: str) -> dict[str, Any]:
    """The result with what its case trained on in its exam as "trained"."""
    axes = [result["exam"][f"reward {axis}"] for axis in CASES[case].axes or HACKED_AXES]
    return {**result, "exam": {**result["exam"], "trained": np.mean(axes, axis=0).tolist()}}


def _mean_row(case: str, end: str, runs: Sequence[Mapping[str, Any]]) -> Row:
    row: Row = {"kind": "row", "case": case, "end": end, "seeds": len(runs)}
    row |= {key: float(exam_scores(runs, key).mean()) for key in _MEANS}
    row |= mean_interval(exam_scores(runs, "total")).cells("total", "")
    if end != "start":
        row |= {key: float(np.mean([run[key] for run in runs])) for key in ("updates", "kept")}
        row["rolled_back"] = sum(bool(run["why"]) for run in runs)
    return row


def _contrast(case: str, found: Mapping[str, Sequence[Mapping[str, Any]]], ours: str, theirs: str) -> Row:
    row: Row = {"kind": "contrast", "case": case, "end": ours, "against": theirs}
    for key in ("total", "trained", "heldout"):
        row |= paired_difference(exam_scores(found[ours], key), exam_scores(found[theirs], key)).cells(key)
    return row


ROW_COLUMNS = (
    Column("weights", "of the student", lambda row: CONDITIONS[row["end"]]),
    Column("oracle [95%]", "total of the oracle on test prompts, 0 to 1", interval("total", ".3f")),
    Column("VQ", "oracle, visual quality", number("VQ", ".3f")),
    Column("MQ", "oracle, motion quality", number("MQ", ".3f")),
    Column("TA", "oracle, text alignment", number("TA", ".3f")),
    Column("div.", "distance between clips of a prompt, in the oracle's own unit", number("diversity", ".3f")),
    Column("trained", "the reward that is climbed, on the same clips", number("trained", "+.3f")),
    Column("held out", "the reward that the guard listens to, on the same clips", number("heldout", "+.3f")),
    Column("updates", "made, mean over seeds", number("updates", ".0f")),
    Column("kept", "the update whose weights were kept, mean over seeds", number("kept", ".0f")),
    Column("rolled back", "runs whose weights the guard put back", number("rolled_back", "d")),
)
_CONTRAST_COLUMNS = (
    Column(
        "difference",
        "paired: same seeds, prompts and noise",
        lambda row: f"{CONDITIONS[row['end']]} - {CONDITIONS[row['against']]}",
    ),
    Column("oracle [95%]", "", interval("total", "+.3f", "total_")),
    Column("trained [95%]", "", interval("trained", "+.3f", "trained_")),
    Column("held out [95%]", "", interval("heldout", "+.3f", "heldout_")),
)
COLUMNS = (*ROW_COLUMNS, *_CONTRAST_COLUMNS)


def report(rows: Sequence[Row]) -> str:
    """Every case's tables and what they say, as Markdown."""
    parts = []
    for case in dict.fromkeys(row["case"] for row in rows):
        own = [row for row in rows if row["case"] == case]
        means, pairs = ([row for row in own if row["kind"] == kind] for kind in ("row", "contrast"))
        parts += [f"**{CASES[case].label}**", markdown_table(ROW_COLUMNS, means)]
        parts += [markdown_table(_CONTRAST_COLUMNS, pairs), verdict(pairs)]
    return "\n\n".join(parts)


def verdict(pairs: Sequence[Row]) -> str:
    """Two sentences on the contrasts: does it hack without the guard, and does it with it?"""
    found = {(row["end"], row["against"]): row for row in pairs}
    lines = []
    for end, name in (("without", "Without"), ("with", "With")):
        row = found[end, "start"]
        climbed, fell = row["trained_low"] > 0, row["total_high"] < 0
        said = "the reward is hacked: it climbs, and the oracle falls"
        if fell and not climbed:
            said = "the oracle falls, but the reward does not climb: that is damage, no hacking"
        elif not fell:
            said = "no fall of the oracle below the start can be told" + (", and the reward climbs" if climbed else "")
        lines.append(f"{name} the guard {said}.")
    return " ".join(lines)


STUDY = Study("audit guard", work, jobs_of, _rows_of, lambda found: report(found["rows"]))
