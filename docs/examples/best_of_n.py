"""A recipe of one's own: draw n clips of each prompt, keep the best, learn them as the starting recipe learns clips.

reelgym finetune best_of_n:best_of_n --updates 20          # from the folder of this file
reelgym compare --add best_of_n:best_of_n=20
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from reelgym.agents.rollout import GeneratorPolicy, rollout
from reelgym.distill.causal_init import CausalInitConfig, causal_loss
from reelgym.envs.stack import Stack
from reelgym.envs.stream_gen import StreamGenVectorEnv
from reelgym.models.generator import Generator
from reelgym.noise import fold, stream_keys
from reelgym.training.learner import Learner, LearnerConfig
from reelgym.training.state import pack, unpack
from reelgym.training.usage import ComputeUsage


@dataclass(frozen=True)
class BestOfN:
    """Its settings; a run is a function of them and the stack."""

    learning_rate: float = 1e-4
    prompts: int = 4
    n: int = 4
    seed: int = 0

    def trainer(self, stack: Stack, generator: Generator) -> BestOfNTrainer:
        return BestOfNTrainer(self, stack, generator)

    def with_learning_rate(self, rate: float) -> BestOfN:
        return replace(self, learning_rate=rate)

    def with_seed(self, seed: int) -> BestOfN:
        return replace(self, seed=seed)

    def with_batch(self, clips: int) -> BestOfN:
        return replace(self, prompts=clips, n=2)


class BestOfNTrainer:
    """One update: a rollout, a choice, a regression."""

    def __init__(self, config: BestOfN, stack: Stack, generator: Generator) -> None:
        self.config, self.generator, self.prompts = config, generator, stack.prompts()
        clips = config.prompts * config.n
        self.env = StreamGenVectorEnv(clips, stack.codec, stack.reward, self.prompts, layout=stack.layout)
        self.learner = Learner(generator.model, LearnerConfig(learning_rate=config.learning_rate))
        self.counts = ComputeUsage()

    def update(self) -> dict[str, float]:
        with self.counts.timed():
            config = self.config
            draw = config.seed * 1_000_003 + self.counts.updates
            texts = [row for row in self.prompts(config.prompts, draw)[1] for _ in range(config.n)]
            keys = fold(stream_keys(config.seed, len(texts)), draw)
            with torch.no_grad():
                played = rollout(self.env, GeneratorPolicy(self.generator), keys, texts, config.n)
            earned = played.rewards.sum(1)
            best = earned.unflatten(0, (-1, config.n)).argmax(1) + torch.arange(config.prompts) * config.n
            x0, embeds = played.latents.detach()[best], played.embeds[best]
            loss = causal_loss(self.generator.model, x0, embeds, fold(keys[best], 1), self.generator.sigmas, REGRESSION)
            measured = self.learner.step(loss)
            self.counts.updates += 1
            self.counts.chunks += played.chunks
            self.counts.reward_calls += played.chunks
            self.counts.generator_calls += played.calls + embeds.shape[0] * embeds.shape[1]
        return measured | {"reward": float(earned.mean()), "kept": float(earned[best].mean())}

    def state(self) -> Any:
        return pack(self.config, self.counts, {"generator": self.learner})

    def load_state(self, groups: Any, meta: dict[str, Any]) -> None:
        unpack(self.config, self.counts, {"generator": self.learner}, groups, meta)


REGRESSION = CausalInitConfig()


def best_of_n() -> BestOfN:
    """What the command line is given."""
    return BestOfN()
