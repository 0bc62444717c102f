"""Checkpoints that several processes write, each its part, and that any number of them goes on from: DCP's tensors in
safetensors, in the folder and with the manifest of checkpoint.py."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import begin_checkpoint, finish_checkpoint, intact, load_checkpoint, open_checkpoint, sha256_file
from ..models.shards import in_shards
from .learner import Groups
from .ranks import Ranks
from .state import State


def save_parts(folder: Path, state: State, ranks: Ranks) -> None:
    """Replace `folder` by a checkpoint, as `save_checkpoint` does; all processes call it alike. What lies in shards is
    written by those that have it, of all else each process writes some, and the first one's meta is kept."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    groups, meta = state
    aside = ranks.told(lambda: begin_checkpoint(folder) if ranks.first else folder)
    save(_flat(groups), storage_writer=HuggingFaceStorageWriter(str(aside), save_distributed=True))
    mine = aside / f"shard-{ranks.index + 1:05d}-model-00001-of-00001.safetensors"
    digests = ranks.collect((mine.name, sha256_file(mine)) if mine.exists() else None)
    if ranks.first:
        files = dict(found for found in digests if found is not None)
        finish_checkpoint(folder, {"format": 2, "files": files, "groups": list(groups), "meta": meta})
    ranks.wait()


def load_parts(folder: Path, like: Groups, ranks: Ranks) -> State:
    """What `save_parts` or `save_checkpoint` wrote. Tensors that are in shards in `like` come in such shards,
    all others whole and on the CPU. CheckpointError as for `load_checkpoint`."""
    found, files, meta, groups = open_checkpoint(folder)
    if groups is None:
        whole, meta = load_checkpoint(folder)
        return {g: {n: _laid(v, like.get(g, {}).get(n)) for n, v in named.items()} for g, named in whole.items()}, meta
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    ranks.told(lambda: [intact(found / name, digest) for name, digest in files.items()])
    reader, made, result = HuggingFaceStorageReader(str(found)), dict[str, Tensor](), Groups({g: {} for g in groups})
    described: dict[str, Any] = reader.read_metadata().state_dict_metadata
    for path, told in described.items():
        group, name = path.split("/", 1)
        place: Any = like.get(group, {}).get(name)
        empty = torch.empty_like(place) if in_shards(place) else torch.empty(told.size, dtype=told.properties.dtype)
        made[path] = result[group][name] = empty
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        load(made, storage_reader=reader, no_dist=ranks.count == 1)
    return result, meta


def _flat(groups: Groups) -> dict[str, Tensor]:
    """All tensors by group and name; one that occurs twice is copied, as a file holds nothing twice."""
    seen, flat = set[int](), dict[str, Tensor]()
    for group, named in groups.items():
        for name, value in named.items():
            local: Any = value
            place = (local.to_local() if in_shards(value) else local).untyped_storage().data_ptr()
            flat[f"{group}/{name}"] = value.detach().clone() if place in seen else value.detach()
            seen.add(place)
    return flat


def _laid(value: Tensor, place: Any) -> Tensor:
    """A whole tensor in the shards of another."""
    if not in_shards(place):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(place.device), place.device_mesh, place.placements, src_data_rank=None)
