import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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


RANKS = """
import os
import sys
import time
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from reelgym.rewards.reliability import BalanceConfig, BalanceState, balance

folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
config = BalanceConfig(window=4)
state = BalanceState.open(3, config)


def mean_over_ranks(mean):
    dist.all_reduce(mean)
    return mean / 2


scores = torch.randn(6, 2, 4, 3, generator=torch.Generator().manual_seed(0))
for step in scores:
    weight, state = balance(step[rank], state, config, mean_over_ranks)
save_file({**state.tensors(), "weight": weight}, f"{folder}/{rank}.safetensors")
while not os.path.exists(f"{folder}/{1 - rank}.safetensors"):
    time.sleep(0.01)
os._exit(0)  # gloo aborts now and then when one process is gone before the other
"""


def loopback() -> bool:
    """Whether processes of this machine can reach each other."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not loopback(), reason="no loopback network")
def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    lines = [[sys.executable, str(script), str(tmp_path), str(rank)] for rank in range(2)]
    both = [subprocess.Popen(line, env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"}) for line in lines]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    scores = torch.randn(6, 2, 4, 3, generator=torch.Generator().manual_seed(0))
    weight, state = run(scores.flatten(1, 2), SMALL)
    for rank in ranks:
        assert torch.allclose(rank["history"], state.history, atol=1e-6) and int(rank["count"]) == 6
    assert torch.equal(ranks[0]["history"], ranks[1]["history"])
    assert torch.allclose(torch.cat([rank["weight"] for rank in ranks]), weight, atol=1e-5)


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
    with pytest.raises(ValueError, match="hold NaN"):
        balance(torch.tensor([[0.0, float("nan"), 1.0]]), BalanceState.open(3, SMALL), SMALL)
    with pytest.raises(ValueError, match="open a new state"):
        balance(torch.zeros(1, 2), BalanceState.open(3, SMALL), SMALL)
