"""The league's bookkeeping, by hand."""

import numpy as np
import pytest

from reelgym.agents.league.payoffs import Payoffs, contested, intransitive, priorities
from reelgym.agents.league.ratings import rated


def test_payoffs_count_and_forget():
    payoffs = Payoffs()
    payoffs.add("g", "d", 3, 4)
    payoffs.add("g", "d", 1, 4)
    payoffs.add("g", "e", 0, 2)
    assert payoffs.rate("g", "d") == 0.5 and payoffs.rate("g", "e") == 0 and payoffs.rate("g", "new") == 0.5
    assert payoffs.table(["g"], ["d", "e", "new"]).tolist() == [[0.5, 0, 0.5]]
    again = Payoffs.from_state(payoffs.state())
    assert again == payoffs
    payoffs.forget("e")
    assert list(payoffs.games) == [("g", "d")]
    with pytest.raises(ValueError, match="5 wins of 4 games"):
        payoffs.add("g", "d", 5, 4)


def test_a_game_worth_playing():
    assert contested(np.array([[0.0, 0.1], [0.5, 1.0]])) == 0.5


def test_priorities():
    assert priorities([0.0, 0.5, 1.0]).tolist() == pytest.approx([0.8, 0.2, 0.0])
    assert priorities([0.0, 0.5, 1.0], "even").tolist() == [0, 1, 0]
    assert priorities([1.0, 1.0]).tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="the pool is empty"):
        priorities([])


def test_two_detectors_that_disagree_on_two_generators():
    assert intransitive(np.array([[0.9, 0.1], [0.1, 0.9]])) == 1
    assert intransitive(np.array([[0.9, 0.5], [0.1, 0.4]])) == 0
    assert intransitive(np.array([[0.52, 0.5], [0.5, 0.52]])) == 0


def test_who_wins_more_is_rated_higher_and_anchors_stay():
    payoffs = Payoffs()
    for generator, wins in (("strong", 90), ("weak", 10), ("anchor", 50)):
        payoffs.add(generator, "judge", wins, 100)
    found = rated(payoffs, anchors=["anchor"])
    assert found["strong"].mu > found["anchor"].mu > found["weak"].mu and found["anchor"].mu == 25
    assert found["strong"].ordinal < found["strong"].mu and found == rated(payoffs, anchors=["anchor"])
