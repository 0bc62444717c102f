"""The sampler's levels, kernel and Euler steps."""

import pytest
import torch

from reelgym.models.sampler import (
    TeacherSampling,
    euler_sample,
    guided,
    kernel_log_prob,
    kernel_score,
    renoise,
    sample_teacher,
    shifted,
    sloped,
    step_sigmas,
    x0_from_v,
)


def test_levels_are_those_of_self_forcing():
    assert step_sigmas(4, 5.0) == pytest.approx((1, 0.9375, 0.8333333, 0.625))
    assert shifted(torch.tensor([0.0, 0.5, 1.0]), 5.0).tolist() == pytest.approx([0, 0.8333333, 1])


@pytest.mark.parametrize("sigma", [0.7, torch.tensor([0.2, 0.9]), torch.rand(2, 3)])
def test_clean_prediction_inverts_renoising(sigma):
    x0, eps = torch.randn(2, 2, 3, 4, 5, 5)
    x = renoise(x0, eps, sigma)
    assert torch.allclose(x0_from_v(x, eps - x0, sigma), x0, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.625, torch.tensor([0.3, 0.9])])
def test_log_prob_is_that_of_torch(sigma):
    x0, x_next = torch.randn(2, 2, 3, 4, 5, 5)
    scale = torch.as_tensor(sigma).view(-1, 1, 1, 1, 1).expand_as(x0)
    expected = torch.distributions.Normal((1 - scale) * x0, scale).log_prob(x_next)
    mean, total = kernel_log_prob(x_next, x0, sigma), kernel_log_prob(x_next, x0, sigma, "sum")
    assert mean.dtype == torch.float32 and mean.shape == (2,)
    assert torch.allclose(mean, expected.mean((1, 2, 3, 4)), atol=1e-6)
    assert torch.allclose(total, expected.sum((1, 2, 3, 4)), rtol=1e-5)
    assert kernel_log_prob(x_next.bfloat16(), x0.bfloat16(), sigma).dtype == torch.float32


@pytest.mark.parametrize("sigma", [0.625, torch.tensor([0.3, 0.9])])
def test_score_is_the_gradient_of_the_log_prob(sigma):
    x0, x_next = torch.randn(2, 2, 3, 4, 5, 5)
    leaf = x0.requires_grad_()
    (gradient,) = torch.autograd.grad(kernel_log_prob(x_next, leaf, sigma, "sum").sum(), leaf)
    assert torch.allclose(kernel_score(x_next, x0, sigma), gradient, rtol=1e-4, atol=1e-4)


def test_the_deterministic_step_has_no_log_prob():
    x = torch.zeros(1, 1, 1, 1, 1)
    for function in (kernel_log_prob, kernel_score):
        with pytest.raises(ValueError, match="deterministic"):
            function(x, x, 0.0)


def test_euler_is_exact_for_straight_paths():
    x0, noise = torch.randn(2, 2, 3, 4, 5, 5)
    assert torch.allclose(euler_sample(lambda x, sigma: noise - x0, noise, step_sigmas(7, 3.0)), x0, atol=1e-5)


def test_teacher_guides_both_halves_in_one_batch():
    noise, embeds, null = torch.randn(2, 4, 1, 3, 3), torch.randn(2, 2, 5, 6), torch.randn(5, 6)
    calls = []

    def model(x, sigma, prompts):
        calls.append(len(x))
        return x * sigma + prompts.mean((1, 2, 3)).view(-1, 1, 1, 1, 1)

    def velocity(x, sigma):
        return guided(model(x, sigma, null.expand_as(embeds)), model(x, sigma, embeds), 3.0)

    out = sample_teacher(model, embeds, null, noise, TeacherSampling(4, 3.0, 2.0))
    assert calls == [4] * 4
    assert torch.allclose(out, euler_sample(velocity, noise, step_sigmas(4, 2.0)), atol=1e-5)
    calls.clear()
    sample_teacher(model, embeds, null, noise, TeacherSampling(4, 1.0, 2.0))
    assert calls == [2] * 4


def test_sloped_levels_begin_in_noise_end_clean_and_rise_along_the_clip():
    slope = torch.tensor([0.0, 0.7, 2.0])
    for u, level in ((1.0, 1.0), (0.0, 0.0)):
        assert torch.equal(sloped(torch.full((3,), u), slope, 6), torch.full((3, 6), level))
    levels = sloped(torch.full((3,), 0.5), slope, 6)
    assert torch.equal(levels[0], torch.full((6,), 0.5))
    assert (levels.diff(dim=1) >= 0).all() and levels[1, -1] - levels[1, 0] == pytest.approx(0.7)
    assert levels[2, 0] == 0 and levels[2, -1] == 1


def test_a_teacher_may_denoise_early_frames_first():
    x0, noise = torch.randn(2, 2, 4, 1, 3, 3)
    embeds, seen = torch.randn(2, 2, 5, 6), []

    def model(x, sigma, prompts):
        seen.append(sigma)
        return noise - x0

    out = sample_teacher(model, embeds, embeds[0, 0], noise, TeacherSampling(9, 1.0, 5.0, slope=1.0))
    assert torch.allclose(out, x0, atol=1e-5)
    assert [tuple(sigma.shape) for sigma in seen] == [(1, 4)] * 9
    assert (seen[4].diff() > 0).all() and (seen[0] == 1).all()
