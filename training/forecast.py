"""What a training will take, before it is run: memory of a process by role, FLOPs of an update by part.

b clips a process, n chunks a clip, S denoising steps, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..models.generator import Generator
from ..models.lora import AdapterConfig, frozen_copy, trainable_copy, trainable_like
from ..models.sampler import step_sigmas
from ..models.wan import CausalWan
from .footprint import Footprint, bytes_of, footprint, held_by, pretended
from .learner import Learner, LearnerConfig


@dataclass(frozen=True)
class Shape:
    """A student and its clips. config: CausalWan's. latent: (C, h, w). chunks: n. steps: S. dtype: of weights."""

    config: dict[str, Any]
    latent: tuple[int, int, int]
    chunks: int
    steps: int
    dtype: torch.dtype

    @property
    def layers(self) -> int:
        """L."""
        return int(self.config["config"]["num_layers"])

    def with_layers(self, layers: int) -> Shape:
        """With another L."""
        return replace(self, config=self.config | {"config": self.config["config"] | {"num_layers": layers}})

    def build(self) -> CausalWan:
        """On the default device."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            return CausalWan.from_config(**self.config).eval()
        finally:
            torch.set_default_dtype(before)


@dataclass(frozen=True)
class Cast:
    """Who takes part in an update: the student as a generator; networks by role and their learners; prompts
    [b, n, L, D] and keys [b]."""

    generator: Generator
    roles: dict[str, CausalWan]
    learners: dict[str, Learner[Any]]
    embeds: Tensor
    keys: Tensor


Update = Callable[[Cast], Iterator[str]]
"""A generator of an update's parts, each named when it is done."""


@dataclass(frozen=True)
class Method:
    """frozen, trained: roles beside the student. update: its parts. ema: of the student. passes: the rollout's on the
    average, as a share of those that `update` makes."""

    frozen: tuple[str, ...]
    trained: tuple[str, ...]
    update: Update
    ema: float = 0.0
    passes: float = 1.0


@dataclass(frozen=True)
class Forecast:
    """Of one process. held: bytes by role, weights and what optimisers and averages keep. gradients: bytes of those of
    the largest role. block: bytes of a block's weights. work: the update."""

    held: dict[str, float]
    gradients: float
    block: float
    work: Footprint

    def memory(self, processes: int = 1, sharded: bool = False) -> float:
        """Most bytes at once: in an update, or while AdamW moves the largest role, which takes as much as gradients."""
        split = processes if sharded else 1
        gathered = 3 * self.block if sharded else 0.0
        rest = max(self.work.peak - self.gradients, 0.0)
        return (
            sum(self.held.values()) / split + gathered + max(rest + self.gradients / split, 2 * self.gradients / split)
        )

    @property
    def flops(self) -> float:
        """Of an update."""
        return sum(self.work.flops.values())


def forecast(
    shape: Shape, method: Method, clips: int, adapter: AdapterConfig | None = None, recompute: bool = False
) -> Forecast:
    """From the real modules with one layer and with two, pretended (`footprint`)."""
    one, two = (_traced(shape.with_layers(layers), method, clips, adapter, recompute) for layers in (1, 2))
    more = shape.layers - 1
    held = {role: size + more * (two.held[role] - size) for role, size in one.held.items()}
    work = one.work.at(two.work, shape.layers)
    work.flops["rollout"] *= method.passes
    gradients = one.gradients + more * (two.gradients - one.gradients)
    return Forecast(held, gradients, two.held["student"] - one.held["student"], work)


def _traced(shape: Shape, method: Method, clips: int, adapter: AdapterConfig | None, recompute: bool) -> Forecast:
    with torch.device("meta"):
        base = shape.build().requires_grad_(False)
        student = trainable_copy(base, adapter)
        if recompute:
            student.transformer.enable_gradient_checkpointing()
        parts: dict[str, CausalWan] = {"student": student}
        parts |= {role: frozen_copy(base if role == "teacher" else student) for role in method.frozen}
        parts |= {role: trainable_like(base, student) for role in method.trained}
    with pretended(*parts.values()):
        config = LearnerConfig(ema=method.ema)
        learners = {role: Learner(parts[role], config) for role in ("student", *method.trained)}
        model = shape.config
        embeds = torch.zeros(clips, shape.chunks, model["text_len"], model["config"]["text_dim"])
        generator = Generator(student, step_sigmas(shape.steps, 5.0), shape.latent, model["frames_per_chunk"])
        cast = Cast(generator, parts, learners, embeds, torch.zeros(clips, dtype=torch.int64))
        names = [*parts, *(f"{role}'s optimiser" for role in learners)]
        kept = dict(zip(names, held_by(*parts.values(), *learners.values()), strict=True))
        gradients = max(bytes_of(learner.parameters) for learner in learners.values())
        work = footprint(method.update(cast), [value for held in kept.values() for value in held])
    return Forecast({role: float(bytes_of(held)) for role, held in kept.items()}, float(gradients), 0.0, work)
