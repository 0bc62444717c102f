"""One stack of models: what streams, what teaches, what judges; from a name, a folder or a `stack.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import has_checkpoint
from ..models.cache import CacheConfig
from ..models.codec import Codec
from ..models.detector import Detector
from ..models.fit import size_of
from ..models.generator import Generator
from ..models.lora import AdapterConfig, trainable_copy
from ..models.prompts import TextEncoder
from ..models.sampler import TeacherSampling
from ..models.stream_files import StreamSettings
from ..models.streaming import StreamingGenerator
from ..models.tiny import SHIPPED_REWARDS, TINY_FPS, WEIGHTS
from ..models.wan import CausalWan
from ..plugins import find
from ..rewards.compose import as_reward
from ..rewards.stream_reward import StreamReward
from ..rewards.windows import TINY_LAYOUT, ChunkLayout
from .data_files import files_of_data
from .encoded import data_of, encoder_of
from .prompt_source import ScriptPrompts, world_prompts
from .stack_file import StackFile, read_stack_file
from .stack_kinds import PART_KINDS, TeacherFile
from .stack_parts import Make, digests, files_of_stack, make_parts
from .worlds.world import PromptRows, World

STACKS: dict[str, Any] = {"tiny": WEIGHTS}
"""Stacks by name; installed packages add theirs as entry points `reelgym.stacks` (a folder, or a function without
arguments that returns a folder or a Stack)."""
NETWORKS = tuple(name for name in PART_KINDS if name != "encoder")
"""Parts with weights, each a folder of that name."""
DERIVED = ("encoder", "grammar", "generator")
"""Parts that may follow from others."""


@dataclass(frozen=True, eq=False)
class Stack:
    """The models that belong together; each is loaded when it is first asked for.

    parts: what makes each part, by name: those of NETWORKS, and "encoder" (of prompts) and "grammar".   layout: how a
    clip is cut.   folder: where it came from.   device: of every part.   said: where the parts lie, and how they are
    read.   data: what stands beside the models: a file of "prompts", a folder of "clips".

    Example:
        >>> stack = Stack.load("tiny")
        >>> stream = stack.pipeline.open("a red circle moves left")
        >>> student = stack.student()  # a copy to be trained
    """

    parts: Mapping[str, Make]
    layout: ChunkLayout = TINY_LAYOUT
    folder: Path = WEIGHTS
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    said: StackFile = field(default_factory=StackFile)
    data: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def load(cls, source: str | Path | Stack = "tiny", device: torch.device | str = "cpu") -> Stack:
        """From a name of STACKS, a folder of parts that `reelgym train` wrote, a `stack.toml`, or `module:name`.

        ValueError for what is none of these.
        """
        if isinstance(source, Stack):
            return source
        device = torch.device(device)
        path = Path(source)
        if path.suffix == ".toml" and path.is_file():
            return _from_toml(path, device)
        if str(source) not in STACKS and path.is_dir():
            return _from_folder(path, device)
        try:
            found = find("stacks", str(source), STACKS)
        except ValueError as error:
            raise ValueError(
                f"{str(source)!r} is neither a folder with codec and reward, a .toml nor known: {error}"
            ) from error
        found = found() if callable(found) else found
        return found if isinstance(found, Stack) else _from_folder(Path(found), device)

    def with_parts(self, **live: Any) -> Stack:
        """The same stack with these objects as parts (`reward`, `heldout`: see `rewards.compose.as_reward`)."""
        if unknown := sorted(set(live) - {*NETWORKS, "encoder", "grammar", "generator", "world"}):
            raise ValueError(f"a stack has no {', '.join(unknown)}; it has {', '.join(NETWORKS)}, encoder, grammar")
        ready = {name: as_reward(part) if name in ("reward", "heldout") else part for name, part in live.items()}
        parts: dict[str, Make] = {**self.parts, **{name: partial(_same, part) for name, part in ready.items()}}
        return replace(self, parts=parts, said=self.said.without(*live))

    def with_weights(self, **places: Path) -> Stack:
        """The same stack with these parts read from folders of their own; prompts are read as the student's say."""
        said = self.said.with_places(places)
        stale = {*places, *(DERIVED if "student" in places else ())} - ({"encoder"} & set(said.parts))
        kept = {name: part for name, part in self.parts.items() if name not in stale}
        return replace(self, parts=make_parts(said, self.device, kept), said=said)

    def with_cache(self, cache: CacheConfig) -> Stack:
        """The stack with another cache of its student: what is trained from it evicts as it will when it streams."""
        return self.with_parts(generator=self.pipeline.with_cache(cache).generator)

    def with_steps(self, steps: int | None) -> Stack:
        """The stack with a student of so many denoising steps, for all that samples or trains it; None: its own."""
        return self if steps is None else self.with_parts(generator=self.generator.with_steps(steps))

    @property
    def places(self) -> dict[str, Path]:
        """The folders (or files) of the parts that have one."""
        return {name: part.place for name, part in self.said.parts.items() if part.place is not None}

    def weights(self) -> dict[str, str]:
        """SHA-256 of the weights of every part that has a folder, and of the LoRAs on it."""
        return digests(self.said)

    def has(self, name: str) -> bool:
        """Whether the stack has a part of this name."""
        return name in self.parts

    def part(self, name: str) -> Any:
        """A part by its name; ValueError where the stack has none."""
        if name not in self.parts:
            there = f"it has {', '.join(self.parts)}. Name one in its toml under [parts], or make one"
            raise ValueError(f"{self.folder}: this stack has no {name}; {there} with `reelgym train {name}`")
        return self.parts[name]()

    @property
    def codec(self) -> Codec:
        """Between latents and pixels."""
        return self.part("codec")

    @property
    def encoder(self) -> TextEncoder:
        """Of prompts."""
        return encoder_of(self) if self.has("encoder") else self.part("encoder")

    @property
    def generator(self) -> Generator:
        """The starting student, frozen; whoever trains takes `student()`."""
        return self.part("generator")

    @property
    def pipeline(self) -> StreamingGenerator:
        """Generator, codec and encoder with one face."""
        return StreamingGenerator(self.generator, self.codec, self.encoder, self.fps, size_of(self.codec, self.device))

    @property
    def fps(self) -> float:
        """Frames a second of its videos."""
        wan = "student" in self.said.parts and not self.said.parts["student"].is_tiny
        return self.said.fps or (StreamSettings.fps if wan else TINY_FPS)

    @property
    def teacher_sampling(self) -> TeacherSampling | None:
        """How the teacher is sampled, and guided wherever it is asked; None: a shipped one, as recipes say."""
        part = self.said.parts.get("teacher")
        return part.sampling if isinstance(part, TeacherFile) and not part.is_tiny else None

    @property
    def teacher(self) -> CausalWan:
        """The bidirectional, guided teacher of whole clips."""
        return self.part("teacher")

    @property
    def reward(self) -> StreamReward:
        """What is maximised, and what weighs distillation."""
        return self.part("reward")

    @property
    def heldout(self) -> StreamReward:
        """A reward that nobody maximises."""
        return self.part("heldout")

    @property
    def detector(self) -> Detector:
        """The strong detector of made clips."""
        return self.part("detector")

    @property
    def rival(self) -> Detector:
        """The detector that self-play starts from."""
        return self.part("rival")

    @property
    def grammar(self) -> str:
        """Name of the world's grammar whose words the stack knows."""
        if not self.has("grammar"):
            raise ValueError(f"{self.folder}: this stack knows no world, whose prompts and judge are asked for here")
        return self.part("grammar")

    @property
    def world(self) -> World | None:
        """A world of one's own; None: ShapeStream in the stack's grammar."""
        return self.part("world") if self.has("world") else None

    def student(self, adapter: AdapterConfig | None = None, seed: int = 0) -> Generator:
        """A copy of the starting student, to be trained: its weights, or an adapter over those in use here."""
        return replace(self.generator, model=trainable_copy(self.generator.model, adapter, seed))

    def prompts(
        self, split: str = "train", *, grammar: str | None = None, layout: ChunkLayout | None = None
    ) -> ScriptPrompts:
        """Its own prompts or scripts of the world, one prompt per chunk; grammar: of ShapeStream, if not its own."""
        chunks, world = (layout or self.layout).chunks, self.world
        if "prompts" in self.data and grammar is None:
            return data_of(self if layout is None else replace(self, layout=layout)).prompts(split)
        if not (world or grammar or self.has("grammar")):
            raise ValueError(f'{self.folder}: this stack has no prompts; say prompts = "FILE" in its toml')
        if world is not None and grammar is None:
            return ScriptPrompts(self.encoder, chunks, partial(_drawn, world, chunks, split))
        return world_prompts(self.encoder, chunks, grammar or self.grammar, split)

    def null(self) -> Tensor:
        """The empty prompt [L, D], as the encoder reads it."""
        with torch.no_grad():
            return self.encoder.encode([""])[0].to(self.device)


@dataclass(frozen=True)
class StackSpec:
    """A stack as a job's config holds it: plain words, loaded where they are needed."""

    stack: str = "tiny"
    """What `Stack.load` takes."""
    reward: str = ""
    """Folder, import path or name of a reward in place of the stack's; empty: the stack's own."""
    world: str = ""
    """Import path or name of a world (envs.worlds.world.World) in place of ShapeStream."""
    device: str = "cpu"
    steps: int | None = None
    """Denoising steps of the student; None: its own."""

    def load(self) -> Stack:
        """The stack; asked for again in the same process, it is not loaded again."""
        return _loaded(self)

    @property
    def depends_on(self) -> list[Path | str]:
        """What else decides what is loaded: manifests (with digests), a stack.toml, its import paths."""
        stack = self.load()
        said = stack.said
        own = [part.weights for part in said.parts.values() if part.place is None]
        toml = self.stack.endswith(".toml")
        named: list[Path | str] = [Path(self.stack), read_stack_file(Path(self.stack))[0]] if toml else []
        return [*files_of_stack(said), *files_of_data(stack.data), *own, *named]


@lru_cache(maxsize=2)
def _loaded(spec: StackSpec) -> Stack:
    stack, place = Stack.load(spec.stack, spec.device), SHIPPED_REWARDS.get(spec.reward, Path(spec.reward))
    if spec.reward and has_checkpoint(place):
        stack, spec = stack.with_weights(reward=place), replace(spec, reward="")
    parts = {n: find(f"{n}s", path, {}) for n, path in (("reward", spec.reward), ("world", spec.world)) if path}
    return stack.with_parts(**parts).with_steps(spec.steps)


def _same(part: Any) -> Any:
    return part


def _drawn(world: World, chunks: int, split: str, count: int, seed: int) -> PromptRows:
    return world.prompts(count, chunks=chunks, split=split, seed=seed)


def _from_folder(folder: Path, device: torch.device) -> Stack:
    """Parts that `reelgym train` wrote; what is not there is missing."""
    there = {name: folder / name for name in NETWORKS if has_checkpoint(folder / name)}
    if not there:
        raise ValueError(f"{folder}: no folder with codec and reward; `reelgym train` makes the parts of a stack")
    said = StackFile().with_places(there)
    return Stack(make_parts(said, device, {}), TINY_LAYOUT, folder, device, said)


def _from_toml(path: Path, device: torch.device) -> Stack:
    """The file's parts, over those of its base where it names one."""
    base, own = read_stack_file(path)
    near = path.parent / base
    start = Stack.load(near if base and near.exists() else base, device) if base else Stack({}, device=device)
    data = {**start.data, **own.pop("data")}
    given = {name: value for name, value in own.items() if value is not None}
    parts, cached = {**start.said.parts, **own["parts"]}, {**start.said.cache, **own["cache"]}
    try:
        layout = replace(start.layout, **own["layout"])
    except ValueError as error:
        raise ValueError(f"{path}: [layout]: {error}") from error
    said = replace(start.said, **given | {"parts": parts, "cache": cached, "layout": layout})
    stale = {
        *parts,
        *(DERIVED if start.said.parts else ("generator",) if {"student", "codec"} & set(own["parts"]) else ()),
    }
    live = {name: part for name, part in start.parts.items() if name not in stale}
    return Stack(make_parts(said, device, live), layout, path.parent, device, said, data)
