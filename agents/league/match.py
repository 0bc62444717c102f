"""One match: a generator against a detector over many streams at once, through the game.

N streams, n chunks a clip.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...envs.self_play import DETECTOR, GENERATOR, SelfPlayGame
from ...envs.stream_detect import FAKE, REAL, WAIT
from ...models.detector import Detector, DetectorState
from ...models.generator import Generator
from ..rollout import GeneratorPolicy


@dataclass(frozen=True)
class Judge:
    """A detector as a player: it decides as soon as its logit is beyond `confidence`, and at the end by its sign.

    bias: what the logit must exceed to say "made"; a detector that errs to one side is put right by it.
    """

    detector: Detector
    confidence: float = 2.0
    bias: float = 0.0

    def say(self, logit: Tensor, last: bool) -> Tensor:
        """WAIT, REAL or FAKE for logits [N]."""
        sure = logit - self.bias
        verdict = torch.where(sure > 0, FAKE, REAL)
        return verdict if last else torch.where(sure.abs() > self.confidence, verdict, WAIT)


@dataclass(frozen=True)
class Outcome:
    """What came of N streams.

    real: bool [N].   verdict: int64 [N], REAL or FAKE.   shown: int64 [N], chunks before it.   rewards: [N, 2],
    of generator and detector.   quality: [N], mean reward of the generator's windows until the verdict.
    """

    real: Tensor
    verdict: Tensor
    shown: Tensor
    rewards: Tensor
    quality: Tensor

    @property
    def wins(self) -> int:
        """Made streams that were taken for real: the generator's."""
        return int((~self.real & (self.verdict == REAL)).sum())

    @property
    def games(self) -> int:
        """Made streams."""
        return int((~self.real).sum())


@torch.no_grad()
def play(game: SelfPlayGame, generator: Generator, judge: Judge, seed: int) -> Outcome:
    """Play all streams of the game once to the end of their clips; everything follows from the seed.

    ValueError where the detector returns anything but one finite logit a stream.
    """
    seen = game.reset(seed)
    policy = GeneratorPolicy(generator)
    policy.reset(game.state.keys)
    memory: DetectorState = judge.detector.open(game.num_envs, game.device)
    said = torch.full((game.num_envs,), WAIT, device=game.device)
    nothing = torch.zeros(game.num_envs, *(game.clips.chunk.shape or ()), device=game.device)
    total = torch.zeros(game.num_envs, 2, device=game.device)
    shown, quality = torch.zeros_like(said), torch.zeros_like(total[:, 0])
    for move in range(game.clock.chunks + 1):
        last = move == game.clock.chunks
        chunk = nothing if last else policy.act(seen[GENERATOR])
        judged = ~game.state.over & ((said != WAIT) | last)
        shown = torch.where(judged, move, shown)
        quality = torch.where(judged, game.state.quality / max(move, 1), quality)
        seen, rewards, over = game.step({GENERATOR: chunk, DETECTOR: said})
        total = total + torch.stack((rewards[GENERATOR], rewards[DETECTOR]), 1)
        if bool(over.all()):
            break
        logit, memory = judge.detector.watch(game.newest(), memory)
        said = judge.say(_checked(logit, game.num_envs), move + 1 == game.clock.chunks)
    return Outcome(game.state.real, game.state.verdict, shown, total, quality)


def _checked(logit: Tensor, count: int) -> Tensor:
    if logit.shape != (count,):
        raise ValueError(f"the detector returned {list(logit.shape)} for {count} streams: expected [{count}]")
    if not bool(logit.isfinite().all()):
        raise ValueError("the detector returned logits that are not finite")
    return logit
