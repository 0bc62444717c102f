"""The rows of a comparison: the systems that are only measured, and the methods that train the starting student."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..agents.finetune import FineTune, FineTuneConfig
from ..distill.causal_init import CausalInit, CausalInitConfig
from ..distill.trainer import Distill, DistillConfig
from ..envs.prompt_source import ScriptPrompts, world_prompts
from ..envs.stream_gen import StreamGenVectorEnv
from ..models.cache import CacheConfig
from ..models.codec import FrameCodec
from ..models.generator import Generator
from ..models.prompts import PromptBatch, WordEncoder
from ..models.tiny import TEACHER_SAMPLING, WEIGHTS, build_generator, load_encoder, load_manifest, load_tiny
from ..models.wan import CausalWan
from ..rewards.stream_reward import RewardSignal, StreamReward
from ..rewards.windows import TINY, Clock, clip_prompts, clip_reward
from ..training.guard import Guard, GuardConfig
from ..training.learner import Groups
from ..training.loop import Trainer
from ..training.state import State
from ..training.usage import ComputeUsage, added
from .evaluate import Coded, Exam, Grades, Student, System, Teacher, World, encode_clauses
from .pretrain.data import make_clips
from .pretrain.teacher import encode_clips

REFERENCES = {
    "truth": "ground truth",
    "codec": "codec ceiling",
    "teacher": "teacher",
    "start": "starting student",
}
"""Rows that are measured and not trained."""


def grammar_of(folder: Path) -> str:
    """The grammar whose words the student of a stack's folder was trained on."""
    return str(load_manifest("student", folder / "student")["recipe"]["grammar"])


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
        """From a folder of parts, by default the shipped one."""
        folder = Path(folder)
        codec = load_tiny("codec", folder / "codec", device).requires_grad_(False)
        student = load_tiny("student", folder / "student", device)
        return cls(
            codec,
            load_tiny("teacher", folder / "teacher", device).requires_grad_(False),
            build_generator(student, codec),
            StreamReward(load_tiny("reward", folder / "reward", device)),
            load_encoder("student", folder / "student"),
            grammar_of(folder),
            folder,
        )

    def with_cache(self, cache: CacheConfig) -> Stack:
        """The stack with another cache of its student: what is trained from it evicts as it will when it streams."""
        return replace(self, start=replace(self.start, model=self.start.model.with_cache(cache)))

    @property
    def device(self) -> torch.device:
        return next(self.start.model.parameters()).device

    def heldout(self) -> StreamReward:
        """A reward that nobody maximises, trained as the other was on other clips; CheckpointError without its
        weights."""
        return StreamReward(load_tiny("heldout", self.folder / "heldout", self.device))

    def guard(self, config: GuardConfig, student: Generator) -> Guard:
        """A guard of a student, with the stack's two rewards, on validation prompts."""
        prompts = world_prompts(self.encoder, self.clock.chunks, self.grammar, "validation")
        return Guard(config, student, self.codec, self.clock, self.reward, self.heldout(), prompts)

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

    def asked(self, exam: Exam, rows: Sequence[int]) -> PromptBatch:
        """The prompts of an exam's clips at `rows`, as `clip_reward` takes them."""
        clauses = exam.clauses()
        chosen = [clauses[row] for row in rows]
        texts = [[str(clause) for clause in row] for row in chosen]
        return clip_prompts(encode_clauses(self.encoder, chosen).to(self.device), texts)

    @torch.no_grad()
    def scored(self, reward: StreamReward, exam: Exam, grades: Grades) -> RewardSignal:
        """What a reward thinks of an exam's clips, P * K of them: the return in the environment, and each axis."""
        scorer, video = clip_reward(reward, self.codec, self.clock), grades.video.flatten(0, 1)
        parts = [
            scorer(video[at], self.asked(exam, at.tolist()), need={"scores"})
            for at in torch.arange(len(video)).split(exam.batch)
        ]
        return RewardSignal(torch.cat([part.scores for part in parts]), torch.cat([part.reward for part in parts]))


@dataclass(frozen=True)
class Plan:
    """One method's share of a comparison."""

    recipe: Recipe
    """The trainer's config."""
    updates: int
    """What the budget of seconds came to on the reference machine, converted once."""
    pool: int = 512
    """Clips of the world that "continued" draws from."""


@dataclass(frozen=True)
class Chain:
    """A recipe made of others."""

    parts: tuple[Plan, ...]
    """Each trains what the one before it left; the last goes on for as long as it is asked to."""


Recipe = CausalInitConfig | DistillConfig | FineTuneConfig | Chain


class Chained:
    """One trainer after another on the same generator.

    build: a part to its trainer; it is called when the part's turn comes, so that a pull towards the start is one
    towards what the part before left. `counts` adds up.
    """

    def __init__(self, chain: Chain, build: Callable[[Plan], Trainer]) -> None:
        self.chain, self.build = chain, build
        self.ended: list[ComputeUsage] = []
        self.trainer = build(chain.parts[0])
        self.counts = ComputeUsage()

    def update(self) -> dict[str, float]:
        """One update of the part whose turn it is."""
        at = len(self.ended)
        if at + 1 < len(self.chain.parts) and self.trainer.counts.updates >= self.chain.parts[at].updates:
            self.ended.append(self.trainer.counts)
            self.trainer = self.build(self.chain.parts[at + 1])
        measured = self.trainer.update()
        self.counts = added([*self.ended, self.trainer.counts])
        return measured

    def state(self) -> State:
        """What the part whose turn it is needs for a bitwise resume, and what those before it spent."""
        groups, meta = self.trainer.state()
        return groups, {"ended": [asdict(counts) for counts in self.ended], "part": meta}

    def load_state(self, groups: Groups, meta: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.ended = [ComputeUsage(**counts) for counts in meta["ended"]]
        self.trainer = self.build(self.chain.parts[len(self.ended)])
        self.trainer.load_state(groups, meta["part"])
        self.counts = added([*self.ended, self.trainer.counts])


def trainer_of(stack: Stack, plan: Plan, generator: Generator) -> Trainer:
    """A plan, with the seed in its recipe, to a trainer of `generator`."""
    recipe = plan.recipe
    if isinstance(recipe, Chain):
        return Chained(recipe, lambda part: trainer_of(stack, part, generator))
    if isinstance(recipe, CausalInitConfig):
        return continued(stack, recipe, plan.pool, generator)
    if isinstance(recipe, DistillConfig):
        helpers: dict[str, Any] = {"codec": stack.codec, "reward": stack.reward, "clock": stack.clock}
        return Distill(recipe, generator, stack.teacher, stack.prompts(), stack.null(), **helpers)
    return FineTune(recipe, generator, stack.env(recipe.prompts * recipe.group), stack.prompts())


def continued(stack: Stack, recipe: CausalInitConfig, count: int, generator: Generator) -> Trainer:
    """The starting recipe goes on, on `count` other clips of the world."""
    world = make_clips(count, split="train", seed=FRESH_CLIPS + recipe.seed, grammar=stack.grammar)
    pool = encode_clips(stack.codec, replace(world, video=world.video.to(stack.device)), stack.encoder)

    def clips(batch: int, step: int) -> tuple[Tensor, Tensor]:
        latents, embeds = pool.draw(batch, torch.Generator().manual_seed(recipe.seed * 1_000_003 + step))
        return latents.to(stack.device), embeds.to(stack.device)

    return CausalInit(recipe, generator, clips)


FRESH_CLIPS = 4_000_000
METHODS = {
    "continued": "starting recipe continued",
    "dmd": "DMD",
    "stream-r1": "Stream-R1",
    "policy": "policy gradient",
    "forward": "forward process (NFT)",
    "reward": "reward gradient",
    "raven": "policy gradient, whole clip",
    "dmd+forward": "DMD, then forward process",
    "stream-r1+reward": "Stream-R1, then reward gradient",
}
"""Rows that train the starting student; a name with a + is a sequence of others."""
LABELS = REFERENCES | METHODS


def chain(name: str, plans: Mapping[str, Plan]) -> Plan:
    """The sequence that `name` spells: half of the updates of each of its two parts (rounded up), at their rates."""
    parts = tuple(replace(plans[part], updates=(plans[part].updates + 1) // 2) for part in name.split("+"))
    return Plan(Chain(parts), sum(part.updates for part in parts))


def with_rate(plan: Plan, rate: float) -> Plan:
    """The plan with another learning rate of the generator; a critic's stays in proportion. Not for a sequence."""
    recipe = plan.recipe
    if isinstance(recipe, Chain):
        raise ValueError("a sequence takes the learning rates of its parts")
    if isinstance(recipe, DistillConfig):
        critic = recipe.critic.learning_rate * rate / recipe.generator.learning_rate
        recipe = replace(recipe, critic=replace(recipe.critic, learning_rate=critic))
        return replace(plan, recipe=replace(recipe, generator=replace(recipe.generator, learning_rate=rate)))
    return replace(plan, recipe=replace(recipe, learner=replace(recipe.learner, learning_rate=rate)))


def with_seed(plan: Plan, seed: int) -> Plan:
    """The plan with another seed of its trainer; the parts of a sequence share it."""
    recipe = plan.recipe
    if isinstance(recipe, Chain):
        return replace(plan, recipe=Chain(tuple(with_seed(part, seed) for part in recipe.parts)))
    return replace(plan, recipe=replace(recipe, seed=seed))


def with_batch(plan: Plan, clips: int) -> Plan:
    """The plan with another number of clips an update (RL: `clips` prompts, up to two clips of each)."""
    recipe = plan.recipe
    if isinstance(recipe, Chain):
        return replace(plan, recipe=Chain(tuple(with_batch(part, clips) for part in recipe.parts)))
    if isinstance(recipe, FineTuneConfig):
        return replace(plan, recipe=replace(recipe, prompts=clips, group=min(2, recipe.group)))
    return replace(plan, recipe=replace(recipe, batch=clips))


def rates_of(plan: Plan) -> tuple[float, ...]:
    """The learning rate of the generator, in every part of a sequence."""
    recipe = plan.recipe
    if isinstance(recipe, Chain):
        return tuple(rate for part in recipe.parts for rate in rates_of(part))
    return ((recipe.generator if isinstance(recipe, DistillConfig) else recipe.learner).learning_rate,)
