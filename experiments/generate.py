"""`reelgym generate PROMPT`: stream a video clip from a prompt into a file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from ..envs.worlds.grammar import chunk_prompts
from ..models.codec import FrameCodec
from ..models.generator import StreamState, generate_chunk
from ..models.sampler import sample_teacher
from ..models.tiny import CHUNKS, TEACHER_SAMPLING, WEIGHTS, build_generator, load_encoder, load_tiny
from ..models.wan import CausalWan
from ..noise import normal, stream_keys
from ..video import write_video
from .jobs import one_thread
from .results import pick_device
from .train_agent import steered_by


@dataclass(frozen=True)
class Config:
    """What to generate."""

    prompt: Annotated[str, tyro.conf.Positional]
    """What to show: "a red circle moves left fast ; then a blue square moves up"."""
    out: Path = Path("clip.mp4")
    """Video file to write: .mp4, .mov or .mkv."""
    agent: Path | None = None
    """Folder of an agent that steers the student, as reelgym train sb3-ppo --env reelgym/StreamSteer-v0 writes it."""
    student: Path | None = None
    """Folder of a fine-tuned student, as reelgym finetune writes it; by default the one in `weights`."""
    model: Literal["student", "teacher"] = "student"
    """student: streams chunk after chunk, for any length. teacher: many guided steps over one clip of 4 chunks."""
    chunks: int = CHUNKS
    """Length in chunks of 3 frames; the prompt's clauses share them evenly."""
    fps: float = 8.0
    """Frames per second of the file; the models were trained at 8."""
    scale: int = 4
    """Each pixel is written as a square of this many, so that players show it and colours survive compression."""
    seed: int = 0
    """Another seed is another video of the same prompt."""
    device: str = "auto"
    """auto, cpu or cuda."""
    weights: Path | None = None
    """Folder with codec, student and teacher; by default the one shipped with the package."""


def run(config: Config) -> None:
    """Generate, decode, write; print one line about the file."""
    if config.scale < 1:
        raise ValueError(f"scale must be at least 1, not {config.scale}")
    if config.agent is not None and config.model != "student":
        raise ValueError("an agent steers the student: leave out --model, or --agent")
    if config.student is not None and (config.model != "student" or config.agent is not None):
        raise ValueError("--student names the student that streams: leave out --model and --agent")
    device = pick_device(config.device)
    folder = config.weights or WEIGHTS
    prompts = chunk_prompts(config.prompt, config.chunks)
    if config.agent is not None:
        with one_thread():
            video, passes = steered_by(config.agent, prompts, config.seed, folder, device)
        _write(config, video, f"the student, steered ({passes:g} passes a chunk)")
        return
    place = config.student or folder / config.model
    embeds = load_encoder(config.model, place).encode(prompts)[None].to(device)
    codec = load_tiny("codec", folder / "codec", device)
    model = load_tiny(config.model, place, device)
    with one_thread(), torch.no_grad():
        make = stream_video if config.model == "student" else teacher_video
        chunks = tqdm(make(model, codec, embeds, config.seed), "generating", config.chunks, unit="chunk", disable=None)
        video = torch.cat(list(chunks), 1)[0]
    _write(config, video, f"the {config.model}")


def _write(config: Config, video: Tensor, who: str) -> None:
    """Write video [F, 3, H, W] in [0, 1] and say so."""
    pixels = (video.cpu().movedim(1, -1) * 255).round().to(torch.uint8)
    large = pixels.repeat_interleave(config.scale, 1).repeat_interleave(config.scale, 2)
    write_video(config.out, large, config.fps, made_by=who)
    seconds = len(large) / config.fps
    print(f"{config.out}: {len(large)} frames, {seconds:g} s, by {who}, seed {config.seed}")


def stream_video(model: CausalWan, codec: FrameCodec, embeds: Tensor, seed: int) -> Iterator[Tensor]:
    """The student's chunks as they come, each [1, f, 3, H, W] in [0, 1]; embeds [1, n, L, D]."""
    generator = build_generator(model, codec)
    state, decode = StreamState.start(stream_keys(seed, 1, embeds.device)), codec.open()
    for prompt in embeds.unbind(1):
        latents, _, state = generate_chunk(generator, state, prompt)
        video, decode = codec.decode_stream(latents, decode)
        yield video


def teacher_video(model: CausalWan, codec: FrameCodec, embeds: Tensor, seed: int) -> Iterator[Tensor]:
    """The teacher's clip [1, F, 3, H, W] in [0, 1], in chunks; embeds [1, 4, L, D]."""
    if embeds.shape[1] != CHUNKS:
        raise ValueError(f"the teacher makes clips of {CHUNKS} chunks, not {embeds.shape[1]}: use --model student")
    grid = codec.grid(1)
    shape = (CHUNKS * model.frames_per_chunk, codec.channels, grid.h, grid.w)
    noise = normal(stream_keys(seed, 1, embeds.device), 0, 0, shape)
    null = torch.zeros_like(embeds[0, 0])
    latents = sample_teacher(model, embeds, null, noise, TEACHER_SAMPLING)
    yield from codec.decode(latents).chunk(CHUNKS, 1)
