"""A detector as a player: when it decides, and what it says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.detector import Detector
from .stream_detect import FAKE, REAL, WAIT


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


def checked(logit: Tensor, count: int, look: bool = True) -> Tensor:
    """The logits of `count` streams; ValueError where they are anything but one number a stream, and finite, which
    waits for the device: `look`."""
    if logit.shape != (count,):
        raise ValueError(f"the detector returned {list(logit.shape)} for {count} streams: expected [{count}]")
    if look and not bool(logit.isfinite().all()):
        raise ValueError("the detector returned logits that are not finite")
    return logit
