"""Distillation without a critic, SiD, the rows between DMD and Stream-R1, and recipes mixed in one update."""

import copy
from dataclasses import replace

import pytest
import torch

from reelgym.distill.consistency import Consistency, ConsistencyConfig
from reelgym.distill.directions import distance, sid_direction
from reelgym.distill.gan import GanTerm
from reelgym.distill.on_policy import OnPolicy, OnPolicyConfig
from reelgym.distill.recipes import DISTILL, DMD
from reelgym.distill.trainer import Distill
from reelgym.models.sampler import denoise, renoise
from reelgym.training.learner import LearnerConfig
from reelgym.training.loop import fit
from reelgym.training.mixture import Mixture, MixtureTrainer
from reelgym.training.sequence import Stage

LEARNER = LearnerConfig(learning_rate=1e-3)


def clips(batch, step):
    draw = torch.Generator().manual_seed(step)
    return torch.randn(batch, 12, 4, 4, 4, generator=draw), torch.randn(batch, 4, 8, 18, generator=draw)


@pytest.fixture
def trainer_of(generator, make_wan, codec, reward, prompts, layout):
    null = prompts.encoder.encode([""])[0]

    def make(config, steps=4, on=None):
        student = on or replace(generator, model=copy.deepcopy(generator.model)).with_steps(steps)
        if isinstance(config, ConsistencyConfig):
            return Consistency(config, student, clips, null)
        if isinstance(config, OnPolicyConfig):
            return OnPolicy(config, student, prompts, null)
        if isinstance(config, Mixture):
            return MixtureTrainer(config, [make(stage.recipe, on=student) for stage in config.stages])
        parts = {"codec": codec, "reward": reward, "layout": layout} if config.weighted else {}
        parts |= {"clips": clips} if config.gan else {}
        return Distill(config, student, make_wan(1), prompts, null, **parts)

    return make


def weights(trainer):
    part = trainer.parts[0] if isinstance(trainer, MixtureTrainer) else trainer
    return torch.cat([p.detach().flatten() for p in part.generator.model.parameters()])


def test_on_policy_with_a_teacher_of_the_students_own_steps_has_nothing_to_learn(trainer_of):
    trainer = trainer_of(OnPolicyConfig(LEARNER, batch=2, teacher_steps=1, guidance=1.0), steps=1)
    assert trainer.update()["loss"] == pytest.approx(1e-3, rel=1e-3)
    finer = trainer_of(OnPolicyConfig(LEARNER, batch=2, teacher_steps=4, guidance=1.0), steps=1)
    assert finer.update()["loss"] > 0.01
    assert (finer.counts.chunks, finer.counts.generator_calls, finer.counts.teacher_calls) == (8, 16, 8 * (4 + 1))


def test_consistency_over_one_level_has_nothing_to_learn(trainer_of):
    trainer = trainer_of(ConsistencyConfig(LEARNER, batch=2, levels=1, guidance=1.0), steps=1)
    assert trainer.update()["loss"] == pytest.approx(1e-3, rel=1e-3)
    assert trainer_of(ConsistencyConfig(LEARNER, batch=2), steps=2).update()["loss"] > 0.01


def test_levels_of_consistency_are_neighbours_and_often_the_students_own(trainer_of):
    trainer = trainer_of(ConsistencyConfig(LEARNER, sampler_share=0.8), steps=2)
    upper, lower = trainer._levels(torch.arange(500), 4)
    grid = torch.tensor([1, 0.9375, 5 / 6, 0.625, 0])
    place = (upper[..., None] - grid).abs().argmin(-1)
    torch.testing.assert_close(grid[place], upper)
    torch.testing.assert_close(grid[place + 1], lower)
    own = torch.isin(place, torch.tensor([0, 2])).float().mean()
    assert 0.85 < own < 0.95


class Constant(torch.nn.Module):
    def __init__(self, v):
        super().__init__()
        self.v = v

    def forward(self, x, sigma, embeds):
        return self.v.expand_as(x)


def test_sid_of_scores_that_know_nothing_of_x_is_dmd_times_sigma():
    x0, eps, sigma = *torch.randn(2, 3, 12, 4, 4, 4), torch.tensor([0.2, 0.5, 0.9])
    embeds = torch.zeros(3, 4, 8, 18)
    real, fake = (Constant(torch.randn(12, 4, 4, 4)) for _ in range(2))
    x, level = renoise(x0, eps, sigma), sigma[:, None, None, None, None]
    one, other = denoise(real, x, sigma, embeds), denoise(fake, x, sigma, embeds)
    found, _ = sid_direction(x0, eps, sigma, embeds, torch.zeros(8, 18), (real, fake), 1.0)
    torch.testing.assert_close(found, level * (other - one) / distance(x0, one))


def test_a_critic_on_half_of_the_clips_meets_all_of_them(trainer_of):
    trainer, taken = trainer_of(replace(DMD, batch=4, critic_updates=2, critic_share=0.5)), []
    step = trainer._critic_step
    trainer._critic_step = lambda x0, *others: taken.append(x0) or step(x0, *others)
    trainer.update()
    assert [len(x0) for x0 in taken] == [2, 2] and not torch.equal(*taken)
    assert trainer.critic.updates == 2 and trainer.counts.critic_calls == 4 * (2 + 2 + 4)
    with pytest.raises(ValueError, match="critic_share"):
        replace(DMD, critic_share=0.0)


def test_a_discriminator_learns_and_points_towards_the_world():
    gan = GanTerm(4, LEARNER, 0)
    made, real = torch.randn(8, 6, 4, 4, 4) - 1, torch.randn(8, 6, 4, 4, 4) + 1
    eps, sigma = torch.randn(8, 6, 4, 4, 4), torch.full((8,), 0.2)
    found = [gan.train(made, real, eps, sigma) for _ in range(30)]
    assert (
        found[-1]["losses/discriminator"] < found[0]["losses/discriminator"] and found[-1]["discriminator_right"] == 1
    )
    direction = gan.direction(made, eps, sigma)
    torch.testing.assert_close(direction.square().mean((1, 2, 3, 4)), torch.ones(8))
    logits = [gan.learner.module(x, sigma).mean() for x in (made, made - 0.1 * direction)]
    assert logits[1] > logits[0]


def test_spatial_weights_favour_no_frame_and_temporal_ones_no_cell(trainer_of, prompts):
    x0, (embeds, texts) = torch.randn(2, 12, 4, 4, 4), prompts(2, 0)
    found = {
        name: trainer_of(replace(DMD, perplexity=name))._weight(x0, embeds, texts)[0][:, :, 0]
        for name in ("spatial", "temporal", "full")
    }
    torch.testing.assert_close(found["spatial"].mean((2, 3)), torch.ones(2, 12))
    torch.testing.assert_close(found["temporal"], found["temporal"][:, :, :1, :1].expand(-1, -1, 4, 4))
    assert found["temporal"].std() > 0 and found["full"].std() > found["temporal"].std()


def test_re_dmd_weighs_by_motion_alone(trainer_of, prompts, reward, layout, codec):
    x0, (embeds, texts) = torch.randn(2, 12, 4, 4, 4), prompts(2, 0)
    trainer = trainer_of(DISTILL["re-dmd"])
    assert trainer.reward.axes == ("MQ",)
    weight, _ = trainer._weight(x0, embeds, texts)
    scores = trainer.reward.score(codec.decode(x0), trainer_prompts(embeds, texts)).scores
    torch.testing.assert_close(weight.flatten(), (2 * scores[:, 0]).clamp(-2, 2).exp())


def trainer_prompts(embeds, texts):
    from reelgym.rewards.windows import clip_prompts

    return clip_prompts(embeds, texts)


def small(recipe):
    if isinstance(recipe, Mixture):
        return replace(recipe, stages=tuple(Stage(small(stage.recipe), stage.updates) for stage in recipe.stages))
    return recipe.with_batch(2)


MIXED = Mixture((Stage(DMD, 1), Stage(OnPolicyConfig(), 2)), fade=(0, 2))


@pytest.mark.parametrize(
    "recipe",
    [DISTILL["sid"], DISTILL["dmd2"], DISTILL["on-policy"], DISTILL["consistency"], MIXED],
    ids=["sid", "dmd2", "on-policy", "consistency", "mixture"],
)
def test_resume_is_bitwise(trainer_of, recipe, tmp_path):
    unbroken, first, second = (trainer_of(small(recipe)) for _ in range(3))
    before = weights(first)
    fit(unbroken, 3)
    fit(first, 1, checkpoint=tmp_path / "at")
    fit(second, 3, checkpoint=tmp_path / "at")
    assert torch.equal(weights(second), weights(unbroken)) and not torch.equal(before, weights(second))
    assert second.counts == unbroken.counts and second.counts.updates == 3


def test_a_mixture_makes_the_updates_of_all_and_fades(trainer_of):
    assert [MIXED.shares(update) for update in range(3)] == [[1, 2], [1, 1], [1, 0]]
    trainer = trainer_of(small(MIXED))
    for _ in range(3):
        trainer.update()
    assert [part.counts.updates for part in trainer.parts] == [3, 3] and trainer.counts.updates == 3
    for wrong in ({"stages": MIXED.stages[:1]}, {"fade": (1, 1)}, {"fade": (0,)}):
        with pytest.raises(ValueError, match=r"at least two stages|fade has a number"):
            replace(MIXED, **wrong)
    with pytest.raises(ValueError, match="rates of its parts"):
        MIXED.with_learning_rate(1.0)
    assert {stage.recipe.seed for stage in MIXED.with_seed(7).stages} == {7}
