"""DMD, Stream-R1 and the starting recipe."""

import copy
from dataclasses import replace

import pytest
import torch

from reelgym.checkpoint import CheckpointError, load_checkpoint, save_checkpoint, sha256_weights
from reelgym.distill.causal_init import CausalInit, CausalInitConfig, causal_loss, chunk_levels, forcing_loss
from reelgym.distill.directions import clip_levels, dmd_direction, flow_loss, score_direction
from reelgym.distill.trainer import Distill, DistillConfig, self_forcing
from reelgym.models.generator import StreamState, generate_chunk, stream
from reelgym.models.sampler import renoise, shifted
from reelgym.noise import normal, stream_keys, uniform
from reelgym.rewards.reliability import BalanceConfig
from reelgym.rewards.windows import clip_prompts
from reelgym.training.learner import LearnerConfig
from reelgym.training.loop import fit

LEARNER = LearnerConfig(learning_rate=1e-3, betas=(0.0, 0.999), max_grad_norm=10.0, ema=0.5)
SMALL = {"batch": 3, "critic_updates": 2, "generator": LEARNER, "critic": LEARNER}

DMD, STREAM_R1 = DistillConfig(), DistillConfig(reliability=True, perplexity="full")


@pytest.fixture
def distill(generator, make_wan, codec, reward, prompts, layout):
    null = prompts.encoder.encode([""])[0]

    def make(config=DMD, **changes):
        fresh = replace(generator, model=copy.deepcopy(generator.model))
        parts = {"codec": codec, "reward": reward, "layout": layout}
        return Distill(replace(config, **SMALL | changes), fresh, make_wan(1), prompts, null, **parts)

    return make


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.generator.model.parameters()])


def clips(batch, step):
    draw = torch.Generator().manual_seed(step)
    return torch.randn(batch, 12, 4, 4, 4, generator=draw), torch.randn(batch, 4, 8, 18, generator=draw)


def test_dmd_direction_against_autograd_of_the_squared_form():
    x0, real, fake = torch.randn(3, 4, 6, 2, 5, 5).unbind(0)
    leaf = x0.clone().requires_grad_()
    scale = torch.stack([(x0[i] - real[i]).abs().mean() for i in range(4)])[:, None, None, None, None]
    target = x0 - (fake - real) / scale
    (0.5 * (leaf - target).square()).sum().backward()
    torch.testing.assert_close(dmd_direction(x0, real, fake), leaf.grad)
    assert dmd_direction(x0, x0, x0).isfinite().all()


def test_levels_are_shifted_and_clamped():
    u = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(clip_levels(u, 5.0, 0.02, 0.98), torch.tensor([0.02, 2.5 / 3, 0.98]))


def test_score_direction_is_guided_real_against_fake(make_wan):
    real, fake, (x0, embeds) = make_wan(1), make_wan(2), clips(2, 0)
    eps, sigma, null = torch.randn_like(x0), torch.tensor([0.3, 0.8]), torch.zeros(8, 18)
    x = renoise(x0, eps, sigma)
    level = sigma[:, None, None, None, None]
    with torch.no_grad():
        c, u, f = (x - level * net(x, sigma, e) for net, e in ((real, embeds), (real, 0 * embeds), (fake, embeds)))
    expected = dmd_direction(x0, u + 2 * (c - u), f)
    given = (x0, eps, sigma, embeds, null)
    direction, loss = score_direction(*given, (real, fake), 2.0)
    torch.testing.assert_close(direction, expected)
    torch.testing.assert_close(loss, flow_loss(real, x0, eps, sigma, embeds).detach())
    torch.testing.assert_close(score_direction(*given, (real, fake), 1.0)[0], dmd_direction(x0, c, f))
    assert not score_direction(*given, (real, real), 1.0)[0].any()


def test_self_forcing_leaves_every_chunk_at_the_same_step(generator, prompts):
    embeds, keys = prompts(2, 0)[0], stream_keys(0, 2)
    assert torch.equal(self_forcing(generator, embeds, keys, 3, False), stream(generator, embeds, keys))
    x0 = self_forcing(generator, embeds, keys, 1, True)
    state = StreamState.start(keys)
    for chunk in range(4):
        expected, denoising_steps, state = generate_chunk(generator, state, embeds[:, chunk], exit_step=1)
        assert len(denoising_steps) == 2 and torch.equal(x0[:, 3 * chunk : 3 * chunk + 3].detach(), expected)


def test_gradient_does_not_cross_chunks(generator, prompts):
    embeds, keys = prompts(2, 0)[0], stream_keys(0, 2)
    state = StreamState.start(keys)
    _, _, state = generate_chunk(generator, state, embeds[:, 0], exit_step=1)
    whole = self_forcing(generator, embeds, keys, 1, True)[:, 3:6]
    alone, _, _ = generate_chunk(generator, state, embeds[:, 1], exit_step=1, grad=True)
    parameters = list(generator.model.parameters())
    found, expected = (torch.autograd.grad(x.square().sum(), parameters, allow_unused=True) for x in (whole, alone))
    for one, other in zip(found, expected, strict=True):
        assert (one is None and other is None) or torch.allclose(one, other)


def test_flow_loss(make_wan):
    model, (x0, embeds) = make_wan(0), clips(2, 0)
    eps, sigma = torch.randn_like(x0), torch.tensor([0.3, 0.8])
    level = sigma[:, None, None, None, None]
    expected = (model((1 - level) * x0 + level * eps, sigma, embeds) - (eps - x0)).square().mean()
    torch.testing.assert_close(flow_loss(model, x0, eps, sigma, embeds), expected)


def test_an_update_moves_generator_and_critic_but_not_the_teacher(distill):
    trainer = distill()
    teacher = copy.deepcopy(trainer.teacher.state_dict())
    before, critic = weights(trainer), trainer.critic.parameters[0].detach().clone()
    measured = trainer.update()
    assert not torch.equal(before, weights(trainer)) and not torch.equal(critic, trainer.critic.parameters[0])
    assert all(torch.equal(teacher[name], value) for name, value in trainer.teacher.state_dict().items())
    assert trainer.critic.updates == 2 and {"loss", "critic_loss", "teacher_loss", "grad_norm", "direction"} <= set(
        measured
    )


@pytest.mark.parametrize(("rollouts", "chunks"), [(1, 12), (2, 24), (9, 36)])
def test_critic_updates_share_rollouts(distill, rollouts, chunks):
    trainer = distill(critic_updates=3, critic_rollouts=rollouts)
    trainer.update()
    assert trainer.counts.chunks == chunks and trainer.critic.updates == 3


def test_with_fake_equal_to_real_there_is_nothing_to_learn(distill):
    trainer = distill(critic_updates=0, guidance=1.0)
    assert trainer.update()["grad_norm"] == 0


def test_stream_r1_with_weights_of_one_is_dmd(distill):
    plain = distill()
    flat = distill(STREAM_R1, perplexity=None, balance=BalanceConfig(beta=0.0))
    for _ in range(2):
        plain.update()
        flat.update()
    assert torch.equal(weights(plain), weights(flat))


def test_stream_r1_weighs_by_reliability_and_perplexity(distill, codec, reward, layout, prompts):
    trainer = distill(STREAM_R1)
    x0, (embeds, texts) = torch.randn(3, 12, 4, 4, 4), prompts(3, 0)
    weight, _ = trainer._weight(x0, embeds, texts)
    scorer = reward.windowed(layout, codec, apart=True)
    signal = scorer(codec.decode(x0), clip_prompts(embeds, texts), codec.grid(12), need={"perplexity"})
    reliability = (2 * signal.scores.mean(1)).clamp(-2, 2).exp()
    assert weight.shape == (3, 12, 1, 4, 4)
    torch.testing.assert_close(weight.mean((1, 2, 3, 4)), reliability)
    torch.testing.assert_close(weight[:, :, 0], reliability[:, None, None, None] * signal.perplexity)
    assert trainer.balance.count == 1


def test_windows_apart_hold_every_frame_once(codec, reward, layout, prompts):
    embeds, texts = prompts(2, 0)
    video = codec.decode(torch.randn(2, 12, 4, 4, 4))
    whole, apart = (reward.windowed(layout, codec, apart).model for apart in (False, True))
    given = clip_prompts(embeds, texts)
    assert list(apart.ends) == [1, 3] and list(whole.ends) == [0, 1, 2, 3]
    torch.testing.assert_close(apart.windows(video, given), whole.windows(video, given)[:, [1, 3]])


def test_reliability_needs_a_reward(generator, make_wan, prompts):
    with pytest.raises(ValueError, match="pass codec, reward and layout"):
        Distill(STREAM_R1, generator, make_wan(1), prompts, torch.zeros(8, 18))


@pytest.mark.parametrize("config", [DMD, STREAM_R1])
def test_resume_is_bitwise(distill, config, tmp_path):
    unbroken, first, second = distill(config), distill(config), distill(config)
    fit(unbroken, 3)
    fit(first, 1, checkpoint=tmp_path / "at")
    fit(second, 3, checkpoint=tmp_path / "at")
    assert torch.equal(weights(second), weights(unbroken))
    assert torch.equal(second.critic.parameters[0], unbroken.critic.parameters[0])
    assert torch.equal(second.balance.history, unbroken.balance.history)
    with pytest.raises(CheckpointError, match="batch"):
        fit(distill(config, batch=2), 4, checkpoint=tmp_path / "at")


@pytest.mark.parametrize("role", ["generator", "critic"])
@pytest.mark.parametrize("part", ["model", "optimizer", "mean"])
def test_a_checkpoint_without_a_role_is_refused(distill, role, part):
    trainer = distill(STREAM_R1)
    trainer.update()
    groups, meta = trainer.state()
    rest = {name: group for name, group in groups.items() if name != f"{role}-{part}"}
    with pytest.raises(CheckpointError, match=f"lacks parts of the trainer: {role}-{part}$"):
        distill(STREAM_R1).load_state(rest, meta)


def test_a_checkpoint_without_balance_or_counter_is_refused(distill):
    groups, meta = distill(STREAM_R1).state()
    for lost in ("config", "counts", "learners"):
        with pytest.raises(CheckpointError, match=f"lacks parts of the trainer: .*{lost}"):
            distill(STREAM_R1).load_state(groups, {name: part for name, part in meta.items() if name != lost})
    with pytest.raises(CheckpointError, match="lacks parts of the balance: count, history"):
        distill(STREAM_R1).load_state(groups | {"trainer": {}}, meta)


def test_a_checkpoint_of_another_teacher_is_refused(distill, tmp_path):
    first, second = distill(), distill()
    fit(first, 1, checkpoint=tmp_path / "at")
    _, meta = load_checkpoint(tmp_path / "at")
    assert meta["teacher"] == sha256_weights(first.teacher.state_dict())
    with torch.no_grad():
        next(second.teacher.parameters()).flatten()[-1] += 1e-3
    with pytest.raises(CheckpointError, match="another teacher: give that one, or another --out$"):
        fit(second, 2, checkpoint=tmp_path / "at")
    save_checkpoint(tmp_path / "at", *first.state())
    with pytest.raises(CheckpointError, match="another teacher"):
        fit(distill(), 2, checkpoint=tmp_path / "at")


def test_plain_dmd_asks_for_no_reward_and_decodes_nothing(distill, codec, monkeypatch):
    monkeypatch.setattr(codec, "decode", None)
    trainer = distill()
    trainer.update()
    counts = trainer.counts
    assert (counts.reward_calls, counts.teacher_calls, counts.critic_calls, counts.chunks) == (0, 24, 36, 24)


def test_chunk_levels_hit_the_samplers_levels():
    u = torch.rand(1000, 4, generator=torch.Generator().manual_seed(0))
    levels = chunk_levels(u, (1.0, 0.8, 0.5, 0.2), 0.75)
    share = torch.isin(levels, torch.tensor([1.0, 0.8, 0.5, 0.2])).float().mean()
    assert 0.72 < share < 0.78 and levels.min() >= 0 and levels.max() <= 1
    assert len(torch.unique(chunk_levels(u, (1.0, 0.5), 1.0))) == 2
    assert not torch.isin(chunk_levels(u, (1.0, 0.5), 0.0), torch.tensor([0.5])).any()


def test_forcing_loss_is_that_of_the_stream(generator):
    model, (x0, embeds) = generator.model, clips(2, 0)
    eps, levels = torch.randn_like(x0), torch.tensor([[1.0, 0.8, 0.6, 0.4], [0.4, 0.6, 0.8, 1.0]])
    cache, errors = None, []
    for j, (clean, noise) in enumerate(zip(x0.chunk(4, 1), eps.chunk(4, 1), strict=True)):
        v = model(renoise(clean, noise, levels[:, j]), levels[:, j], embeds[:, j], cache=cache)
        errors.append((v - (noise - clean)).square().mean())
        cache = model.write(clean, embeds[:, j], cache)
    torch.testing.assert_close(forcing_loss(model, x0, embeds, levels, eps, x0), sum(errors) / 4)


def test_a_noisy_past_is_what_a_chunk_learns_beside(generator):
    x0, embeds = clips(2, 0)
    keys, later = stream_keys(0, 2), x0.clone()
    later[:, -3:] += 1
    config = CausalInitConfig()
    eps, sigma = normal(keys, 0, 1, tuple(x0.shape[1:])), shifted(uniform(keys, 0, 0, ()), config.shift)
    v = generator.model(renoise(x0, eps, sigma), sigma, embeds, mask="causal")
    loss = causal_loss(generator.model, x0, embeds, keys, generator.sigmas, config)
    torch.testing.assert_close(loss, (v - (eps - x0)).square().mean())
    seen = generator.model(renoise(later, eps, sigma), sigma, embeds, mask="causal")
    torch.testing.assert_close(seen[:, :-3], v[:, :-3])


@pytest.mark.parametrize("past", ["noisy", "clean"])
def test_the_starting_recipe_learns_and_resumes(generator, tmp_path, past):
    config = CausalInitConfig(learner=LEARNER, batch=4, past=past)

    def fixed(batch, step):
        return clips(batch, 0)

    def trainer():
        return CausalInit(config, replace(generator, model=copy.deepcopy(generator.model)), fixed)

    unbroken, first, second = trainer(), trainer(), trainer()
    losses = []
    fit(unbroken, 12, log=lambda measured, step: losses.append(measured["loss"]))
    assert sum(losses[-4:]) < sum(losses[:4]) and unbroken.counts.chunks == 0
    fit(first, 6, checkpoint=tmp_path / "at")
    fit(second, 12, checkpoint=tmp_path / "at")
    assert torch.equal(weights(second), weights(unbroken))
    x0, embeds = clips(4, 0)
    assert causal_loss(unbroken.generator.model, x0, embeds, stream_keys(0, 4), generator.sigmas, config).isfinite()
