"""One match: what a generator shows in the game, and what a detector says of it.

What is shown does not depend on the detector, so one showing serves every detector that looks at it.
N streams, n chunks a clip, f frames a chunk, H x W pixels as a detector sees them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...envs.judge import Judge, checked
from ...envs.self_play import DETECTOR, GENERATOR, GameRules, SelfPlayGame, stored
from ...envs.stream_detect import REAL, WAIT
from ...envs.worlds.camera import CAMERAS, shoot
from ...models.detector import Detector, DetectorState
from ...models.generator import Generator
from ..rollout import GeneratorPolicy


@dataclass(frozen=True)
class Showing:
    """What detectors are shown.

    film: uint8 [N, n, f, 3, H, W].   real: bool [N].   quality: [N, n], mean reward of the generator's windows so far.
    """

    film: Tensor
    real: Tensor
    quality: Tensor

    def take(self, rows: Tensor) -> Showing:
        """The streams at rows [M] (int64 or bool)."""
        return Showing(self.film[rows], self.real[rows], self.quality[rows])


@dataclass(frozen=True)
class Outcome:
    """What came of N streams.

    real: bool [N].   verdict: int64 [N], REAL or FAKE.   shown: int64 [N], chunks before it.   rewards: [N, 2],
    of generator and detector.
    """

    real: Tensor
    verdict: Tensor
    shown: Tensor
    rewards: Tensor

    @property
    def wins(self) -> int:
        """Made streams that were taken for real: the generator's."""
        return int((~self.real & (self.verdict == REAL)).sum())

    @property
    def games(self) -> int:
        """Made streams."""
        return int((~self.real).sum())


@torch.no_grad()
def show(game: SelfPlayGame, generator: Generator, seed: int) -> Showing:
    """Play all streams of the game to the end of their clips while nobody decides; everything follows from the seed."""
    seen = game.reset(seed)
    policy = GeneratorPolicy(generator)
    policy.reset(game.state.keys)
    waits = torch.full((game.num_envs,), WAIT, device=game.device)
    film, quality = [], []
    for chunk in range(1, game.clock.chunks + 1):
        seen, _, _ = game.step({GENERATOR: policy.act(seen[GENERATOR]), DETECTOR: waits})
        film.append((game.newest() * 255).round().to(torch.uint8))
        quality.append(game.state.quality / chunk)
    return Showing(torch.stack(film, 1), game.state.real, torch.stack(quality, 1))


@torch.no_grad()
def film(video: Tensor, rules: GameRules, frames: int, seed: int, *, real: bool) -> Showing:
    """Clips [N, F, 3, H, W] in [0, 1] that nobody makes in the game, true or scripted, through its camera, `frames` a
    chunk; their quality counts as 0."""
    random = torch.Generator().manual_seed(seed)
    parts = [stored(shoot(part, CAMERAS[rules.camera], random), rules.pool) for part in video.split(64)]
    shown = torch.cat(parts).to(torch.uint8).unflatten(1, (-1, frames))
    return Showing(shown, torch.full((len(video),), real), torch.zeros(shown.shape[:2]))


@torch.no_grad()
def listen(detector: Detector, showing: Showing, batch: int = 256) -> Tensor:
    """Logits [N, n] after every chunk; ValueError where the detector returns anything but one finite logit a stream."""
    found = []
    for part in showing.film.split(batch):
        memory: DetectorState = detector.open(len(part), part.device)
        said = []
        for chunk in part.unbind(1):
            logit, memory = detector.watch(chunk / 255, memory)
            said.append(checked(logit, len(part)))
        found.append(torch.stack(said, 1))
    return torch.cat(found)


def settle(showing: Showing, judge: Judge, rules: GameRules) -> Outcome:
    """What comes of it when this judge looks: the game's own verdicts and rewards."""
    logits = listen(judge.detector, showing)
    last = logits.shape[1] - 1
    said = torch.stack([judge.say(logit, place == last) for place, logit in enumerate(logits.unbind(1))], 1)
    at = (said != WAIT).int().argmax(1, keepdim=True)
    verdict, quality = said.gather(1, at)[:, 0], showing.quality.gather(1, at)[:, 0]
    generator, detector = rules.pay(showing.real, verdict, quality)
    rewards = torch.stack((generator, detector - rules.wait_cost * at[:, 0]), 1)
    return Outcome(showing.real, verdict, at[:, 0] + 1, rewards)


def made_alone(rules: GameRules) -> GameRules:
    """The same rules where every stream is made: on a real one a generator's action is ignored, so that only these say
    who beats whom."""
    return replace(rules, share=0.0)
