"""Frames to patches as Qwen2-VL's own processor makes them, and gradients that land on the right pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from reelgym.models.videoreward import VideoReward
from reelgym.models.videoreward.pixels import PixelConfig, fitted_clip, resize, sample_frames, target_size, to_patches

SIZES = [(56, 84), (30, 45), (100, 300), (301, 203), (480, 832), (270, 480), (480, 270)]


def picture(height, width, seed=0):
    """A frame uint8 [3, H, W] with edges, slopes and noise."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    shapes = torch.stack([x, y, ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1).float()])
    noise = torch.rand(3, height, width, generator=generator)
    return (255 * (0.6 * shapes + 0.4 * noise)).byte()


@pytest.mark.parametrize("wanted", [(56, 84), (28, 308), (140, 84), (336, 588)])
@pytest.mark.parametrize("given", SIZES)
def test_resize_is_pillows_to_the_bit(given, wanted):
    frame = torch.randint(0, 256, (3, *given), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    expected = Image.fromarray(frame.movedim(0, -1).numpy())
    expected = expected.resize(wanted[::-1], Image.Resampling.BICUBIC)
    assert torch.equal(resize(frame, wanted), torch.from_numpy(np.array(expected)).movedim(-1, 0).double())


def test_smooth_resize_stays_within_a_level_or_two():
    frame = picture(97, 130)
    difference = resize(frame, (56, 84), rounding=False) - resize(frame, (56, 84))
    assert 0 < difference.abs().max() < 1.5


@pytest.mark.parametrize("size", SIZES)
def test_patches_are_those_of_the_public_processor(size):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 200704})
    frame = picture(*size)
    expected = processor(images=[Image.fromarray(frame.movedim(0, -1).numpy())], return_tensors="pt")
    found, grid = to_patches(frame.expand(2, -1, -1, -1).float() / 255, PixelConfig())
    assert [list(grid)] == expected["image_grid_thw"].tolist()
    torch.testing.assert_close(found, expected["pixel_values"], atol=1e-5, rtol=0)


def test_an_odd_last_frame_stands_twice():
    clip = torch.stack([picture(56, 56, seed) for seed in range(5)]).float() / 255
    odd, grid = to_patches(clip, PixelConfig())
    assert grid == (3, 4, 4) and torch.equal(odd, to_patches(torch.cat([clip, clip[-1:]]), PixelConfig())[0])


@pytest.mark.parametrize(
    ("size", "bounds", "wanted"),
    [
        ((480, 832), (3136, 200704), (336, 588)),
        ((1080, 1920), (3136, 200704), (336, 588)),
        ((32, 32), (3136, 200704), (56, 56)),
        ((32, 32), (100352, 200704), (336, 336)),
        ((56, 84), (3136, 200704), (56, 84)),
        ((10, 500), (3136, 200704), (28, 504)),
        ((9, 1800), (3136, 50000), (28, 3136)),
    ],
)
def test_sizes(size, bounds, wanted):
    found = target_size(*size, *bounds)
    assert found == wanted and found[0] % 28 == found[1] % 28 == 0
    assert target_size(*found, *bounds) == found or found[0] * found[1] > bounds[1]


@pytest.mark.parametrize(
    ("total", "fps", "wanted"),
    [
        (4, 2, [0, 1, 2, 3]),
        (5, 2, [0, 1, 3, 4]),
        (4, 16, [0, 1, 2, 3]),
        (16, 8, [0, 5, 10, 15]),
        (81, 16, [0, 9, 18, 27, 36, 44, 53, 62, 71, 80]),
        (4, 0.1, [0, 1, 2, 3]),
    ],
)
def test_sampled_frames(total, fps, wanted):
    assert sample_frames(total, fps).tolist() == wanted


def test_long_clips_are_sampled_at_most_768_times():
    chosen = sample_frames(100_000, 24)
    assert len(chosen) == 768 and chosen[-1] == 99_999 and chosen.diff().min() > 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sample_frames(3, 2), "at least 4 frames, not 3"),
        (lambda: sample_frames(9, 0), "source_fps must be a positive number"),
        (lambda: sample_frames(9, float("nan")), "source_fps must be a positive number"),
        (lambda: target_size(10, 2010, 1, 9), "10 x 2010 pixels is too long"),
        (lambda: PixelConfig(min_pixels=9, max_pixels=8), "min_pixels 9"),
        (lambda: PixelConfig(fps=0), "fps must be"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_rounding_lets_the_gradient_through():
    clip = (0.2 + 0.6 * torch.rand(4, 3, 40, 50)).requires_grad_()
    direction = torch.randn(4, 3, 56, 84)
    gradients = []
    for rounding in (True, False):
        resized = fitted_clip(clip, PixelConfig(rounding=rounding))
        levels = resized.detach() * 255
        assert bool(((levels - levels.round()).abs() < 1e-3).all()) is rounding
        gradients += torch.autograd.grad((resized * direction).sum(), clip)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def smooth(qwen_files):
    return VideoReward.from_pretrained(
        qwen_files.reward, qwen_files.backbone, qwen_files.template, 2.0, torch.float64, min_pixels=3136, rounding=False
    )


@pytest.mark.parametrize("size", [(56, 84), (61, 75)])
def test_gradients_land_on_the_pixel_that_was_moved(smooth, size):
    """A pixel in every patch of every frame, in turn of every channel, against finite differences of the score."""
    torch.manual_seed(0)
    clip = 0.3 + 0.4 * torch.rand(4, 3, *size, dtype=torch.float64)
    leaf = clip.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(smooth.score_clips([leaf], ["a red circle"])[0].sum(), leaf)
    cells = [(t, y, x) for t in range(4) for y in range(7, size[0], 14) for x in range(7, size[1], 14)]
    places = [(t, (t + index) % 3, y, x) for index, (t, y, x) in enumerate(cells)]
    assert {place[1] for place in places} == {0, 1, 2}
    moved, step = [], 3e-2
    for place in places:
        for sign in (1, -1):
            moved.append(clip.clone())
            moved[-1][place] += sign * step
    with torch.no_grad():
        totals = smooth.score_clips(moved, ["a red circle"] * len(moved)).sum(dim=1)
    slopes = (totals[::2] - totals[1::2]) / (2 * step)
    found = torch.stack([gradient[place] for place in places])
    worst = (found - slopes).abs().max() / slopes.abs().max()
    assert worst < 1e-2
    assert (found.roll(1) - slopes).abs().max() / slopes.abs().max() > 0.5
