"""The gradient of an update, by autograd of what each direction is to do; ratios, and what epochs share."""

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from reelgym.agents.advantage import AdvantageEstimator
from reelgym.agents.finetune import FineTune, FineTuneConfig
from reelgym.agents.forward_process import ForwardProcess
from reelgym.agents.policy_gradient import PolicyGradient
from reelgym.agents.reward_gradient import RewardGradient, reward_direction
from reelgym.models.generator import StreamState, prediction, prefill
from reelgym.models.prompts import PromptBatch
from reelgym.models.sampler import FlowSDE, consistency, x0_from_v
from reelgym.noise import fold
from reelgym.rewards.windows import clip_prompts
from reelgym.training.learner import LearnerConfig

BASE = FineTuneConfig(prompts=2, group=3, seed=1, learner=LearnerConfig(learning_rate=1e-3, ema=0.5))
POLICY = replace(BASE, direction=PolicyGradient())
OWN = replace(BASE, prefix="own")
REWARD = replace(OWN, direction=RewardGradient())
ALL_STEPS = PolicyGradient(timesteps_per_update=3)


@pytest.fixture
def make(generator, env, prompts):
    def made(config, **changes):
        own = replace(generator, model=copy.deepcopy(generator.model))
        return FineTune(replace(config, **changes), own, env, prompts)

    return made


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.generator.model.parameters()])


def gradient(trainer):
    return torch.cat([p.grad.flatten() for p in trainer.learner.parameters if p.grad is not None])


def updated(trainer, monkeypatch):
    """The gradient of an update, and what was played and credited for it."""
    found = {}
    play, credit, step = trainer._play, trainer._estimate, trainer.learner.optimizer_step
    monkeypatch.setattr(trainer, "_play", lambda: found.setdefault("played", play()))
    monkeypatch.setattr(trainer, "_estimate", lambda played: found.setdefault("credit", credit(played)))
    monkeypatch.setattr(trainer.learner, "optimizer_step", lambda: found.update(gradient=gradient(trainer)) or step())
    model = copy.deepcopy(trainer.generator.model)
    trainer.update()
    trainer.generator.model.load_state_dict(model.state_dict())
    return found["gradient"], *found["played"], found["credit"][0]


def column(values):
    return values[:, None, None, None, None]


def weight_of(played, turn):
    """Behind a shared opening chunk k is there in k + 1 of 4 rollouts."""
    return 1 / (turn.number + 1) if played.prefix == "full" else 1 / len(played.steps)


def perplexity(trainer, played, turn):
    """Of the newest chunk, in the window that ends with it, decoded and scored anew."""
    batch = PromptBatch(tuple(row[turn.number] for row in played.texts), played.embeds[:, turn.number])
    video = trainer.env.codec.decode(torch.cat((turn.past, turn.chunk.detach()), 1)[:, -6:])
    grid = trainer.env.codec.grid(video.shape[1])
    found = trainer.env.reward(video, batch, grid, need={"perplexity"}).perplexity[:, -3:]
    return (found / found.mean((1, 2, 3), keepdim=True))[:, :, None]


def predicted(trainer, played, turn, x, sigma):
    v = trainer.generator.model(x, sigma, played.embeds[:, turn.number], cache=turn.denoising_steps[0].context)
    return x0_from_v(x, v, sigma)


@pytest.mark.parametrize(
    ("direction", "every", "changes"),
    [
        (ALL_STEPS, 1, {}),
        (replace(ALL_STEPS, noise_level=0.7), 3, {"prefix": "own"}),
        (replace(ALL_STEPS, rescale=False, clip_coef=1e-4), 60, {"prefix": "full"}),
        (ALL_STEPS, 4, {"shared_steps": 1, "advantage": AdvantageEstimator(perplexity=True)}),
        (
            replace(ALL_STEPS, noise_level=0.7, rescale=False),
            3,
            {"prefix": "own", "advantage": AdvantageEstimator(returns="episode", normalize_std="none")},
        ),
    ],
    ids=["consistency", "sde", "unscaled", "perplexity", "clip"],
)
def test_the_gradient_of_an_update_is_the_policy_gradient(make, monkeypatch, direction, every, changes):
    trainer = make(BASE, direction=direction, kl_coef=0.5, kl_every=every, **changes)
    with torch.no_grad():
        for p in trainer.reference.parameters():
            p.add_(0.01)
    found, played, _, advantage = updated(trainer, monkeypatch)
    assert advantage.abs().max() > 0.1
    assert played.steps[0].denoising_steps[0].kernel == (FlowSDE(0.7) if direction.noise_level else consistency)(
        1.0, 6 / 7
    )
    loss = torch.zeros(())
    for number, turn in enumerate(played.steps):
        weight = perplexity(trainer, played, turn) if trainer.config.advantage.perplexity else 1.0
        for t in turn.denoising_steps[:-1]:
            k, level = t.kernel, torch.full((6,), t.sigma)
            scale = k.std / k.pull if direction.rescale else 1.0
            start = replace(trainer.actor, model=trainer.reference)
            state = prefill(start, StreamState.start(torch.zeros(6, dtype=torch.long)), turn.past, played.embeds)
            frozen = prediction(start, state, t.x, level, played.embeds[:, turn.number])
            x0 = predicted(trainer, played, turn, t.x, level)
            law, held = (Normal(k.keep * t.x + k.pull * y, k.std) for y in (x0, frozen))
            taken = column(torch.arange(6) % min(every, 6) == 0)
            pull = taken * 6 / taken.sum() * kl_divergence(law, held)
            gain = weight * column(advantage[:, number]) * law.log_prob(t.x_next)
            loss = loss + (scale * (0.5 * pull - gain)).mean() * weight_of(played, turn) / 3
    loss.backward()
    torch.testing.assert_close(found, gradient(trainer), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("prefix", ["own", "local", "full"])
def test_the_gradient_of_an_update_is_that_of_diffusion_nft(make, monkeypatch, prefix):
    beta = 0.5
    trainer = make(BASE, direction=ForwardProcess(minibatches=2, train_timesteps=(), beta=beta), prefix=prefix)
    found, played, keys, advantage = updated(trainer, monkeypatch)
    loss = torch.zeros(())
    batch = trainer.config.direction.training_samples(played, keys, trainer.actor, trainer.env)
    for samples in batch.minibatches:
        for number, (turn, sample) in enumerate(zip(played.steps, samples, strict=True)):
            assert set(sample.sigma.tolist()) <= set(torch.tensor(trainer.generator.sigmas).tolist())
            x0 = predicted(trainer, played, turn, sample.x, sample.sigma)
            old, good = x0.detach(), 0.5 + advantage[:, number] / 10
            for share, y in ((good, beta * x0 + (1 - beta) * old), (1 - good, (1 + beta) * old - beta * x0)):
                error = y - turn.chunk
                width = error.abs().mean((1, 2, 3, 4)).detach()
                loss = (
                    loss
                    + 5 / (2 * beta) * (column(share / width) * error.square()).mean() * weight_of(played, turn) / 2
                )
    loss.backward()
    torch.testing.assert_close(found, gradient(trainer), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(("among", "alike"), [((-1,), False), ((0, 2), False), ((), False), ((), True)])
def test_the_forward_process_noises_chunks_afresh(make, among, alike):
    trainer = make(BASE, direction=ForwardProcess(minibatches=8 if alike else 2, train_timesteps=among, alike=alike))
    played, keys = trainer._play()
    passes = trainer.config.direction.training_samples(played, keys, trainer.actor, trainer.env).minibatches
    levels = torch.tensor(trainer.generator.sigmas)[list(among) or [0, 1, 2, 3]]
    assert {level for samples in passes for sample in samples for level in sample.sigma.tolist()} == set(
        levels.tolist()
    )
    noises, group = [], trainer.config.group
    for number, turn in enumerate(played.steps):
        own = [samples[number] for samples in passes]
        drawn = [(one.x - (1 - column(one.sigma)) * turn.chunk) / column(one.sigma) for one in own]
        for noise in drawn if alike else ():
            torch.testing.assert_close(noise, noise[::group].repeat_interleave(group, 0), atol=1e-4, rtol=1e-4)
        noises += [noise[::group] if alike else noise for noise in drawn]
        noises.append(turn.denoising_steps[0].x)
    table = torch.cat([noise.flatten(1) for noise in noises])
    assert table.mean().abs() < 0.05 and abs(table.std() - 1) < 0.05
    assert table.corrcoef().fill_diagonal_(0).abs().max() < 0.4  # of 192 numbers each: none is used twice


def test_the_gradient_of_an_update_is_the_reward_gradient(make, monkeypatch):
    trainer = make(REWARD)
    found, played, keys, _ = updated(trainer, monkeypatch)
    scorer = trainer.env.reward.windowed(trainer.env.layout, trainer.env.codec)
    prompts = clip_prompts(played.embeds, played.texts)
    towards, _ = reward_direction(played.latents, prompts, scorer, trainer.env.codec, fold(keys, 1), 0.03, 1)
    for turn, part in zip(played.steps, towards.split(3, 1), strict=True):
        last = turn.denoising_steps[-1]
        x0 = predicted(trainer, played, turn, last.x, last.sigma)
        torch.testing.assert_close(x0, turn.chunk)
        (part * x0).mean().div(4).backward()
    torch.testing.assert_close(found, gradient(trainer), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("perplexity", [False, True])
@pytest.mark.parametrize("sde", [0.0, 0.7])
@pytest.mark.parametrize("prefix", ["own", "local", "full"])
def test_the_ratio_is_exactly_one_before_the_first_update(make, perplexity, sde, prefix):
    direction = PolicyGradient(timesteps_per_update=3, clip_coef=1e-4, noise_level=sde)
    trainer = make(
        BASE, direction=direction, prefix=prefix, advantage=AdvantageEstimator(perplexity=perplexity), kl_coef=0.1
    )
    measured = trainer.update()
    assert (
        measured["losses/ratio_max_error"] == 0
        and measured["losses/clipfrac"] == 0
        and measured["losses/kl_penalty"] < 1e-9
    )


def test_later_epochs_have_other_ratios_and_are_clipped(make):
    measured = make(BASE, direction=PolicyGradient(clip_coef=1e-4), epochs=2).update()
    assert (
        measured["losses/ratio_max_error"] > 1e-4
        and measured["losses/approx_kl"] > 0
        and 0 < measured["losses/clipfrac"] < 1
    )
    loose = make(BASE, direction=PolicyGradient(clip_coef=10.0), epochs=2).update()
    assert loose["losses/ratio_max_error"] > 0 and loose["losses/clipfrac"] == 0


def test_epochs_contrast_with_the_policy_that_acted(make):
    @dataclass(frozen=True)
    class Spy(ForwardProcess):
        seen: ClassVar[list] = []

        def loss_gradient(self, sample, x0, old_x0, advantage, weight):
            self.seen.append((x0, old_x0))
            return super().loss_gradient(sample, x0, old_x0, advantage, weight)

    make(BASE, direction=Spy(), epochs=3).update()
    first = Spy.seen[:4]
    for number, (x0, old) in enumerate(Spy.seen):
        assert torch.equal(old, first[number % 4][0]) and torch.equal(x0, old) == (number < 4)
