"""VideoReward on a video file: the whole clip at once, sampled and resized as its frames are read."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..models.codec import Grid
from ..models.prompts import PromptBatch
from ..models.videoreward import VideoReward
from ..models.videoreward.pixels import FACTOR, PixelConfig, fit, sample_frames
from ..rewards.stream_reward import StreamReward
from ..video import read_video
from .judgement import Judgement, frame_weights


def count_frames(path: Path, needed: int) -> tuple[int, float]:
    """How many frames a file has, and its frames per second; ValueError for fewer than `needed`."""
    shapes, rate = read_video(path, each=lambda frame: frame.new_empty((0, *frame.shape)))
    if len(shapes) < needed:
        raise ValueError(f"{path}: {len(shapes)} frames are too few, the reward model needs {needed}")
    return len(shapes), rate


def read_chosen(path: Path, chosen: Set[int], pixels: PixelConfig) -> Tensor:
    """The chosen frames of a file in the size that the model reads, [T, 3, h, w] in [0, 1]; the others are let go."""
    kept: list[Tensor] = []
    seen = iter(range(max(chosen) + 1))

    def keep(frame: Tensor) -> Tensor:
        if next(seen) in chosen:
            kept.append(fit(frame.movedim(-1, 0)[None].float() / 255, pixels)[0])
        return frame.new_empty(0)

    read_video(path, max_frames=max(chosen) + 1, each=keep)
    return torch.stack(kept)


def judge_file(
    path: Path, size: tuple[int, float], prompt: str, model: VideoReward, fps: float | None, saliency: bool = True
) -> tuple[Judgement, tuple[int, int]]:
    """Score a file of size (frames, frames per second), sampled at fps (None: as the model was trained).

    saliency: per-frame weights too. Returns the judgement, and height and width as the model saw them.
    """
    if fps is not None:
        model.pixels = replace(model.pixels, fps=fps)
    model.source_fps = model.pixels.fps  # what it is handed is sampled already
    chosen = sample_frames(*size, model.pixels.fps)
    video = read_chosen(path, set(chosen.tolist()), model.pixels).to(model.mean.device)
    frames, height, width = len(video), video.shape[-2], video.shape[-1]
    grid = Grid(torch.arange(frames), height // FACTOR, width // FACTOR)
    batch = PromptBatch((prompt,), video.new_zeros(1, 0, 0))
    signal = StreamReward(model)(video[None], batch, grid, need={"scores", "perplexity"} if saliency else {"scores"})
    weights = frame_weights(signal.perplexity, grid)[0].cpu() if saliency else None
    seconds = [index / size[1] for index in chosen.tolist()]
    return Judgement(frames, [0], frames, [prompt], signal.scores.cpu(), seconds, weights), (height, width)
