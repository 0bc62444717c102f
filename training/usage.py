"""What a training has spent: calls and seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass
class ComputeUsage:
    """What a trainer has spent. A call is one chunk of one stream through a network once, so that a pass over a clip of
    n chunks is n calls, with or without its backward pass. A reward call is one window scored, saliency included."""

    updates: int = 0
    chunks: int = 0
    """Chunks generated."""
    generator_calls: int = 0
    reference_calls: int = 0
    """Of a frozen copy of the starting generator."""
    teacher_calls: int = 0
    critic_calls: int = 0
    reward_calls: int = 0
    seconds: float = 0.0
    """Spent in `update`."""


def added(usages: Sequence[ComputeUsage]) -> ComputeUsage:
    """What they come to together."""
    spent = [asdict(one) for one in usages]
    return ComputeUsage(**{key: sum(one[key] for one in spent) for key in spent[0]})
