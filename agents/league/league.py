"""The league: a generator and a detector that learn from each other, from their pasts, and from scripted anchors.

A round: draw opponents, train the generator against them, show its clips to the detector, train it on these and on
older ones, and now and then freeze both and let everybody meet everybody.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from ...checkpoint import CheckpointError
from ...envs.self_play import SelfPlayGame
from ...models.detector import ClipDetector
from ...models.generator import Generator
from ...noise import stream_keys
from ..detection import Detection
from ..finetune import FineTune
from ..fit import plain
from ..learner import Groups
from .match import Judge, play
from .payoffs import Payoffs, priorities
from .reward import OpponentReward

Side = Literal["generator", "detector"]
NEWEST = {"generator": "generator", "detector": "detector"}
"""Names of those who are learning."""


@dataclass(frozen=True)
class LeagueConfig:
    """How a league is played."""

    generator_updates: int = 4
    """Of the generator in a round."""
    detector_updates: int = 40
    """Of the detector in a round."""
    clips: int = 64
    """Of the generator that join the pool of fakes in a round."""
    streams: int = 64
    """Of a match."""
    freeze_every: int = 2
    """Rounds between frozen copies of both."""
    mix: tuple[float, float] = (0.65, 0.35)
    """How often an opponent is drawn by priority among all, and how often it is the newest."""
    opponents: int = 2
    """Detectors that a generator's reward averages over."""
    runaway: float = 0.9
    """A side that wins more than this share against the newest opponent pauses for a round."""
    confidence: float = 2.0
    """Logit at which a detector decides."""
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (self.generator_updates, self.detector_updates, self.clips, self.streams, self.freeze_every)
        if min(*counts, self.opponents) < 1:
            raise ValueError(f"updates, clips, streams, freeze_every and opponents are at least 1: {self}")
        if min(self.mix) < 0 or not sum(self.mix) > 0 or not 0.5 < self.runaway <= 1:
            raise ValueError(f"mix is not below 0 and not all 0, runaway in (.5, 1]: {self}")


@dataclass
class Member:
    """Somebody in the league. weights: of a frozen copy.   born: the round.   anchor: scripted, never learns."""

    side: Side
    weights: dict[str, Tensor] = field(default_factory=dict)
    born: int = 0
    anchor: bool = False


class League:
    """One generator and one detector that learn, and everybody they were.

    config. generator: the trainer of the one that learns, in an environment whose reward is `reward`. detector: the
    trainer of the other. judge_of: makes a player of a detector. game: the streams of a match. make_clips: clips
    [count, F, 3, H, W] of a generator from a seed, as the detector's trainer takes them. scripted: anchors that judge,
    by name; they are met and never trained.
    """

    def __init__(
        self,
        config: LeagueConfig,
        generator: FineTune,
        detector: Detection,
        reward: OpponentReward,
        game: SelfPlayGame,
        make_clips: Callable[[Generator, int, int], Tensor],
        scripted: Mapping[str, Judge] | None = None,
    ) -> None:
        self.config, self.generator, self.detector, self.reward = config, generator, detector, reward
        self.game, self.make_clips, self.scripted = game, make_clips, dict(scripted or {})
        self.members: dict[str, Member] = {name: Member("detector", anchor=True) for name in self.scripted}
        self.payoffs, self.rounds = Payoffs(), 0
        self.paused: dict[str, int] = {"generator": 0, "detector": 0}
        self.freeze()

    def names(self, side: Side) -> list[str]:
        """Everybody on a side: who learns first, then frozen copies and anchors in the order in which they came."""
        return [NEWEST[side], *(name for name, member in self.members.items() if member.side == side)]

    def freeze(self) -> None:
        """Keep copies of both as they are."""
        modules: dict[Side, nn.Module] = {
            "generator": self.generator.generator.model,
            "detector": self.detector.detector,
        }
        for side, module in modules.items():
            weights = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
            self.members[f"{side}-{self.rounds}"] = Member(side, weights, self.rounds)

    def play_round(self) -> dict[str, float]:
        """One round; returns what was measured."""
        config, random = self.config, self._random()
        rate = self.payoffs.rate(*NEWEST.values()) if self.rounds else 0.5
        learns = {"generator": rate <= config.runaway, "detector": 1 - rate <= config.runaway}
        measured: dict[str, float] = {"rate": rate}
        if learns["generator"]:
            self.reward.against([self.detector_named(name) for name in self._opponents(random)])
            for _ in range(config.generator_updates):
                measured |= {f"generator/{key}": value for key, value in self.generator.update().items()}
        fresh = self.make_clips(self.generator.generator, config.clips, self._seed(1))
        self.detector.fakes.add(f"round-{self.rounds}", fresh)
        if learns["detector"]:
            for _ in range(config.detector_updates):
                measured |= {f"detector/{key}": value for key, value in self.detector.update().items()}
        for side, goes_on in learns.items():
            self.paused[side] += not goes_on
            if goes_on:
                self.payoffs.forget(NEWEST[side])
        self.rounds += 1
        self.meet(*NEWEST.values())
        for name in self.names("detector")[1:]:
            self.meet("generator", name)
        for name in self.names("generator")[1:]:
            self.meet(name, "detector")
        if self.rounds % config.freeze_every == 0:
            self.freeze()
            self.everybody()
        return measured

    def everybody(self) -> None:
        """Let all who have not met meet."""
        for row in self.names("generator"):
            for column in self.names("detector"):
                if (row, column) not in self.payoffs.games:
                    self.meet(row, column)

    def meet(self, generator: str, detector: str) -> None:
        """One match of two by their names."""
        found = play(self.game, self.generator_named(generator), self._judge(detector), self._seed(2))
        self.payoffs.add(generator, detector, found.wins, found.games)

    def generator_named(self, name: str) -> Generator:
        """The one that learns, or a frozen copy."""
        trained = self.generator.generator
        if name == NEWEST["generator"]:
            return trained
        model = copy.deepcopy(trained.model).requires_grad_(False)
        model.load_state_dict(self.members[name].weights)
        return Generator(model, trained.sigmas, trained.latent_shape, trained.frames_per_chunk)

    def detector_named(self, name: str) -> ClipDetector:
        """A frozen copy, also of the one that learns."""
        module = copy.deepcopy(self.detector.detector).requires_grad_(False)
        if name != NEWEST["detector"]:
            module.load_state_dict(self.members[name].weights)
        return module

    def state(self) -> tuple[Groups, dict[str, Any]]:
        """Everything that a bitwise resume needs: groups of tensors (those in use, no copies), and what JSON holds."""
        groups: Groups = {}
        meta: dict[str, Any] = {"config": asdict(self.config), "rounds": self.rounds, "paused": self.paused}
        for side, trainer in (("generator", self.generator), ("detector", self.detector)):
            parts, meta[side] = trainer.state()
            groups |= {f"{side}-{name}": part for name, part in parts.items()}
        groups["fakes"] = self.detector.fakes.families
        meta |= {"fakes": list(self.detector.fakes.families), "payoffs": self.payoffs.state(), "members": {}}
        for name, member in self.members.items():
            if not member.anchor:
                groups[f"member-{name}"] = member.weights
                meta["members"][name] = {"side": member.side, "born": member.born}
        return groups, meta

    def load_state(self, groups: Groups, meta: dict[str, Any]) -> None:
        """Take over what `state` gave; CheckpointError when it belongs to another config."""
        if plain(meta["config"]) != plain(asdict(self.config)):
            raise CheckpointError(f"the league was played by another config: {meta['config']}")
        self.rounds, self.paused = meta["rounds"], dict(meta["paused"])
        self.payoffs = Payoffs.from_state(meta["payoffs"])
        for side, trainer in (("generator", self.generator), ("detector", self.detector)):
            prefix = f"{side}-"
            parts = {name.removeprefix(prefix): part for name, part in groups.items() if name.startswith(prefix)}
            trainer.load_state(parts, meta[side])
        self.detector.fakes.families = {name: groups["fakes"][name] for name in meta["fakes"]}
        self.members = {name: member for name, member in self.members.items() if member.anchor}
        for name, told in meta["members"].items():
            self.members[name] = Member(told["side"], groups[f"member-{name}"], told["born"])

    def _judge(self, name: str) -> Judge:
        return self.scripted.get(name) or Judge(self.detector_named(name), self.config.confidence)

    def _opponents(self, random: np.random.Generator) -> Sequence[str]:
        """Detectors for a round: the newest, or one by priority; anchors do not teach."""
        names = [name for name in self.names("detector") if name not in self.scripted]
        weights = priorities([self.payoffs.rate("generator", name) for name in names])
        by_priority = self.config.mix[0] / sum(self.config.mix)
        return [
            str(random.choice(names, p=weights)) if random.random() < by_priority else NEWEST["detector"]
            for _ in range(self.config.opponents)
        ]

    def _random(self) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, self.rounds])

    def _seed(self, use: int) -> int:
        return int(stream_keys(self.config.seed, 4 * self.rounds + use + 1)[-1] % 2**31)
