"""D3 and ReStraV as detectors: both read the path that a clip's frames take through the features of some network.

B, M clips, F frames, E features a frame.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .calibration import fit_logistic
from .detector import d3_score, restrav_features

Features = Callable[[Tensor], Tensor]
"""Clips [B, F, 3, H, W] in [0, 1] to features [B, F, E] of every frame."""
_AT_ONCE = 64


class D3(nn.Module):
    """D3 (2508.00701): a clip whose features change too evenly is made. Nothing is trained; the threshold comes from
    real clips alone.

    Called with clips [B, F, 3, H, W] it gives logits [B], above 0 for "made": how far the score lies below the
    threshold, in spreads of real clips.
    """

    threshold: Tensor
    spread: Tensor

    def __init__(self, features: Features, threshold: float, spread: float = 1.0) -> None:
        super().__init__()
        if not spread > 0:
            raise ValueError(f"spread must be positive, not {spread}: do the real clips differ?")
        self.features = features
        self.register_buffer("threshold", torch.tensor(float(threshold)))
        self.register_buffer("spread", torch.tensor(float(spread)))

    @classmethod
    def fit(cls, features: Features, real: Tensor, rate: float = 0.01) -> D3:
        """With the threshold that a share `rate` of real clips [M, F, 3, H, W] lies below, its false positives."""
        if not 0 < rate < 1:
            raise ValueError(f"rate is a share between 0 and 1, not {rate}")
        scores = d3_score(_every(features, real))
        return cls(features, float(torch.quantile(scores, rate)), float(scores.std()))

    def forward(self, video: Tensor) -> Tensor:
        """[B]."""
        return (self.threshold - d3_score(self.features(video))) / self.spread


class ReStraV(nn.Module):
    """ReStraV (2507.00583): logistic regression on how long and how bent a clip's path through the features is.

    Called with clips [B, F, 3, H, W], F as in `fit`, it gives logits [B], above 0 for "made".
    """

    weights: Tensor
    bias: Tensor

    def __init__(self, features: Features, weights: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("weights", weights)
        self.register_buffer("bias", bias)

    @classmethod
    def fit(cls, features: Features, real: Tensor, made: Tensor) -> ReStraV:
        """On clips [M, F, 3, H, W] of both kinds, which count alike."""
        if real.shape[1:] != made.shape[1:]:
            raise ValueError(f"real clips are {list(real.shape[1:])}, made ones {list(made.shape[1:])}")
        rows = restrav_features(torch.cat((_every(features, real), _every(features, made))))
        return cls(features, *fit_logistic(rows, torch.arange(len(rows)) >= len(real)))

    def forward(self, video: Tensor) -> Tensor:
        """[B]."""
        path = restrav_features(self.features(video))
        if path.shape[1] != len(self.weights):
            raise ValueError(f"fitted on clips of {(len(self.weights) - 5) // 2} frames, not {video.shape[1]}")
        return path @ self.weights + self.bias

    def probability(self, video: Tensor) -> Tensor:
        """[B], that a clip is made, where real and made clips are as many."""
        return self(video).sigmoid()


@torch.no_grad()
def _every(features: Features, video: Tensor) -> Tensor:
    return torch.cat([features(part) for part in video.split(_AT_ONCE)])
