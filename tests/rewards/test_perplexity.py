import pytest
import torch

from reelgym.models.codec import Grid
from reelgym.rewards.perplexity import fuse, intra_perplexity, spatial_weight, temporal_weight, to_latents


def test_fuse_counts_the_weaker_axis_more_by_hand() -> None:
    scores = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    gradients = torch.zeros(2, 2, 1, 3, 1, 1)
    gradients[0, :, 0, :, 0, 0] = torch.tensor([1.0, -2.0, 0.0])
    gradients[1, :, 0, :, 0, 0] = torch.tensor([0.0, 0.0, -5.0])
    weak = torch.sigmoid(torch.tensor(2.0))
    expected = torch.tensor([4.0, 3 * (1 - weak) + 5 * weak])
    assert torch.allclose(fuse(scores, gradients, tau=1.0).flatten(), expected)
    assert torch.allclose(fuse(scores, gradients, tau=1e-3).flatten(), torch.tensor([4.0, 5.0]))


def test_frame_wise_grid_takes_the_mean_of_a_cell() -> None:
    saliency = torch.arange(16.0).view(1, 1, 4, 4)
    cells = to_latents(saliency, Grid(torch.tensor([0]), 2, 2))
    assert torch.equal(cells, torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]]))


def test_causal_grid_maps_one_frame_then_four_each() -> None:
    saliency = torch.arange(9.0)[None, :, None, None].expand(1, 9, 4, 4)
    grid = Grid(torch.tensor([0, 1, 1, 1, 1, 2, 2, 2, 2]), 2, 2)
    cells = to_latents(saliency, grid)
    assert cells.shape == (1, 3, 2, 2)
    assert torch.allclose(cells[0, :, 0, 0], torch.tensor([0.0, 2.5, 6.5]))
    with pytest.raises(ValueError, match="the grid is of 9 frames, the video has 8"):
        to_latents(saliency[:, :8], grid)


def test_temporal_weight_by_hand() -> None:
    saliency = torch.tensor([1.0, 1.2, 3.0, 5.0])[None, :, None, None].expand(1, 4, 2, 2)
    raw = torch.tensor([0.2, 0.2, 0.5, 1.0])
    assert torch.allclose(temporal_weight(saliency)[0], raw / raw.mean())


def test_spatial_weight_by_hand() -> None:
    saliency = torch.tensor([[0.0, 1.0], [4.0, 10.0]]).view(1, 1, 2, 2)
    raw = torch.tensor([[0.15, 0.15], [0.4, 1.0]])
    assert torch.allclose(spatial_weight(saliency)[0, 0], raw / raw.mean())


def test_intra_perplexity_has_mean_one_per_clip_and_rows_are_independent() -> None:
    torch.manual_seed(0)
    saliency = torch.rand(3, 4, 5, 5) * torch.tensor([1.0, 10.0, 1e-6])[:, None, None, None]
    weight = intra_perplexity(saliency)
    assert torch.allclose(weight.mean(dim=(1, 2, 3)), torch.ones(3), atol=1e-5)
    for i in range(3):
        assert torch.allclose(intra_perplexity(saliency[i : i + 1]), weight[i : i + 1])
    product = temporal_weight(saliency)[..., None, None] * spatial_weight(saliency)
    assert torch.allclose(weight, product / product.mean(dim=(1, 2, 3), keepdim=True))


@pytest.mark.parametrize("value", [0.0, 0.37, 1e8])
@pytest.mark.parametrize("frames", [1, 4])
def test_constant_saliency_gives_ones(value: float, frames: int) -> None:
    assert torch.allclose(intra_perplexity(torch.full((2, frames, 3, 3), value)), torch.ones(2, frames, 3, 3))


def test_growing_saliency_gives_rising_temporal_weight_inside_its_half() -> None:
    saliency = torch.full((1, 5, 4, 4), 0.1)
    for frame in range(5):
        saliency[0, frame, 2:] += frame
    weight = intra_perplexity(saliency)[0]
    assert (temporal_weight(saliency)[0].diff() > 0).all()
    assert (weight[1:, 2:].amin(dim=(1, 2)) > weight[1:, :2].amax(dim=(1, 2))).all()
