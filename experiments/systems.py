"""What makes videos for an exam: the world's truth, the codec's reconstruction, the teacher, a student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..envs.stack import Stack
from ..envs.worlds.grammar import Clause
from ..envs.worlds.render import render
from ..envs.worlds.scene import roll
from ..envs.worlds.world import World
from ..models.codec import Codec
from ..models.generator import Generator, stream
from ..models.prompts import TextEncoder
from ..models.sampler import TeacherSampling, sample_teacher
from ..models.streaming import StreamingGenerator
from ..models.tiny import STEPS, TEACHER_SAMPLING
from ..models.wan import CausalWan
from ..noise import normal

Chunks = Sequence[Sequence[Clause]]
"""B rows of one clause per chunk (a world of one's own gives prompts, strings, in their place)."""


class VideoModel(Protocol):
    """Whatever makes videos for scripts."""

    def __call__(self, clauses: Chunks, keys: Tensor) -> Tensor:
        """Videos of B rows of clauses; row i is a function of clauses[i] and keys[i] (int64) alone."""
        ...


@runtime_checkable
class SupportsContinuation(Protocol):
    """A system that can carry on what the world began."""

    def continue_from(self, video: Tensor, given: int, clauses: Chunks, keys: Tensor) -> Tensor:
        """Videos of B rows of clauses that begin as the world's own video [B, F, 3, H, W] does.

        A generator looks at the first `given` frames alone; the world and its codec give all of them back.
        """
        ...


@dataclass(frozen=True)
class GroundTruth:
    """What the world shows. world: of one's own; None: ShapeStream."""

    frames_per_chunk: int
    world: World | None = None

    def __call__(self, clauses: Chunks, keys: Tensor) -> Tensor:
        """Every row rolls alone, from a random generator of its own key."""
        if self.world is not None:
            rows = [[str(clause) for clause in row] for row in clauses]
            return self.world.video(rows, self.frames_per_chunk, keys.tolist()).to(keys.device)
        scenes = (
            roll([row], self.frames_per_chunk, torch.Generator().manual_seed(key))
            for row, key in zip(clauses, keys.tolist(), strict=True)
        )
        return torch.cat([render(scene) for scene in scenes]).to(keys.device)

    def continue_from(self, video: Tensor, given: int, clauses: Chunks, keys: Tensor) -> Tensor:
        """See SupportsContinuation."""
        return video


@dataclass(frozen=True)
class Reconstruction:
    """Another system's videos through the codec and back: what no generator of its latents can beat for sharpness."""

    codec: Codec
    system: VideoModel

    def __call__(self, clauses: Chunks, keys: Tensor) -> Tensor:
        return self.codec.decode(self.codec.encode(self.system(clauses, keys)))

    def continue_from(self, video: Tensor, given: int, clauses: Chunks, keys: Tensor) -> Tensor:
        """See SupportsContinuation."""
        return self.codec.decode(self.codec.encode(video))


@dataclass(frozen=True)
class Student:
    """A streaming generator; the clauses are encoded chunk by chunk."""

    pipeline: StreamingGenerator

    def __call__(self, clauses: Chunks, keys: Tensor) -> Tensor:
        return self._streamed(clauses, keys, None)

    def continue_from(self, video: Tensor, given: int, clauses: Chunks, keys: Tensor) -> Tensor:
        """See SupportsContinuation."""
        return self._streamed(clauses, keys, self.pipeline.codec.encode(video[:, :given]))

    def _streamed(self, clauses: Chunks, keys: Tensor, given: Tensor | None) -> Tensor:
        embeds = encode_clauses(self.pipeline.encoder, clauses).to(keys.device)
        return self.pipeline.codec.decode(stream(self.pipeline.generator, embeds, keys, given))


@dataclass(frozen=True)
class Teacher:
    """A bidirectional, guided teacher of whole clips, in the latents of a pipeline; its noise is what the chunks of the
    pipeline's generator begin with."""

    model: CausalWan
    pipeline: StreamingGenerator
    sampling: TeacherSampling = TEACHER_SAMPLING

    def __call__(self, clauses: Chunks, keys: Tensor) -> Tensor:
        embeds = encode_clauses(self.pipeline.encoder, clauses).to(keys.device)
        shape = (self.model.frames_per_chunk, *self.pipeline.generator.latent_shape)
        noise = torch.cat([normal(keys, chunk, 0, shape) for chunk in range(embeds.shape[1])], 1)
        null = self.pipeline.encoder.encode([""])[0].to(embeds.device)
        latents = sample_teacher(self.model, embeds, null, noise, self.sampling)
        return self.pipeline.codec.decode(latents)


REFERENCES = {
    "truth": "ground truth",
    "codec": "codec ceiling",
    "teacher": "teacher",
    "start": "starting student",
    "four-steps": "starting student, 4 steps",
}
"""What is measured beside trained students, and is not trained; the last, where students have another number."""


def reference(stack: Stack, name: str) -> VideoModel:
    """One of REFERENCES."""
    world = GroundTruth(stack.layout.frames_per_chunk, stack.world)
    systems: dict[str, Callable[[], VideoModel]] = {
        "truth": lambda: world,
        "codec": lambda: Reconstruction(stack.codec, world),
        "teacher": lambda: Teacher(stack.teacher, stack.pipeline, stack.teacher_sampling or TEACHER_SAMPLING),
        "start": lambda: Student(stack.pipeline),
        "four-steps": lambda: as_system(stack, stack.generator.with_steps(STEPS)),
    }
    return systems[name]()


def as_system(stack: Stack, generator: Generator) -> Student:
    """A generator that was a student of the stack."""
    return Student(replace(stack.pipeline, generator=generator))


def encode_clauses(encoder: TextEncoder, clauses: Chunks) -> Tensor:
    """One prompt per chunk: embeddings [B, n, L, D]."""
    texts = [str(clause) for row in clauses for clause in row]
    distinct = list(dict.fromkeys(texts))
    place = {text: number for number, text in enumerate(distinct)}
    rows = torch.tensor([place[text] for text in texts])
    return encoder.encode(distinct)[rows].unflatten(0, (len(clauses), -1))
