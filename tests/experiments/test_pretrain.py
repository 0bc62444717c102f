"""Pretraining: exact resume, learning rates, labels of the reward's windows, and every recipe in two steps."""

import random
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from reelgym.checkpoint import CheckpointError, save_checkpoint
from reelgym.envs.stack import Stack
from reelgym.envs.worlds.clips import make_clips, word_encoder
from reelgym.envs.worlds.fakes import FAKES
from reelgym.envs.worlds.grammar import GRAMMARS, parse
from reelgym.experiments.pretrain import flawed
from reelgym.experiments.pretrain import local as locals_
from reelgym.experiments.pretrain import reward as rewards
from reelgym.experiments.pretrain import student as students
from reelgym.experiments.pretrain import teacher as teachers
from reelgym.experiments.pretrain.flaws import PIXEL_FLAWS
from reelgym.experiments.pretrain.loop import logged, pretrain
from reelgym.experiments.pretrain.retouched import gamed
from reelgym.models import tiny
from reelgym.models.reward_net import TinyReward
from reelgym.training import regression
from reelgym.training.learner import NonFiniteError
from reelgym.training.ranks import Ranks
from reelgym.training.regression import Regression, Schedule

SCHEDULE = Schedule(steps=6, batch=4, learning_rate=1e-2, muon_lr=1e-2, checkpoint_every=2)


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


def test_the_log_holds_every_update_and_what_was_measured(tmp_path):
    pretrain("net", Net(), loss, SCHEDULE, tmp_path, lambda net: {"norm": float(vector(net).detach().norm())}, 3)
    assert list(logged(tmp_path, "loss")) == [1, 2, 3, 4, 5, 6] and list(logged(tmp_path, "norm")) == [3, 6]


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path):
    net = Net()
    before = vector(net).clone()
    with pytest.raises(NonFiniteError, match=r"after update 0 is nan: lower the learning rate"):
        pretrain("net", net, lambda *given: loss(*given) * torch.nan, SCHEDULE, tmp_path)
    assert torch.equal(vector(net), before) and not (tmp_path / "checkpoint").exists()


def test_another_schedule_or_other_data_do_not_resume(tmp_path):
    pretrain("net", Net(), loss, replace(SCHEDULE, stop=2), tmp_path)
    with pytest.raises(CheckpointError, match=r"another config; they differ in schedule.batch: .* another --out"):
        pretrain("net", Net(), loss, replace(SCHEDULE, batch=8), tmp_path)
    with pytest.raises(CheckpointError, match=r"differ in data.pairs"):
        pretrain("net", Net(), loss, SCHEDULE, tmp_path, data={"pairs": "others"})


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    save_checkpoint(tmp_path / "checkpoint", {"model": dict(Net().state_dict())}, {"step": 2, "schedule": {}})
    with pytest.raises(CheckpointError, match="lacks parts of the trainer: config, counts"):
        pretrain("net", Net(), loss, SCHEDULE, tmp_path)


def test_processes_share_a_batch_out(monkeypatch):
    rows, drawn = torch.arange(4), []

    def own(net, generator, share):
        drawn.append((rows[share].tolist(), generator.initial_seed()))
        return loss(net, generator, share)

    for ranks in (Ranks(), Ranks(1, 2)):
        monkeypatch.setattr(regression, "here", lambda ranks=ranks: ranks)
        Regression(replace(SCHEDULE, seed=3), Net(), own).update()
    assert drawn == [([0, 1, 2, 3], 3_000_009), ([1, 3], 3_000_009)]


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
    seen = [name for name in FAKES if name not in rewards.UNSEEN_FLAWS.values()]
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

    accuracy, agreement = rewards.unseen_accuracy, rewards.oracle_agreement
    for module in (rewards, locals_):
        monkeypatch.setattr(module, "unseen_accuracy", partial(accuracy, count=4))
        monkeypatch.setattr(module, "oracle_agreement", partial(agreement, prompts=2, group=2))
    for module in (teachers, students):
        monkeypatch.setattr(module, "held_out_clips", few)
    for size, small in {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 24}.items():
        monkeypatch.setitem(tiny.TRANSFORMER, size, small)
    short = Schedule(steps=2, batch=4, learning_rate=1e-3, muon_lr=1e-3, checkpoint_every=1)
    stack = Stack({}).with_parts(codec=tiny.build_codec())
    teacher = teachers.TeacherRecipe(clips=4, schedule=short).train("teacher", stack, tmp_path / "teacher")
    assert 0 <= teacher.quality["fraction"] <= 1 and "circle" in teacher.reads["vocab"]
    stack = stack.with_parts(teacher=teacher.module)
    student = students.StudentRecipe(clips=4, schedule=short).train("student", stack, tmp_path / "student")
    assert {"validation_loss", "fraction"} <= set(student.quality)
    stack = stack.with_parts(generator=tiny.build_generator(student.module, stack.codec))
    reward = rewards.RewardRecipe(clips=4, remade=2, schedule=short).train("reward", stack, tmp_path / "reward")
    assert {"accuracy_VQ", "accuracy_MQ", "accuracy_TA", "spearman", "spearman_low"} <= set(reward.quality)
    assert reward.module.std.min() > 0
    stack = stack.with_parts(reward=reward.module)
    local = locals_.LocalRecipe(clips=4, remade=2, first=short, schedule=short).train(
        "local", stack, tmp_path / "local"
    )
    assert set(local.quality) == set(reward.quality)
    assert torch.equal(local.module.std[1:], reward.module.std[1:])
