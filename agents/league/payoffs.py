"""Who beats whom: payoffs of a league as counts, what follows from them, and whom to play next.

G generators, D detectors. A win is the generator's: one made stream that its opponent took for real.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Payoffs:
    """wins, games: of every (generator, detector) by their names, made streams only."""

    wins: dict[tuple[str, str], int] = field(default_factory=dict)
    games: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, generator: str, detector: str, wins: int, games: int) -> None:
        """So many more games of the two; ValueError for counts that cannot be."""
        if not 0 <= wins <= games:
            raise ValueError(f"{wins} wins of {games} games between {generator} and {detector}")
        pair = (generator, detector)
        self.wins[pair] = self.wins.get(pair, 0) + wins
        self.games[pair] = self.games.get(pair, 0) + games

    def rate(self, generator: str, detector: str) -> float:
        """Share of games that the generator won; one half where they have not met."""
        played = self.games.get((generator, detector), 0)
        return self.wins[generator, detector] / played if played else 0.5

    def table(self, generators: Sequence[str], detectors: Sequence[str]) -> NDArray[np.float64]:
        """Rates [G, D]."""
        return np.array([[self.rate(row, column) for column in detectors] for row in generators], dtype=np.float64)

    def state(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return {"games": [[*pair, self.wins[pair], games] for pair, games in self.games.items()]}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Payoffs:
        """Inverse of `state`."""
        made = cls()
        for generator, detector, wins, games in state["games"]:
            made.add(generator, detector, wins, games)
        return made


def contested(rates: NDArray[np.float64], low: float = 0.1, high: float = 0.9) -> float:
    """Share of payoffs [G, D] that lie within [low, high]: a game is worth playing while it can be lost by both."""
    return float(((rates >= low) & (rates <= high)).mean())


def priorities(rates: Sequence[float]) -> NDArray[np.float64]:
    """How likely each opponent is to be drawn, from one's own win rates against them (PFSP, AlphaStar 2019).

    (1 - p)^2: those that win against us. Sums to 1; uniform where every weight is 0.
    """
    won = np.asarray(rates, dtype=np.float64)
    if not won.size:
        raise ValueError("no opponent to draw from: the pool is empty")
    weight = (1 - won) ** 2
    total = weight.sum()
    return weight / total if total > 0 else np.full(len(won), 1 / len(won))


def intransitive(rates: NDArray[np.float64], margin: float = 0.05) -> int:
    """How many pairs of generators [G, D] are ranked one way by one detector and the other way by another, each time by
    more than `margin`: with two roles that is what a cycle of three is with one."""
    found = 0
    for first, second in combinations(range(len(rates)), 2):
        gap = rates[first] - rates[second]
        found += int((gap > margin).sum()) * int((gap < -margin).sum())
    return found
