"""`reelgym score FILE --prompt ...`: what the reward model thinks of any video file, and where it looks."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor
from torch.nn.functional import interpolate

from ..envs.windows import TINY
from ..envs.worlds.grammar import chunk_prompts, parse
from ..models.codec import FrameCodec, Grid
from ..models.prompts import PromptBatch, WordEncoder
from ..models.tiny import WEIGHTS, load_encoder, load_tiny
from ..rewards.stream_reward import StreamReward
from ..video import read_video
from .jobs import one_thread
from .results import pick_device, write_results

BATCH = 64
"""Windows scored in one pass."""


@dataclass(frozen=True)
class Config:
    """What to score."""

    file: Annotated[Path, tyro.conf.Positional]
    """Any video file that PyAV opens."""
    prompt: str
    """What it should show: "a red circle moves left fast"; the clauses of a script share its length evenly."""
    fps: float = 8.0
    """Frames per second at which the file is sampled; the reward model was trained at 8."""
    out: Path = Path("runs/score")
    """Folder for results.json."""
    seed: int = 0
    """Recorded; scoring draws nothing."""
    device: str = "auto"
    """auto, cpu or cuda."""
    weights: Path | None = None
    """Folder with codec and reward; by default the one shipped with the package."""


@dataclass(frozen=True)
class Judgement:
    """What a video of F frames earned.

    starts: first frame of each of W windows. prompts: W, each the one that holds at its window's end.
    scores: z-scored [W, A]. weights: per frame [F], mean 1.
    """

    frames: int
    starts: list[int]
    prompts: list[str]
    scores: Tensor
    weights: Tensor


def run(config: Config) -> None:
    """Read, score, print a table, write results.json."""
    device = pick_device(config.device)
    folder = config.weights or WEIGHTS
    reward = StreamReward(load_tiny("reward", folder / "reward", device))
    encoder = load_encoder("reward", folder / "reward")
    codec = load_tiny("codec", folder / "codec", device)
    encoder.encode([str(clause) for clause in parse(config.prompt)])
    video, source_fps = load_clip(config.file, config.fps, codec.size)
    if len(video) < reward.min_frames:
        raise ValueError(
            f"{config.file}: {len(video)} frames at {config.fps:g} fps are too few, the reward model needs "
            f"{reward.min_frames}: give a longer video or a higher --fps"
        )
    with one_thread():
        found = judge(video.to(device), config.prompt, reward, encoder, codec)
    rows = to_rows(found, reward.axes, config.fps)
    print(f"{config.file}: {found.frames} frames at {config.fps:g} fps (the file has {source_fps:g}), {codec.size} x "
          f"{codec.size} pixels, {len(found.starts)} windows")  # fmt: skip
    print(table(rows, reward.axes))
    command = shlex.join(["reelgym", "score", str(config.file), "--prompt", config.prompt])
    print(f"results: {write_results(config.out, command, [config.seed], config, rows, device)}")


def load_clip(path: Path, fps: float, size: int) -> tuple[Tensor, float]:
    """Video [F, 3, size, size] in [0, 1] at `fps`, by the mean over each pixel's area, and the file's own rate."""

    def shrink(frame: Tensor) -> Tensor:
        return interpolate(frame.movedim(-1, 0)[None].float() / 255, (size, size), mode="area")[0]

    return read_video(path, fps, each=shrink)


def windows(frames: int, length: int, stride: int) -> list[int]:
    """First frames of the windows of `length` that cover `frames`: every `stride`, and one up to the last frame."""
    last = max(0, frames - length)
    return sorted({*range(0, last + 1, stride), last})


def judge(video: Tensor, prompt: str, reward: StreamReward, encoder: WordEncoder, codec: FrameCodec) -> Judgement:
    """Score video [F, 3, H, W] in windows as the environment does; a frame's weight is the mean over its windows."""
    frames = len(video)
    length = min(TINY.window_frames, frames)
    starts = windows(frames, length, TINY.frames_per_chunk)
    texts = chunk_prompts(prompt, frames)
    prompts = [texts[start + length - 1] for start in starts]
    embeds = encoder.encode(prompts).to(video.device)
    grid = codec.grid(length)
    total, count = torch.zeros(frames), torch.zeros(frames)
    scores = []
    for rows in torch.arange(len(starts)).split(BATCH):
        clips = torch.stack([video[starts[row] : starts[row] + length] for row in rows.tolist()])
        batch = PromptBatch(tuple(prompts[row] for row in rows.tolist()), embeds[rows.to(embeds.device)])
        signal = reward(clips, batch, grid, need={"scores", "perplexity"})
        scores.append(signal.scores.cpu())
        for row, weight in zip(rows.tolist(), frame_weights(signal.perplexity, grid).cpu(), strict=True):
            total[starts[row] : starts[row] + length] += weight
            count[starts[row] : starts[row] + length] += 1
    weights = total / count
    return Judgement(frames, starts, prompts, torch.cat(scores), weights / weights.mean())


def frame_weights(perplexity: Tensor | None, grid: Grid) -> Tensor:
    """Perplexity [B, F', h, w] as one weight per video frame, [B, F]."""
    assert perplexity is not None
    return perplexity.mean(dim=(-1, -2))[:, grid.latent_of_frame]


def to_rows(found: Judgement, axes: tuple[str, ...], fps: float) -> list[dict[str, Any]]:
    """One row for the clip (means over windows), one per window, one per frame."""
    mean = found.scores.mean(0)
    rows: list[dict[str, Any]] = [{"kind": "clip", **dict(zip(axes, mean, strict=True)), "reward": mean.mean()}]
    length = min(TINY.window_frames, found.frames)
    for start, prompt, scores in zip(found.starts, found.prompts, found.scores, strict=True):
        where = {"kind": "window", "first_frame": start, "last_frame": start + length - 1, "prompt": prompt}
        rows.append({**where, **dict(zip(axes, scores, strict=True)), "reward": scores.mean()})
    rows += [
        {"kind": "frame", "frame": frame, "seconds": frame / fps, "weight": weight}
        for frame, weight in enumerate(found.weights.tolist())
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
    lines += ["", "per-frame weight (mean 1): how much the scores depend on the frame"]
    for row in rows:
        if row["kind"] == "frame":
            bar = "#" * round(10 * row["weight"])
            lines.append(f"{row['frame']:>12}  {row['seconds']:6.2f} s  {row['weight']:5.2f}  {bar}")
    return "\n".join(lines)
