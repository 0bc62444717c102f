"""From the results of `reelgym agents` to rows, tables and a picture of the learning curves. S seeds, P prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...agents.recipes import AGENTS, DETECT, STEER
from ..plots import curve_lines, line_chart, stacked_svg
from ..stats import exam_scores, mean_interval, paired_difference
from ..tables import Column, Row, interval, markdown_table, number

AGENT_LABELS = {
    "unsteered": "as it ships",
    "random": "random",
    "fixed": "best fixed setting",
    "by-hand": "by hand: all steps for a new prompt, then half",
    "planner": "informed: a planner that sees noise and prompts to come",
    "informed": "informed: told the label",
    "sb3-ppo": "SB3 PPO",
    "sb3-sac": "SB3 SAC",
    "tianshou-ppo": "Tianshou PPO",
}
_MEANS = {
    STEER: ("reward", "quality", "passes", "total", "VQ", "MQ", "TA", "physics"),
    DETECT: ("reward", "right", "chunks"),
}
AGAINST = {STEER: ("fixed", "unsteered", "planner"), DETECT: ("fixed", "random")}
"""What each agent is compared with; the first is declared beforehand."""
_Results = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
"""By environment and row, the results of every seed."""


def agent_rows(found: _Results, seeds: Sequence[int]) -> list[Row]:
    """Rows of kind "row" (means with intervals), "contrast", "run" (one seed) and "curve" (one point)."""
    rows = [_mean_row(env, name, results) for (env, name), results in found.items()]
    learners = [(env, name) for env, name in found if name in AGENTS]
    rows += [_contrast(found, env, name, other) for env, name in learners for other in AGAINST[env]]
    for (env, name), results in found.items():
        for seed, result in zip(seeds, results, strict=False):
            means = {key: float(np.mean(result["exam"][key])) for key in _MEANS[env]}
            rows.append({"kind": "run", "env": env, "row": name, "seed": seed, **means, "seconds": result["seconds"]})
            points = ({"kind": "curve", "env": env, "row": name, "seed": seed, **point} for point in result["curve"])
            rows.extend(points)
    return rows


def _mean_row(env: str, name: str, results: Sequence[Mapping[str, Any]]) -> Row:
    row: Row = {"kind": "row", "env": env, "row": name, "seeds": len(results)}
    row |= {key: float(exam_scores(results, key).mean()) for key in _MEANS[env]}
    row |= mean_interval(exam_scores(results, "reward")).cells("reward", "")
    if env == DETECT:
        family = exam_scores(results, "family")
        called = exam_scores(results, "called_fake")
        row |= {"false_alarms": float(called[family == 0].mean()), "found": float(called[family != 0].mean())}
    seconds = float(np.mean([result["seconds"] for result in results]))
    return row | {"steps": results[0].get("steps"), "seconds": seconds}


def _contrast(found: _Results, env: str, ours: str, theirs: str) -> Row:
    a, b = (found[env, name] for name in (ours, theirs))
    row: Row = {"kind": "contrast", "env": env, "row": ours, "against": theirs}
    row |= {"declared": theirs == AGAINST[env][0], "seeds": min(len(a), len(b))}
    for key in ("reward", "total") if env == STEER else ("reward",):
        difference = paired_difference(exam_scores(a, key)[: len(b)], exam_scores(b, key)[: len(a)])
        row |= difference.cells(key) | {f"{key}_answer": difference.verdict}
    return row


def _against(row: Row) -> str:
    return f"{AGENT_LABELS[row['row']]} - {AGENT_LABELS[row['against']].split(':')[0]}" + (
        " *" if row["declared"] else ""
    )


STEER_COLUMNS = (
    Column("who steers", "", lambda row: AGENT_LABELS[row["row"]]),
    Column(
        "return of a clip [95%]",
        "the mean over chunks of the reward's z-score, the price of network passes paid; higher is better",
        interval("reward", "+.3f"),
    ),
    Column("quality", "the same before the price", number("quality", "+.3f")),
    Column("passes", "of a stream through the network, for a chunk", number("passes", ".2f")),
    Column("oracle", "total of the held-out oracle, 0 to 1, higher is better", number("total", ".3f")),
    Column("VQ", "oracle, visual quality", number("VQ", ".3f")),
    Column("MQ", "oracle, motion quality", number("MQ", ".3f")),
    Column("TA", "oracle, text alignment", number("TA", ".3f")),
    Column("seeds", "trainings, each with an exam under other noise", number("seeds", "d")),
    Column("steps", "of the environment in training, all streams together", number("steps", ",d")),
    Column("sec.", "training and exam on one core", number("seconds", ",.0f")),
)
DETECT_COLUMNS = (
    Column("who judges", "", lambda row: AGENT_LABELS[row["row"]]),
    Column("return of an episode [95%]", "verdict and waiting; higher is better", interval("reward", "+.3f")),
    Column("right", "share of clips with the right verdict", number("right", ".3f")),
    Column("false alarms", "share of real clips called fake", number("false_alarms", ".3f")),
    Column("found", "share of fakes called fake", number("found", ".3f")),
    Column("chunks", "shown before the verdict, of four", number("chunks", ".2f")),
    Column("seeds", "", number("seeds", "d")),
    Column("steps", "", number("steps", ",d")),
    Column("sec.", "", number("seconds", ",.0f")),
)
STEER_CONTRASTS = (
    Column("difference", "paired; declared beforehand where marked *", _against),
    Column("seeds", "where there is but one, an interval is over prompts alone", number("seeds", "d")),
    Column("return [95%]", "", interval("reward", "+.3f", "reward_")),
    Column("above", "yes: interval above zero; no: below zero", lambda row: row["reward_answer"]),
    Column("oracle [95%]", "", interval("total", "+.3f", "total_")),
    Column("above", "", lambda row: row["total_answer"]),
)
COLUMNS = (*STEER_COLUMNS, *DETECT_COLUMNS, *STEER_CONTRASTS)


def report(rows: Sequence[Row]) -> str:
    """Every environment's tables as Markdown."""
    parts = []
    for env, columns, contrasts in ((STEER, STEER_COLUMNS, STEER_CONTRASTS), (DETECT, DETECT_COLUMNS, None)):
        own = [row for row in rows if row["env"] == env]
        means = [row for row in own if row["kind"] == "row"]
        if means:
            pairs = [row for row in own if row["kind"] == "contrast"]
            parts += [f"**{env}**", markdown_table(columns, means)]
            parts += [markdown_table(contrasts or STEER_CONTRASTS[:4], pairs)] if pairs else []
    return "\n\n".join(parts)


def agent_curves_svg(rows: Sequence[Row], env: str) -> str:
    """The learning curves of an environment: validation return against steps, a thick line for the mean of the seeds,
    thin ones for each."""
    points = [row for row in rows if row["kind"] == "curve" and row["env"] == env]
    labels = {row["row"]: AGENT_LABELS[row["row"]] for row in points}
    lines = curve_lines(points, "row", labels, "steps", "reward")
    return stacked_svg([line_chart(lines, env, "steps")], list(labels.values()))
