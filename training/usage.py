"""What a training has spent: calls and seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields

from .ranks import here


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
    seconds: float = field(default=0.0, compare=False)
    """Spent in `update`."""
    cpu_seconds: float = field(default=0.0, compare=False)
    """Of the process in `update`, over all its threads: what one core needs, on a busy machine too."""

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Adds the seconds of its body; of one that fails none. All processes of a training count what all have spent
        meanwhile; their wall time is its mean."""
        before = asdict(self)
        wall, busy = time.monotonic(), time.process_time()
        yield
        self.seconds += time.monotonic() - wall
        self.cpu_seconds += time.process_time() - busy
        if (ranks := here()).count > 1:
            names = [field.name for field in fields(self) if field.name != "updates"]
            spent = ranks.total([getattr(self, name) - before[name] for name in names])
            for name, value in zip(names, spent, strict=True):
                setattr(self, name, before[name] + type(before[name])(value))
            self.seconds = before["seconds"] + (self.seconds - before["seconds"]) / ranks.count


def added(usages: Sequence[ComputeUsage]) -> ComputeUsage:
    """What they come to together."""
    spent = [asdict(one) for one in usages]
    return ComputeUsage(**{key: sum(one[key] for one in spent) for key in spent[0]})
