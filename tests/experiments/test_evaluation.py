"""Times to a target and the search of a rate, by hand."""

from math import inf

import pytest

from reelgym.agents.finetune_recipes import FINETUNE
from reelgym.experiments.evaluation.search import tries_of, winner
from reelgym.experiments.evaluation.time_to_target import (
    first_at,
    interval_of,
    median_span,
    ratio_cells,
    ratio_shown,
    ratio_span,
    resampled,
    span_cells,
    span_of,
    time_shown,
)
from reelgym.training.sequence import Sequence, Stage


def test_the_first_point_that_reaches_the_target():
    curve = [{"oracle": 0.1, "chunks": 64}, {"oracle": 0.6, "chunks": 128}, {"oracle": 0.5, "chunks": 256}]
    assert first_at(curve, "oracle", 0.5)["chunks"] == 128
    assert first_at(curve, "oracle", 0.7) is None and first_at([], "oracle", 0.0) is None


def test_medians_and_ratios_by_hand():
    assert median_span([64, 96, 128], [True, True, True]) == (96, 96)
    assert median_span([64, 512, 512, 512], [True, False, False, False]) == (512, inf)
    assert median_span([64, 96, 512, 512], [False] * 4) == (96, inf)
    assert span_of((((64, True), (96, True)), ((128, True),))) == (96, 96)
    assert ratio_span((512, 512), (64, 64)) == (8, 8) and ratio_span((512, inf), (64, 64)) == (8, inf)
    assert ratio_span((64, 64), (512, inf)) == (0, 0.125) and ratio_span((512, inf), (512, inf)) == (0, inf)
    assert ratio_span((0, 0), (0, 0)) == (1, 1) and ratio_span((1, 1), (0, 0)) == (inf, inf)
    spans = [(2, 2)] * 95 + [(4, 4)] * 5
    assert interval_of(spans, [(1, 1)] * 100) == (2, 4) and interval_of([(9, inf)] * 9, [(3, 3)] * 9) == (3, inf)


def test_cells_of_a_row_and_how_they_are_shown():
    fast, slow, never = (((x, reached),) * 3 for x, reached in ((4.0, True), (8.0, True), (8.0, False)))
    fast, slow, never = (tuple((run,) for run in runs) for runs in (fast, slow, never))
    assert ratio_cells("s", slow, fast) == {"s": 2, "s_at_least": 2, "s_at_most": 2, "s_low": 2, "s_high": 2}
    open_above, open_below, unknown = (
        ratio_cells("s", *pair) for pair in ((never, fast), (fast, never), (never, never))
    )
    assert [ratio_shown("s")(row) for row in (open_above, open_below, unknown)] == [">= 2.0 [2.0, open]", "<= 0.5", "–"]
    assert ratio_shown("s", bounded=False)(open_above) == ">= 2.0"
    assert (
        time_shown("s")(span_cells("s", (1500, 1500))) == "1,500"
        and time_shown("s")(span_cells("s", (8, inf))) == "> 8"
    )
    assert time_shown("s")({"s": None, "s_at_least": None}) == "never"


def test_draws_are_the_same_for_all():
    times = tuple(((float(seed), True),) for seed in range(5))
    longer = tuple(((10.0 * seed, True),) for seed in range(5))
    assert [10 * low for low, _ in resampled(times)] == [low for low, _ in resampled(longer)]


def test_a_search_takes_the_best_and_of_equals_the_lowest_rate():
    recipe = FINETUNE["forward"]
    tries = tries_of("forward", recipe, (1 / 3, 1.0, 3.0))
    assert list(tries) == ["search-forward-0", "search-forward-1", "search-forward-2"]
    assert [one.learning_rate / recipe.learning_rate for one in tries.values()] == pytest.approx([1 / 3, 1, 3])
    assert winner(recipe, tries, dict(zip(tries, (0.1, 0.3, 0.2), strict=True))) == recipe
    assert winner(recipe, tries, dict.fromkeys(tries, -1.0)).learning_rate < recipe.learning_rate
    assert winner(recipe, {}, {}) is recipe
    assert tries_of("both", Sequence((Stage(recipe, 1),)), (1.0, 3.0)) == {}
