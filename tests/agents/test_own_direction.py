"""Directions of one's own: any object that follows the protocol, in any module, with what it needs."""

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from reelgym.agents.advantage import AdvantageEstimator
from reelgym.agents.direction import Direction, Needs, TrainingBatch, TrainingSample, rows
from reelgym.agents.finetune import FineTune, FineTuneConfig
from reelgym.checkpoint import CheckpointError
from reelgym.envs.stream_gen import StreamGenVectorEnv
from reelgym.models.sampler import renoise
from reelgym.noise import fold, normal
from reelgym.rewards.stream_reward import RewardSignal
from reelgym.training.learner import LearnerConfig


@dataclass(frozen=True)
class TowardsBest:
    """Regress on chunks, noised afresh, that earned more than others did."""

    needs: ClassVar[Needs] = Needs()
    sharpness: float = 1.0

    def check(self, config):
        if config.prefix == "full":
            raise ValueError("TowardsBest wants no shared opening")

    def actor(self, generator, shared_steps=0):
        return generator

    def training_samples(self, played, keys, actor, env):
        level, clean = torch.full((len(keys),), actor.sigmas[-1]), [step.chunk.detach() for step in played.steps]
        noise = [normal(fold(keys, 1), number, 0, chunk.shape[1:]) for number, chunk in enumerate(clean)]
        pairs = zip(clean, noise, strict=True)
        return TrainingBatch([[TrainingSample(renoise(chunk, eps, level), level, chunk) for chunk, eps in pairs]])

    def loss_gradient(self, sample, x0, old_x0, advantage, weight):
        return weight * rows(advantage.clamp_min(0) * self.sharpness) * (x0 - sample.target), {"mine": advantage.max()}


@dataclass(frozen=True)
class Redder(TowardsBest):
    """No credit, on the rollout's own graph: every chunk redder in latents, which are colours here."""

    needs: ClassVar[Needs] = Needs(graph=True, advantages=False)

    def training_samples(self, played, keys, actor, env):
        (samples,) = super().training_samples(played, keys, actor, env).minibatches
        pairs = zip(samples, played.steps, strict=True)
        return TrainingBatch([[replace(sample, x0=step.chunk) for sample, step in pairs]])

    def loss_gradient(self, sample, x0, old_x0, advantage, weight):
        assert not advantage.any()
        redness = torch.tensor([-1.0, 0.0, 1.0, 0.0])[:, None, None]
        return redness.expand_as(x0), {}


@dataclass(frozen=True)
class WholeRedder(Redder):
    """The same of whole clips, whose windows it scores itself."""

    needs: ClassVar[Needs] = Needs(graph=True, whole_clips=True, advantages=False, reward_gradient=True)

    def training_samples(self, played, keys, actor, env):
        batch = super().training_samples(played, keys, actor, env)
        return replace(batch, returns=played.latents.detach()[:, :, 0].mean((1, 2, 3)))


@pytest.fixture
def make(generator, env, prompts):
    def made(direction, env=env, **changes):
        own = replace(generator, model=copy.deepcopy(generator.model))
        learner = LearnerConfig(learning_rate=4e-3)
        return FineTune(FineTuneConfig(direction, prompts=2, group=3, learner=learner, **changes), own, env, prompts)

    return made


@pytest.mark.parametrize("prefix", ["own", "local"])
def test_a_direction_of_ones_own_learns_from_advantages(make, prefix):
    trainer = make(TowardsBest(), prefix=prefix, kl_coef=0.1, advantage=AdvantageEstimator(perplexity=True), epochs=2)
    measured = trainer.update()
    assert measured["mine"] > 0 and measured["grad_norm"] > 0 and trainer.counts.reward_calls == 24


@pytest.mark.parametrize(("direction", "prefix"), [(Redder(), "own"), (Redder(), "local"),
                                                   (WholeRedder(), "own")])  # fmt: skip
def test_a_direction_without_credit_follows_the_rollouts_graph(make, direction, prefix):
    trainer = make(direction, prefix=prefix, advantage=AdvantageEstimator(bootstrap=True))

    def redness():
        chunks = [step.chunk.detach() for step in trainer._play()[0].steps]
        return torch.cat([chunk[:, :, 0] - chunk[:, :, 2] for chunk in chunks]).mean()

    before = redness()
    found = [trainer.update()["charts/episodic_return"] for _ in range(6)]
    assert trainer.critic is None and redness() > before + 0.1
    whole, counts = direction.needs.whole_clips, trainer.counts
    assert counts.reward_calls == (6 * 24 if whole else counts.chunks)
    assert not whole or found[-1] > found[0]


def test_what_a_direction_needs_is_checked(make, codec, prompts, layout):
    mine: Direction = TowardsBest()
    with pytest.raises(ValueError, match="wants no shared opening"):
        make(mine, prefix="full")
    for direction, changes, told in (
        (Redder(), {"epochs": 2}, "Redder takes epochs=1"),
        (WholeRedder(), {"prefix": "local"}, "WholeRedder takes prefix='own' and epochs=1"),
        (Redder(), {"advantage": AdvantageEstimator(shuffle_advantages=True)}, "Redder asks for no advantages"),
    ):
        with pytest.raises(ValueError, match=told):
            make(direction, **changes)

    class Dim:
        min_frames = 3

        def __call__(self, video, prompts, *, need):
            return RewardSignal(video.mean((1, 2, 3, 4))[:, None], video.mean((1, 2, 3, 4)))

    dim = StreamGenVectorEnv(6, codec, Dim(), prompts, layout=layout)
    assert make(mine, env=dim).update()["grad_norm"] > 0
    with pytest.raises(TypeError, match="need a StreamReward, not Dim"):
        make(WholeRedder(), env=dim, prefix="own")


def test_another_direction_with_equal_fields_does_not_go_on(make):
    groups, meta = make(TowardsBest()).state()
    other = make(type("Other", (TowardsBest,), {"__module__": "mine"})())
    with pytest.raises(CheckpointError, match="they differ in direction.class"):
        other.load_state(groups, meta)
