"""The rules of self-play: what the players see, when a detector decides, and what its verdicts pay.

N streams, n chunks a clip. A function of rows takes rows of any shape [...].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.detector import Detector
from .stream_detect import FAKE, REAL, WAIT
from .worlds.camera import CAMERAS


@dataclass(frozen=True)
class Outcome:
    """What the detector's moves come to, all [N].

    real: bool.   verdict: int64, REAL, FAKE, or WAIT while it is out.   shown: int64, chunks before it.   generator,
    detector: rewards of the move.   waited: what the detector had paid for waiting until then.
    """

    real: Tensor
    verdict: Tensor
    shown: Tensor
    generator: Tensor
    detector: Tensor
    waited: Tensor

    @property
    def returns(self) -> Tensor:
        """Rewards of whole streams [N, 2], of generator and detector."""
        return torch.stack((self.generator, self.detector - self.waited), -1)

    @property
    def wins(self) -> int:
        """Made streams that were taken for real: the generator's."""
        return int((~self.real & (self.verdict == REAL)).sum())

    @property
    def games(self) -> int:
        """Made streams."""
        return int((~self.real).sum())


@dataclass(frozen=True)
class GameRules:
    """What the players see and pay."""

    wait_cost: float = 0.02
    """Of one more chunk, once one was seen; a verdict is worth 1 or -1."""
    floor: float = -1.0
    """Mean reward of a clip's windows below which the generator earns nothing above 0."""
    window: int = 2
    """Chunks that the detector observes, the newest last."""
    pool: int = 2
    """Side of the squares of pixels that the detector's observation averages."""
    camera: str = "night"
    """Of the world; real and generated clips pass through the same."""
    share: float = 0.5
    """Of streams that are real."""

    def __post_init__(self) -> None:
        if self.wait_cost < 0 or min(self.window, self.pool) < 1 or not 0 <= self.share <= 1:
            raise ValueError(f"wait_cost is at least 0, window and pool at least 1, share within [0, 1]: {self}")
        if self.camera not in CAMERAS:
            raise ValueError(f"unknown camera {self.camera!r}; use one of: {', '.join(CAMERAS)}")

    def outcome(self, real: Tensor, action: Tensor, shown: Tensor, quality: Tensor, chunks: int) -> Outcome:
        """What a detector's action [N] comes to after `shown` [N] of `chunks` chunks: waiting when none is left says
        REAL, and costs nothing before the first.

        real: bool [N]. quality: [N], mean reward of the windows shown.
        """
        verdict = torch.where((action == WAIT) & (shown == chunks), REAL, action)
        waits, fake = verdict == WAIT, verdict == FAKE
        cost = torch.where(shown == 0, 0.0, -self.wait_cost)
        detector = torch.where(waits, cost, torch.where(fake != real, 1.0, -1.0))
        generator = torch.where(fake, -1.0, 1.0)
        generator = torch.where(quality < self.floor, generator.clamp_max(0.0), generator)
        generator = torch.where(real | waits, 0.0, generator)
        return Outcome(real, verdict, shown, generator, detector, self.wait_cost * (shown - 1).clamp_min(0))


@dataclass(frozen=True)
class ThresholdPolicy:
    """A detector as a player: it decides as soon as its logit is beyond `confidence`, and at the end by its sign.

    bias: what the logit must exceed to say "made"; a detector that errs to one side is put right by it.
    """

    detector: Detector
    confidence: float = 2.0
    bias: float = 0.0

    def act(self, logit: Tensor, last: bool) -> Tensor:
        """WAIT, REAL or FAKE for logits [N]."""
        sure = logit - self.bias
        verdict = torch.where(sure > 0, FAKE, REAL)
        return verdict if last else torch.where(sure.abs() > self.confidence, verdict, WAIT)


def checked(logit: Tensor, count: int, look: bool = True) -> Tensor:
    """The logits of `count` streams; ValueError where they are anything but one number a stream, and finite, which
    waits for the device: `look`."""
    if logit.shape != (count,):
        raise ValueError(f"the detector returned {list(logit.shape)} for {count} streams: expected [{count}]")
    if look and not bool(logit.isfinite().all()):
        raise ValueError("the detector returned logits that are not finite")
    return logit
