"""Options that commands share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from ..envs.stack import STACKS, Stack, StackSpec
from ..models.cache import CacheConfig
from ..models.fit import parse_size, size_text
from ..models.lora import ATTENTION, AdapterConfig
from ..models.stream_files import cast
from ..models.streaming import StreamingGenerator
from ..plugins import installed
from .results import pick_device

StackName = Annotated[str, tyro.conf.arg(aliases=["--weights"])]
"""Type of the option `stack`: what `Stack.load` takes."""


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """Which models, and where they run."""

    stack: StackName = "tiny"
    """The stack of models: a name (tiny is shipped), a folder of parts that `reelgym train` made, a stack.toml, or an
    import path module:name."""
    reward: str = ""
    """A reward in place of the stack's: local (docs/rewards.md), a folder that `reelgym train` made, an import path
    module:name, or the name that an installed package gives it."""
    student_steps: int | None = None
    """Denoising steps of the student: 1, 2, 4 or any other number; by default those that it was made for."""
    world: str = ""
    """A world in place of ShapeStream: an import path module:name (docs/world.md), or an installed name."""
    device: str = "auto"
    """auto, cpu or cuda."""

    @property
    def spec(self) -> StackSpec:
        """What jobs load; ValueError for a device that is not there."""
        place = Path(self.stack)
        stack = (
            str(place.resolve()) if self.stack != "tiny" and place.exists() else installed_name("stacks", self.stack)
        )
        reward, world = installed_name("rewards", self.reward), installed_name("worlds", self.world)
        reward = str(Path(reward).resolve()) if reward and Path(reward).is_dir() else reward
        return StackSpec(stack, reward, world, str(pick_device(self.device)), self.student_steps)


def installed_name(group: str, name: str) -> str:
    """The import path where an installed package gives the name, else the name; packages are looked through only for a
    name that is not ours, as that takes long."""
    return installed(group).get(name, name) if name and name not in STACKS and ":" not in name else name


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """Whether an adapter (LoRA) trains in place of the student's own weights."""

    lora_rank: int | None = None
    """Train a LoRA of this rank, in float32, over the frozen student; a critic is then one over the teacher."""
    lora_alpha: float | None = None
    """It is added times alpha / rank; by default as it is."""
    lora_targets: tuple[str, ...] = ATTENTION
    """Ends of the names of the linear layers that get one; ffn.net.0.proj and ffn.net.2 are the feed-forward ones."""

    @property
    def adapter(self) -> AdapterConfig | None:
        """What `Stack.student` takes; ValueError for an alpha or targets without a rank."""
        if self.lora_rank is not None:
            return AdapterConfig(self.lora_rank, self.lora_alpha, self.lora_targets)
        if self.lora_alpha is not None or self.lora_targets != ATTENTION:
            raise ValueError("--lora-alpha and --lora-targets say how a LoRA is: give its --lora-rank too")
        return None


@dataclass(frozen=True, kw_only=True)
class StudyOptions(StackOptions):
    """How a study runs on the cores of the CPU."""

    seed: int = 0
    """The first of the seeds."""
    device: Literal["cpu"] = "cpu"
    """All jobs run on the CPU."""
    workers: int | None = None
    """Processes of one thread each; by default 2, or as many as there are cores."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """How a measurement in this process runs."""

    seed: int = 0
    """Of clips, scripts, noise and actions."""
    threads: int = 1
    """Torch threads."""
    device: str = "auto"
    """auto, cpu or cuda."""


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """What a stream remembers; None: as the generator ships."""

    sink_frames: int | None = None
    """Cache, as the generator ships by default: first latent frames, which are never evicted."""
    window_frames: int | None = None
    """Cache: latent frames that a chunk sees in all, itself included; -1 keeps everything. A training whose clips are
    longer (12 frames, tiny) evicts too."""
    eviction: Literal["drop", "ema"] | None = None
    """Cache: forget the oldest frames, or blend them into the sink."""

    def cache(self, shipped: CacheConfig) -> CacheConfig:
        """The shipped policy with what these options, or those that a subclass adds, ask for."""
        asked = {name: getattr(self, name, None) for name in POLICY}
        return replace(shipped, **{name: value for name, value in asked.items() if value is not None})


POLICY = ("sink_frames", "window_frames", "eviction", "positions", "on_prompt_switch")
"""Fields of CacheConfig that commands have as options of the same name."""


def cache_policies(shipped: CacheConfig, frames_per_chunk: int) -> dict[str, CacheConfig]:
    """Policies to compare: windows as long as the generator's own (else of 7 chunks), and no eviction at all."""
    window = shipped.window_frames if shipped.window_frames > 0 else 7 * frames_per_chunk
    plain = replace(shipped, window_frames=window, sink_frames=0, eviction="drop", positions="relative")
    return {
        "window": plain,
        "sink and window": replace(plain, sink_frames=frames_per_chunk),
        "EMA sink and window": replace(plain, sink_frames=frames_per_chunk, eviction="ema"),
        "window, absolute positions": replace(plain, positions="absolute"),
        "keep everything": CacheConfig(),
    }


def is_stack(source: str) -> bool:
    """Whether a source is a stack of ours; else it is a streaming generator's folder or hub id."""
    place = Path(source)
    return source in STACKS or ":" in source or place.suffix == ".toml" or (place / "student").is_dir()


def load_generator(
    source: str,
    device: torch.device,
    *,
    dtype: str | None = None,
    student: Path | None = None,
    checkpoint: Path | None = None,
    which: str | None = None,
    size: str | None = None,
) -> StreamingGenerator:
    """What streams: a stack's student, or Wan with weights of its family.

    source: a stack, or what `StreamingGenerator.from_pretrained` takes.   dtype: by default float32, and bfloat16 for
    Wan on a GPU.   student: folder of another student for the stack.   checkpoint, which, size: for Wan.
    """
    asked = None if size is None else parse_size(size)
    if not is_stack(source):
        if student is not None:
            raise ValueError("--student names a student of a stack: leave it out, or --stack")
        name = dtype or ("bfloat16" if device.type == "cuda" else "float32")
        options: dict[str, Any] = {"device": device, "dtype": getattr(torch, name), "size": asked}
        return StreamingGenerator.from_pretrained(source, checkpoint=checkpoint, which=which, **options)
    if checkpoint is not None or which is not None:
        raise ValueError("--checkpoint and --which go with --stack of a Wan2.1 folder")
    stack = Stack.load(source, device)
    made = (stack if student is None else stack.with_weights(student=student)).pipeline
    if asked not in (None, made.size):
        raise ValueError(f"{source}: makes videos of {size_text(made.size)} pixels and of no other size, not {size}")
    if dtype is not None:
        cast(made.generator.model.transformer, getattr(torch, dtype))
    return made
