"""Each direction against autograd of its objective written out; credit at its edges."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from reelgym.agents.direction import (
    clipped_weight,
    group_advantage,
    log_ratio,
    policy_direction,
    reference_direction,
    returns_to_go,
    surrogate,
)
from reelgym.models.sampler import kernel_log_prob

SHAPE = (3, 2, 4, 5, 5)
LEVELS = torch.tensor([0.9, 0.5, 0.2])


def rows(values):
    return values[:, None, None, None, None]


def draw(*seeds):
    return [torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in seeds]


def kernel(x0):
    return Normal((1 - rows(LEVELS)) * x0, rows(LEVELS))


def test_the_surrogate_has_the_direction_as_its_gradient():
    x0, direction, weight = draw(0, 1, 2)
    x0.requires_grad_()
    surrogate(x0, direction.requires_grad_(), weight).backward()
    torch.testing.assert_close(x0.grad, weight * direction.detach() / x0.numel())
    assert direction.grad is None


def test_a_weight_of_zero_teaches_nothing():
    x0, direction = draw(0, 1)
    surrogate(x0.requires_grad_(), direction, torch.zeros(3, 2, 1, 5, 5)).backward()
    assert not x0.grad.any()


def test_log_probability_in_float32_is_torchs():
    x0, x_next = draw(0, 1)
    expected = kernel(x0).log_prob(x_next).flatten(1).mean(1)
    torch.testing.assert_close(kernel_log_prob(x_next, x0, LEVELS), expected)
    old = draw(2)[0]
    torch.testing.assert_close(
        log_ratio(x_next, x0, old, LEVELS),
        kernel_log_prob(x_next, x0, LEVELS) - kernel_log_prob(x_next, old, LEVELS),
        atol=1e-4,
        rtol=1e-5,
    )
    assert kernel_log_prob(x_next.bfloat16(), x0.bfloat16(), LEVELS).dtype == torch.float32


@pytest.mark.parametrize("rescale", [False, True])
def test_policy_direction(rescale):
    x0, x_next = draw(0, 1)
    advantage = torch.tensor([1.0, -2.0, 0.0])
    leaf = x0.clone().requires_grad_()
    scale = LEVELS / (1 - LEVELS) if rescale else torch.ones(3)
    (rows(scale * advantage) * kernel(leaf).log_prob(x_next)).sum().neg().backward()
    torch.testing.assert_close(policy_direction(x0, x_next, LEVELS, advantage, rescale), leaf.grad)


def test_on_policy_and_rescaled_it_is_advantage_times_the_noise():
    x0, eps = draw(0, 1)
    x_next = (1 - rows(LEVELS)) * x0 + rows(LEVELS) * eps
    torch.testing.assert_close(policy_direction(x0, x_next, LEVELS, torch.ones(3)), -eps, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rescale", [False, True])
def test_reference_direction_is_the_gradient_of_the_kl(rescale):
    x0, reference = draw(0, 1)
    leaf = x0.clone().requires_grad_()
    scale = LEVELS / (1 - LEVELS) if rescale else torch.ones(3)
    (rows(scale) * kl_divergence(kernel(leaf), kernel(reference))).sum().backward()
    torch.testing.assert_close(reference_direction(x0, reference, LEVELS, rescale), leaf.grad)


@pytest.mark.parametrize("weighted", [False, True])
def test_ppo_clipping_against_the_clipped_objective(weighted):
    x0, old, x_next, raw = draw(0, 1, 2, 3)
    x0, old = 0.1 * x0, 0.1 * old
    weight = raw.abs() if weighted else 1.0
    advantage, clip = torch.tensor([1.0, -1.0, 0.5]), 0.01
    leaf = x0.clone().requires_grad_()
    ratio = (weight * (kernel(leaf).log_prob(x_next) - kernel(old).log_prob(x_next))).flatten(1).mean(1).exp()
    objective = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    objective.sum().neg().backward()
    scale = clipped_weight(log_ratio(x_next, x0, old, LEVELS, weight).exp(), advantage, clip)
    direction = weight * policy_direction(x0, x_next, LEVELS, scale * advantage, rescale=False)
    torch.testing.assert_close(direction / x0[0].numel(), leaf.grad, atol=1e-6, rtol=1e-4)


def test_returns_to_go_leave_out_the_past():
    assert returns_to_go(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[6.0, 5.0, 3.0]]


def test_group_advantage_by_hand():
    returns = torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 1.0], [5.0, 1.0]])
    expected = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(group_advantage(returns, 2), expected, atol=2e-4, rtol=0)


def test_group_advantage_at_its_edges():
    assert not group_advantage(torch.full((8, 3), 0.7), 8).any()
    assert not group_advantage(torch.randn(5, 3), 1).any()
    outlier = torch.zeros(100, 1)
    outlier[0] = 1.0
    assert group_advantage(outlier, 100).max() == 5
    with pytest.raises(ValueError, match="whole groups"):
        group_advantage(torch.zeros(5, 1), 2)
