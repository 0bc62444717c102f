"""The rows of a comparison: the systems that are only measured, and the methods that train the starting student."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..agents.finetune import FineTune, FineTuneConfig
from ..agents.fit import Trainer
from ..distill.causal_init import CausalInit, CausalInitConfig
from ..distill.trainer import Distill, DistillConfig
from ..envs.prompt_source import ScriptPrompts, world_prompts
from ..envs.stream_gen import StreamGenVectorEnv
from ..envs.windows import TINY, Clock
from ..models.codec import FrameCodec
from ..models.generator import Generator
from ..models.prompts import WordEncoder
from ..models.tiny import TEACHER_SAMPLING, WEIGHTS, build_generator, load_encoder, load_manifest, load_tiny
from ..models.wan import CausalWan
from ..rewards.stream_reward import StreamReward
from .evaluate import Coded, Student, System, Teacher, World
from .pretrain.data import make_clips
from .pretrain.teacher import encode_clips

REFERENCES = {
    "truth": "ground truth",
    "codec": "codec ceiling",
    "teacher": "teacher",
    "start": "starting student",
}
"""Rows that are measured and not trained."""


@dataclass(frozen=True)
class Stack:
    """The pretrained tiny stack that every method starts from; whoever trains takes `student()`."""

    codec: FrameCodec
    teacher: CausalWan
    start: Generator
    reward: StreamReward
    encoder: WordEncoder
    grammar: str
    folder: Path = WEIGHTS
    clock: Clock = TINY

    @classmethod
    def load(cls, folder: Path | str = WEIGHTS, device: torch.device | str = "cpu") -> Stack:
        """From a folder of four parts, by default the shipped one."""
        folder = Path(folder)
        codec = load_tiny("codec", folder / "codec", device).requires_grad_(False)
        student = load_tiny("student", folder / "student", device)
        return cls(
            codec,
            load_tiny("teacher", folder / "teacher", device).requires_grad_(False),
            build_generator(student, codec),
            StreamReward(load_tiny("reward", folder / "reward", device)),
            load_encoder("student", folder / "student"),
            load_manifest("student", folder / "student")["recipe"]["grammar"],
            folder,
        )

    @property
    def device(self) -> torch.device:
        return next(self.start.model.parameters()).device

    def heldout(self) -> StreamReward:
        """A reward that nobody maximises, trained as the other was on other clips; CheckpointError without its
        weights."""
        return StreamReward(load_tiny("heldout", self.folder / "heldout", self.device))

    def student(self) -> Generator:
        """A copy of the starting student, to be trained."""
        return replace(self.start, model=copy.deepcopy(self.start.model).requires_grad_(True))

    def prompts(self) -> ScriptPrompts:
        """Training scripts of the stack's grammar."""
        return world_prompts(self.encoder, self.clock.chunks, self.grammar)

    def env(self, streams: int) -> StreamGenVectorEnv:
        """StreamGen over this stack."""
        return StreamGenVectorEnv(
            streams, self.codec, self.reward, self.prompts(), clock=self.clock, device=self.device
        )

    def null(self) -> Tensor:
        """The empty prompt [L, D]."""
        return torch.zeros(self.encoder.text_len, self.encoder.dim, device=self.device)

    def system(self, name: str) -> System:
        """One of REFERENCES, to be examined."""
        world = World(self.clock.frames_per_chunk)
        if name == "truth":
            return world
        if name == "codec":
            return Coded(self.codec, world)
        if name == "start":
            return self.as_system(self.start)
        return Teacher(self.teacher, self.codec, self.encoder, self.start.latent_shape, TEACHER_SAMPLING)

    def as_system(self, generator: Generator) -> Student:
        """A generator of this stack, to be examined."""
        return Student(generator, self.codec, self.encoder)


@dataclass(frozen=True)
class Plan:
    """One method's share of a comparison."""

    recipe: Any
    """The trainer's config."""
    updates: int
    """What the budget of seconds came to on the reference machine, converted once."""
    pool: int = 512
    """Clips of the world that "continued" draws from."""


@dataclass(frozen=True)
class Method:
    """label: the row's name. build: a plan, with the seed in its recipe, to a trainer of `generator`."""

    label: str
    build: Callable[[Stack, Plan, Generator], Trainer]


def continued(stack: Stack, plan: Plan, generator: Generator) -> Trainer:
    """The starting recipe goes on, on other clips of the world."""
    recipe: CausalInitConfig = plan.recipe
    world = make_clips(plan.pool, split="train", seed=FRESH_CLIPS + recipe.seed, grammar=stack.grammar)
    pool = encode_clips(stack.codec, replace(world, video=world.video.to(stack.device)), stack.encoder)

    def clips(batch: int, step: int) -> tuple[Tensor, Tensor]:
        latents, embeds = pool.draw(batch, torch.Generator().manual_seed(recipe.seed * 1_000_003 + step))
        return latents.to(stack.device), embeds.to(stack.device)

    return CausalInit(recipe, generator, clips)


def distilled(stack: Stack, plan: Plan, generator: Generator) -> Trainer:
    """DMD, or Stream-R1: the recipe says which."""
    helpers: dict[str, Any] = {"codec": stack.codec, "reward": stack.reward, "clock": stack.clock}
    return Distill(plan.recipe, generator, stack.teacher, stack.prompts(), stack.null(), **helpers)


def finetuned(stack: Stack, plan: Plan, generator: Generator) -> Trainer:
    """RL: the recipe says which."""
    recipe: FineTuneConfig = plan.recipe
    return FineTune(recipe, generator, stack.env(recipe.prompts * recipe.group), stack.prompts())


FRESH_CLIPS = 4_000_000
METHODS = {
    "continued": Method("starting recipe continued", continued),
    "dmd": Method("DMD", distilled),
    "stream-r1": Method("Stream-R1", distilled),
    "policy": Method("policy gradient", finetuned),
    "reward": Method("reward gradient", finetuned),
}
"""Rows that train the starting student."""
LABELS = REFERENCES | {name: method.label for name, method in METHODS.items()}


def with_rate(plan: Plan, rate: float) -> Plan:
    """The plan with another learning rate of the generator; a critic's stays in proportion."""
    recipe = plan.recipe
    if isinstance(recipe, DistillConfig):
        critic = recipe.critic.learning_rate * rate / recipe.generator.learning_rate
        recipe = replace(recipe, critic=replace(recipe.critic, learning_rate=critic))
        return replace(plan, recipe=replace(recipe, generator=replace(recipe.generator, learning_rate=rate)))
    return replace(plan, recipe=replace(recipe, learner=replace(recipe.learner, learning_rate=rate)))


def with_seed(plan: Plan, seed: int) -> Plan:
    """The plan with another seed of its trainer."""
    return replace(plan, recipe=replace(plan.recipe, seed=seed))


def with_batch(plan: Plan, clips: int) -> Plan:
    """The plan with another number of clips an update (RL: `clips` prompts, up to two clips of each)."""
    recipe = plan.recipe
    if isinstance(recipe, FineTuneConfig):
        return replace(plan, recipe=replace(recipe, prompts=clips, group=min(2, recipe.group)))
    return replace(plan, recipe=replace(recipe, batch=clips))


def rate_of(plan: Plan) -> float:
    """The learning rate of the generator."""
    recipe = plan.recipe
    return float((recipe.generator if isinstance(recipe, DistillConfig) else recipe.learner).learning_rate)
