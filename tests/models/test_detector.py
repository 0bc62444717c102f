"""The clip detector: streaming verdicts, memories that are cut and joined, and the scores that read a path."""

import pytest
import torch

from reelgym.models.detector import ClipDetector, d3_score, restrav_features

CHUNK = 3


@pytest.fixture
def detector():
    torch.manual_seed(0)
    return ClipDetector(width=16, size=8).eval()


@pytest.fixture
def video():
    return torch.rand(5, 4 * CHUNK, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def streamed(detector, video, state=None):
    """Logits [B, n] chunk after chunk, and the last state."""
    state = state or detector.open(len(video), video.device)
    logits = []
    for chunk in video.split(CHUNK, 1):
        logit, state = detector.watch(chunk, state)
        logits.append(logit)
    return torch.stack(logits, 1), state


@torch.no_grad()
def test_streaming_says_what_the_whole_pass_says(detector, video):
    whole = detector(video)
    assert whole.shape == (5, 12) and whole.std() > 1e-3
    torch.testing.assert_close(streamed(detector, video)[0], whole[:, CHUNK - 1 :: CHUNK])


@torch.no_grad()
def test_what_is_said_of_a_chunk_does_not_depend_on_later_ones(detector, video):
    other = torch.cat((video[:, :6], 1 - video[:, 6:]), 1)
    one, two = detector(video), detector(other)
    torch.testing.assert_close(one[:, :6], two[:, :6])
    assert (one[:, 6:] - two[:, 6:]).abs().min() > 1e-6


@torch.no_grad()
def test_clips_of_a_batch_do_not_see_each_other(detector, video):
    torch.testing.assert_close(detector(video)[2:3], detector(video[2:3]))


@torch.no_grad()
def test_a_state_can_be_forked_and_mixed(detector, video):
    early, late = video.split(6, 1)
    whole, _ = streamed(detector, video)
    _, state = streamed(detector, early)
    rows = torch.tensor([3, 3, 0])
    forked, _ = streamed(detector, late[rows], state.take(rows))
    torch.testing.assert_close(forked, whole[rows, 2:])
    anew = torch.tensor([True, False, False, True, False])
    mixed, _ = streamed(detector, late, state.where(anew, detector.open(5, video.device)))
    first, _ = streamed(detector, late)
    torch.testing.assert_close(mixed, torch.where(anew[:, None], first, whole[:, 2:]))
    assert not torch.allclose(first, whole[:, 2:])


def test_a_gradient_reaches_the_newest_chunk(detector, video):
    _, state = streamed(detector, video[:, :3])
    chunk = video[:, 3:6].clone().requires_grad_()
    (slope,) = torch.autograd.grad(detector.watch(chunk, state)[0].sum(), chunk)
    assert slope.isfinite().all() and (slope.abs().flatten(2).amax(2) > 0).all()


def turning(degrees):
    """Features [1, F, 2] of unit steps that turn by `degrees`, one after the other."""
    heading = torch.tensor([0.0, *degrees]).cumsum(0).deg2rad()
    steps = torch.stack((heading.cos(), heading.sin()), -1)
    return torch.cat((torch.zeros(1, 2), steps.cumsum(0)))[None]


def test_restrav_features_by_hand():
    found = restrav_features(turning([0, 90, 90]))[0]
    lengths, turns = found[:4], found[4:7].rad2deg()
    torch.testing.assert_close(lengths, torch.ones(4))
    torch.testing.assert_close(turns, torch.tensor([0.0, 90.0, 90.0]), atol=0.05, rtol=0)
    torch.testing.assert_close(found[7:11], torch.tensor([1.0, 0.0, 1.0, 1.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[11].rad2deg(), torch.tensor(60.0), atol=0.05, rtol=0)


def test_d3_by_hand():
    angles = torch.tensor([[0.0, 60.0, 60.0, 60.0], [0.0, 30.0, 60.0, 90.0]]).deg2rad()
    features = torch.stack((angles.cos(), angles.sin()), -1)
    torch.testing.assert_close(d3_score(features), torch.tensor([0.25, 0.0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("score", [d3_score, restrav_features])
def test_two_frames_are_no_path(score):
    with pytest.raises(ValueError, match="needs at least 3 frames, not 2"):
        score(torch.rand(1, 2, 4))
