"""Rollouts through the environment, and the trainers that act in it."""

import copy
from dataclasses import replace

import pytest
import torch

from reelgym.agents.direction import group_advantage, policy_direction, reference_direction, returns_to_go
from reelgym.agents.fit import fit
from reelgym.agents.learner import LearnerConfig
from reelgym.agents.policy_gradient import PolicyGradient, PolicyGradientConfig
from reelgym.agents.reward_gradient import RewardGradient, RewardGradientConfig, augmented, reward_direction
from reelgym.agents.rollout import GeneratorPolicy, chosen, predictions, rollout
from reelgym.checkpoint import CheckpointError
from reelgym.envs.windows import clip_prompts, clip_reward
from reelgym.models.generator import stream
from reelgym.models.sampler import x0_from_v
from reelgym.noise import stream_keys

LEARNER = LearnerConfig(learning_rate=1e-3, ema=0.5)
PG = PolicyGradientConfig(learner=LEARNER, prompts=2, group=3, reference_every=2, seed=1)
RG = RewardGradientConfig(learner=LearnerConfig(learning_rate=1e-3))


def policy_gradient(generator, env, prompts, **changes):
    generator = replace(generator, model=copy.deepcopy(generator.model))
    return PolicyGradient(replace(PG, **changes), generator, env, prompts)


def reward_gradient(generator, env, prompts, **changes):
    generator = replace(generator, model=copy.deepcopy(generator.model))
    return RewardGradient(replace(RG, **changes), generator, env, prompts)


BOTH = pytest.mark.parametrize("make", [policy_gradient, reward_gradient])


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.generator.model.parameters()])


def played(generator, env, prompts, **kwargs):
    _, texts = prompts(6, 0)
    return rollout(env, GeneratorPolicy(generator, **kwargs), stream_keys(3, 6), texts)


def test_a_rollout_through_the_environment_is_the_generators_own(generator, env, prompts):
    done, (embeds, texts) = played(generator, env, prompts), prompts(6, 0)
    assert torch.equal(done.embeds, embeds) and done.texts == texts
    assert torch.equal(done.latents, stream(generator, embeds, stream_keys(3, 6)))
    assert torch.equal(done.latents[:, 6:], env.state.latents)
    assert torch.equal(done.latents[:, 9:], done.transitions[3][-1].x0)
    video = env.codec.decode(done.latents)
    total = clip_reward(env.reward, env.codec, env.clock)(video, clip_prompts(embeds, texts)).reward
    torch.testing.assert_close(done.rewards.sum(1), total)


def test_policy_and_environment_fork_together(generator, env, prompts):
    policy, rows = GeneratorPolicy(generator), torch.tensor([4, 4])
    observation, _ = env.reset(options={"scripts": prompts(6, 0)[1]})
    policy.reset(stream_keys(0, 6))
    observation = env.step(policy.act(observation))[0]
    branch, branch_env = policy.take(rows), env.fork(rows)
    forked = branch.act({name: value[rows] for name, value in observation.items()})
    chunk = policy.act(observation)
    torch.testing.assert_close(forked, chunk[rows])
    torch.testing.assert_close(branch_env.step(forked)[1], env.step(chunk)[1][rows])
    with pytest.raises(ValueError, match="reset"):
        GeneratorPolicy(generator).act(observation)


def test_predictions_of_the_same_model_are_those_of_the_rollout(generator, env, prompts):
    done = played(generator, env, prompts)
    choices = [chosen(t, torch.tensor([0, 1, 2, 3, 0, 1])) for t in done.transitions]
    for choice, found in zip(choices, predictions(generator.model, choices, done.latents, done.embeds), strict=True):
        torch.testing.assert_close(found, choice.x0)


@pytest.mark.parametrize("perplexity", [False, True])
def test_the_ratio_is_exactly_one_before_the_first_update(generator, env, prompts, perplexity):
    trainer = policy_gradient(generator, env, prompts, perplexity=perplexity, clip=1e-4, steps=3)
    measured = trainer.update()
    assert measured["ratio_error"] == 0 and measured["clipped"] == 0 and measured["reference_distance"] < 1e-9


def test_later_epochs_have_other_ratios(generator, env, prompts):
    measured = policy_gradient(generator, env, prompts, epochs=2, clip=1e-4).update()
    assert measured["ratio_error"] > 0 and measured["clipped"] > 0


@pytest.mark.parametrize("every", [1, 3, 60])
def test_the_gradient_of_an_update_is_the_policy_gradient(generator, env, prompts, every):
    trainer = policy_gradient(generator, env, prompts, steps=3, reference=0.5, reference_every=every)
    with torch.no_grad():
        for p in trainer.reference.parameters():
            p.add_(0.01)
    done, _ = trainer._play()
    advantage = group_advantage(returns_to_go(done.rewards), 3)
    model, expected = trainer.generator.model, 0.0
    reference = []
    for k in range(3):
        choices = [chosen(t, torch.full((6,), k)) for t in done.transitions]
        reference.append(predictions(trainer.reference, choices, done.latents, done.embeds))
    for chunk, transitions in enumerate(done.transitions):
        for k, t in enumerate(transitions[:-1]):
            x0 = x0_from_v(t.x, model(t.x, t.sigma, done.embeds[:, chunk], cache=t.context), t.sigma)
            level = torch.full((6,), t.next_sigma)
            direction = policy_direction(x0, t.x_next, level, advantage[:, chunk])
            taken = min(every, 6) * (torch.arange(6) % every == 0)[:, None, None, None, None]
            direction = direction + 0.5 * taken * reference_direction(x0, reference[k][chunk], level)
            expected = expected + (direction.detach() * x0).mean() / 12
    expected.backward()
    wanted = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    trainer.counts.updates = 0
    for pick in trainer._picks(stream_keys(0, 6), done):
        choices = [chosen(t[:-1], column) for t, column in zip(done.transitions, pick.unbind(1), strict=True)]
        trainer._backward(done, choices, advantage, None)
    found = [p.grad for p in model.parameters() if p.grad is not None]
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-3)


def test_reward_direction_against_autograd(codec, reward, prompts, clock):
    latents, (embeds, texts) = torch.randn(2, 12, 4, 4, 4), prompts(2, 0)
    scorer, keys = clip_reward(reward, codec, clock), stream_keys(0, 2)
    direction = reward_direction(latents, clip_prompts(embeds, texts), scorer, codec, keys, 0.0, 0)
    leaf = latents.clone().requires_grad_()
    total = 0.0
    for j in range(4):
        window = codec.decode(leaf[:, max(0, 3 * j - 3) : 3 * j + 3])
        total = total + reward(window, clip_prompts(embeds[:, j : j + 1], [[row[j]] for row in texts])).reward / 4
    total.sum().neg().backward()
    size = leaf.grad.square().mean((1, 2, 3, 4), keepdim=True).sqrt()
    torch.testing.assert_close(direction, leaf.grad / size)
    torch.testing.assert_close(direction.square().mean((1, 2, 3, 4)), torch.ones(2))


def test_augmentation(codec):
    video, keys = torch.rand(5, 2, 3, 8, 8), stream_keys(0, 5)
    assert torch.equal(augmented(video, keys, 0.0, 0), video)
    moved = augmented(video, keys, 0.0, 1)
    offsets = [(y, x) for y in range(3) for x in range(3)]
    wide = torch.nn.functional.pad(video.flatten(0, 1), (1,) * 4, mode="replicate").unflatten(0, (5, 2))
    for clip in range(5):
        assert any(torch.equal(moved[clip], wide[clip, :, :, y : y + 8, x : x + 8]) for y, x in offsets)
    noisy = augmented(video, keys, 0.1, 0) - video
    assert 0.08 < noisy.std() < 0.12
    assert torch.equal(augmented(video[3:], keys[3:], 0.1, 1), augmented(video, keys, 0.1, 1)[3:])


@BOTH
def test_training_raises_the_reward(make, generator, env, prompts):
    trainer = make(generator, env, prompts, reference=0.0, learner=LearnerConfig(learning_rate=1e-2))
    rewards = [trainer.update()["reward"] for _ in range(12)]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.05


def test_equal_rewards_teach_a_policy_nothing(generator, env, prompts):
    env.reward.model.std.fill_(1e12)
    env.reward.model.mean.zero_()
    trainer = policy_gradient(generator, env, prompts, reference=0.0)
    assert trainer.update()["grad_norm"] < 1e-6


@BOTH
def test_resume_is_bitwise(make, generator, env, prompts, tmp_path):
    unbroken, first, second = (make(generator, env, prompts) for _ in range(3))
    fit(unbroken, 4)
    fit(first, 2, checkpoint=tmp_path / "at")
    logged = {}
    fit(second, 4, checkpoint=tmp_path / "at", log=lambda values, step: logged.update({step: values}))
    assert sorted(logged) == [3, 4] and torch.equal(weights(second), weights(unbroken))
    assert replace(second.counts, seconds=0) == replace(unbroken.counts, seconds=0)
    with pytest.raises(CheckpointError, match="seed"):
        fit(make(generator, env, prompts, seed=9), 5, checkpoint=tmp_path / "at")


def test_fit_evaluates_and_logs(generator, env, prompts):
    logged = []

    def log(values, step):
        logged.append((step, "judged" in values))

    fit(reward_gradient(generator, env, prompts), 3, log=log, evaluate=lambda: {"judged": 1.0}, evaluate_every=2)
    assert logged == [(1, False), (2, True), (3, False)]


def test_counts(generator, env, prompts):
    trainer = policy_gradient(generator, env, prompts, steps=2)
    trainer.update()
    counts = trainer.counts
    assert (counts.updates, counts.chunks, counts.reward_calls) == (1, 24, 24)
    assert (counts.generator_calls, counts.reference_calls) == (24 * 5 + 24 * 2, 3 * 7 * 2)


def test_wrong_settings_are_told(generator, env, prompts):
    with pytest.raises(ValueError, match="as many streams"):
        policy_gradient(generator, env, prompts, group=4)
    with pytest.raises(ValueError, match="steps must lie in 1 .. 3"):
        policy_gradient(generator, env, prompts, steps=4)
    with pytest.raises(ValueError, match="reference_every"):
        policy_gradient(generator, env, prompts, reference_every=0)
