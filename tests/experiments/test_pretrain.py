"""Pretraining: exact resume, learning rates, labels of the reward's windows, and every recipe in two steps."""

import random
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from reelgym.checkpoint import CheckpointError
from reelgym.envs.worlds.clips import make_clips, word_encoder
from reelgym.envs.worlds.fakes import FAKES
from reelgym.envs.worlds.grammar import GRAMMARS, parse
from reelgym.experiments.pretrain import flawed
from reelgym.experiments.pretrain import reward as rewards
from reelgym.experiments.pretrain import student as students
from reelgym.experiments.pretrain import teacher as teachers
from reelgym.experiments.pretrain.flaws import PIXEL_FLAWS
from reelgym.experiments.pretrain.loop import Pretraining, Schedule, pretrain
from reelgym.experiments.pretrain.retouched import gamed
from reelgym.models import tiny
from reelgym.models.reward_net import TinyReward

SCHEDULE = Schedule(steps=6, batch=4, learning_rate=1e-2, matrix_rate=1e-2, checkpoint_every=2)


class Net(nn.Module):
    """One matrix that is Muon's, and the rest AdamW's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(4, 4)])
        self.head = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks[0](x).tanh())


def loss(net: Net, generator: torch.Generator, share: slice) -> torch.Tensor:
    return (net(torch.randn(4, 4, generator=generator)[share]) - 1).square().mean()


def vector(net: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(net.parameters())


def test_a_resumed_run_is_the_run(tmp_path):
    whole, _ = pretrain("net", Net(), loss, SCHEDULE, tmp_path / "whole")
    pretrain("net", Net(), loss, replace(SCHEDULE, stop=4), tmp_path / "parts")
    resumed, _ = pretrain("net", Net(), loss, SCHEDULE, tmp_path / "parts")
    assert torch.equal(vector(whole), vector(resumed))
    assert not torch.equal(vector(whole), vector(Net()))


def test_muon_takes_the_matrices_of_blocks_alone():
    net = Net()
    optimizers = SCHEDULE.optimizers(net)
    assert [p is net.blocks[0].weight for p in optimizers["muon"].param_groups[0]["params"]] == [True]
    assert len(optimizers["optimizer"].param_groups[0]["params"]) == 3
    assert list(replace(SCHEDULE, matrix_rate=None).optimizers(net)) == ["optimizer"]


def test_the_rate_warms_up_and_falls_to_a_twentieth():
    schedule = replace(SCHEDULE, steps=1000)
    assert schedule.pace(0) == 1 / 20 and schedule.pace(20) == pytest.approx(1)
    assert schedule.pace(1000) == pytest.approx(0.05)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path):
    run = Pretraining("net", Net(), SCHEDULE, tmp_path)
    before = vector(run.model).clone()
    with pytest.raises(ValueError, match=r"loss at step 0 is nan; lower the learning rate"):
        run.advance(lambda net, generator, share: loss(net, generator, share) * torch.nan)
    assert torch.equal(vector(run.model), before) and run.step == 0


def test_another_schedule_does_not_resume(tmp_path):
    pretrain("net", Net(), loss, replace(SCHEDULE, stop=2), tmp_path)
    with pytest.raises(CheckpointError, match="another schedule"):
        pretrain("net", Net(), loss, replace(SCHEDULE, batch=8), tmp_path)


def test_misreading_exchanges_as_many_words_as_asked():
    clause, grammar = parse("a red circle moves left fast")[0], GRAMMARS["plain"]
    for seed in range(20):
        for words in range(4):
            other = flawed.misread(clause, grammar, random.Random(seed), words)
            motion = (other.motion, other.direction) != (clause.motion, clause.direction)
            assert (other.shape != clause.shape) + (other.colour != clause.colour) + motion == words
            parse(str(other))


def test_words_that_hold():
    clause = parse("a red circle moves left fast")[0]
    assert flawed.words_that_hold(parse("an orange circle moves left")[0], clause) == [-1, 0, 1, 1, 1]
    assert flawed.words_that_hold(parse("a red square rests")[0], clause) == [-1, 1, 0, 0]


def test_word_loss_ignores_what_is_unknown():
    agreement = torch.tensor([[[2.0, -3.0, 50.0]]])
    true = torch.tensor([[[1, 0, -1]]])
    expected = (torch.tensor([2.0, 3.0]).neg().exp() + 1).log().mean()
    torch.testing.assert_close(rewards.word_loss(agreement, true), expected)
    assert rewards.word_loss(agreement, torch.full((1, 1, 3), -1)) == 0


def test_pair_loss_prefers_the_better_clip():
    worth = torch.tensor([[1.0, 0.5, 0.2], [0.4, 0.5, 0.9]])
    good, bad = worth * 8, worth.flip(0) * 8
    assert rewards.pair_loss(good, worth) < rewards.pair_loss(bad, worth)


def flawed_clips(clean):
    seen = [name for name in FAKES if name not in rewards.UNSEEN.values()]
    encoder = word_encoder("plain")
    return flawed.FlawedClips(encoder, clips=16, grammar="plain", split="train", seed=20, clean=clean, fakes=seen)


def test_worth_says_what_was_done_to_a_window():
    clean = flawed_clips(1.0).draw(8, 2, torch.Generator().manual_seed(0))
    assert (clean.worth == 1).all() and clean.video.shape == (8, 6, 3, 32, 32)
    assert ((clean.true >= 0).sum((1, 2)) > 0).all()
    clips = flawed_clips(0.0)
    batch = clips.draw(64, 2, torch.Generator().manual_seed(0))
    assert (batch.worth < 1).any(0).all() and batch.worth.min() >= 0 and batch.worth.isfinite().all()
    again = clips.draw(64, 2, torch.Generator().manual_seed(0))
    assert torch.equal(batch.video, again.video) and torch.equal(batch.embeds, again.embeds)


def test_gamed_windows_climb_and_lose_their_worth():
    torch.manual_seed(0)
    clips = flawed_clips(1.0)
    batch, model = clips.draw(48, 2, torch.Generator().manual_seed(0)), TinyReward(clips.encoder.dim, width=16)
    after = gamed(model, batch, torch.Generator().manual_seed(1))
    moved = (after.video - batch.video).abs().flatten(1).amax(1)
    assert after.video.min() >= 0 and after.video.max() <= 1 and not after.video.requires_grad
    assert (after.true == -1).all() and (batch.true >= 0).any()
    near = (moved < 0.15) & (after.worth[:, 0] > 0)
    assert near.any() and (after.worth[near] < 1).all()
    assert (after.worth[moved > 0.25] == 0).all() and (moved > 0.25).any()
    (slope,) = torch.autograd.grad(model(batch.video.requires_grad_(), batch.embeds[:, 0]).sum(), batch.video)
    climbed = ((after.video - batch.video.detach()) * slope)[near]
    assert (climbed.flatten(1).sum(1) > 0).float().mean() > 0.9


@pytest.mark.parametrize("name", ["exposure", "cast"])
def test_pixel_flaws_change_nothing_at_strength_zero(name):
    paint, _ = PIXEL_FLAWS[name]
    video = torch.rand(4, 3, 3, 32, 32)
    for strength, change in ((0.0, False), (1.0, True)):
        found = paint(None, video, torch.full((4,), strength), torch.Generator().manual_seed(0))
        assert found.min() >= 0 and found.max() <= 1
        assert ((found - video).abs().flatten(1).amax(1) > 0.05).all() == change


def test_the_worth_of_a_path():
    steps = torch.arange(6.0)[None, :, None]
    true = torch.cat([steps, torch.zeros_like(steps)], -1)
    assert [float(worth) for worth in flawed.path_worth(true, true + 3)] == [1, 1]
    even, course = flawed.path_worth(true, 0.5 * true)
    assert even == pytest.approx(1) and course < 0.6
    even, course = flawed.path_worth(true, true.flip(1))
    assert even == pytest.approx(1) and course < 0.2
    shaken = true.clone()
    shaken[:, ::2, 1] += 0.5
    assert flawed.path_worth(true, shaken)[0] < 0.6
    rests = torch.zeros(1, 6, 2)
    assert [float(worth) for worth in flawed.path_worth(rests, rests)] == [1, 1]
    assert flawed.path_worth(rests, true)[0] < 0.5


def test_every_recipe_runs(tmp_path, monkeypatch):
    def few(grammar, count=2, seed=7):
        return make_clips(2, split="validation", seed=seed, grammar=grammar)

    for module in (teachers, students):
        monkeypatch.setattr(module, "held_out_clips", few)
    monkeypatch.setattr(rewards, "unseen_accuracy", partial(rewards.unseen_accuracy, count=4))
    monkeypatch.setattr(rewards, "oracle_agreement", partial(rewards.oracle_agreement, prompts=2, group=2))
    short = Schedule(steps=2, batch=4, learning_rate=1e-3, matrix_rate=1e-3, checkpoint_every=1)
    codec = tiny.build_codec()
    teacher, measured = teachers.train_teacher(
        teachers.TeacherRecipe(clips=4, schedule=short), codec, tmp_path / "teacher"
    )
    assert 0 <= measured["fraction"] <= 1
    student, measured = students.train_student(
        students.StudentRecipe(clips=4, schedule=short), codec, teacher, tmp_path / "student"
    )
    assert {"validation_loss", "fraction"} <= set(measured)
    reward, measured = rewards.train_reward(
        rewards.RewardRecipe(clips=4, remade=2, schedule=short), codec, teacher, student, tmp_path / "reward"
    )
    assert {"accuracy_VQ", "accuracy_MQ", "accuracy_TA", "spearman", "spearman_low"} <= set(measured)
    assert reward.std.min() > 0
