"""The league: a generator and a detector that learn from each other, from their pasts, and from those that were trained
against them alone.

A round: draw opponents, train the generator against them; show its clips to the detector, train it on these and on
older ones; keep a copy of both; now and then train an exploiter of each; let everybody meet everybody.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from ...checkpoint import CheckpointError
from ...envs.game_rules import ThresholdPolicy
from ...envs.self_play import RecordedClips, SelfPlayGame, record
from ...models.detector import ClipDetector
from ...models.generator import Generator
from ...noise import SeedDomain, stream_keys
from ...training.learner import Groups
from ...training.loop import Trainer
from ...training.state import plain
from ..detection import Detection, ReplayBuffer
from ..finetune import FineTune
from .config import SIDES, LeagueConfig, Side
from .match import resolve_match
from .payoffs import Payoffs, priorities
from .reward import OpponentReward

Role = Literal["past", "exploiter", "anchor"]
MakeClips = Callable[[Generator, int, int], Tensor]
"""`make_clips(generator, count, seed)`: clips [count, F, 3, H, W] in [0, 1], a pure function."""
LEAGUE_META = ("config", "rounds", "paused", "payoffs", "members", "fakes")
BENT = 12.0
"""Weight of realness for who exploits."""


@dataclass
class Member:
    """Somebody in the league. weights: of a frozen one."""

    side: Side
    role: Role
    weights: dict[str, Tensor] = field(default_factory=dict)


class League:
    """One generator and one detector that learn, and everybody they were.

    config. generator: the trainer of the one that learns, in an environment whose reward is `reward`. detector: the
    trainer of the other; the families of its pool that are there at the start stay in play. game: the streams of a
    match, all of them made (`share=0`). make_clips: the clips from which a detector learns. policies, recordings:
    scripted anchors of both sides, by name; they are met, and never trained.
    """

    def __init__(
        self,
        config: LeagueConfig,
        generator: FineTune,
        detector: Detection,
        reward: OpponentReward,
        game: SelfPlayGame,
        make_clips: MakeClips,
        policies: Mapping[str, ThresholdPolicy] | None = None,
        recordings: Mapping[str, RecordedClips] | None = None,
    ) -> None:
        self.config, self.generator, self.detector, self.reward = config, generator, detector, reward
        self.trainers: dict[Side, Trainer] = {"generator": generator, "detector": detector}
        self.game, self.make_clips, self.begun_with = game, make_clips, tuple(detector.fakes.families)
        self.policies, self.recordings = dict(policies or {}), dict(recordings or {})
        self.members = {name: Member("detector", "anchor") for name in self.policies}
        self.members |= {name: Member("generator", "anchor") for name in self.recordings}
        self.payoffs, self.rounds = Payoffs(), 0
        self.paused: dict[Side, int] = {"generator": 0, "detector": 0}
        self._keep("generator-0", "past", self.generator.generator.model)
        self._keep("detector-0", "past", self.detector.detector)

    def names(self, side: Side, *roles: Role) -> list[str]:
        """Everybody on a side, or those in some roles, in the order they came."""
        return [name for name, one in self.members.items() if one.side == side and (not roles or one.role in roles)]

    def newest(self, side: Side) -> str:
        """The last copy of who learns: between rounds it is the same."""
        return self.names(side, "past")[-1]

    def play_round(self) -> dict[str, float]:
        """One round; returns what was measured."""
        if not self.payoffs.games:
            self.everybody()
        config, random = self.config, np.random.default_rng([self.config.seed, self.rounds])
        rate = self.payoffs.rate(*map(self.newest, SIDES))
        runs_away = {"generator": rate > config.runaway, "detector": 1 - rate > config.runaway}
        measured: dict[str, float] = {"rate": rate}
        if self._trains("generator", runs_away):
            self.reward.against([self.detector_named(name) for name in self._opponents(random)], self._seed(0))
            measured |= self._learn("generator", config.generator_updates)
            self._keep(f"generator-{self.rounds + 1}", "past", self.generator.generator.model)
        fresh = self.make_clips(self.generator.generator, config.clips, self._seed(1))
        self.detector.fakes.add(self.newest("generator"), fresh)
        if self._trains("detector", runs_away):
            self.detector.weights = self._families()
            measured |= self._learn("detector", config.detector_updates)
            self._keep(f"detector-{self.rounds + 1}", "past", self.detector.detector)
        self.rounds += 1
        if config.exploit_every and self.rounds % config.exploit_every == 0:
            self._exploit(fresh)
        self.everybody()
        return measured

    def everybody(self) -> None:
        """Let all who have not met meet."""
        for row in self.names("generator"):
            for column in self.names("detector"):
                if (row, column) not in self.payoffs.games:
                    came = resolve_match(self.recorded(row), self.player(column), self.game.rules)
                    self.payoffs.add(row, column, came.wins, came.games)

    def recorded(self, name: str) -> RecordedClips:
        """What a generator shows on the league's own streams; it is made once."""
        if name not in self.recordings:
            self.recordings[name] = self.record(self.generator_named(name))
        return self.recordings[name]

    def record(self, generator: Generator) -> RecordedClips:
        """What any generator shows there: the same prompts, noise and lenses for all."""
        return record(self.game, generator, self.config.seed)

    def player(self, name: str) -> ThresholdPolicy:
        """A detector as a player."""
        return self.policies.get(name) or ThresholdPolicy(self.detector_named(name), self.config.confidence)

    def generator_named(self, name: str) -> Generator:
        """A frozen copy."""
        trained = self.generator.generator
        model = copy.deepcopy(trained.model).requires_grad_(False)
        model.load_state_dict(self._weights(name))
        return replace(trained, model=model)

    def detector_named(self, name: str) -> ClipDetector:
        """A frozen copy."""
        module = copy.deepcopy(self.detector.detector).requires_grad_(False)
        module.load_state_dict(self._weights(name))
        return module

    def generator_against(self, detectors: Sequence[str], updates: int, start: str, seed: int) -> Generator:
        """A generator that goes on from `start`, by its name, against these detectors alone; realness is most of its
        reward then."""
        mine = self.generator_named(start)
        mine.model.requires_grad_(True)
        recipe = replace(self.generator.config, seed=seed)
        self.reward.against([self.detector_named(name) for name in detectors], seed, BENT)
        trainer = FineTune(recipe, mine, self.generator.env, self.generator.prompts)
        for _ in range(updates):
            trainer.update()
        mine.model.requires_grad_(False)
        return mine

    def detector_against(self, clips: Tensor, updates: int, start: str, seed: int) -> ClipDetector:
        """A detector that goes on from `start`, by its name, on these fakes [M, F, 3, H, W] alone."""
        pool = ReplayBuffer()
        pool.add("opponent", clips)
        mine = self.detector_named(start).requires_grad_(True)
        config = replace(self.detector.config, seed=seed)
        trainer = Detection(config, mine, self.detector.real, pool, self.detector.chunk)
        for _ in range(updates):
            trainer.update()
        return mine.requires_grad_(False)

    def state(self) -> tuple[Groups, dict[str, Any]]:
        """Everything that a bitwise resume needs: groups of tensors (those in use, no copies), and what JSON holds."""
        groups: Groups = {}
        meta: dict[str, Any] = {"config": asdict(self.config), "rounds": self.rounds, "paused": self.paused}
        for side in SIDES:
            parts, meta[side] = self.trainers[side].state()
            groups |= {f"{side}-{name}": part for name, part in parts.items()}
        groups["fakes"] = self.detector.fakes.families
        meta |= {"fakes": list(self.detector.fakes.families), "payoffs": self.payoffs.state(), "members": {}}
        for name, member in self.members.items():
            if member.role != "anchor":
                groups[f"member-{name}"] = member.weights
                meta["members"][name] = {"side": member.side, "role": member.role}
        return groups, meta

    def load_state(self, groups: Groups, meta: dict[str, Any]) -> None:
        """Take over what `state` gave; CheckpointError when it belongs to another config, or something is missing."""
        lacking = [key for key in (*LEAGUE_META, *SIDES) if key not in meta] + ([] if "fakes" in groups else ["fakes"])
        if lacking:
            raise CheckpointError(f"this is no league's checkpoint: it lacks {', '.join(lacking)}")
        if plain(meta["config"]) != plain(asdict(self.config)):
            raise CheckpointError(f"the league was played by another config: {meta['config']}")
        missing = [f"member-{name}" for name in meta["members"] if f"member-{name}" not in groups]
        missing += [name for name in meta["fakes"] if name not in groups["fakes"]]
        if missing:
            raise CheckpointError(f"the league's checkpoint lacks {', '.join(missing)}")
        self.rounds, self.paused = meta["rounds"], dict(meta["paused"])
        self.payoffs = Payoffs.from_state(meta["payoffs"])
        for side in SIDES:
            parts = {
                name.removeprefix(f"{side}-"): part for name, part in groups.items() if name.startswith(f"{side}-")
            }
            self.trainers[side].load_state(parts, meta[side])
        self.detector.fakes.families = {name: groups["fakes"][name] for name in meta["fakes"]}
        self.recordings = {name: self.recordings[name] for name in self.names("generator", "anchor")}
        self.members = {name: member for name, member in self.members.items() if member.role == "anchor"}
        for name, whose in meta["members"].items():
            self.members[name] = Member(**whose, weights=groups[f"member-{name}"])

    def _learn(self, side: Side, updates: int) -> dict[str, float]:
        """So many updates of a side; what the last one measured."""
        for _ in range(updates):
            measured = self.trainers[side].update()
        return {f"{side}/{key}": value for key, value in measured.items()}

    def _trains(self, side: Side, runs_away: dict[str, bool]) -> bool:
        learns, pauses = side in self.config.learns, len(self.config.learns) > 1 and runs_away[side]
        self.paused[side] += pauses
        return learns and not pauses

    def _exploit(self, fresh: Tensor) -> None:
        """One of each side that was trained against the newest of the other alone; their names end in x and the round.

        fresh: clips of the newest generator.
        """
        config, seed = self.config, self.config.seed + SeedDomain.RESPONSES * self.rounds
        generator, detector = map(self.newest, SIDES)
        if "generator" in config.learns:
            name = f"generator-x{self.rounds}"
            found = self.generator_against([detector], config.exploiter_updates, generator, seed)
            self._keep(name, "exploiter", found.model)
            self.detector.fakes.add(name, self.make_clips(found, max(1, config.clips // 2), self._seed(2)))
        if "detector" in config.learns:
            trained = self.detector_against(fresh, 10 * config.exploiter_updates, detector, seed)
            self._keep(f"detector-x{self.rounds}", "exploiter", trained)

    def _keep(self, name: str, role: Role, module: nn.Module) -> None:
        """A copy of a module as a member; the first word of its name is its side."""
        weights = {key: value.detach().cpu().clone() for key, value in module.state_dict().items()}
        side: Side = "detector" if name.startswith("detector") else "generator"
        self.members[name] = Member(side, role, weights)

    def _opponents(self, random: np.random.Generator) -> list[str]:
        """Detectors for a round of the generator; anchors do not teach."""
        past, exploiters = self.names("detector", "past"), self.names("detector", "exploiter")
        rates = [self.payoffs.rate(self.newest("generator"), name) for name in past]
        pools = [(past, priorities(rates)), (past[-1:], None), (exploiters or past[-1:], None)]
        kinds = random.choice(3, size=self.config.opponents, p=np.array(self.config.mix) / sum(self.config.mix))
        return [str(random.choice(pools[kind][0], p=pools[kind][1])) for kind in kinds]

    def _families(self) -> dict[str, float]:
        """Shares of the families of fakes in the detector's batches: those it began with as `anchored` says, the others
        as `mix` does."""
        newest, player = map(self.newest, SIDES)
        families = [name for name in self.detector.fakes.families if name not in (newest, *self.begun_with)]
        exploiters = [name for name in families if self.members[name].role == "exploiter"]
        past = [name for name in families if name not in exploiters]
        rest = 1 - (self.config.anchored if self.begun_with else 0.0)
        by_priority, own, exploiting = (rest * share / sum(self.config.mix) for share in self.config.mix)
        shares = {name: self.config.anchored / len(self.begun_with) for name in self.begun_with}
        own += (0 if past else by_priority) + (0 if exploiters else exploiting)
        shares[newest] = shares.get(newest, 0.0) + own
        if past:
            weights = priorities([1 - self.payoffs.rate(name, player) for name in past])
            shares |= {name: by_priority * float(weight) for name, weight in zip(past, weights, strict=True)}
        return shares | {name: exploiting / len(exploiters) for name in exploiters}

    def _weights(self, name: str) -> dict[str, Tensor]:
        if name not in self.members or not self.members[name].weights:
            known = ", ".join(name for name, one in self.members.items() if one.weights)
            raise ValueError(f"nobody called {name!r} has weights in this league: choose from {known}")
        return self.members[name].weights

    def _seed(self, use: int) -> int:
        return int(stream_keys(self.config.seed, 4 * self.rounds + use + 1)[-1] % 2**31)
