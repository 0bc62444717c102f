"""Tripwires: what of a clip or of an update ends a training, each a ratio beside its limit."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

WINDOW, ENOUGH, IN_A_ROW = 32, 8, 3
"""Updates behind a running median, those before the first one, and updates in a row above a limit that trip."""


def shares_of_start(values: Mapping[str, float], start: Mapping[str, float]) -> dict[str, float]:
    """What a look saw of motion, sharpness, diversity and saturation, as shares of the start's."""
    names = ("motion", "sharpness", "diversity", "saturation")
    return {name: values[name] / start[name] if start[name] else 1.0 for name in names}


def broken_bounds(
    values: Mapping[str, float], start: Mapping[str, float], floors: Mapping[str, float], saturation: float, kl: float
) -> list[str]:
    """What lies below its share of the start (floors, by name), or too far from it, a sentence's part for each."""
    shares = shares_of_start(values, start)
    broken = [
        f"{name} fell to {shares[name]:.2f} of the start's"
        for name, share in floors.items()
        if not shares[name] >= share
    ]
    if saturation and not shares["saturation"] <= saturation:
        broken.append(f"saturation rose to {shares['saturation']:.2f} of the start's")
    if kl and not values["kl"] <= kl:
        broken.append(f"KL from the start rose to {values['kl']:.4f}, above {kl:g}")
    return broken


class UpdateTripwires:
    """Hold what every update measured against what was usual: `grad_norm` and `critic_loss` against the median of
    their last 32 values within the limit, `critic_loss` also against `teacher_loss`, the teacher's own on the same
    clips. What a trainer does not log is not watched, nor are numbers that are not finite: those are the Learner's.
    Where a trainer measures other things than before, as at the next stage of a sequence, the medians begin anew."""

    def __init__(self, grad_norm: float, critic_loss: float) -> None:
        self.limits = {"grad_norm": grad_norm, "critic_loss": critic_loss, "critic_to_teacher": critic_loss}
        self.measured: list[str] = []
        self.usual: dict[str, list[float]] = {"grad_norm": [], "critic_loss": []}
        self.above = dict.fromkeys(self.limits, 0)

    def see(self, measured: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
        """The ratios of an update, to be logged, and a sentence's part for each that tripped."""
        ratios, tripped = dict[str, float](), list[str]()
        if self.measured != sorted(measured):
            self.measured, self.usual = sorted(measured), {name: [] for name in self.usual}
        for name, limit in self.limits.items():
            ratio = self._ratio(name, measured)
            self.above[name] = self.above[name] + 1 if limit and ratio > limit else 0
            if self.above[name] >= IN_A_ROW:
                tripped.append(f"{name} rose to {ratio:.1f}, above {limit:g} times {RATIO_OF[name]}")
            if math.isfinite(ratio):
                ratios[f"tripwires/{name}"] = ratio
        for name, values in self.usual.items():
            value = measured.get(name, math.nan)
            if math.isfinite(value) and not self.above[name]:
                self.usual[name] = [*values, value][-WINDOW:]
        return ratios, tripped

    def _ratio(self, name: str, measured: Mapping[str, float]) -> float:
        if name == "critic_to_teacher":
            return measured.get("critic_loss", math.nan) / (measured.get("teacher_loss", math.nan) or math.nan)
        values = self.usual[name]
        median = statistics.median(values) if len(values) >= ENOUGH else math.nan
        return measured.get(name, math.nan) / (median or math.nan)

    def state(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return {"measured": self.measured, "usual": self.usual, "above": self.above}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        self.measured, self.usual, self.above = state["measured"], dict(state["usual"]), dict(state["above"])


RATIO_OF = {
    "grad_norm": "its running median",
    "critic_loss": "its running median",
    "critic_to_teacher": "the teacher's loss",
}
