"""Rows of a state are taken and chosen between; what belongs to all stays."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from reelgym.envs.rows import Rows


@dataclass(frozen=True)
class Inner(Rows):
    place: torch.Tensor


@dataclass(frozen=True)
class Outer(Rows):
    SHARED: ClassVar[frozenset[str]] = frozenset({"all"})

    inner: Inner
    pixels: torch.Tensor
    all: torch.Tensor
    step: int
    later: Inner | None = None


def test_rows_are_taken_and_chosen_between():
    one, two = (
        Outer(Inner(start + torch.arange(3)), start + torch.zeros(3, 2, 2), torch.zeros(5), start) for start in (0, 10)
    )
    fork = one.take(torch.tensor([2, 2, 0, 1]))
    assert fork.inner.place.tolist() == [2, 2, 0, 1] and fork.pixels.shape == (4, 2, 2)
    assert fork.all is one.all and fork.step == 0 and fork.later is None
    mixed = one.where(torch.tensor([True, False, True]), two)
    assert mixed.inner.place.tolist() == [10, 1, 12] and mixed.pixels[:, 0, 0].tolist() == [10, 0, 10]
    assert mixed.all is one.all and mixed.step == 0
