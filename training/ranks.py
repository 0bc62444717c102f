"""The processes of one training: which of them this one is, and what they tell each other.

`torchrun` or `accelerate launch` starts them; each has the same weights, draws the same batch, and learns from rows of
it. N processes, B rows in all, B / N in each, in order.
"""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(hours=6)
"""How long processes wait for each other: the first one may look at many clips meanwhile."""
BUCKET = 2**24
"""Elements that travel together."""


class RankError(ValueError):
    """A training of several processes cannot go on: one of them has ended, or was given other work than the rest."""


@dataclass(frozen=True)
class Ranks:
    """Process `index` of `count`. sharded: whether weights lie in shards, which all processes gather to use them."""

    index: int = 0
    count: int = 1
    sharded: bool = False

    @property
    def first(self) -> bool:
        """Whether this process is the one that looks, logs and writes."""
        return self.index == 0

    def rows(self, total: int, what: str = "clips") -> slice:
        """The rows of this process among so many; RankError where they do not go round."""
        if total % self.count:
            raise RankError(
                f"{total} {what} do not go round {self.count} processes: ask for a multiple of {self.count}"
            )
        each = total // self.count
        return slice(self.index * each, (self.index + 1) * each)

    def gather(self, own: Tensor) -> Tensor:
        """Rows [B / N, ...] of every process as [B, ...], without gradient."""
        if self.count == 1:
            return own
        parts = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(parts, own.detach().contiguous())
        return torch.cat(parts)

    def mean(self, own: Tensor) -> Tensor:
        """The mean of a tensor over the processes."""
        if self.count == 1:
            return own
        total = own.detach().clone()
        dist.all_reduce(total)
        return total / self.count

    def total(self, numbers: Sequence[float]) -> list[float]:
        """Sums of numbers over the processes."""
        if self.count == 1 or not numbers:
            return list(numbers)
        vector = torch.tensor(numbers, dtype=torch.float64, device=_device())
        dist.all_reduce(vector)
        return vector.tolist()

    def means(self, measured: Mapping[str, float]) -> dict[str, float]:
        """Means of what every process measured under the same names."""
        names = sorted(measured)
        found = self.total([measured[name] for name in names])
        return dict(measured) if self.count == 1 else dict(zip(names, (v / self.count for v in found), strict=True))

    @torch.no_grad()
    def average(self, gradients: Sequence[Tensor]) -> None:
        """Every tensor becomes its mean over the processes; many travel as one."""
        for bucket in _buckets(gradients if self.count > 1 else ()):
            mean = self.mean(torch.cat([g.flatten() for g in bucket])).split([g.numel() for g in bucket])
            torch._foreach_copy_(list(bucket), [part.view_as(g) for part, g in zip(mean, bucket, strict=True)])

    @torch.no_grad()
    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Every tensor becomes the first process's."""
        for value in tensors if self.count > 1 else ():
            dist.broadcast(value.data, 0)

    def told(self, look: Callable[[], T]) -> T:
        """What the first process finds, for all; they wait for it, or where weights are sharded look with it."""
        if self.count == 1:
            return look()
        found = [look() if self.first or self.sharded else None]
        dist.broadcast_object_list(found, 0, device=_device())
        return found[0]  # type: ignore[return-value]

    def collect(self, own: T) -> list[T]:
        """What every process has, in order, for all."""
        found: list[Any] = [own] * self.count
        if self.count > 1:
            dist.all_gather_object(found, own)
        return found

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()

    @contextmanager
    def alike(self, *errors: type[Exception]) -> Iterator[None]:
        """Where the body fails by one of these errors in one process, it fails in all. Sharded weights tie processes
        together inside the body, so that such a failure ends them: RankError."""
        mine: Exception | None = None
        try:
            yield
        except errors as error:
            mine = error
        if self.sharded and mine is not None:
            raise RankError(f"process {self.index}: {mine}") from mine
        if not self.sharded and self.total([float(mine is not None)])[0]:
            raise mine or errors[0]("in another process")


_HERE = Ranks()


def here() -> Ranks:
    """The processes that `join` has joined, or this one alone."""
    return _HERE


def join(device: torch.device | str = "cpu", shard: bool = False) -> Ranks:
    """Join the processes that `torchrun` or `accelerate launch` started; without any, this one is alone.

    On "cuda" each takes the GPU of its number. shard: weights are to lie in shards. RankError to shard alone.
    """
    global _HERE
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        begun = dist.is_initialized()
        state = PartialState(cpu=torch.device(device).type == "cpu", timeout=PATIENCE)
        _HERE = Ranks(state.process_index, state.num_processes, shard)
        if not begun:
            atexit.register(_leave)
    elif shard:
        raise RankError("to shard takes several processes: start them by torchrun --nproc-per-node 2 -m reelgym ...")
    return _HERE


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def together() -> Iterator[None]:
    """Ends in one line where another process has gone: RankError."""
    try:
        yield
    except RuntimeError as error:
        if _HERE.count == 1 or not re.search(r"gloo|nccl|connection (closed|reset)|tcpstore", str(error), re.I):
            raise
        raise RankError(
            "another process of this training has ended, so this one does too: start all of them again, and they go on "
            "from the last checkpoint"
        ) from error


def speaks() -> bool:
    """Whether this process is the first to say why the training ends: one line is enough."""
    if not dist.is_initialized():
        return os.environ.get("RANK", "0") == "0"
    try:
        return dist.distributed_c10d._get_default_store().add("reelgym/ended", 1) == 1
    except RuntimeError:  # the process that kept it has ended
        return True


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of tensors of one type, of BUCKET elements or one tensor."""
    bucket: list[Tensor] = []
    for value in tensors:
        if bucket and (value.dtype != bucket[0].dtype or sum(b.numel() for b in bucket) + value.numel() > BUCKET):
            yield bucket
            bucket = []
        bucket.append(value)
    if bucket:
        yield bucket
