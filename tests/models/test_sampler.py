"""The sampler's levels, kernels and Euler steps."""

from itertools import pairwise

import pytest
import torch
from torch.distributions import Normal

from reelgym.models.sampler import (
    FlowSDE,
    Kernel,
    TeacherSampling,
    consistency,
    euler_sample,
    guided,
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


def normal_of(kernel, x, x0):
    """The kernel as torch's distribution."""
    keep, pull, std = (torch.as_tensor(v).view(-1, 1, 1, 1, 1) for v in (kernel.keep, kernel.pull, kernel.std))
    return Normal(keep * x + pull * x0, std.expand_as(x0))


KERNELS = {
    "consistency": consistency(0.9, 0.625),
    "of two levels": Kernel(0.0, torch.tensor([0.7, 0.1]), torch.tensor([0.3, 0.9])),
    "sde": FlowSDE(0.7)(0.9, 0.625),
    "sde from noise": FlowSDE(0.7)(1.0, 0.9),
    "of two steps": Kernel(torch.tensor([0.2, 0.9]), torch.tensor([0.7, 0.1]), torch.tensor([0.3, 0.4])),
}
EACH_KERNEL = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


@EACH_KERNEL
def test_log_prob_is_that_of_torch(kernel):
    x, x0, x_next = torch.randn(3, 2, 3, 4, 5, 5)
    expected = normal_of(kernel, x, x0).log_prob(x_next)
    mean = kernel.log_prob(x_next, x, x0)
    assert mean.dtype == torch.float32 and mean.shape == (2,)
    torch.testing.assert_close(mean, expected.mean((1, 2, 3, 4)))
    torch.testing.assert_close(kernel.log_prob(x_next, x, x0, "sum"), expected.sum((1, 2, 3, 4)))
    assert kernel.log_prob(x_next.bfloat16(), x.bfloat16(), x0.bfloat16()).dtype == torch.float32


@EACH_KERNEL
def test_score_is_the_gradient_of_the_log_prob(kernel):
    x, x0, x_next = torch.randn(3, 2, 3, 4, 5, 5)
    leaf = x0.requires_grad_()
    (gradient,) = torch.autograd.grad(normal_of(kernel, x, leaf).log_prob(x_next).sum(), leaf)
    torch.testing.assert_close(kernel.score(x_next, x, x0), gradient, rtol=1e-4, atol=1e-4)


@EACH_KERNEL
def test_a_draw_is_mean_and_noise(kernel):
    x, x0, eps = torch.randn(3, 2, 3, 4, 5, 5)
    law = normal_of(kernel, x, x0)
    torch.testing.assert_close(kernel.draw(x, x0, eps), law.mean + law.stddev * eps)


def test_the_deterministic_step_has_no_log_prob():
    x = torch.zeros(1, 1, 1, 1, 1)
    for kernel in (consistency(0.5, 0.0), FlowSDE()(0.5, 0.0)):
        for function in (kernel.log_prob, kernel.score):
            with pytest.raises(ValueError, match="deterministic"):
                function(x, x, x)


@pytest.mark.parametrize("sigma", [1.0, 0.9, 0.5])
def test_consistency_sampling_noises_the_prediction_afresh(sigma):
    x, x0, eps = torch.randn(3, 2, 3, 4, 5, 5)
    torch.testing.assert_close(consistency(sigma, 0.3).draw(x, x0, eps), renoise(x0, eps, 0.3))
    assert torch.equal(consistency(sigma, 0.0).draw(x, x0, eps), x0)


@pytest.mark.parametrize("steps", [(1.0, 0.9), (0.9, 0.5), (0.5, 0.1)])
def test_flow_sde_is_the_papers_step(steps):
    (sigma, lower), (x, x0, eps) = steps, torch.randn(3, 2, 3, 4, 5, 5)
    dt, v = lower - sigma, (x - x0) / sigma
    g = 0.7 * (sigma / (1 - (lower if sigma == 1 else sigma))) ** 0.5
    expected = x + (v + g**2 / (2 * sigma) * (x + (1 - sigma) * v)) * dt + g * (-dt) ** 0.5 * eps
    torch.testing.assert_close(FlowSDE(0.7)(sigma, lower).draw(x, x0, eps), expected)


@pytest.mark.parametrize(
    ("noise", "steps"), [(0.7, (0.5, 0.0)), (0.7, (1.0, 0.0)), (0.0, (1.0, 0.6)), (0.0, (0.6, 0.2))]
)
def test_flow_sde_to_zero_or_without_noise_is_eulers_step(noise, steps):
    (sigma, lower), (x, x0, eps) = steps, torch.randn(3, 2, 3, 4, 5, 5)
    kernel = FlowSDE(noise)(sigma, lower)
    assert kernel.std == 0
    torch.testing.assert_close(kernel.draw(x, x0, eps), x + (lower - sigma) * (x - x0) / sigma)


def marginal_error(noise, steps, m=1.5, t=0.6):
    """The largest error in mean and variance below level .8 for clean data N(m, t^2) and the exact velocity field: its
    prediction is linear in x, so that both moments go from step to step in closed form."""
    mean, variance, worst = 0.0, 1.0, 0.0
    for sigma, lower in pairwise([*step_sigmas(steps, 1.0), 0.0]):
        kernel = FlowSDE(noise)(sigma, lower)
        scale = (1 - sigma) * t**2 / ((1 - sigma) ** 2 * t**2 + sigma**2)
        slope = kernel.keep + kernel.pull * scale
        mean = slope * mean + kernel.pull * m * (1 - scale * (1 - sigma))
        variance = slope**2 * variance + kernel.std**2
        if lower < 0.8:
            worst = max(worst, abs(mean - (1 - lower) * m), abs(variance / ((1 - lower) ** 2 * t**2 + lower**2) - 1))
    return worst


@pytest.mark.parametrize("noise", [0.0, 0.7, 1.0])
def test_flow_sde_keeps_the_flows_marginals_in_the_limit_of_many_steps(noise):
    errors = [marginal_error(noise, steps) for steps in (4, 64, 1024, 16384)]
    assert errors[0] > 0.4 and errors[-1] < 4e-3
    assert all(later < earlier / 4 for earlier, later in pairwise(errors))


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
