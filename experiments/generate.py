"""`reelgym generate PROMPT`: stream a video from a prompt into a file, for as long as one asks."""

from __future__ import annotations

import math
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from ..envs.stack import Stack
from ..envs.worlds.grammar import chunk_prompts
from ..models.prompts import WordEncoder
from ..models.sampler import sample_teacher
from ..models.streaming import StreamingGenerator
from ..models.tiny import CHUNKS, TEACHER_SAMPLING, TINY_FPS
from ..noise import normal, stream_keys
from ..video import VideoWriter, read_video, write_video
from .console import progress
from .jobs import one_thread
from .options import POLICY, CacheOptions, StackName, is_stack, load_generator
from .results import pick_device
from .train_agent import steered_by

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Config(CacheOptions):
    """What to generate."""

    prompt: Annotated[str, tyro.conf.Positional]
    """What to show: "a red circle moves left fast ; then a blue square moves up"."""
    out: Path = Path("clip.mp4")
    """Video file to write: .mp4, .mov or .mkv; NAME.part holds what there is until it is complete."""
    seconds: float | None = None
    """Length of the video, any; the prompt's clauses share it evenly."""
    chunks: int | None = None
    """Length in chunks instead (the tiny student's are 3 frames); by default 4 of them."""
    stack: StackName = "tiny"
    """tiny: the shipped student. Or another stack (a folder with codec and student, or a stack.toml), a folder that
    save_pretrained wrote, or Wan2.1 in diffusers' layout, also by its hub id."""
    checkpoint: Path | None = None
    """Weights for Wan's transformer: a .pt of the Self Forcing family."""
    which: str | None = None
    """The state dict in the checkpoint; by default generator_ema where there is one."""
    start: Path | None = None
    """A picture or a video file to go on from, of the generator's size (or a whole multiple of it)."""
    size: str | None = None
    """WIDTHxHEIGHT of the video, for Wan."""
    positions: Literal["absolute", "relative"] | None = None
    """Cache: rotary positions counted from the start of the video, or within the window."""
    on_prompt_switch: Literal["keep", "recache"] | None = None
    """Cache: keep it when the prompt changes, or read the window anew under the new prompt."""
    agent: Path | None = None
    """Folder of an agent that steers the student, as reelgym train sb3-ppo --env reelgym/StreamSteer-v0 writes it."""
    student: Path | None = None
    """Folder of a fine-tuned student, as reelgym finetune writes it; by default the one in the stack."""
    model: Literal["student", "teacher"] = "student"
    """student: streams chunk after chunk, for any length. teacher: many guided steps over one clip of 4 chunks."""
    fps: float | None = None
    """Frames a second of the file; by default what the models were trained at (tiny: 8, Wan: 16)."""
    scale: int | None = None
    """Each pixel is written as a square of this many, so that players show it and colours survive compression; by
    default 4 for videos of up to 64 pixels, else 1."""
    seed: int = 0
    """Another seed is another video of the same prompt."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the weights; by default float32 on a CPU, and bfloat16 for Wan on a GPU."""
    attention: str | None = None
    """Attention backend by its name in diffusers' dispatcher."""
    compile: str | None = None
    """Mode of torch.compile: default, reduce-overhead (CUDA graphs), max-autotune. Pays for long videos only."""
    device: str = "auto"
    """auto, cpu or cuda."""


def run(config: Config) -> None:
    """Generate, decode, write; print one line about the file."""
    _check(config)
    device = pick_device(config.device)
    if config.agent is not None or config.model == "teacher":
        _short_clip(config, device)
        return
    with VideoWriter(config.out, config.fps or TINY_FPS, made_by="nobody yet"):
        pass  # whether the file can be written is better known before anything is loaded
    made = _load(config, device)
    name = "the student" if is_stack(config.stack) else str(config.checkpoint or config.stack)
    with one_thread() if made.size[0] <= 64 else nullcontext():
        _stream(config, made, config.fps or made.fps, name)


def _load(config: Config, device: torch.device) -> StreamingGenerator:
    """The generator as the options say."""
    wan: dict[str, Any] = {"checkpoint": config.checkpoint, "which": config.which, "size": config.size}
    made = load_generator(config.stack, device, dtype=config.dtype, student=config.student, **wan)
    made = made.with_cache(config.cache(made.generator.model.cache_config))
    if config.attention is not None:
        made.generator.model.transformer.set_attention_backend(config.attention)
    if config.compile is not None:
        made.compile(None if config.compile == "default" else config.compile)
    return made


def _stream(config: Config, made: StreamingGenerator, fps: float, name: str) -> None:
    """Write chunk after chunk; nothing is kept of those that are written."""
    chunks, frames = _length(config, made, fps)
    prompts = _prompts(config.prompt, chunks, made)
    scale = config.scale or (4 if max(made.size) <= 64 else 1)
    start = None if config.start is None else _start(config.start, made)
    stream = made.open(prompts[0], config.seed, start)
    made.encode(list(dict.fromkeys(prompts)))  # a word that is not known is better met now than after ten minutes
    started = time.perf_counter()
    try:
        with VideoWriter(config.out, fps, made_by=name) as writer:
            with progress(frames, "generating", "frame", log=False) as bar:
                for prompt in prompts:
                    if prompt != stream.prompt:
                        stream.prompt = prompt
                    pixels = _pixels(next(stream)[0, : frames - writer.frames], scale)
                    writer.write(pixels)
                    bar.update(len(pixels))
    except KeyboardInterrupt:
        kept = "nothing was written" if writer.left is None else f"{writer.left} holds {writer.frames} frames and plays"
        raise KeyboardInterrupt(kept) from None
    rate = writer.frames / (time.perf_counter() - started)
    print(f"{config.out}: {writer.frames} frames, {writer.frames / fps:g} s, by {name}, seed {config.seed}")
    print(f"{rate:.1f} frames a second, made, decoded and written (shown at {fps:g})", file=sys.stderr)


def _start(path: Path, made: StreamingGenerator) -> Tensor:
    """A picture or a video file as [F, 3, H, W] in [0, 1], the newest frames that make whole latents; files of a whole
    multiple of the generator's size, such as ours, are averaged down to it."""
    if path.suffix.lower() in _PICTURES:
        try:
            with Image.open(path) as picture:
                pixels = torch.from_numpy(np.array(picture.convert("RGB")))[None]
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: not a picture that can be read ({' '.join(str(error).split())})") from error
    else:
        pixels, _ = read_video(path)
    video = pixels.movedim(-1, 1).float() / 255
    (h, w), size = made.size, video.shape[-2:]
    times = size[0] // h
    if times < 1 or (h * times, w * times) != size:
        raise ValueError(f"{path}: {size[1]}x{size[0]} pixels; the generator goes on from {w}x{h}, or a whole multiple")
    latents = 1
    while made.codec.frames_of(latents + 1) <= len(video):
        latents += 1
    return torch.nn.functional.avg_pool2d(video[-made.codec.frames_of(latents) :], times)


def _length(config: Config, made: StreamingGenerator, fps: float) -> tuple[int, int]:
    """Chunks to make, and video frames to write."""
    size = made.generator.frames_per_chunk
    first, later = (made.codec.frames_of(size, before) for before in (config.start is not None, 1))
    if config.seconds is None:
        chunks = config.chunks or CHUNKS
        return chunks, first + (chunks - 1) * later
    frames = max(1, round(config.seconds * fps))
    return 1 + max(0, math.ceil((frames - first) / later)), frames


def _prompts(text: str, chunks: int, made: StreamingGenerator) -> list[str]:
    """The prompt of each chunk: the world's grammar for those who speak it, else clauses as they are written."""
    if isinstance(made.encoder, WordEncoder):
        return chunk_prompts(text, chunks)
    clauses = [clause.strip() for clause in text.split("; then")]
    if not all(clauses):
        raise ValueError("the prompt is empty" if not text.strip() else "a clause of the prompt is empty")
    if len(clauses) > chunks:
        raise ValueError(f"{len(clauses)} clauses do not fit into {chunks} chunks: make the video longer")
    return [clauses[place * len(clauses) // chunks] for place in range(chunks)]


def _pixels(video: Tensor, scale: int) -> Tensor:
    """Video [F, 3, H, W] in [0, 1] as bytes [F, H', W', 3], enlarged."""
    pixels = (video.movedim(1, -1) * 255).round().to(torch.uint8).cpu()
    return pixels.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def _check(config: Config) -> None:
    """ValueError for options that do not make sense, or not together."""
    for name, count in (("scale", config.scale), ("chunks", config.chunks)):
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}")
    for name, number in (("seconds", config.seconds), ("fps", config.fps)):
        if number is not None and not (math.isfinite(number) and number > 0):
            raise ValueError(f"{name} must be a positive number, not {number:g}")
    if config.seconds is not None and config.chunks is not None:
        raise ValueError("--seconds and --chunks both say how long: leave one out")
    if config.agent is not None and config.model != "student":
        raise ValueError("an agent steers the student: leave out --model, or --agent")
    if config.student is not None and (config.model != "student" or config.agent is not None):
        raise ValueError("--student names the student that streams: leave out --model and --agent")
    if config.agent is None and config.model == "student":
        return
    ours = ("seconds", "checkpoint", "which", "start", "size", "dtype", "attention", "compile", *POLICY)
    if given := [name for name in ours if getattr(config, name) is not None]:
        raise ValueError(f"--{given[0].replace('_', '-')} is for streams: leave it out with --agent or --model teacher")


def _short_clip(config: Config, device: torch.device) -> None:
    """A clip that is made as a whole: the teacher's, or one that an agent steers."""
    stack = Stack.load(config.stack, device)
    made, count = stack.pipeline, stack.layout.chunks
    prompts = _prompts(config.prompt, config.chunks or count, made)
    with one_thread() if max(made.size) <= 64 else nullcontext(), torch.no_grad():
        if config.agent is not None:
            video, passes = steered_by(config.agent, prompts, config.seed, stack)
            who = f"the student, steered ({passes:g} passes a chunk)"
        else:
            if len(prompts) != count:
                raise ValueError(f"the teacher makes clips of {count} chunks, not {len(prompts)}: use --model student")
            embeds = stack.encoder.encode(prompts)[None].to(stack.device)
            shape = (count * stack.teacher.frames_per_chunk, *made.generator.latent_shape)
            noise = normal(stream_keys(config.seed, 1, embeds.device), 0, 0, shape)
            sampling = stack.teacher_sampling or TEACHER_SAMPLING
            latents = sample_teacher(stack.teacher, embeds, stack.null(), noise, sampling)
            video, who = stack.codec.decode(latents)[0], "the teacher"
    fps = config.fps or made.fps
    write_video(config.out, _pixels(video, config.scale or (4 if max(made.size) <= 64 else 1)), fps, made_by=who)
    print(f"{config.out}: {len(video)} frames, {len(video) / fps:g} s, by {who}, seed {config.seed}")
