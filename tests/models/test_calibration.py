"""Calibration: probabilities that hold, false-positive rates that are counts of real clips."""

import pytest
import torch

from reelgym.models.calibration import Calibration, fit_logistic


def draws(count=4000, seed=0):
    """Logits [M, 2] of real clips around 0 and made ones around 2, spread 1; of the second chunk three times as far."""
    random = torch.Generator().manual_seed(seed)
    made = torch.arange(count) >= count // 2
    first = torch.randn(count, generator=random) + 2 * made
    return torch.stack((first, 3 * first + 1), 1), made


@pytest.fixture(scope="module")
def calibration():
    return Calibration.fit(*draws())


def test_platts_line_is_the_log_odds(calibration):
    torch.testing.assert_close(calibration.scale, torch.tensor([2.0, 2 / 3]), atol=0.15, rtol=0)
    torch.testing.assert_close(calibration.bias, torch.tensor([-2.0, -8 / 3]), atol=0.2, rtol=0)
    torch.testing.assert_close(calibration.probability(torch.tensor([1.0]), 1), torch.tensor([0.5]), atol=0.02, rtol=0)


def test_probabilities_hold_on_new_clips(calibration):
    logits, made = draws(seed=1)
    told = calibration.probability(logits[:, 1], 2)
    for low, high in ((0.0, 0.2), (0.4, 0.6), (0.8, 1.0)):
        inside = (told > low) & (told < high)
        assert float(told[inside].mean() - made[inside].float().mean()) == pytest.approx(0, abs=0.04)


def test_the_false_positive_rate_is_the_share_of_real_clips_above(calibration):
    logits, made = draws(seed=1)
    real = logits[~made, 0]
    for value in (-1.0, 0.0, 1.5):
        told = float(calibration.false_positives(torch.tensor([value]), 1))
        assert told == pytest.approx(float((real >= value).float().mean()), abs=0.03)
    ends = calibration.false_positives(torch.tensor([-99.0, 99.0]), 1)
    torch.testing.assert_close(ends, torch.tensor([1.0, 1 / 2001]))
    rising = calibration.false_positives(torch.linspace(-4, 4, 50), 1)
    assert (rising.diff() <= 0).all()


def test_a_manifest_keeps_it(calibration):
    again = Calibration.from_manifest(calibration.to_manifest())
    logits, _ = draws(seed=2)
    assert again.chunks == 2 and again.count == 2000
    for told in ("probability", "false_positives"):
        one, two = (getattr(which, told)(logits[:, 1], 2) for which in (calibration, again))
        torch.testing.assert_close(one, two, atol=1e-3, rtol=0)


def test_weights_count_clips():
    logits, made = draws()
    rare = torch.where(made, 0.1, 1.0)
    slope, bias = fit_logistic(logits[:, :1], made, rare)
    alike, other = fit_logistic(logits[:, :1], made)
    assert float(slope) == pytest.approx(float(alike), abs=0.3)
    assert float(bias - other) == pytest.approx(-2.3, abs=0.3)


def test_kinds_that_never_overlap_have_an_end():
    slope, bias = fit_logistic(torch.tensor([[0.0], [1.0]]), torch.tensor([False, True]))
    assert slope.isfinite().all() and bias.isfinite() and slope > 1


def test_what_is_wrong_is_said(calibration):
    logits, made = draws(8)
    with pytest.raises(ValueError, match="calibrated for 1 to 2 chunks, not 3"):
        calibration.probability(logits[:, 0], 3)
    with pytest.raises(ValueError, match="needs real clips and made ones"):
        Calibration.fit(logits[made], made[made])
    with pytest.raises(ValueError, match="features are not finite"):
        Calibration.fit(logits * torch.nan, made)
    with pytest.raises(ValueError, match="no calibration .'calibration' is missing"):
        Calibration.from_manifest({})
