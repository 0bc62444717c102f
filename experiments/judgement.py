"""What a video earned, as rows of results.json and as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..models.codec import Grid


@dataclass(frozen=True)
class Judgement:
    """What a video of F frames earned.

    starts: first frame of each of W windows of `length` frames. prompts: W, each the one that holds at its window's
    end. scores: z-scored [W, A]. seconds: F, when each frame is shown. weights: per frame [F], mean 1, or None where
    they were not asked for.
    """

    frames: int
    starts: Sequence[int]
    length: int
    prompts: Sequence[str]
    scores: Tensor
    seconds: Sequence[float]
    weights: Tensor | None


def frame_weights(perplexity: Tensor | None, grid: Grid) -> Tensor:
    """Perplexity [B, F', h, w] as one weight per video frame, [B, F]."""
    assert perplexity is not None
    return perplexity.mean(dim=(-1, -2))[:, grid.latent_of_frame]


def to_rows(found: Judgement, axes: tuple[str, ...]) -> list[dict[str, Any]]:
    """One row for the clip (means over windows), one per window, one per frame."""
    mean = found.scores.mean(0)
    rows: list[dict[str, Any]] = [{"kind": "clip", **dict(zip(axes, mean, strict=True)), "reward": mean.mean()}]
    for start, prompt, scores in zip(found.starts, found.prompts, found.scores, strict=True):
        where = {"kind": "window", "first_frame": start, "last_frame": start + found.length - 1, "prompt": prompt}
        rows.append({**where, **dict(zip(axes, scores, strict=True)), "reward": scores.mean()})
    if found.weights is not None:
        each = zip(found.seconds, found.weights.tolist(), strict=True)
        rows += [
            {"kind": "frame", "frame": frame, "seconds": seconds, "weight": weight}
            for frame, (seconds, weight) in enumerate(each)
        ]
    return rows


def table(rows: list[dict[str, Any]], axes: tuple[str, ...]) -> str:
    """The rows for a terminal."""
    names = (*axes, "reward")
    lines = ["", "scores in standard deviations above the mean of the reward model's reference clips"]
    lines.append(f"{'frames':>12}  {'  '.join(f'{name:>6}' for name in names)}")
    for row in rows:
        if row["kind"] in ("clip", "window"):
            label = "all" if row["kind"] == "clip" else f"{row['first_frame']}-{row['last_frame']}"
            figures = "  ".join(f"{float(row[name]):6.2f}" for name in names)
            lines.append(f"{label:>12}  {figures}  {row.get('prompt', '')}".rstrip())
    frames = [row for row in rows if row["kind"] == "frame"]
    if frames:
        lines += ["", "per-frame weight (mean 1): how much the scores depend on the frame"]
    for row in frames:
        bar = "#" * round(10 * row["weight"])
        lines.append(f"{row['frame']:>12}  {row['seconds']:6.2f} s  {row['weight']:5.2f}  {bar}")
    return "\n".join(lines)
