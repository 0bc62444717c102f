"""Calibration: what a detector's logits mean, as probabilities and as shares of real clips.

M clips, n chunks, E features, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

QUANTILES = 201
RIDGE = 1e-4
"""Penalty on squared weights, without which kinds that never overlap would ask for endless ones."""


@dataclass(frozen=True)
class Calibration:
    """What logits mean after 1 to n chunks.

    scale, bias: [n], of Platt's line from a logit to the log-odds of "made".   reals: [n, Q], rising quantiles of the
    logits of real clips.   count: how many real clips these were.
    """

    scale: Tensor
    bias: Tensor
    reals: Tensor
    count: int

    @classmethod
    def fit(cls, logits: Tensor, made: Tensor, weight: Tensor | None = None) -> Calibration:
        """On logits [M, n] of clips of which `made` [M] (bool) are no real ones; weight [M]: how much each counts."""
        if not 0 < int(made.sum()) < len(made):
            raise ValueError("calibration needs real clips and made ones")
        lines = [fit_logistic(column[:, None], made, weight) for column in logits.unbind(1)]
        reals = torch.quantile(logits[~made].double(), torch.linspace(0, 1, QUANTILES, dtype=torch.float64), dim=0).T
        scale, bias = (torch.stack(part) for part in zip(*((w[0], b) for w, b in lines), strict=True))
        return cls(scale, bias, reals.float(), int((~made).sum()))

    @property
    def chunks(self) -> int:
        """n."""
        return len(self.scale)

    def probability(self, logits: Tensor, chunks: int) -> Tensor:
        """That clips are made, for logits [M] after so many chunks; where real and made clips are as many."""
        row = self._row(chunks)
        return (self.scale[row] * logits + self.bias[row]).sigmoid()

    def false_positives(self, logits: Tensor, chunks: int) -> Tensor:
        """Share of real clips that look at least as made as logits [M] do after so many chunks. Never 0: what none of
        `count` clips reached may still happen once in as many and one more."""
        reals = self.reals[self._row(chunks)].contiguous()
        steps = len(reals) - 1
        place = torch.searchsorted(reals, logits.contiguous()).clamp(1, steps)
        low, high = reals[place - 1], reals[place]
        inside = ((logits - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
        share = 1 - (place - 1 + inside) / steps
        return (share * self.count + 1) / (self.count + 1)

    def to_manifest(self) -> dict[str, Any]:
        """What JSON holds of it: by number of chunks a Platt pair and the quantiles; `from_manifest` reads it."""
        rows = enumerate(zip(self.scale.tolist(), self.bias.tolist(), self.reals.tolist(), strict=True), 1)
        pairs = {
            str(chunks): {"scale": scale, "bias": bias, "reals": [round(value, 4) for value in reals]}
            for chunks, (scale, bias, reals) in rows
        }
        return {"calibration": pairs, "real_clips": self.count}

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> Calibration:
        """ValueError for a manifest of a detector that was never calibrated."""
        try:
            pairs = [manifest["calibration"][str(chunks + 1)] for chunks in range(len(manifest["calibration"]))]
            scale, bias, reals = (torch.tensor([pair[key] for pair in pairs]) for key in ("scale", "bias", "reals"))
            return cls(scale, bias, reals, int(manifest["real_clips"]))
        except KeyError as error:
            raise ValueError(f"the detector's manifest has no calibration ({error} is missing)") from None

    def _row(self, chunks: int) -> int:
        if not 1 <= chunks <= self.chunks:
            raise ValueError(f"calibrated for 1 to {self.chunks} chunks, not {chunks}")
        return chunks - 1


@torch.enable_grad()
def fit_logistic(features: Tensor, made: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weights [E] and bias of the logistic regression of `made` [M] (bool) on features [M, E].

    weight [M]: how much each clip counts; by default real and made clips count alike in sum. ValueError for features
    that are not finite.
    """
    if not bool(features.isfinite().all()):
        raise ValueError("features are not finite")
    label, x = made.double(), features.detach().double()
    if weight is None:
        weight = torch.where(made, 1 / made.sum().clamp_min(1), 1 / (~made).sum().clamp_min(1))
    counts = weight.double() / weight.double().sum()
    mean, spread = x.mean(0), x.std(0, correction=0).clamp_min(1e-9)
    x = (x - mean) / spread
    line = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([line], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = binary_cross_entropy_with_logits(x @ line[1:] + line[0], label, counts, reduction="sum")
        value = value + RIDGE * line[1:].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    found = line.detach()
    slope = found[1:] / spread
    return slope.float(), (found[0] - (slope * mean).sum()).float()
