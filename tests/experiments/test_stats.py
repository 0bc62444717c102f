import numpy as np
import pytest

from reelgym.experiments.stats import (
    Interval,
    auc,
    bootstrap_means,
    calibration_error,
    censored_median,
    iqm,
    mean_interval,
    paired_difference,
    probability_of_improvement,
    sign_test,
    tpr_at,
)


def test_constant_scores_have_no_width():
    interval = mean_interval(np.full((3, 5), 0.4))
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.4, 0.4, 0.4))


def test_one_cell_is_its_own_interval():
    assert mean_interval([[0.7]]) == Interval(0.7, 0.7, 0.7)


def test_bootstrap_variance_is_the_unbiased_variance_of_the_mean():
    seeds = np.array([[0.0], [1.0], [5.0], [6.0]])
    assert bootstrap_means(seeds, 40_000).var() == pytest.approx(seeds.var(ddof=1) / 4, rel=0.05)
    assert bootstrap_means(seeds.T, 40_000).var() == pytest.approx(seeds.var(ddof=1) / 4, rel=0.05)


def test_two_seeds_give_the_three_points_that_two_seeds_have():
    half = 0.5 * np.sqrt(2)
    assert np.unique(bootstrap_means([[0.0], [1.0]]).round(6)) == pytest.approx([0.5 - half, 0.5, 0.5 + half], abs=1e-6)


def test_pairing_removes_what_two_methods_share():
    prompts = np.random.default_rng(0).normal(size=(1, 30)) * 10
    start = np.repeat(prompts, 3, 0)
    ours = start + np.array([[0.1], [0.2], [0.3]])
    paired = paired_difference(ours, start)
    assert paired.mean == pytest.approx(0.2)
    assert paired.verdict == "yes" and paired.low > 0
    assert mean_interval(ours).high - mean_interval(ours).low > 10 * (paired.high - paired.low)


def test_the_same_call_gives_the_same_interval():
    scores = np.random.default_rng(1).normal(size=(2, 9))
    assert mean_interval(scores) == mean_interval(scores)


@pytest.mark.parametrize(
    "low, high, verdict", [(0.1, 0.2, "yes"), (-0.2, -0.1, "no"), (-0.1, 0.1, "unclear"), (0, 1, "unclear")]
)
def test_verdict(low, high, verdict):
    assert Interval((low + high) / 2, low, high).verdict == verdict


@pytest.mark.parametrize("seeds, least", [(5, 0.85), (10, 0.90)])
def test_interval_covers_the_truth(seeds, least):
    random = np.random.default_rng(seeds)
    covered = 0
    for trial in range(200):
        effects = random.normal(size=(seeds, 1)) + random.normal(size=(1, 12)) + random.normal(size=(seeds, 12))
        interval = mean_interval(effects, resamples=400, seed=trial)
        covered += interval.low <= 0 <= interval.high
    assert covered / 200 >= least


def test_sign_test_by_hand():
    assert sign_test([1, 1, 1, 1, 1]) == pytest.approx(2 / 32)
    assert sign_test([1, 1, 1, -1, 0]) == pytest.approx(2 * (1 + 4) / 16)
    assert sign_test([1, -1]) == 1.0
    assert sign_test([0, 0]) == 1.0


def test_censored_median_by_hand():
    assert censored_median([1, 2, 3], [True, True, True]) == 2
    assert censored_median([1, 9, 9], [True, False, False]) == float("inf")
    assert censored_median([1, 2, 9, 9], [True, True, False, False]) == 2
    for runs in (24, 28, 30, 38):  # rounding leaves a little more than half alive
        times = [*range(1, runs // 2 + 1), *[99] * (runs // 2)]
        assert censored_median(times, [True] * (runs // 2) + [False] * (runs // 2)) == runs // 2
    assert censored_median([1, 2, 3, 4], [False, True, True, True]) == 3  # 1 -> 2/3 at time 2 -> 1/3 at time 3


def test_auc_by_hand_and_by_pairs():
    assert auc([0, 1], [2, 3]) == 1 and auc([2, 3], [0, 1]) == 0 and auc([1, 1], [1]) == 0.5
    assert auc([0, 1, 2], [1, 3]) == pytest.approx((1.5 + 3) / 6)
    random = np.random.default_rng(0)
    real, fake = random.integers(0, 9, 40), random.integers(3, 12, 17)
    pairs = (fake[:, None] > real).mean() + 0.5 * (fake[:, None] == real).mean()
    assert auc(real, fake) == pytest.approx(pairs)
    assert auc(real, fake) + auc(fake, real) == pytest.approx(1)


def test_auc_leaves_its_scores_alone():
    real = np.array([3.0, 1.0, 2.0])
    auc(real, [2.0])
    assert real.tolist() == [3, 1, 2]


def test_tpr_at_lets_no_more_than_its_share_of_real_clips_pass():
    real, fake = list(range(100)), [97, 98, 98.5, 200]
    assert tpr_at(real, fake) == 0.5 and tpr_at(real, fake, 0) == 0.25 and tpr_at(real, fake, 0.02) == 0.75
    assert tpr_at([1, 1, 1], [1, 2], 0.5) == 0.5 and tpr_at([5], [0], 1) == 1
    with pytest.raises(ValueError, match="not 2"):
        tpr_at([1], [1], 2)


def test_calibration_error_by_hand():
    assert calibration_error([0.25] * 4, [1, 0, 0, 0]) == 0
    assert calibration_error([0.0, 1.0], [1, 0]) == 1
    assert calibration_error([0.1, 0.1, 0.9], [1, 0, 1], bins=2) == pytest.approx((2 * 0.4 + 0.1) / 3)
    assert calibration_error([0.1, 0.9], [1, 0], bins=1) == pytest.approx(0)
    assert calibration_error([0.5] * 4, [1, 1, 0, 0], 15, [3.0, 3.0, 1.0, 1.0]) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="probabilities in"):
        calibration_error([1.5], [1])


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="seeds, prompts"):
        mean_interval([1.0, 2.0])
    with pytest.raises(ValueError, match="same seeds and prompts"):
        paired_difference(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="NaN"):
        mean_interval([[np.nan]])
    with pytest.raises(ValueError, match="one length"):
        censored_median([], [])
    with pytest.raises(ValueError, match="finite row"):
        auc([], [1.0])
    with pytest.raises(ValueError, match="finite row"):
        auc([np.nan], [1.0])


def test_iqm_leaves_out_the_outer_quarters():
    assert iqm([[0, 1, 2, 100]]) == pytest.approx(1.5) and iqm([[7.0]]) == 7
    assert iqm(np.arange(12).reshape(3, 4)) == pytest.approx(np.arange(3, 9).mean())
    assert iqm([[0, 3, 9]]) == pytest.approx((0.25 * 0 + 3 + 0.25 * 9) / 1.5)


def test_probability_of_improvement():
    assert probability_of_improvement([[1, 1]], [[0, 2], [1, 0]]) == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert probability_of_improvement([[3.0]], [[3.0]]) == 0.5
    with pytest.raises(ValueError, match="the same prompts"):
        probability_of_improvement([[1, 2]], [[1]])
