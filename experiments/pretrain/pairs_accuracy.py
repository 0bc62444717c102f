"""How often score differences agree with preferences, without and with ties, beside what chance reaches.

The tie threshold is fitted to the very pairs that it is measured on (tie calibration, Deutsch et al., arXiv 2305.14324,
which VideoAlign's calc_accuracy uses), so that even random scores gain from it: the floor says how much.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

SHUFFLES = 200

Numbers = NDArray[np.float64]
Labels = NDArray[np.int64]


def accuracy(d: Numbers, label: Labels) -> Numbers:
    """Share [...] of the decided pairs (label 1 or -1) on whose right side d [..., N] is; zero is no side."""
    decided = label != 0
    hits: Numbers = (d[..., decided] * label[decided] > 0).mean(axis=-1)
    return hits


def accuracy_with_ties(d: Numbers, label: Labels) -> tuple[Numbers, Numbers]:
    """Three-way accuracy [...] of d [..., N] where |d| < threshold says "same", and the threshold [...] >= 0 at which
    it is highest (the smallest such, halfway between its neighbours).

    label: [N], 1 the first is better, -1 the second, 0 a tie
    """
    order = np.abs(d).argsort(axis=-1)
    size = np.take_along_axis(np.abs(d), order, axis=-1)
    truth = np.broadcast_to(label, d.shape)
    tied = np.take_along_axis(truth == 0, order, axis=-1)
    right = np.take_along_axis(d * truth > 0, order, axis=-1)
    none = np.zeros((*d.shape[:-1], 1))
    said_same = np.concatenate([none, tied.cumsum(axis=-1)], axis=-1)
    said_side = np.concatenate([right[..., ::-1].cumsum(axis=-1)[..., ::-1], none], axis=-1)
    below = np.concatenate([none - 1, size], axis=-1)
    above = np.concatenate([size, none + np.inf], axis=-1)
    hits = np.where(below < above, said_same + said_side, -1)
    best = hits.argmax(axis=-1)[..., None]
    low, high = np.take_along_axis(below, best, axis=-1), np.take_along_axis(above, best, axis=-1)
    between = np.maximum((low + np.where(np.isinf(high), low, high)) / 2, np.nextafter(low, np.inf))
    threshold = np.where(best == 0, 0.0, between)
    return np.take_along_axis(hits, best, axis=-1)[..., 0] / d.shape[-1], threshold[..., 0]


def shuffled(d: Numbers, count: int = SHUFFLES, seed: int = 0) -> Numbers:
    """d [N] in `count` random orders with random signs, [count, N]: what scores that know nothing would say."""
    draws = np.random.default_rng(seed)
    order = draws.permuted(np.tile(d, (count, 1)), axis=1)
    result: Numbers = order * draws.choice([-1.0, 1.0], size=order.shape)
    return result


def agreement(d: Numbers, label: Labels) -> dict[str, float]:
    """What d [N] is worth against label [N]: figures by name, those that need pairs left out where there are none.

    pairs   accuracy, floor: without ties   accuracy_ties, floor_ties: with them   tie_threshold: in the unit of d
    """
    figures: dict[str, float] = {"pairs": len(d)}
    if len(d) == 0:
        return figures
    decided = label != 0
    if decided.any():
        chance = accuracy(shuffled(d[decided]), label[decided])
        figures |= {"accuracy": float(accuracy(d, label)), "floor": float(chance.mean())}
    best, threshold = accuracy_with_ties(d, label)
    chance = accuracy_with_ties(shuffled(d), label)[0]
    figures |= {"accuracy_ties": float(best), "floor_ties": float(chance.mean())}
    return figures | {"tie_threshold": float(threshold)}


def table(quality: Mapping[str, float], axes: Sequence[str]) -> str:
    """Figures named NAME_AXIS, a line per axis, for a terminal."""
    names = {"pairs": "pairs", "accuracy": "accuracy", "floor": "(chance)", "accuracy_ties": "with ties"}
    names |= {"floor_ties": "(chance)", "tie_threshold": "tie below"}
    lines = ["axis  " + "  ".join(f"{heading:>9}" for heading in names.values())]
    for axis in axes:
        cells = []
        for name in names:
            value = quality.get(f"{name}_{axis}")
            cells.append("-" if value is None else f"{value:.0f}" if name == "pairs" else f"{value:.3f}")
        lines.append(f"{axis:<4}  " + "  ".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)
