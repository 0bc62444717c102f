"""The trainer: credit, learning in every direction, exact resume, counts, and settings that do not fit."""

import copy
from dataclasses import replace

import pytest
import torch

from reelgym.agents.advantage import AdvantageEstimator, advantages, lambda_returns
from reelgym.agents.finetune import FineTune, FineTuneConfig
from reelgym.agents.forward_process import ForwardProcess
from reelgym.agents.policy_gradient import PolicyGradient
from reelgym.agents.reward_gradient import RewardGradient
from reelgym.agents.rollout import GeneratorPolicy, rollout, share
from reelgym.checkpoint import CheckpointError
from reelgym.envs.stream_gen import StreamGenVectorEnv
from reelgym.noise import stream_keys
from reelgym.rewards.compose import CallableReward
from reelgym.rewards.stream_reward import NoGradientError, StreamReward
from reelgym.training.learner import LearnerConfig, NonFiniteError
from reelgym.training.loop import fit

BASE = FineTuneConfig(prompts=2, group=3, seed=1, learner=LearnerConfig(learning_rate=1e-3, ema=0.5))
POLICY = replace(BASE, direction=PolicyGradient())
OWN = replace(BASE, prefix="own")
REWARD = replace(OWN, direction=RewardGradient())
CRITIC = AdvantageEstimator(baseline="critic", normalize_std="batch", bootstrap=True, gae_lambda=0.7)


@pytest.fixture
def make(generator, env, prompts):
    def made(config, env=env, **changes):
        own = replace(generator, model=copy.deepcopy(generator.model))
        return FineTune(replace(config, **changes), own, env, prompts)

    return made


@pytest.mark.parametrize("prefix", ["own", "local", "full"])
@pytest.mark.parametrize(
    "credit", [AdvantageEstimator(), CRITIC, AdvantageEstimator(bootstrap=True, normalize_std="none")]
)
def test_credit_is_what_the_settings_say(make, prefix, credit):
    trainer = make(BASE, prefix=prefix, advantage=credit)
    if trainer.critic is not None:
        torch.nn.init.normal_(trainer.critic.module.judge[-1].weight)
        judge = copy.deepcopy(trainer.critic.module)
    played, _ = trainer._play()
    found, measured = trainer._estimate(played)
    rewards, before, after = played.rewards, None, torch.zeros_like(played.rewards)
    if credit.critic:
        before = torch.stack([judge(turn.observation) for turn in played.steps], 1)
        after[:, :-1] = torch.stack([judge(turn.next_observation) for turn in played.steps], 1)[:, :-1]
    if prefix == "local":
        returns = rewards + after
    else:
        returns = (
            lambda_returns(rewards, after, credit.gae_lambda) if credit.bootstrap else rewards.flip(1).cumsum(1).flip(1)
        )
    torch.testing.assert_close(found, advantages(returns, credit, 3, before).detach())
    assert not found.requires_grad
    if credit.critic:
        loss = (before - returns).square().mean().item()
        assert measured["losses/value_loss"] == pytest.approx(loss)
        assert measured["losses/explained_variance"] == pytest.approx(1 - loss / returns.var(correction=0).item())
        assert trainer.critic.updates == 1 and not torch.equal(
            judge.judge[-1].weight, trainer.critic.module.judge[-1].weight
        )


def test_whole_clip_credit_and_the_placebo(make):
    trainer, whole = make(OWN), make(OWN, advantage=AdvantageEstimator(returns="episode"))
    played, _ = trainer._play()
    total = played.rewards.sum(1, keepdim=True).expand(-1, 4)
    torch.testing.assert_close(whole._estimate(played)[0], advantages(total, AdvantageEstimator(), 3))
    placebo, real = (
        make(OWN, advantage=AdvantageEstimator(shuffle_advantages=True))._estimate(played)[0],
        trainer._estimate(played)[0],
    )
    assert torch.equal(placebo, torch.cat((real[3:], real[:3])))  # of the other prompt
    placebo, real = (
        make(OWN, prompts=1, group=6, advantage=AdvantageEstimator(shuffle_advantages=on))._estimate(played)[0]
        for on in (True, False)
    )
    assert torch.equal(placebo, torch.cat((real[5:], real[:5])))


def test_the_critic_learns_to_predict_returns(make):
    trainer = make(OWN, advantage=CRITIC, critic=LearnerConfig(learning_rate=3e-3))
    played, _ = trainer._play()
    explained = [trainer._estimate(played)[1]["losses/explained_variance"] for _ in range(60)]
    assert explained[0] < 0.1 and explained[-1] > 0.8


@pytest.fixture
def gain(make, codec, prompts, layout):
    """How much redder clips of the same noise are after a training whose reward is redness, from about 0 to at most 9.

    Twelve updates of a tiny generator on one of the shared fixtures' rewards would show little but chance.
    """

    def redness(video, prompts):
        return 10 * (video[:, :, 0] - video[:, :, 2]).mean((1, 2, 3))

    env = StreamGenVectorEnv(16, codec, StreamReward(CallableReward(redness, ["red"])), prompts, layout=layout)

    def judged(generator):
        return rollout(env, GeneratorPolicy(generator), stream_keys(77, 16), prompts(16, 0)[1]).rewards.sum(1).mean()

    def measured(config):
        trainer = make(config, env, group=8, learner=LearnerConfig(learning_rate=4e-3))
        before = judged(trainer.generator)
        for _ in range(10):
            trainer.update()
        return judged(trainer.generator) - before

    return measured


LEARNERS = {
    "reward": REWARD,
    "policy": POLICY,
    "policy, full": replace(POLICY, prefix="full"),
    "policy, epochs": replace(BASE, direction=PolicyGradient(clip_coef=1e-2), epochs=2),
    "policy, sde": replace(OWN, direction=PolicyGradient(noise_level=0.7)),
    "policy, inside a chunk": replace(BASE, direction=PolicyGradient(train_timesteps=(1, 2)), shared_steps=2),
    "forward": BASE,
    "forward, own": OWN,
    "forward, bootstrap": replace(BASE, advantage=AdvantageEstimator(bootstrap=True)),
}


@pytest.mark.parametrize("config", LEARNERS.values(), ids=LEARNERS)
def test_training_raises_the_reward(gain, config):
    assert gain(config) > 2


@pytest.mark.parametrize("config", [POLICY, BASE], ids=["policy", "forward"])
def test_the_placebo_does_not(gain, config):
    assert gain(replace(config, advantage=AdvantageEstimator(shuffle_advantages=True))) < 1


@pytest.mark.parametrize("config", [POLICY, BASE, replace(POLICY, prefix="full"), OWN])
def test_equal_rewards_teach_nothing(make, env, config):
    env.reward.model.std.fill_(1e12)
    env.reward.model.mean.zero_()
    assert make(config).update()["grad_norm"] < 1e-6


@pytest.mark.parametrize("prefix", ["own", "local", "full"])
def test_weights_of_zero_teach_nothing(make, env, monkeypatch, prefix):
    score = env.clips.score

    def weightless(state):
        state, reward = score(state)
        return replace(state, perplexity=torch.zeros(6, 3, 4, 4)), reward

    monkeypatch.setattr(env.clips, "score", weightless)
    for direction in (PolicyGradient(timesteps_per_update=2, clip_coef=1e-4), ForwardProcess()):
        still = LearnerConfig(learning_rate=1e-3, weight_decay=0.0)
        trainer = make(
            BASE, direction=direction, prefix=prefix, advantage=AdvantageEstimator(perplexity=True), learner=still
        )
        before = torch.nn.utils.parameters_to_vector(trainer.generator.model.parameters()).clone()
        assert trainer.update()["grad_norm"] == 0
        assert torch.equal(torch.nn.utils.parameters_to_vector(trainer.generator.model.parameters()), before)


def test_chunks_behind_a_shared_opening_weigh_alike_on_the_average(make):
    trainer = make(BASE, prefix="full")
    found = torch.zeros(4)
    played, _ = trainer._play()
    whole = make(OWN)._play()[0].steps
    for first in range(4):
        some = replace(played, steps=whole[first:])
        for place, turn in enumerate(some.steps):
            found[turn.number] += share(some, place) / 4
    torch.testing.assert_close(found, torch.full((4,), 0.25))
    assert share(replace(played, prefix="own", steps=whole), 2) == 0.25


@pytest.mark.parametrize("config", [REWARD, BASE], ids=["pixels", "latents"])
def test_a_generator_that_cannot_be_shown_any_more_is_told(make, config):
    trainer = make(config)
    trainer.update()
    with torch.no_grad():
        for parameter in trainer.generator.model.parameters():
            parameter.mul_(1e4 if config is REWARD else float("inf"))
    with pytest.raises(NonFiniteError, match="after update 1 .* lower the learning rate"):
        trainer.update()


def test_critic_calls_are_what_the_critic_sees(make):
    trainer, seen = make(BASE, advantage=CRITIC), []
    trainer.critic.module.register_forward_hook(lambda module, given, value: seen.append(len(value)))
    trainer.update()
    assert trainer.counts.critic_calls == sum(seen) == 6 * 7


RESUMED = {
    "reward": replace(REWARD, kl_coef=0.1),
    "policy, own": replace(OWN, direction=PolicyGradient(timesteps_per_update=2), kl_coef=0.1, kl_every=2),
    "policy, local": replace(BASE, direction=PolicyGradient(clip_coef=1e-4, noise_level=0.7), epochs=2, shared_steps=1),
    "policy, full": replace(POLICY, prefix="full", advantage=AdvantageEstimator(perplexity=True)),
    "forward, everything": replace(BASE, advantage=CRITIC, epochs=2, kl_coef=0.1),
}


@pytest.mark.parametrize("config", RESUMED.values(), ids=RESUMED)
def test_resume_is_bitwise(make, config, tmp_path):
    unbroken, first, second = (make(config) for _ in range(3))
    fit(unbroken, 4)
    fit(first, 2, checkpoint=tmp_path / "at")
    for module in (second.generator.model, *([second.reference] if second.reference else [])):
        torch.nn.utils.vector_to_parameters(torch.zeros(10**6), module.parameters())
    logged = {}
    fit(second, 4, checkpoint=tmp_path / "at", log=lambda values, step: logged.update({step: values}))
    (mine, meta), (its, other) = second.state(), unbroken.state()
    assert sorted(logged) == [3, 4] and mine.keys() == its.keys()
    for name, group in mine.items():
        assert all(torch.equal(value, its[name][key]) for key, value in group.items())
    for counts in (meta["counts"], other["counts"]):
        counts["seconds"] = counts["cpu_seconds"] = 0
    assert meta == other
    with pytest.raises(CheckpointError, match="seed"):
        fit(make(config, seed=9), 5, checkpoint=tmp_path / "at")


def test_fit_evaluates_and_logs(make):
    logged = []

    def log(values, step):
        logged.append((step, "judged" in values))

    fit(make(REWARD), 3, log=log, evaluate=lambda: {"judged": 1.0}, evaluate_every=2)
    assert logged == [(1, False), (2, True), (3, False)]


PLAYED = 24 * 4 + 3 * 2  # calls of a local rollout: four steps a chunk, and reading the survivors


@pytest.mark.parametrize(
    ("config", "calls", "reference", "rewards"),
    [
        (
            replace(BASE, direction=PolicyGradient(timesteps_per_update=2), kl_coef=1.0, kl_every=2),
            PLAYED + 48,
            3 * (3 + 2 * 4),
            24,
        ),
        (replace(BASE, epochs=3, advantage=AdvantageEstimator(perplexity=True)), PLAYED + 72, 0, 24),
        (replace(BASE, direction=ForwardProcess(minibatches=2), shared_steps=2), PLAYED - 2 * 4 * 4 + 48, 0, 24),
        (replace(REWARD, kl_coef=1.0, kl_every=60), 24 * 4 + 18, 3 + 4, 24),
    ],
)
def test_counts(make, config, calls, reference, rewards):
    trainer = make(config)
    trainer.update()
    counts = trainer.counts
    assert (counts.updates, counts.chunks, counts.reward_calls) == (1, 24, rewards)
    assert (counts.generator_calls, counts.reference_calls) == (calls, reference)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"group": 4}, "6 streams were given"),
        ({"group": 0}, "at least 1"),
        ({"epochs": 0}, "at least 1"),
        ({"kl_every": 0}, "at least 1"),
        ({"direction": RewardGradient()}, "prefix='own' and epochs=1"),
        ({"direction": RewardGradient(), "prefix": "own", "epochs": 2}, "prefix='own' and epochs=1"),
        ({"group": 1}, "a group of one has nobody to be held against"),
        ({"group": 1, "advantage": AdvantageEstimator(baseline="critic", normalize_std="group")}, "a group of one"),
        ({"group": 1, "prompts": 1, "advantage": AdvantageEstimator(baseline="batch")}, "is its own batch"),
        ({"advantage": AdvantageEstimator(returns="episode")}, "does not answer for the whole clip"),
        ({"prefix": "own", "shared_steps": 1}, "only prefix='local' shares"),
        ({"shared_steps": 4}, "shared_steps lies in 0 .. 3, not 4"),
        ({"direction": PolicyGradient(timesteps_per_update=4)}, "timesteps_per_update must lie in 1 .. 3, not 4"),
        (
            {"direction": PolicyGradient(timesteps_per_update=2, train_timesteps=(1,))},
            "timesteps_per_update must lie in 1 .. 1, not 2",
        ),
        ({"direction": PolicyGradient(train_timesteps=(0, 0), timesteps_per_update=2)}, "names a step twice"),
        ({"direction": PolicyGradient(train_timesteps=(3,))}, "those of a stream are 0 .. 2"),
        (
            {"direction": PolicyGradient(train_timesteps=(0,)), "shared_steps": 2},
            "those of a stream are 1 .. 2",
        ),
        ({"direction": PolicyGradient(), "epochs": 2}, "set the policy gradient's clip"),
        (
            {"direction": RewardGradient(), "prefix": "own", "advantage": AdvantageEstimator(shuffle_advantages=True)},
            "asks for no advantages",
        ),
        ({"prefix": "locl"}, "prefix='locl': choose from 'own', 'local', 'full'"),
        ({"kl_coef": -1.0}, "kl_coef is not below 0"),
        ({"direction": ForwardProcess(train_timesteps=(4,))}, "steps lie in 0 .. 3"),
        ({"direction": ForwardProcess(minibatches=0)}, "minibatches is at least 1"),
        ({"direction": ForwardProcess(beta=0.0)}, "beta positive"),
    ],
)
def test_wrong_settings_are_told(make, changes, told):
    with pytest.raises(ValueError, match=told):
        make(BASE, **changes).update()


def test_a_reward_without_a_gradient_is_told(make, codec, prompts, layout):
    def flat(video, texts):
        return video.detach().mean((1, 2, 3, 4))

    rewards = StreamReward(CallableReward(flat, ["mine"])), lambda video, texts, need: None
    mine, foreign = (StreamGenVectorEnv(6, codec, reward, prompts, layout=layout) for reward in rewards)
    with pytest.raises(NoGradientError, match="train by the reward's value alone"):
        make(REWARD, env=mine).update()
    with pytest.raises(TypeError, match="gradients and perplexity need a StreamReward, not function"):
        make(REWARD, env=foreign)
    for wrong in ({"noise": -1.0}, {"shift": -1}):
        with pytest.raises(ValueError, match="not below 0"):
            RewardGradient(**wrong)
