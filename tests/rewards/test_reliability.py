import math

import pytest
import torch

from reelgym.rewards.reliability import BalanceConfig, BalanceState, balance

SMALL = BalanceConfig(window=4)


def run(steps: torch.Tensor, config: BalanceConfig = SMALL) -> tuple[torch.Tensor, BalanceState]:
    state = BalanceState.open(steps.shape[-1], config)
    weight = torch.empty(0)
    for step in steps:
        weight, state = balance(step, state, config)
    return weight, state


def test_published_constants() -> None:
    assert BalanceConfig() == BalanceConfig(window=50, spread=0.5, beta=2.0, bound=2.0)


def test_by_hand_before_and_after_the_window_fills() -> None:
    steps = torch.tensor([[[0.0, 0.0]], [[0.2, 0.0]], [[0.4, 0.0]], [[0.6, 0.2]]])
    before, _ = run(steps[:3])
    assert torch.allclose(before, torch.tensor([math.exp(2 * 0.2)]))
    after, state = run(steps)
    delta = (0.5 - 0.1, 0.1 - 0.0)
    r = 0.4 - 0.5 * (delta[0] - delta[1]) / 2
    assert torch.allclose(after, torch.tensor([math.exp(2 * r)])) and state.count == 4


def test_the_window_slides() -> None:
    steps = torch.randn(9, 3, 2)
    _, state = run(steps)
    assert torch.allclose(state.history, steps[-4:].mean(dim=1)) and state.count == 9


def test_axes_that_move_alike_cost_nothing() -> None:
    steps = torch.linspace(0, 0.3, 4)[:, None, None].expand(4, 2, 3)
    weight, _ = run(steps)
    assert torch.allclose(weight, torch.full((2,), math.exp(0.6)))


@pytest.mark.parametrize("rows", [1, 5])
def test_every_row_gets_its_own_weight_within_the_bound(rows: int) -> None:
    scores = torch.linspace(-10, 10, rows)[:, None].expand(rows, 3)
    weight, _ = balance(scores, BalanceState.open(3, SMALL), SMALL)
    assert weight.shape == (rows,)
    assert weight.min() >= math.exp(-2) - 1e-6 and weight.max() <= math.exp(2) + 1e-5
    mild = torch.tensor([[0.1], [-0.3]]).expand(2, 3)
    both, _ = balance(mild, BalanceState.open(3, SMALL), SMALL)
    assert torch.allclose(both, torch.tensor([math.exp(0.2), math.exp(-0.6)]))


def test_history_is_the_mean_over_all_ranks() -> None:
    ranks = torch.randn(2, 3, 2)
    everywhere = ranks.mean(dim=(0, 1))
    _, state = balance(ranks[0], BalanceState.open(2, SMALL), SMALL, reduce=lambda mean: everywhere)
    assert torch.allclose(state.history[-1], everywhere)


def test_state_survives_a_checkpoint() -> None:
    torch.manual_seed(0)
    steps = torch.randn(7, 2, 3) * 0.2
    whole, end = run(steps)
    _, half = run(steps[:5])
    state = BalanceState.from_tensors({k: v.clone() for k, v in half.tensors().items()})
    weight = torch.empty(0)
    for step in steps[5:]:
        weight, state = balance(step, state, SMALL)
    assert torch.equal(weight, whole) and torch.equal(state.history, end.history) and state.count == end.count


def test_balance_is_pure_and_carries_no_gradient() -> None:
    state, scores = BalanceState.open(3, SMALL), torch.randn(2, 3, requires_grad=True)
    first, after = balance(scores, state, SMALL)
    second, again = balance(scores, state, SMALL)
    assert torch.equal(first, second) and torch.equal(after.history, again.history)
    assert not first.requires_grad and not after.history.requires_grad and not state.history.any()


def test_errors() -> None:
    with pytest.raises(ValueError, match="even number of steps, not 5"):
        BalanceConfig(window=5)
    with pytest.raises(ValueError, match="open a new state"):
        balance(torch.zeros(1, 2), BalanceState.open(3, SMALL), SMALL)
