"""VideoReward: the public implementation's numbers, its checkpoint layouts, and scoring from pixels and prompts."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reelgym.models.qwen_pixels import to_patches
from reelgym.models.videoreward import VideoReward

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "videoreward"
AXES = ("VQ", "MQ", "TA")


@pytest.fixture(scope="module")
def trace():
    return load_file(GOLDEN / "trace.safetensors")


@pytest.fixture(scope="module")
def golden():
    return VideoReward.from_pretrained(GOLDEN)


def logits(model, trace, pixels):
    return model.logits(pixels, trace["video_grid_thw"], trace["input_ids"], trace["attention_mask"])


def worst_differences(model, trace, pixels):
    """Of the logits, and of the pixel gradients relative to their size."""
    pixels = pixels.clone().requires_grad_()
    found = logits(model, trace, pixels)
    yield float((found - trace["logits"]).detach().abs().max())
    for column, axis in enumerate(AXES):
        (gradient,) = torch.autograd.grad(found[:, column].sum(), pixels, retain_graph=True)
        wanted = trace[f"pixel_gradient_{axis}"]
        yield float((gradient - wanted).abs().max() / wanted.abs().max())


def frames_to_patches(model, trace):
    return [to_patches(trace[f"frames{clip}"].float() / 255, model.pixels) for clip in range(2)]


def test_logits_and_pixel_gradients_are_reproduced(golden, trace):
    assert max(worst_differences(golden, trace, trace["pixel_values_videos"])) < 1e-5


def test_pixels_are_reproduced_from_frames_on(golden, trace):
    patches, grids = zip(*frames_to_patches(golden, trace), strict=True)
    assert [list(grid) for grid in grids] == trace["video_grid_thw"].tolist()
    torch.testing.assert_close(torch.cat(patches), trace["pixel_values_videos"], atol=1e-6, rtol=0)
    assert max(worst_differences(golden, trace, torch.cat(patches))) < 1e-5


def test_three_axis_positions_would_be_seen(golden, trace, monkeypatch):
    kinds = (trace["input_ids"] == golden.backbone.config.video_token_id).long() * 2
    mrope, _ = golden.backbone.get_rope_index(
        trace["input_ids"], kinds, video_grid_thw=trace["video_grid_thw"], attention_mask=trace["attention_mask"]
    )
    plain = golden.backbone.language_model.forward
    monkeypatch.setattr(
        golden.backbone.language_model, "forward", lambda **given: plain(**given | {"position_ids": mrope})
    )
    logit, *gradients = worst_differences(golden, trace, trace["pixel_values_videos"])
    assert logit > 0.01 and min(gradients) > 0.1
