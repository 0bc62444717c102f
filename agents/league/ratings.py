"""Skill of every player from single streams, by openskill's Plackett-Luce; scripted anchors hold the scale in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .payoffs import Payoffs


@dataclass(frozen=True)
class Rating:
    """mu: skill.   sigma: how unsure it is."""

    mu: float
    sigma: float


def rated(payoffs: Payoffs, anchors: Sequence[str] = (), most: int = 64, seed: int = 0) -> Mapping[str, Rating]:
    """Ratings of all that have played; generators and detectors share one scale.

    Single streams are gone through once in random order, at most `most` of a pair, so that who plays much does not
    drown the rest. anchors: players whose rating stays at the default; several say that they are of one strength.
    """
    from openskill.models import PlackettLuce

    model, random = PlackettLuce(), np.random.default_rng(seed)
    names = sorted({name for pair in payoffs.games for name in pair})
    found = {name: model.rating(name=name) for name in names}
    games = [
        (pair, won)
        for pair, played in sorted(payoffs.games.items())
        for won in _sampled(payoffs.wins[pair], played, most, random)
    ]
    for place in random.permutation(len(games)):
        (generator, detector), won = games[place]
        winner, loser = (generator, detector) if won else (detector, generator)
        ([first], [second]) = model.rate([[found[winner]], [found[loser]]])
        for name, now in ((winner, first), (loser, second)):
            if name not in anchors:
                found[name] = now
    return {name: Rating(one.mu, one.sigma) for name, one in found.items()}


def _sampled(wins: int, games: int, most: int, random: np.random.Generator) -> list[bool]:
    """Outcomes of a pair's streams, or of `most` of them in the same proportion."""
    if games <= most:
        return [True] * wins + [False] * (games - wins)
    kept = wins * most / games
    whole = int(kept) + int(random.random() < kept - int(kept))
    return [True] * whole + [False] * (most - whole)
