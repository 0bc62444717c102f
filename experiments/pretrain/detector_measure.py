"""How well a detector tells made clips from real ones, and whether its probabilities can be believed.

M clips, n chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ...models.calibration import Calibration
from ...models.scorers import D3, ReStraV
from ..stats import auc, calibration_error, tpr_at
from .footage import REAL_FOOTAGE

BINS = 15
RARE = 0.01
"""Share of real clips that the calibration is asked to flag."""


def mixed(logits: Mapping[str, Tensor], weights: Mapping[str, float]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [M, n] by family as one tensor, which of them are of made clips, and how much each counts: real and made
    ones alike, made ones by `weights`, how often training draws a family."""
    shares = {REAL_FOOTAGE: 1.0, **{name: weight / sum(weights.values()) for name, weight in weights.items()}}
    made = torch.cat([torch.full((len(logits[name]),), name != REAL_FOOTAGE) for name in shares])
    each = torch.cat([torch.full((len(logits[name]),), share / len(logits[name])) for name, share in shares.items()])
    return torch.cat([logits[name] for name in shares]), made, each


def quality_of(
    logits: Mapping[str, Tensor], calibration: Calibration, weights: Mapping[str, float]
) -> dict[str, float]:
    """From logits [M, n] by family: area under the ROC curve and share found at 1% false positives after whole clips,
    the student's area after every chunk, the calibration error, and what share of real clips the calibration's own 1%
    flags. weights: how often training draws a family."""
    last, chunks = {name: values[:, -1] for name, values in logits.items()}, calibration.chunks
    real = last[REAL_FOOTAGE]
    told = {name.replace("-", "_"): values for name, values in last.items() if name != REAL_FOOTAGE}
    quality = {f"auc_{name}": auc(real.numpy(), values.numpy()) for name, values in told.items()}
    quality |= {f"tpr_{name}": tpr_at(real.numpy(), values.numpy()) for name, values in told.items()}
    for chunk, (made, true) in enumerate(
        zip(logits["student"].unbind(1), logits[REAL_FOOTAGE].unbind(1), strict=True), 1
    ):
        quality[f"auc_student_after_{chunk}"] = auc(true.numpy(), made.numpy())
    mix, made_mix, each = mixed(logits, weights)
    probability = calibration.probability(mix[:, -1], chunks)
    quality["ece"] = calibration_error(probability.numpy(), made_mix.numpy(), BINS, each.numpy())
    quality["false_positives"] = float((calibration.false_positives(real, chunks) <= RARE).double().mean())
    return quality


@torch.no_grad()
def trajectory_quality(
    features: Callable[[Tensor], Tensor], known: Mapping[str, Tensor], new: Mapping[str, Tensor]
) -> dict[str, float]:
    """Areas under the ROC curve of D3 and ReStraV, on features of frames, between the student's films and real ones.

    known, new: films [M, F, 3, h, w] by family; D3 takes its threshold from the known real ones, ReStraV learns from
    the known ones of both kinds.
    """
    scorers = {
        "d3": D3.fit(features, known[REAL_FOOTAGE]),
        "restrav": ReStraV.fit(features, known[REAL_FOOTAGE], known["student"]),
    }
    return {
        f"auc_student_{name}": auc(*(scorer(new[kind]).numpy() for kind in (REAL_FOOTAGE, "student")))
        for name, scorer in scorers.items()
    }
