"""States of N rows: frozen dataclasses whose rows can be taken in any order, and chosen between."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor


class Rows:
    """A base of frozen dataclasses. Tensors [N, ...], and parts that have `take` themselves, hold a row each; numbers,
    None and the fields named in SHARED belong to all."""

    SHARED: ClassVar[frozenset[str]] = frozenset()

    def __len__(self) -> int:
        return len(next(iter(self._of_rows().values())))

    def take(self, rows: Tensor) -> Self:
        """The rows [M] (int64), in that order; a row may occur several times (a fork)."""
        own = self._of_rows().items()
        taken = {k: v[rows.to(v.device)] if isinstance(v, Tensor) else v.take(rows) for k, v in own}
        return replace(self, **taken)  # type: ignore[type-var]

    def where(self, mask: Tensor, other: Self) -> Self:
        """The rows of `other` where mask [N], these elsewhere; what belongs to all stays."""
        theirs, chosen = other._of_rows(), dict[str, Any]()
        for name, old in self._of_rows().items():
            new = theirs[name]
            fits = isinstance(old, Tensor)
            chosen[name] = torch.where(mask.view(-1, *[1] * (old.ndim - 1)), new, old) if fits else old.where(mask, new)
        return replace(self, **chosen)  # type: ignore[type-var]

    def _of_rows(self) -> dict[str, Any]:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {
            name: value
            for name, value in values.items()
            if name not in self.SHARED and (isinstance(value, Tensor) or hasattr(value, "take"))
        }
