"""Micro-batches: an update whose gradient is gathered a few clips at a time, to fit the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from torch import Tensor

from .learner import Learner

_ROWS: int | None = None


@contextmanager
def microbatches(rows: int | None) -> Iterator[None]:
    """Within it trainers carry no more than so many clips at a time with their gradient; None: all at once.

    Gradients are the same to rounding. What must be known of all clips first, such as what others of a group earned,
    is found without gradient, which costs one more pass. ValueError below 1.
    """
    global _ROWS
    if rows is not None and rows < 1:
        raise ValueError(f"a micro-batch has at least 1 clip, not {rows}")
    before, _ROWS = _ROWS, rows
    try:
        yield
    finally:
        _ROWS = before


def parts(total: int) -> list[tuple[slice, float]]:
    """The rows of a batch in as few parts as are allowed, of the same length to one, and the share that each is."""
    count = 1 if _ROWS is None else max(1, -(-total // _ROWS))
    ends = [total * place // count for place in range(count + 1)]
    return [(slice(begin, end), (end - begin) / max(total, 1)) for begin, end in pairwise(ends)]


def backward_in_parts(learner: Learner[Any], total: int, loss: Callable[[slice], Tensor]) -> float:
    """Add the gradient of a mean over so many rows, part by part; loss(rows) is the mean over these. Returns it all."""
    summed = 0.0
    for rows, share in parts(total):
        found = loss(rows) * share
        learner.backward(found)
        summed += float(found.detach())
    return summed
