"""Advantages at their edges, and lambda-returns against generalised advantage estimation written out."""

from itertools import product

import pytest
import torch

from reelgym.agents.advantage import ADVANTAGE_LIMIT, AdvantageEstimator, advantages, lambda_returns

GROUPS = AdvantageEstimator(normalize_std="group")
BATCH = AdvantageEstimator(baseline="batch")


def test_returns_to_go_leave_out_the_past():
    rewards = torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 0.0]])
    assert lambda_returns(rewards, torch.zeros_like(rewards), 1.0).tolist() == [[6, 5, 3], [-1, -1, 0]]


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.95, 1.0])
def test_lambda_returns_less_the_value_are_gae(decay):
    rewards, values = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    after = torch.cat((values[:, 1:], torch.zeros(5, 1)), 1)
    delta = rewards + after - values
    expected = torch.stack([sum(decay ** (j - k) * delta[:, j] for j in range(k, 4)) for k in range(4)], 1)
    torch.testing.assert_close(lambda_returns(rewards, after, decay) - values, expected)


def test_lambda_returns_at_their_ends():
    rewards, after = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(lambda_returns(rewards, after, 0.0), rewards + after)
    after[:, -1] = 0
    torch.testing.assert_close(lambda_returns(rewards, after, 1.0), rewards.flip(1).cumsum(1).flip(1))


def test_group_advantage_by_hand():
    returns = torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 1.0], [5.0, 1.0]])
    expected = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(advantages(returns, GROUPS, 2), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("baseline", "spread"), [*product(("none", "batch", "group", "critic"), ("none", "batch", "group"))]
)
def test_every_baseline_and_spread_by_hand(baseline, spread):
    draw = torch.Generator().manual_seed(0)
    returns, before = torch.rand(2, 6, 4, generator=draw)
    found = advantages(returns, AdvantageEstimator(baseline=baseline, normalize_std=spread), 3, before)
    for clip, chunk in product(range(6), range(4)):
        rows = {"batch": range(6), "group": range(clip - clip % 3, clip - clip % 3 + 3)}

        def left(row, chunk=chunk):
            runs = {"batch": range(6), "group": range(row - row % 3, row - row % 3 + 3)}
            if baseline in runs:
                return returns[row, chunk] - sum(returns[other, chunk] for other in runs[baseline]) / len(
                    runs[baseline]
                )
            return returns[row, chunk] - (before[row, chunk] if baseline == "critic" else 0)

        expected = left(clip)
        if spread in rows:
            columns = range(4) if spread == "batch" else (chunk,)
            parts = torch.stack([left(row, column) for row in rows[spread] for column in columns])
            expected = expected - parts.mean() if baseline == "critic" else expected
            expected = expected / ((parts - parts.mean()).square().mean().sqrt() + 1e-4)
        torch.testing.assert_close(found[clip, chunk], expected.clamp(-5, 5), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("credit", [GROUPS, BATCH])
def test_equal_returns_give_no_advantage(credit):
    assert advantages(torch.full((8, 3), 0.5), credit, 8).abs().max() == 0
    assert advantages(torch.full((8, 3), 0.7), credit, 8).abs().max() < 2e-3  # rounding, over the 1e-4 of the spread


def test_groups_and_batches_of_one_give_no_advantage():
    assert not advantages(torch.randn(5, 3), GROUPS, 1).any()
    assert not advantages(torch.randn(1, 3), BATCH, 1).any()
    assert not advantages(torch.randn(1, 3), GROUPS, 1).any()


def test_one_prompts_level_is_nothing_to_another():
    returns = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    shifted = returns + torch.tensor([0.0, 10.0]).repeat_interleave(3)[:, None]
    torch.testing.assert_close(advantages(shifted, GROUPS, 3), advantages(returns, GROUPS, 3), atol=1e-4, rtol=1e-4)
    assert (advantages(shifted, BATCH, 3)[3:] > 0).all()


def test_advantages_are_limited():
    outlier = torch.zeros(100, 1)
    outlier[0] = 1.0
    assert advantages(outlier, GROUPS, 100).max() == ADVANTAGE_LIMIT == 5
    assert advantages(-outlier, GROUPS, 100).min() == -5


def test_wrong_settings_are_told():
    with pytest.raises(ValueError, match="whole groups"):
        advantages(torch.zeros(5, 1), GROUPS, 2)
    with pytest.raises(ValueError, match="critic's values"):
        advantages(torch.zeros(4, 1), AdvantageEstimator(baseline="critic"), 2)
    for wrong in ({"bootstrap": True}, {"baseline": "critic"}):
        with pytest.raises(ValueError, match="nothing to predict"):
            AdvantageEstimator(returns="episode", **wrong)
    for decay in (-0.1, 1.1):
        with pytest.raises(ValueError, match="gae_lambda must lie"):
            AdvantageEstimator(bootstrap=True, gae_lambda=decay)


def test_a_critic_is_there_where_it_is_needed():
    assert not GROUPS.critic and not BATCH.critic
    assert AdvantageEstimator(bootstrap=True).critic and AdvantageEstimator(baseline="critic").critic


@pytest.mark.parametrize(
    "wrong", [{"returns": "all"}, {"baseline": "mean"}, {"normalize_std": "std"}, {"gae_lambda": 2.0}]
)
def test_wrong_credit_is_told(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AdvantageEstimator(**wrong)
