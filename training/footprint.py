"""What a piece of a training takes, from its real modules and nothing computed: FLOPs, and the most memory at once."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from ..models.causal_attention import causal_bias, rotary_turn
from .learner import Learner


@dataclass(frozen=True)
class Footprint:
    """flops: of matrix products, convolutions and attention, by part. peak: most bytes at once, beyond those held."""

    flops: dict[str, float]
    peak: float

    def at(self, other: Footprint, layers: int) -> Footprint:
        """Of a network of so many layers, from those of one, this, and of two: what grows by layers grows evenly."""
        more = layers - 1
        flops = {part: count + more * (other.flops[part] - count) for part, count in self.flops.items()}
        return Footprint(flops, self.peak + more * (other.peak - self.peak))


@contextmanager
def pretended(*modules: nn.Module) -> Iterator[None]:
    """Within it tensors have shapes and no numbers, so that a network of any size is run at once. modules: built on the
    meta device; their weights are pretended too, and stay shared where they are."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode, made = FakeTensorMode(), dict[int, Any]()

    def pretend(value: Tensor) -> Any:
        if id(value) not in made:
            found = mode.fake_tensor_converter.from_meta_and_device(mode, value.detach(), torch.device("cpu"))
            trained = value.requires_grad
            made[id(value)] = nn.Parameter(found, trained) if isinstance(value, nn.Parameter) else found
        return made[id(value)]

    _forget()
    try:
        for part in {inner for module in modules for inner in module.modules()}:
            for kept in (part._parameters, part._buffers):
                kept.update({name: pretend(value) for name, value in kept.items() if value is not None})
        with mode:
            yield
    finally:
        _forget()


def footprint(parts: Iterable[str], held: Iterable[Tensor]) -> Footprint:
    """What work takes, in numbers or pretended: a generator that names each part when it is done. held: what is there
    all along."""
    live, flops, before = _Live(held), dict[str, float](), 0
    with live:
        for part in parts:
            flops[part], before = flops.get(part, 0) + live.flops - before, live.flops
    return Footprint(flops, live.peak)


def held_by(*parts: nn.Module | Learner[Any]) -> list[list[Tensor]]:
    """For each part what it keeps between updates and the parts before it do not, such as a base that adapters share: a
    module's weights; of a learner float32 copies, averages and AdamW's two means."""
    seen, found = set[int](), list[list[Tensor]]()
    for part in parts:
        if isinstance(part, Learner):
            means = [torch.empty_like(weight) for weight in part.parameters for _ in range(2)]
            tensors = [*(weight.detach() for _, weight in part.masters.pairs), *part.ema, *means]
        else:
            tensors = [*part.parameters(), *part.buffers()]
        found.append([value for value in tensors if id(_storage(value)) not in seen])
        seen |= {id(_storage(value)) for value in tensors}
        _KEPT.extend(_storage(value) for value in tensors)
    _KEPT.clear()
    return found


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes."""
    return sum(value.numel() * value.element_size() for value in tensors)


class _Live(TorchDispatchMode):
    """Counts, and follows the storages that operations make until nothing holds them. (FlopCounterMode holds some,
    those that are made again in the backward pass among them.)"""

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self.held = [_storage(value) for value in held]
        self.known = {id(storage) for storage in self.held}
        self.now = self.peak = self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (count := _COUNTS.get(func.overloadpacket)) is not None:
            self.flops += int(count(*args, **(kwargs or {}), out_val=out))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._meet(_storage(value))
        return out

    def _meet(self, storage: torch.UntypedStorage) -> None:
        place, size = id(storage), storage.nbytes()
        if place in self.known:
            return
        self.known.add(place)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._part, place, size)

    def _part(self, place: int, size: int) -> None:
        self.known.discard(place)
        self.now -= size


def _storage(value: Tensor) -> torch.UntypedStorage:
    return value.untyped_storage()


def _forget() -> None:
    """Tables that pretended tensors must not come into, nor out of."""
    rotary_turn.cache_clear()
    causal_bias.cache_clear()


def _forward(query: Tensor, key: Tensor, value: Tensor, *others: Any, **more: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *others: Any, **more: Any) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


_KEPT: list[torch.UntypedStorage] = []
_COUNTS: dict[Any, Any] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}
"""FLOPs of an operation from its arguments: torch's formulas, and attention on a CPU, which these leave out."""
