import math

import pytest
import torch

from reelgym.models.reward_net import REWARD_AXES, TinyReward, bradley_terry_with_ties, smooth_minimum

DIM = 12


def prompts(rows: int, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    embeds = torch.zeros(rows, 6, DIM)
    for row in range(rows):
        for place in range(1 + row % 4):
            embeds[row, place, torch.randint(0, DIM - 6, ())] = 1
            embeds[row, place, DIM - 6 + place] = 1
    return embeds


@pytest.fixture(scope="module")
def net() -> TinyReward:
    torch.manual_seed(0)
    return TinyReward(DIM, width=32).requires_grad_(False).eval()


@pytest.mark.parametrize("frames", [3, 6, 11, 48])
def test_any_length_from_three(net: TinyReward, frames: int) -> None:
    scores = net(torch.rand(1, frames, 3, 32, 32), prompts(1))
    assert scores.shape == (1, len(REWARD_AXES)) and scores.isfinite().all()


def test_size_of_the_shipped_width() -> None:
    assert 3e5 < sum(p.numel() for p in TinyReward(60).parameters()) < 8e5


def test_rows_are_independent(net: TinyReward) -> None:
    torch.manual_seed(1)
    video, embeds = torch.rand(4, 5, 3, 32, 32), prompts(4)
    scores = net(video, embeds)
    assert len({round(s, 6) for s in scores[:, 2].tolist()}) == 4
    for i in range(4):
        assert torch.allclose(net(video[i : i + 1], embeds[i : i + 1]), scores[i : i + 1], atol=1e-5)


def test_only_ta_sees_the_prompt(net: TinyReward) -> None:
    video = torch.rand(1, 4, 3, 32, 32)
    one, other = net(video, prompts(4)[2:3]), net(video, prompts(4)[3:4])
    assert torch.equal(one[:, :2], other[:, :2]) and not torch.allclose(one[:, 2], other[:, 2])


def test_padding_and_null_prompt(net: TinyReward) -> None:
    video, embeds = torch.rand(2, 4, 3, 32, 32), prompts(2)
    longer = torch.cat([embeds, torch.zeros(2, 5, DIM)], dim=1)
    assert torch.allclose(net(video, embeds), net(video, longer), atol=1e-5)
    assert net(video, torch.zeros_like(embeds)).isfinite().all()


def test_pixel_gradients_reach_every_frame(net: TinyReward) -> None:
    video = torch.rand(1, 6, 3, 32, 32, requires_grad=True)
    for axis in range(3):
        (gradient,) = torch.autograd.grad(net(video, prompts(1))[:, axis].sum(), video)
        assert (gradient.abs().amax(dim=(0, 2, 3, 4)) > 0).all()


def test_calibrate_gives_z_scores(net: TinyReward) -> None:
    raw = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.5, 9.0], [5.0, 0.0, 3.0]])
    net.calibrate(raw)
    z = (raw - net.mean) / net.std
    assert torch.allclose(z.mean(0), torch.zeros(3), atol=1e-6) and torch.allclose(z.std(0), torch.ones(3))


def test_errors(net: TinyReward) -> None:
    with pytest.raises(ValueError, match="at least 3 frames, not 2"):
        net(torch.rand(1, 2, 3, 32, 32), prompts(1))
    with pytest.raises(ValueError, match="encode one prompt per clip"):
        net(torch.rand(2, 4, 3, 32, 32), prompts(1))


def test_bradley_terry_with_ties_by_hand() -> None:
    def nll(x: float) -> float:
        return math.log(1 + math.exp(-x))

    d = torch.tensor([1.3, 1.3, 1.3, 0.0])
    label = torch.tensor([1, -1, 0, 0])
    k = math.log(5)
    expected = [
        nll(1.3 - k),
        nll(-1.3 - k),
        nll(1.3 - k) + nll(-1.3 - k) - math.log(24),
        2 * math.log(6) - math.log(24),
    ]
    assert torch.allclose(bradley_terry_with_ties(d, label), torch.tensor(expected), atol=1e-6)


def test_bradley_terry_probabilities_sum_to_one() -> None:
    d = torch.linspace(-4, 4, 9)
    total = sum(torch.exp(-bradley_terry_with_ties(d, torch.full_like(d, label))) for label in (1, 0, -1))
    assert torch.allclose(total, torch.ones(9), atol=1e-6)


def test_a_smooth_minimum_follows_the_worst_part() -> None:
    parts = torch.tensor([[5.0, 5.0, -3.0, 5.0]], requires_grad=True)
    score = smooth_minimum(parts)
    assert torch.allclose(score, torch.tensor([[-3 + math.log(4)]]), atol=1e-3)
    (gradient,) = torch.autograd.grad(score.sum(), parts)
    assert gradient[0, 2] > 0.99 and torch.allclose(gradient.sum(), torch.tensor(1.0))
    assert torch.allclose(smooth_minimum(torch.full((1, 7), 2.5)), torch.tensor([[2.5]]))
