"""Weights in shards: FSDP2's `fully_shard`, block by block, and copies of what lies so."""

from __future__ import annotations

import copy
import warnings
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

Sharded = TypeVar("Sharded", bound=nn.Module)
_EMPTY: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
"""Of everything in shards a twin without weights: FSDP copies nothing."""


def shard(module: Sharded) -> Sharded:
    """Every process keeps its part of each weight, and gathers those of a block while the block runs; in place.

    The module's `shard_blocks()` says what is gathered together: blocks, and last the module around them, which is what
    is called. ValueError where it names nothing, and for trained weights of several dtypes. `copy.deepcopy` makes
    copies in shards of their own.
    """
    blocks: list[nn.Module] = getattr(module, "shard_blocks", list)()
    if not blocks:
        kind = type(module).__name__
        raise ValueError(f"{kind} names nothing to shard: give it shard_blocks(), or leave --shard out")
    dtypes = {str(p.dtype).removeprefix("torch.") for p in module.parameters() if p.requires_grad}
    if len(dtypes) > 1:
        found = " and ".join(sorted(dtypes))
        raise ValueError(f"weights of one dtype alone train in shards, not {found}: give dtype float32, or a LoRA")
    if blocks[-1] not in _EMPTY:
        _shard(blocks[-1], [name for name, part in blocks[-1].named_modules() if any(part is b for b in blocks)])
    return module


def _shard(root: nn.Module, names: list[str]) -> None:
    from torch.distributed.fsdp import fully_shard

    _EMPTY[root] = _without_weights(root)
    warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # nothing of ours writes into what a network returned
    for name in sorted(names, key=len, reverse=True):
        fully_shard(root.get_submodule(name), reshard_after_forward=True)

    def copied(memo: dict[int, Any]) -> nn.Module:
        made = _whole(root).to(next(root.parameters()).device)
        _shard(made, names)
        return made

    root.__dict__["__deepcopy__"] = copied


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` was there."""
    return any(part in _EMPTY for part in module.modules())


def whole(module: Sharded, keep: bool = True) -> Sharded:
    """A copy with its weights in one piece, on the CPU; itself where they are. All processes call it alike; keep: false
    where this one needs no weights, and gets none."""
    roots = [part for part in module.modules() if part in _EMPTY]
    return copy.deepcopy(module, {id(root): _whole(root, keep) for root in roots}) if roots else module


def full(value: Tensor) -> Tensor:
    """A tensor in one piece, without gradient; all processes call it alike."""
    found: Any = value.detach()
    return found.full_tensor() if in_shards(found) else found


def in_shards(value: Any) -> bool:
    """Whether a tensor is one of which every process has a part."""
    return hasattr(value, "full_tensor")


def _whole(root: nn.Module, keep: bool = True) -> nn.Module:
    made, state = copy.deepcopy(_EMPTY[root]), dict[str, Tensor]()
    for name, value in root.state_dict().items():
        found = full(value)
        if keep:
            state[name] = found.to("cpu", copy=True)
    if keep:
        made.load_state_dict(state, assign=True)
    return made


def _without_weights(module: nn.Module) -> nn.Module:
    known: dict[int, Any] = {}
    for value in (*module.parameters(), *module.buffers()):
        empty = torch.empty_like(value, device="meta")
        known[id(value)] = nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty
    return copy.deepcopy(module, known)
