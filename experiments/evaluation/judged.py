"""An exam by another judge than the oracle: the stack's own prompts, or the world's in words, one prompt at a time.

P prompts, K clips of each, Q long streams; videos [B, F, 3, H, W] in [0, 1].
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ...checkpoint import write_json
from ...envs.stack import Stack
from ...envs.worlds.world import PromptRows
from ...models.fit import size_of
from ...noise import Domain, fold, stream_keys
from ...training.guard import pixel_diversity
from ...video import write_video
from ..evaluate import LONG, EvalConfig, EvalResult
from ..systems import Chunks, VideoModel
from .judges import ORACLE, Judge, judge_for, open_judge, own_clips

_AT_ONCE = 2**22
"""Pixels of video, at most, that are made at a time, all frames counted."""


def exam_of(exam: EvalConfig, stack: Stack, judge: str, world: str = "") -> EvalConfig:
    """An exam of a preset for a stack and a judge: the oracle's in the words of the stack, or so many of the stack's
    own prompts, or of its world's; DataFileError where a split has none."""
    if judge == ORACLE:
        return replace(exam, grammar=stack.grammar if stack.has("grammar") else exam.grammar, world=world)
    prompts = stack.prompts(exam.split)
    drawn = prompts.sample(exam.prompts, exam.scripts_seed)
    rows = [prompts.spread(row) if isinstance(row, str) else tuple(map(str, row)) for row in drawn]
    rows = list(dict.fromkeys(rows))
    height, width = size_of(stack.codec, stack.device)
    pixels = stack.codec.frames_of(stack.layout.clip_frames) * height * width
    sizes: dict[str, Any] = {"prompts": len(rows), "long_prompts": min(exam.long_prompts, len(rows))}
    batch = max(1, min(exam.batch, _AT_ONCE // pixels))
    return replace(
        exam, judge=judge, rows=tuple(rows), chunks=stack.layout.chunks, slice_prompts=0, batch=batch, **sizes
    )


@torch.no_grad()
def judged(
    stack: Stack, system: VideoModel, exam: EvalConfig, seed: int, *, long: bool = True, keep: int = 0, videos: str = ""
) -> EvalResult:
    """Let a system sit the exam with the noise of `seed`. keep: prompts whose clips are in the result. videos: a folder
    for all clips, as files; empty: none.

    late, drift: of the end of a stream LONG times longer than a clip: its total, and how far that is from the total of
    the beginning; both parts are as long as a clip.
    """
    judge, device = open_judge(exam.judge, stack), stack.device
    keys = fold(stream_keys(seed, 2, device), Domain.EXAM)
    own = _keys_of(keys[:1], exam.prompts * exam.clips).unflatten(0, (exam.prompts, exam.clips))
    found, spread, kept, seconds, frames = list[dict[str, Tensor]](), list[Tensor](), list[Tensor](), 0.0, 0
    for number, row in enumerate(exam.rows):
        began = time.perf_counter()
        rows = [row] * exam.clips
        video = torch.cat([system(_chunks(rows[: len(k)]), k) for k in own[number].split(exam.batch)])
        seconds, frames = seconds + time.perf_counter() - began, frames + len(video) * video.shape[1]
        found.append(_scored(judge, video, rows, exam.batch))
        spread.append(pixel_diversity(video[None]).cpu() if exam.clips > 1 else torch.full((1,), torch.nan))
        kept += [video.cpu()] if number < keep else []
        if videos:
            _write(Path(videos), number, video, stack.fps)
    if videos:
        said = {clip_name(at, clip): text for at, text in enumerate(exam.texts()) for clip in range(exam.clips)}
        write_json(Path(videos) / "prompts.json", said)
    clips = {axis: torch.cat([one[axis] for one in found]) for axis in found[0]}
    late, drift, streams = _long(stack, system, exam, keys[1:], judge) if long else (torch.empty(0),) * 3
    means = {axis: score.unflatten(0, (exam.prompts, exam.clips)).mean(1) for axis, score in clips.items()}
    shown = torch.stack(kept) if kept else torch.empty(0)
    return EvalResult(means, torch.cat(spread), late, drift, {}, frames / seconds, None, shown, streams, clips)


@torch.no_grad()
def judged_real(stack: Stack, exam: EvalConfig, videos: str = "") -> EvalResult:
    """The stack's own clips, through its codec, under their own captions: what there is to reach; P of them at most."""
    judge, none = open_judge(exam.judge, stack), torch.empty(0)
    pairs = own_clips(stack, exam.prompts)
    found = [_scored(judge, video, [texts], 1) for video, texts in pairs]
    for number, (video, _) in enumerate(pairs if videos else ()):
        _write(Path(videos), number, video, stack.fps)
    clips = {axis: torch.cat([one[axis] for one in found]) for axis in found[0]}
    return EvalResult(clips, torch.tensor([torch.nan]), none, none, {}, torch.nan, None, none, none, clips)


def judge_of_task(stack: Stack, judge: str) -> str:
    """Whether somebody can judge: the judge's name; ValueError where nobody can, or who is asked for may not."""
    name = judge_for(stack, judge)
    if name != ORACLE:
        open_judge(name, stack)
    elif not (stack.has("grammar") or stack.has("world")):
        raise ValueError(f"{stack.folder}: the oracle judges clips of its world; this stack knows none")
    return name


def _long(
    stack: Stack, system: VideoModel, exam: EvalConfig, key: Tensor, judge: Judge
) -> tuple[Tensor, Tensor, Tensor]:
    """late [Q], drift [Q] and the streams [Q, F', 3, H, W]; nothing where none are asked for."""
    rows, frames = list(exam.rows[: exam.long_prompts]), stack.codec.frames_of(stack.layout.clip_frames)
    if not rows:
        return (torch.empty(0),) * 3
    whole = [[text for text in row for _ in range(LONG)] for row in rows]
    keys = _keys_of(key, len(rows))
    streams = [system(_chunks([row]), keys[place : place + 1]).cpu() for place, row in enumerate(whole)]
    ends = []
    for part, at in ((slice(0, frames), 0), (slice(-frames, None), -1)):
        heard = [(row[at],) * exam.chunks for row in rows]
        scores = [judge(s[:, part].to(stack.device), [row])["total"] for s, row in zip(streams, heard, strict=True)]
        ends.append(torch.cat(scores))
    return ends[1], (ends[1] - ends[0]).abs(), torch.cat(streams)


def _scored(judge: Judge, video: Tensor, rows: PromptRows, batch: int) -> dict[str, Tensor]:
    parts = [judge(part, rows[: len(part)]) for part in video.split(batch)]
    return {axis: torch.cat([part[axis] for part in parts]) for axis in parts[0]}


def _write(folder: Path, number: int, video: Tensor, fps: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for clip, pixels in enumerate((video.clamp(0, 1) * 255).round().to(torch.uint8).movedim(2, -1).cpu()):
        write_video(folder / clip_name(number, clip), pixels, fps, made_by="a system that sat an exam")


def clip_name(prompt: int, clip: int) -> str:
    """The file of one clip of a prompt."""
    return f"{prompt:04d}-{clip}.mp4"


def _chunks(rows: Sequence[Sequence[str]]) -> Chunks:
    return cast(Chunks, rows)


def _keys_of(root: Tensor, count: int) -> Tensor:
    return fold(root.expand(count), torch.arange(count, device=root.device))
