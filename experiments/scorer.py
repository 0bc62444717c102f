"""What scorers of video files share: their options, what they return, how a file is read, and windows that cover it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor
from torch.nn.functional import interpolate

from ..video import VideoError, read_video
from .options import StackName
from .tables import Row


@dataclass(frozen=True)
class Config:
    """What to score."""

    file: Annotated[Path, tyro.conf.Positional]
    """Any video file that PyAV opens."""
    prompt: str | None = None
    """What it should show: "a red circle moves left fast"; the clauses of a script share its length evenly. A detector
    asks for none."""
    fps: float | None = None
    """Frames per second at which the file is sampled; by default what the model was trained at."""
    out: Path = Path("runs/score")
    """Folder for results.json."""
    seed: int = 0
    """Recorded; scoring draws nothing."""
    device: str = "auto"
    """auto, cpu or cuda."""
    stack: StackName = "tiny"
    """Stack with codec and reward (or detector): a name, a folder or a stack.toml."""
    reward: Path | None = None
    """Folder of the reward model alone: VideoReward as published, or a small one of `reelgym train reward` (local: the
    shipped one of that name); or your own reward by import path, module:name."""
    backbone: str | None = None
    """VideoReward: folder or hub id of Qwen2-VL-2B-Instruct."""
    prompt_template: Path | None = None
    """VideoReward: your checkout of VideoAlign, or a text file with its wording."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """VideoReward: what its backbone computes in."""
    frame_weights: bool = True
    """VideoReward: per-frame weights too, which need a backward pass and the memory for it."""
    detector: bool = False
    """Tell whether the video was made by a generator, instead of scoring it."""
    detector_weights: Path | None = None
    """Folder of the detector; by default the one of the stack."""


COMMON = frozenset({"file", "fps", "out", "seed", "device", "stack"})
"""Options that every scorer takes."""


@dataclass(frozen=True)
class VideoScores:
    """What a scorer thinks of a file.

    read: how the file was read, in words.   rows: of results.json.   table: the rows for a terminal.
    """

    read: str
    rows: list[Row]
    table: str


@dataclass(frozen=True)
class Scorer:
    """One that `reelgym score` knows. name: in errors.   options: that it takes beside COMMON.   score: ValueError
    for weights that are not there or a prompt that is not understood, VideoError for a file that cannot be read."""

    name: str
    options: frozenset[str]
    score: Callable[[Config, torch.device], VideoScores]


def read_windows(file: Path, fps: float, size: int) -> tuple[Tensor, str]:
    """Video [F, 3, size, size] in [0, 1] at `fps`, by means over areas; and how it was read, in words."""

    def shrink(frame: Tensor) -> Tensor:
        return interpolate(frame.movedim(-1, 0)[None].float() / 255, (size, size), mode="area")[0]

    video, source_fps = read_video(file, fps, each=shrink)
    return video, f"{len(video)} frames at {fps:g} fps (the file has {source_fps:g}), {size} x {size} pixels"


def check_length(file: Path, frames: int, fps: float, needed: int, who: str) -> None:
    """VideoError where a file has fewer frames than are needed."""
    if frames < needed:
        raise VideoError(
            f"{file}: {frames} frames at {fps:g} fps are too few, the {who} needs {needed}: give a longer video "
            "or a higher --fps"
        )


def windows(frames: int, length: int, stride: int) -> list[int]:
    """First frames of the windows of `length` that cover `frames`: every `stride`, and one up to the last frame."""
    last = max(0, frames - length)
    return sorted({*range(0, last + 1, stride), last})
