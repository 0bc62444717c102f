"""Rewards on a video file: a small one in windows as the environment scores them, VideoReward on the whole clip.

F frames, W windows, A axes.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..envs.stack import Stack
from ..envs.worlds.grammar import chunk_prompts, parse
from ..models.codec import Grid
from ..models.prompts import PromptBatch, TextEncoder
from ..models.tiny import SHIPPED_REWARDS, TINY_FPS, load_encoder, load_manifest
from ..models.videoreward import VideoReward
from ..models.videoreward.pixels import FACTOR, PixelConfig, fitted_clip, sample_frames
from ..models.videoreward.prompt import read_template
from ..plugins import resolve
from ..rewards.stream_reward import StreamReward
from ..rewards.windows import TINY_LAYOUT
from ..video import read_video
from .jobs import one_thread
from .scorer import Config, VideoScores, check_length, read_windows, windows
from .tables import Row

_BATCH = 64
"""Windows scored in one pass."""


@dataclass(frozen=True)
class WindowScores:
    """What a video of F frames earned.

    starts: first frame of each of W windows of `length` frames.   prompts: W, each the one that holds at its window's
    end.   scores: z-scored [W, A].   seconds: F, when each frame is shown.   weights: per frame [F], mean 1, or None
    where they were not asked for.
    """

    starts: Sequence[int]
    length: int
    prompts: Sequence[str]
    scores: Tensor
    seconds: Sequence[float]
    weights: Tensor | None

    def to_rows(self, axes: Sequence[str]) -> list[Row]:
        """One row for the clip (means over windows), one per window, one per frame."""

        def earned(scores: Tensor) -> Row:
            return {**dict(zip(axes, scores, strict=True)), "reward": scores.mean()}

        rows: list[Row] = [{"kind": "clip", **earned(self.scores.mean(0))}]
        for start, prompt, scores in zip(self.starts, self.prompts, self.scores, strict=True):
            where = {"first_frame": start, "last_frame": start + self.length - 1, "prompt": prompt}
            rows.append({"kind": "window", **where, **earned(scores)})
        if self.weights is not None:
            each = enumerate(zip(self.seconds, self.weights.tolist(), strict=True))
            rows += [{"kind": "frame", "frame": k, "seconds": second, "weight": weight} for k, (second, weight) in each]
        return rows


def _table(rows: Sequence[Row], axes: Sequence[str]) -> str:
    """The rows for a terminal."""
    names = (*axes, "reward")
    lines = ["", "scores in standard deviations above the mean of the reward model's reference clips"]
    lines.append(f"{'frames':>12}  {'  '.join(f'{name:>6}' for name in names)}")
    frames = [row for row in rows if row["kind"] == "frame"]
    for row in rows[: len(rows) - len(frames)]:
        label = "all" if row["kind"] == "clip" else f"{row['first_frame']}-{row['last_frame']}"
        figures = "  ".join(f"{float(row[name]):6.2f}" for name in names)
        lines.append(f"{label:>12}  {figures}  {row.get('prompt', '')}".rstrip())
    lines += ["", "per-frame weight (mean 1): how much the scores depend on the frame"] if frames else []
    for row in frames:
        bar = "#" * round(10 * row["weight"])
        lines.append(f"{row['frame']:>12}  {row['seconds']:6.2f} s  {row['weight']:5.2f}  {bar}")
    return "\n".join(lines)


def _scores(read: str, found: WindowScores, axes: Sequence[str]) -> VideoScores:
    rows = found.to_rows(axes)
    return VideoScores(f"{read}, {len(found.starts)} windows", rows, _table(rows, axes))


def _frame_weights(perplexity: Tensor, grid: Grid) -> Tensor:
    """Perplexity [B, F', h, w] as one weight per video frame, [B, F]."""
    return perplexity.mean(dim=(-1, -2))[:, grid.latent_of_frame].cpu()


@dataclass(frozen=True)
class TinyScorer:
    """A small reward of `reelgym train reward`.

    codec: whose latent grid carries the weights; None: cells of 4 x 4 pixels, every frame.   size: side of the frames
    in pixels.   script: the prompt's clauses share the length evenly, else all of it holds throughout.
    """

    reward: StreamReward
    encoder: TextEncoder
    codec: Any
    size: int
    fps: float = TINY_FPS
    script: bool = True

    @classmethod
    def load(cls, config: Config, device: torch.device) -> TinyScorer:
        """The stack's reward, the one in a folder of its own, or a user's by import path."""
        stack = Stack.load(config.stack, device)
        if config.reward is not None and ":" in str(config.reward):
            stack = stack.with_parts(reward=resolve(str(config.reward)))
        elif config.reward is not None:
            stack = stack.with_weights(reward=SHIPPED_REWARDS.get(str(config.reward), config.reward))
        reward, place = stack.reward, stack.places.get("reward")
        encoder = stack.encoder if place is None else load_encoder("reward", place)
        manifest = {} if place is None else load_manifest("reward", place)
        codec: Any = None if "size" in manifest else stack.codec
        fps = manifest.get("fps", TINY_FPS) if config.fps is None else config.fps
        size = codec.size if codec else manifest["size"]
        return cls(reward, encoder, codec, size, fps, not manifest.get("pairs", False))

    def score(self, file: Path, prompt: str) -> VideoScores:
        """In windows, one every chunk."""
        self.encoder.encode([str(clause) for clause in parse(prompt)] if self.script else [prompt])
        video, read = read_windows(file, self.fps, self.size)
        check_length(file, len(video), self.fps, self.reward.min_frames, "reward model")
        with one_thread():
            found = self.score_windows(video.to(self.reward.model.mean.device), prompt)
        return _scores(read, found, self.reward.axes)

    def score_windows(self, video: Tensor, prompt: str) -> WindowScores:
        """Score video [F, 3, H, W] in the windows of the environment; a frame's weight is their mean."""
        frames = len(video)
        length = min(TINY_LAYOUT.window_frames, frames)
        starts = windows(frames, length, TINY_LAYOUT.frames_per_chunk)
        texts = chunk_prompts(prompt, frames) if self.script else [prompt] * frames
        prompts = [texts[start + length - 1] for start in starts]
        batch = PromptBatch(tuple(prompts), self.encoder.encode(prompts).to(video.device))
        grid = self.codec.grid(length) if self.codec else Grid(torch.arange(length), self.size // 4, self.size // 4)
        clips = video.unfold(0, length, 1).movedim(-1, 1)[starts]
        total, count = torch.zeros(frames), torch.zeros(frames)
        scores = []
        for rows in torch.arange(len(starts)).split(_BATCH):
            signal = self.reward.weights(clips[rows], batch.take(rows), grid)
            scores.append(signal.scores.cpu())
            for row, weight in zip(rows.tolist(), _frame_weights(signal.perplexity, grid), strict=True):
                total[starts[row] : starts[row] + length] += weight
                count[starts[row] : starts[row] + length] += 1
        weights = total / count
        seconds = [frame / self.fps for frame in range(frames)]
        return WindowScores(starts, length, prompts, torch.cat(scores), seconds, weights / weights.mean())


def score_videoreward(config: Config, device: torch.device) -> VideoScores:
    """VideoReward as published, on the whole clip as one window, with per-frame weights where they are asked for; its
    weights are read once the file is found to be long enough."""
    assert config.reward is not None and config.prompt is not None
    total, rate = count_frames(config.file, VideoReward.min_frames)
    read_template(config.prompt_template)
    options: dict[str, Any] = {"dtype": getattr(torch, config.dtype), "device": device}
    model = VideoReward.from_pretrained(config.reward, config.backbone, config.prompt_template, **options)
    if config.fps is not None:
        model.pixels = replace(model.pixels, fps=config.fps)
    model.source_fps = model.pixels.fps  # what it is handed is sampled already
    chosen = sample_frames(total, rate, model.pixels.fps)
    video = read_chosen(config.file, set(chosen.tolist()), model.pixels).to(device)
    frames, _, height, width = video.shape
    grid = Grid(torch.arange(frames), height // FACTOR, width // FACTOR)
    batch = PromptBatch((config.prompt,), video.new_zeros(1, 0, 0))
    reward, weights = StreamReward(model), None
    if config.frame_weights:
        signal = reward.weights(video[None], batch, grid)
        scores, weights = signal.scores, _frame_weights(signal.perplexity, grid)[0]
    else:
        scores = reward.score(video[None], batch).scores
    seconds = [index / rate for index in chosen.tolist()]
    found = WindowScores([0], frames, [config.prompt], scores.cpu(), seconds, weights)
    read = f"{frames} frames of {total} (the file has {rate:g} fps), {width} x {height} pixels"
    return _scores(read, found, model.axes)


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
            kept.append(fitted_clip(frame.movedim(-1, 0)[None].float() / 255, pixels)[0])
        return frame.new_empty(0)

    read_video(path, max_frames=max(chosen) + 1, each=keep)
    return torch.stack(kept)
