"""How a league is played."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Side = Literal["generator", "detector"]
SIDES: tuple[Side, Side] = ("generator", "detector")


@dataclass(frozen=True)
class LeagueConfig:
    """How a league is played."""

    learns: tuple[Side, ...] = ("generator", "detector")
    """The sides that learn; the other is frozen."""
    generator_updates: int = 4
    """Of the generator in a round."""
    detector_updates: int = 40
    """Of the detector in a round."""
    clips: int = 48
    """Of the generator that join the pool of fakes in a round."""
    mix: tuple[float, float, float] = (0.5, 0.35, 0.15)
    """How often an opponent is drawn by priority among the past, is the newest, and is an exploiter. Who is none yet
    leaves its share to the newest."""
    anchored: float = 0.2
    """Share of the fakes that the detector began with, in every batch of its; `mix` shares out the rest."""
    opponents: int = 2
    """Detectors that a generator's reward averages over."""
    exploit_every: int = 2
    """Rounds between exploiters; 0: none."""
    exploiter_updates: int = 4
    """Of a generator that exploits; a detector makes ten times as many."""
    runaway: float = 0.9
    """A side that wins more than this share against the newest opponent pauses for a round; where one side alone
    learns, it never does."""
    confidence: float = 2.0
    """Logit at which a detector decides."""
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (self.generator_updates, self.detector_updates, self.clips, self.opponents, self.exploiter_updates)
        if min(counts) < 1 or self.exploit_every < 0:
            raise ValueError(f"updates, clips and opponents are at least 1, exploit_every at least 0: {self}")
        if len(self.mix) != 3 or min(self.mix) < 0 or not sum(self.mix) > 0 or not 0.5 < self.runaway <= 1:
            raise ValueError(f"mix is three shares not below 0 and not all 0, runaway lies in (.5, 1]: {self}")
        if not 0 <= self.anchored < 1:
            raise ValueError(f"anchored is a share in [0, 1), not {self.anchored}")
        if not self.learns or set(self.learns) - set(SIDES):
            raise ValueError(f"who learns is generator, detector or both, not {self.learns}")
