"""`reelgym score FILE`: what the reward model thinks of any video file, and where it looks; or whether it was made."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Protocol

import torch
import tyro
from torch import Tensor
from torch.nn.functional import interpolate

from ..envs.worlds.grammar import chunk_prompts, parse
from ..models.codec import Grid
from ..models.prompts import PromptBatch, WordEncoder
from ..models.tiny import WEIGHTS, load_encoder, load_manifest, load_tiny
from ..rewards.stream_reward import StreamReward
from ..rewards.windows import TINY
from ..video import read_video
from .jobs import one_thread
from .judgement import Judgement, frame_weights, table, to_rows
from .results import command_line, pick_device, write_results

BATCH = 64
"""Windows scored in one pass."""
FPS = 8.0
"""Frames per second of the clips that the shipped reward model was trained on."""


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
    weights: Path | None = None
    """Folder with codec and reward; by default the one shipped with the package."""
    reward: Path | None = None
    """Folder of the reward model alone: VideoReward as published, or a small one of `reelgym train reward`."""
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
    """Folder of the detector; by default the one in `weights`."""


class GridMaker(Protocol):
    """What judging asks of a codec."""

    def grid(self, frames: int) -> Grid: ...


@dataclass(frozen=True)
class CellGrid:
    """The grid for a reward model without a codec: cells of 4 x 4 pixels in frames of `size` pixels, every frame."""

    size: int

    def grid(self, frames: int) -> Grid:
        return Grid(torch.arange(frames), self.size // 4, self.size // 4)


def run(config: Config) -> None:
    """Read, score, print a table, write results.json."""
    if config.detector or config.detector_weights is not None:
        from .score_detector import run_detector

        run_detector(config)
        return
    if config.prompt is None:
        raise ValueError("--prompt is missing: what should the video show? Or pass --detector, which asks for none")
    device = pick_device(config.device)
    published = config.reward is not None and (config.reward / "model_config.json").exists()
    if not published and (config.backbone or config.prompt_template or config.dtype != "float32"):
        raise ValueError(
            "--backbone, --prompt-template and --dtype are VideoReward's: pass its folder, which holds "
            f"model_config.json, as --reward, not {config.reward or 'nothing'}"
        )
    found, axes, line = (_score_published if published else _score_tiny)(config, config.prompt, device)
    rows = to_rows(found, axes)
    print(f"{config.file}: {found.frames} frames {line}, {len(found.starts)} windows")
    print(table(rows, axes))
    words = ["reelgym", "score", str(config.file), "--prompt", config.prompt]
    command = command_line(words, replace(config, prompt=Config.prompt))
    print(f"results: {write_results(config.out, command, [config.seed], config, rows, device)}")


def _score_tiny(config: Config, prompt: str, device: torch.device) -> tuple[Judgement, tuple[str, ...], str]:
    """The judgement of a small reward model, its axes, and how the file was read."""
    weights = config.weights or WEIGHTS
    folder = config.reward or weights / "reward"
    reward = StreamReward(load_tiny("reward", folder, device))
    encoder, manifest = load_encoder("reward", folder), load_manifest("reward", folder)
    script = not manifest.get("pairs", False)
    encoder.encode([str(clause) for clause in parse(prompt)] if script else [prompt])
    grids = CellGrid(manifest["size"]) if "size" in manifest else load_tiny("codec", weights / "codec", device)
    size = grids.size
    fps = manifest.get("fps", FPS) if config.fps is None else config.fps
    video, source_fps = load_clip(config.file, fps, size)
    if len(video) < reward.min_frames:
        raise ValueError(
            f"{config.file}: {len(video)} frames at {fps:g} fps are too few, the reward model needs "
            f"{reward.min_frames}: give a longer video or a higher --fps"
        )
    with one_thread():
        found = judge(video.to(device), prompt, reward, encoder, grids, fps=fps, script=script)
    return found, reward.axes, f"at {fps:g} fps (the file has {source_fps:g}), {size} x {size} pixels"


def _score_published(config: Config, prompt: str, device: torch.device) -> tuple[Judgement, tuple[str, ...], str]:
    """The judgement of VideoReward, its axes, and how the file was read."""
    from ..models.videoreward import VideoReward
    from ..models.videoreward.prompt import read_template
    from .score_videoreward import count_frames, judge_file

    assert config.reward is not None
    size = count_frames(config.file, VideoReward.min_frames)
    read_template(config.prompt_template)
    dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    model = VideoReward.from_pretrained(
        config.reward, config.backbone, config.prompt_template, dtype=dtype, device=device
    )
    found, shape = judge_file(config.file, size, prompt, model, config.fps, config.frame_weights)
    return found, model.axes, f"of {size[0]} (the file has {size[1]:g} fps), {shape[1]} x {shape[0]} pixels"


def load_clip(path: Path, fps: float, size: int) -> tuple[Tensor, float]:
    """Video [F, 3, size, size] in [0, 1] at `fps`, by the mean over each pixel's area, and the file's own rate."""

    def shrink(frame: Tensor) -> Tensor:
        return interpolate(frame.movedim(-1, 0)[None].float() / 255, (size, size), mode="area")[0]

    return read_video(path, fps, each=shrink)


def windows(frames: int, length: int, stride: int) -> list[int]:
    """First frames of the windows of `length` that cover `frames`: every `stride`, and one up to the last frame."""
    last = max(0, frames - length)
    return sorted({*range(0, last + 1, stride), last})


def judge(
    video: Tensor,
    prompt: str,
    reward: StreamReward,
    encoder: WordEncoder,
    grids: GridMaker,
    *,
    fps: float = FPS,
    script: bool = True,
) -> Judgement:
    """Score video [F, 3, H, W] in windows as the environment does; a frame's weight is the mean over its windows.

    script: the prompt's clauses share the length evenly; else all of it holds throughout.
    """
    frames = len(video)
    length = min(TINY.window_frames, frames)
    starts = windows(frames, length, TINY.frames_per_chunk)
    texts = chunk_prompts(prompt, frames) if script else [prompt] * frames
    prompts = [texts[start + length - 1] for start in starts]
    embeds = encoder.encode(prompts).to(video.device)
    grid = grids.grid(length)
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
    seconds = [frame / fps for frame in range(frames)]
    return Judgement(frames, starts, length, prompts, torch.cat(scores), seconds, weights / weights.mean())
