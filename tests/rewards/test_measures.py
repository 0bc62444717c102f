import pytest
import torch

from reelgym.models.codec import Grid
from reelgym.models.prompts import PromptBatch
from reelgym.rewards.measures import MEASURES, MeasureReward, flicker, motion, saturation, sharpness
from reelgym.rewards.stream_reward import StreamReward

PROMPTS = PromptBatch(("", ""), torch.zeros(2, 1, 1))


def moving(frames: int = 6) -> torch.Tensor:
    """A white square that steps one pixel a frame."""
    video = torch.zeros(1, frames, 3, 16, 16)
    for frame in range(frames):
        video[:, frame, :, 4:8, frame : frame + 4] = 1
    return video


def test_a_still_grey_picture_has_none_of_anything() -> None:
    for measure in MEASURES.values():
        assert measure(torch.full((2, 4, 3, 8, 8), 0.5)).abs().max() < 1e-5


def test_each_measure_follows_what_it_is_named_after() -> None:
    video = moving()
    blurred = torch.nn.functional.avg_pool2d(video.flatten(0, 1), 3, 1, 1).view_as(video)
    assert sharpness(blurred) < sharpness(video)
    assert motion(video[:, :1].expand_as(video)) == 0 < motion(video)
    assert motion(video[:, ::2]) > motion(video)
    gain = torch.tensor([1.0, 0.5, 1.0, 0.5, 1.0, 0.5])[:, None, None, None]
    fade = torch.linspace(1, 0, 6)[:, None, None, None]
    assert flicker(video * gain) > 10 * flicker(video * fade)
    red = video * torch.tensor([1.0, 0.2, 0.2])[:, None, None]
    assert saturation(red) > saturation(video)


def test_sharpness_by_hand() -> None:
    video = torch.zeros(1, 1, 3, 3, 4)
    video[..., 1, 1] = 1
    assert torch.allclose(sharpness(video), torch.tensor([-4.0, 1.0]).var())


@pytest.mark.parametrize("name", MEASURES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    torch.manual_seed(0)
    video = torch.rand(1, 4, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(MEASURES[name], (video,))


def test_a_reward_of_measures() -> None:
    model = MeasureReward(("sharpness", "-flicker"))
    video = torch.rand(2, 4, 3, 8, 8)
    assert torch.allclose(model.score(video), torch.stack([sharpness(video), -flicker(video)], -1))
    signal = StreamReward(model)(video, PROMPTS, Grid(torch.arange(4), 2, 2), need={"perplexity", "gradient"})
    assert signal.perplexity.shape == (2, 4, 2, 2) and signal.gradient.abs().sum() > 0


def test_calibration() -> None:
    video = torch.rand(8, 4, 3, 8, 8) * torch.rand(8, 1, 1, 1, 1)
    model = MeasureReward(("motion", "saturation")).calibrate(video)
    z = (model.score(video) - model.mean) / model.std
    assert torch.allclose(z.mean(0), torch.zeros(2), atol=1e-4) and torch.allclose(z.std(0), torch.ones(2), atol=1e-4)


def test_one_clip_has_no_spread() -> None:
    with pytest.raises(ValueError, match="2 clips or more"):
        MeasureReward(("motion",)).calibrate(torch.rand(1, 4, 3, 8, 8))


def test_unknown_measures() -> None:
    for axes in (("beauty",), ()):
        with pytest.raises(ValueError, match="choose from sharpness, flicker"):
            MeasureReward(axes)
