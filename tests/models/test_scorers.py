"""D3 and ReStraV as detectors, on paths that are even or shaken."""

import pytest
import torch

from reelgym.models.classifiers import NetworkDetector
from reelgym.models.scorers import D3, ReStraV


def clips(count, shake, seed):
    """Clips [B, 8, 3, 4, 4] whose mean colour goes round evenly, and shaken by so much."""
    random = torch.Generator().manual_seed(seed)
    angle = 0.3 * torch.arange(8) + 6 * torch.rand(count, 1, generator=random)
    colour = 0.5 + 0.3 * torch.stack((angle.cos(), angle.sin(), angle.sin() * angle.cos()), -1)
    colour = colour + shake * torch.randn(colour.shape, generator=random)
    return colour.clamp(0, 1)[..., None, None].expand(-1, -1, -1, 4, 4).contiguous()


def features(video):
    return video.mean((-1, -2))


def test_d3_flags_what_is_too_even_at_its_false_positive_rate():
    real, made = clips(400, 0.05, 0), clips(200, 0.0, 1)
    scorer = D3.fit(features, real, rate=0.05)
    assert float((scorer(real) > 0).float().mean()) == pytest.approx(0.05, abs=0.01)
    assert float((scorer(clips(400, 0.05, 2)) > 0).float().mean()) == pytest.approx(0.05, abs=0.04)
    assert float((scorer(made) > 0).float().mean()) > 0.9


def test_restrav_learns_from_both_kinds():
    scorer = ReStraV.fit(features, clips(300, 0.02, 0), clips(200, 0.06, 1))
    real, made = scorer.probability(clips(200, 0.02, 2)), scorer.probability(clips(200, 0.06, 3))
    assert (real < 0.5).float().mean() > 0.9 and (made > 0.5).float().mean() > 0.9
    strangers = torch.cat((real, made))
    assert ((strangers >= 0) & (strangers <= 1)).all()


def test_both_stream_as_detectors():
    for scorer in (D3(features, 0.1), ReStraV.fit(features, clips(40, 0.02, 0), clips(40, 0.06, 1))):
        video, detector = clips(3, 0.05, 4), NetworkDetector(scorer, frames=8, size=4)
        state = detector.open(3, video.device)
        for chunk in video.split(4, 1):
            logit, state = detector.watch(chunk, state)
        torch.testing.assert_close(logit, scorer(video))


def test_what_does_not_fit_is_said():
    scorer = ReStraV.fit(features, clips(20, 0.02, 0), clips(20, 0.06, 1))
    with pytest.raises(ValueError, match="fitted on clips of 8 frames, not 6"):
        scorer(clips(2, 0.0, 0)[:, :6])
    with pytest.raises(ValueError, match="made ones"):
        ReStraV.fit(features, clips(4, 0.1, 0), clips(4, 0.1, 0)[:, :6])
    with pytest.raises(ValueError, match="do the real clips differ"):
        D3.fit(features, torch.zeros(4, 8, 3, 4, 4))
    with pytest.raises(ValueError, match="rate is a share"):
        D3.fit(features, clips(4, 0.1, 0), rate=1.0)
