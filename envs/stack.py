"""One stack of models: what streams, what teaches, what judges; from a name, a folder or a `stack.toml`."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..checkpoint import has_checkpoint, sha256_file
from ..models.cache import CacheConfig
from ..models.codec import Codec
from ..models.detector import Detector
from ..models.generator import Generator
from ..models.prompts import WordEncoder
from ..models.streaming import StreamingGenerator
from ..models.tiny import (
    SHIPPED_REWARDS,
    STEPS,
    TINY_FPS,
    WEIGHTS,
    build_generator,
    load_encoder,
    load_manifest,
    load_tiny,
)
from ..models.wan import CausalWan
from ..plugins import find
from ..rewards.compose import as_reward
from ..rewards.stream_reward import StreamReward
from ..rewards.windows import TINY_LAYOUT, ChunkLayout
from .prompt_source import ScriptPrompts, world_prompts
from .worlds.world import PromptRows, World

STACKS: dict[str, Any] = {"tiny": WEIGHTS}
"""Stacks by name; installed packages add theirs as entry points `reelgym.stacks` (a folder, or a function without
arguments that returns a folder or a Stack)."""
NETWORKS = ("codec", "student", "teacher", "reward", "heldout", "detector", "rival")
"""Parts with weights, each a folder of that name."""
READS: tuple[Literal["student"], Literal["reward"]] = ("student", "reward")
"""Parts that know the words of prompts."""
Make = Callable[[], Any]


@dataclass(frozen=True, eq=False)
class Stack:
    """The models that belong together; each is loaded when it is first asked for.

    parts: what makes each part, by name: those of NETWORKS, and "encoder" (of prompts) and "grammar".   layout: how a
    clip is cut.   folder: where it came from.   device: of every part.
    places: the folders of the parts that have one.

    Example:
        >>> stack = Stack.load("tiny")
        >>> stream = stack.pipeline.open("a red circle moves left")
        >>> student = stack.student()  # a copy to be trained
    """

    parts: Mapping[str, Make]
    layout: ChunkLayout = TINY_LAYOUT
    folder: Path = WEIGHTS
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    places: Mapping[str, Path] = field(default_factory=dict)

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
        unknown = sorted(set(live) - {*NETWORKS, "encoder", "grammar", "generator", "world"})
        if unknown:
            raise ValueError(
                f"a stack has no {', '.join(unknown)}: its parts are {', '.join(NETWORKS)}, encoder, grammar"
            )
        ready = {name: as_reward(part) if name in ("reward", "heldout") else part for name, part in live.items()}
        places = {name: place for name, place in self.places.items() if name not in live}
        parts: dict[str, Make] = {**self.parts, **{name: partial(_same, part) for name, part in ready.items()}}
        return replace(self, parts=parts, places=places)

    def with_weights(self, **places: Path) -> Stack:
        """The same stack with these parts read from folders of their own; prompts are read as the student's say."""
        made = _made({**self.places, **places}, self.folder, self.layout, self.device)
        stale = {*places, *(("generator", "encoder", "grammar") if "student" in places else ())}
        kept = {name: part for name, part in self.parts.items() if name not in stale}
        return replace(self, parts={**made.parts, **kept}, places=made.places)

    def with_cache(self, cache: CacheConfig) -> Stack:
        """The stack with another cache of its student: what is trained from it evicts as it will when it streams."""
        return self.with_parts(generator=self.pipeline.with_cache(cache).generator)

    def with_steps(self, steps: int | None) -> Stack:
        """The stack with a student of so many denoising steps, for all that samples or trains it; None: its own."""
        return self if steps is None else self.with_parts(generator=self.generator.with_steps(steps))

    def weights(self) -> dict[str, str]:
        """SHA-256 of the weights of every part that has a folder."""
        return {name: sha256_file(place / "weights.safetensors") for name, place in sorted(self.places.items())}

    def has(self, name: str) -> bool:
        """Whether the stack has a part of this name."""
        return name in self.parts

    def _part(self, name: str) -> Any:
        if name not in self.parts:
            there = ", ".join(self.parts)
            raise ValueError(
                f"{self.folder}: this stack has no {name}; it has {there}. Make one with `reelgym train {name}`"
            )
        return self.parts[name]()

    @property
    def codec(self) -> Codec:
        """Between latents and pixels."""
        return self._part("codec")

    @property
    def encoder(self) -> WordEncoder:
        """Of prompts."""
        return self._part("encoder")

    @property
    def generator(self) -> Generator:
        """The starting student, frozen; whoever trains takes `student()`."""
        return self._part("generator")

    @property
    def pipeline(self) -> StreamingGenerator:
        """Generator, codec and encoder with one face."""
        size = getattr(self.codec, "size", 0)
        return StreamingGenerator(self.generator, self.codec, self.encoder, TINY_FPS, (size, size))

    @property
    def teacher(self) -> CausalWan:
        """The bidirectional, guided teacher of whole clips."""
        return self._part("teacher")

    @property
    def reward(self) -> StreamReward:
        """What is maximised, and what weighs distillation."""
        return self._part("reward")

    @property
    def heldout(self) -> StreamReward:
        """A reward that nobody maximises."""
        return self._part("heldout")

    @property
    def detector(self) -> Detector:
        """The strong detector of made clips."""
        return self._part("detector")

    @property
    def rival(self) -> Detector:
        """The detector that self-play starts from."""
        return self._part("rival")

    @property
    def grammar(self) -> str:
        """Name of the world's grammar whose words the stack knows."""
        return self._part("grammar")

    @property
    def world(self) -> World | None:
        """A world of one's own; None: ShapeStream in the stack's grammar."""
        return self._part("world") if self.has("world") else None

    def student(self) -> Generator:
        """A copy of the starting student, to be trained."""
        return replace(self.generator, model=copy.deepcopy(self.generator.model).requires_grad_(True))

    def prompts(
        self, split: str = "train", *, grammar: str | None = None, layout: ChunkLayout | None = None
    ) -> ScriptPrompts:
        """Scripts of the world from a split, one prompt per chunk; grammar: of ShapeStream, if not the stack's."""
        chunks, world = (layout or self.layout).chunks, self.world
        if world is not None and grammar is None:
            return ScriptPrompts(self.encoder, chunks, partial(_drawn, world, chunks, split))
        return world_prompts(self.encoder, chunks, grammar or self.grammar, split)

    def null(self) -> Tensor:
        """The empty prompt [L, D]."""
        return torch.zeros(self.encoder.text_len, self.encoder.dim, device=self.device)


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
        places = self.load().places.values()
        manifests = sorted(file for place in places for file in place.glob("*.json"))
        if not self.stack.endswith(".toml"):
            return [*manifests]
        named = tomllib.loads(Path(self.stack).read_text())
        return [*manifests, Path(self.stack), *named.get("parts", {}).values(), str(named.get("base", ""))]


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
    there = [name for name in NETWORKS if has_checkpoint(folder / name)]
    if not there:
        raise ValueError(f"{folder}: no folder with codec and reward; `reelgym train` makes the parts of a stack")
    return _made({name: folder / name for name in there}, folder, TINY_LAYOUT, device)


def _made(places: Mapping[str, Path], folder: Path, layout: ChunkLayout, device: torch.device) -> Stack:
    parts: dict[str, Make] = {name: cache(partial(_network, name, place, device)) for name, place in places.items()}
    if words := next((name for name in READS if name in places), None):
        parts["encoder"] = cache(partial(load_encoder, words, places[words]))
        told = partial(load_manifest, words, places[words])
        parts["grammar"] = cache(lambda: str(told().get("recipe", {}).get("grammar", "plain")))
    if {"codec", "student"} <= set(parts):
        steps = cache(lambda: int(load_manifest("student", places["student"]).get("sampler_steps", STEPS)))
        parts["generator"] = cache(lambda: build_generator(parts["student"](), parts["codec"](), steps()))
    return Stack(parts, layout, folder, device, places)


def _network(name: Any, place: Path, device: torch.device) -> Any:
    network = load_tiny(name, place, device).requires_grad_(False)
    return as_reward(network) if name in ("reward", "heldout") else network


def _from_toml(path: Path, device: torch.device) -> Stack:
    """`base` gives what `[parts]` does not: folders (from here), or `module:name`; `[layout]` (or `[clock]`, its
    former name) cuts the clips."""
    said = tomllib.loads(path.read_text())
    if unknown := set(said) - {"base", "parts", "layout", "clock"}:
        raise ValueError(f"{path}: unknown {', '.join(sorted(unknown))}; a stack says base, [parts] and [layout]")
    named = said.get("parts", {})
    if unknown := set(named) - {*NETWORKS}:
        raise ValueError(f"{path}: unknown parts {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    base = said.get("base", "tiny")
    start = Stack.load(path.parent / base if (path.parent / base).is_dir() else base, device)
    places = {name: path.parent / place for name, place in named.items() if ":" not in place}
    if missing := [str(place) for place in places.values() if not has_checkpoint(place)]:
        raise ValueError(f"{path}: no weights in {', '.join(missing)}")
    layout = replace(start.layout, **said.get("layout", said.get("clock", {})))
    stack = replace(start.with_weights(**places), layout=layout, folder=path.parent)
    return stack.with_parts(**{name: find("rewards", place, {}) for name, place in named.items() if ":" in place})
