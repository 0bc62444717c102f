"""VBench's scores, read from the result files that it writes itself: NAME_eval_results.json.

Such a file maps a dimension to its aggregate and the scores of videos: {"video_path", "video_results"}. VBench-Long
cuts a video into clips below a folder split_clip, scores these, and its numbers are no VBench's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .judged import clip_name

SUFFIX = "_eval_results.json"
_SPLIT = "split_clip"
_PERCENT = ("imaging_quality",)
"""Dimensions whose videos are scored from 0 to 100, and their aggregate from 0 to 1."""

_Found = dict[str, dict[str, dict[str, list[float]]]]
"""Scores of a video by run, name and dimension."""


@dataclass(frozen=True)
class VBenchScores:
    """What result files hold. variant: "VBench" or "VBench-Long".   scores: of every video, by the name of the folder
    that it lies in, its own name, and dimension."""

    variant: str
    scores: Mapping[str, Mapping[str, Mapping[str, float]]]

    @property
    def words(self) -> str:
        """Who judged."""
        return f"{self.variant}, read from its own result files, its total the mean of the dimensions they hold"

    def judged(self, run: str, names: Sequence[str]) -> dict[str, list[float]]:
        """Scores by axis of these videos of a run, "total" the last; ValueError for one without scores."""
        there = self.scores.get(run, {})
        if missing := [name for name in names if name not in there]:
            raise ValueError(f"{self.variant}: no scores of {run}/{missing[0]}; evaluate all folders of videos/")
        dimensions = sorted(
            {dimension for found in self.scores.values() for one in found.values() for dimension in one}
        )
        for name in names:
            if lacking := [dimension for dimension in dimensions if dimension not in there[name]]:
                raise ValueError(
                    f"{self.variant}: no {lacking[0]} of {run}/{name}; evaluate the same dimensions of all"
                )
        axes = {dimension: [there[name][dimension] for name in names] for dimension in dimensions}
        return axes | {"total": np.mean([*axes.values()], axis=0).tolist()}


def read_vbench(folder: Path) -> VBenchScores:
    """All result files below a folder; ValueError where there is none, for one that holds something else, and where
    VBench's and VBench-Long's lie together."""
    files = sorted(folder.rglob(f"*{SUFFIX}"))
    if not files:
        raise ValueError(f"{folder}: no *{SUFFIX} here; give the folder that VBench wrote to")
    found: _Found = {}
    variants = {_read(file, found) for file in files}
    if len(variants) > 1:
        raise ValueError(f"{folder}: results of VBench and of VBench-Long, which differ: give one of them")
    means = {
        run: {name: {key: float(np.mean(values)) for key, values in one.items()} for name, one in videos.items()}
        for run, videos in found.items()
    }
    return VBenchScores(variants.pop(), means)


def rejudged(result: Mapping[str, Any], judge: VBenchScores, run: str, clips: int) -> dict[str, Any]:
    """A result of a comparison's job with these scores in place of its own; its long streams were not judged."""
    own = result["by_clip"]
    count = len(next(iter(own.values())))
    each = 1 if count == len(next(iter(result["scores"].values()))) else clips
    found = judge.judged(run, [Path(clip_name(place // each, place % each)).stem for place in range(count)])
    means = {axis: np.reshape(scores, (-1, each)).mean(1).tolist() for axis, scores in found.items()}
    return {**result, "scores": means, "by_clip": found, "late": [], "drift": []}


def _read(file: Path, found: _Found) -> str:
    """Add a file's scores; the variant that wrote it."""
    long = False
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        for dimension, result in held.items():
            lists = [part for part in result if isinstance(part, list)]
            for entry in lists[-1]:
                place, inside = _place(entry["video_path"])
                long |= inside or "inclip_score" in entry
                score = float(entry["video_results"]) / (100 if dimension in _PERCENT and _whole(lists[-1]) else 1)
                videos = found.setdefault(place.parent.name, {})
                videos.setdefault(place.stem, {}).setdefault(dimension, []).append(score)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: no result file of VBench ({type(error).__name__}: {error})") from error
    return "VBench-Long" if long else "VBench"


def _whole(entries: Sequence[Mapping[str, Any]]) -> bool:
    """Whether scores go up to 100."""
    return max(float(entry["video_results"]) for entry in entries) > 1


def _place(path: str) -> tuple[Path, bool]:
    """The video that a score is of, and whether it is of a part that VBench-Long cut from it."""
    place = Path(path)
    if _SPLIT in place.parts:
        at = place.parts.index(_SPLIT)
        return Path(*place.parts[:at]) / f"{place.parts[at + 1].split('-Scene')[0]}.mp4", True
    return place, False
