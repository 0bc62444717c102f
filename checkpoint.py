"""Checkpoints as safetensors and JSON, replaced in one rename; no pickle anywhere."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MANIFEST = "checkpoint.json"
LARGE = 2**26
"""Bytes from which on a file is told from others by its size and its ends."""
_GROUP = re.compile(r"[A-Za-z0-9_-]+")


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or does not fit what it is loaded into."""


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def quick_digest(files: Iterable[Path], ends: int = 2**20) -> str:
    """Hex SHA-256 of files by name and content; of those of LARGE or more bytes the size and both `ends` count, since
    weights of many gigabytes would take minutes."""
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with open(path, "rb") as file:
            if size < LARGE:
                digest.update(file.read())
            else:
                digest.update(file.read(ends))
                file.seek(-ends, os.SEEK_END)
                digest.update(file.read(ends))
    return digest.hexdigest()


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` as indented JSON. A reader sees the old file or the new one, never a part."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_text(json.dumps(obj, indent=2) + "\n", encoding="utf-8")
        _sync(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    _sync(path.parent)


def given_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a diffusers part's config, the arguments that it was built with: what makes it again, as JSON holds it."""
    defaults = {"_use_default_values", *config.get("_use_default_values", ())}
    return {name: value for name, value in config.items() if name not in defaults and not name.startswith("_")}


def save_checkpoint(folder: str | Path, tensors: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]) -> None:
    """Replace `folder` by a checkpoint: a `<group>.safetensors` per group, and checkpoint.json with `meta` and digests.

    Whenever the process is killed, `load_checkpoint(folder)` finds the previous or the new checkpoint, whole. One
    process writes a folder at a time. `meta` is what JSON holds (tuples come back as lists).
    Raises CheckpointError for a bad group name, and when `folder` exists and holds anything but a checkpoint.
    """
    from safetensors.torch import save_file

    aside, files = begin_checkpoint(folder), {}
    for group, named in tensors.items():
        if not _GROUP.fullmatch(group):
            raise CheckpointError(f"group name {group!r}: use letters, digits, - and _")
        path = aside / f"{group}.safetensors"
        save_file(_storable(named), path)
        files[path.name] = sha256_file(path)
    finish_checkpoint(folder, {"format": 1, "files": files, "meta": dict(meta)})


def begin_checkpoint(folder: str | Path) -> Path:
    """An empty folder to write a checkpoint's files into, which `finish_checkpoint` puts in its place."""
    folder, aside, _, _ = _places(folder)
    _refuse_to_replace(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _settle(folder)
    aside.mkdir()
    return aside


def finish_checkpoint(folder: str | Path, manifest: Mapping[str, Any]) -> None:
    """Put what was written since `begin_checkpoint` in place, with its manifest."""
    folder, aside, ready, old = _places(folder)
    for path in aside.iterdir():
        _sync(path)
    write_json(aside / MANIFEST, manifest)
    os.rename(aside, ready)
    if folder.exists():
        os.rename(folder, old)
    os.rename(ready, folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def replacing(folder: str | Path, marker: str) -> Iterator[Path]:
    """A folder to write into, which then takes the place of `folder`, all of it or nothing.

    CheckpointError where that holds anything but an earlier one, told by its file `marker`.
    """
    folder = Path(os.path.abspath(folder))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not (folder / marker).is_file():
        raise CheckpointError(f"{folder}: holds something else; choose a new folder")
    aside, old = (folder.with_name(f"{folder.name}{suffix}") for suffix in (".partial", ".old"))
    for left in (aside, old):
        shutil.rmtree(left, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    if folder.exists():
        os.rename(folder, old)
    os.rename(aside, folder)
    shutil.rmtree(old, ignore_errors=True)


def has_checkpoint(folder: str | Path) -> bool:
    """Whether `load_checkpoint(folder)` has something to read."""
    folder, _, ready, _ = _places(folder)
    return (folder / MANIFEST).is_file() or (ready / MANIFEST).is_file()


def load_checkpoint(folder: str | Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read `(tensors, meta)` as given to `save_checkpoint`, tensors on the CPU.

    Raises CheckpointError when there is none, or when a file is missing, cut short or changed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found, files, meta, groups = open_checkpoint(folder)
    if groups is not None:
        raise CheckpointError(f"{folder}: several processes wrote it in parts, which a training alone puts together")
    tensors = {}
    for name, digest in files.items():
        path = intact(found / name, digest)
        try:
            tensors[path.stem] = load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: not a safetensors file ({error})") from error
    return tensors, meta


def open_checkpoint(folder: str | Path) -> tuple[Path, dict[str, str], dict[str, Any], list[str] | None]:
    """Where a checkpoint's files lie, their digests by name, its meta, and the groups where files hold parts of all."""
    folder, _, ready, _ = _places(folder)
    if not has_checkpoint(folder):
        raise CheckpointError(f"{folder}: no checkpoint here ({MANIFEST} not found)")
    found = folder if (folder / MANIFEST).is_file() else ready
    return found, *_read_manifest(found / MANIFEST)


def intact(path: Path, digest: str) -> Path:
    """The path of a checkpoint's file; CheckpointError where it is missing or changed."""
    if not path.is_file():
        raise CheckpointError(f"{path}: listed in {MANIFEST} but missing")
    if sha256_file(path) != digest:
        raise CheckpointError(f"{path}: damaged (its SHA-256 is not the one in {MANIFEST})")
    return path


def refuse_missing(whose: str, found: Iterable[str], wanted: Iterable[str]) -> None:
    """CheckpointError where a checkpoint lacks a part that it is read for."""
    if missing := sorted({*wanted} - {*found}):
        raise CheckpointError(f"the checkpoint lacks parts of the {whose}: {', '.join(missing)}")


def sha256_weights(weights: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 of named tensors: their names, shapes, types and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype} ".encode())
        tensor = getattr(tensor, "full_tensor", tensor.detach)()  # of one in shards
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimiser's state into named tensors and a dict that JSON holds exactly."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}

    def split(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
        tensors.update({f"{prefix}.{key}": value for key, value in values.items() if isinstance(value, Tensor)})
        return {key: value for key, value in values.items() if not isinstance(value, Tensor)}

    states = {str(index): split(f"state.{index}", values) for index, values in state["state"].items()}
    groups = [split(f"group.{index}", values) for index, values in enumerate(state["param_groups"])]
    return tensors, {"state": states, "param_groups": groups}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Put back what `pack_optimizer` returned. Raises CheckpointError when the optimiser has other parameters."""
    states: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in meta["state"].items()}
    groups: list[dict[str, Any]] = [dict(group) for group in meta["param_groups"]]
    for group in groups:
        if "betas" in group:
            group["betas"] = tuple(group["betas"])
    for name, value in tensors.items():
        kind, place, key = name.split(".", 2)
        (states[int(place)] if kind == "state" else groups[int(place)])[key] = value.clone()
    shapes = [tuple(p.shape) for group in optimizer.param_groups for p in group["params"]]
    for index, values in states.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.ndim and index < len(shapes) and tuple(value.shape) != shapes[index]:
                raise CheckpointError(
                    f"optimiser state {key} of parameter {index} has shape {tuple(value.shape)}, "
                    f"the parameter {shapes[index]}"
                )
    try:
        optimizer.load_state_dict({"state": states, "param_groups": groups})
    except ValueError as error:
        raise CheckpointError(f"the saved optimiser state does not fit: {error}") from error


def rng_state() -> dict[str, Tensor]:
    """The states of torch's global random generators: uint8 tensors named "cpu" and "cuda.<index>"."""
    devices = {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return {"cpu": torch.get_rng_state(), **devices}


def set_rng_state(states: Mapping[str, Tensor]) -> None:
    """Put back what `rng_state` returned; the states of GPUs that this machine lacks are left out."""
    torch.set_rng_state(states["cpu"])
    for index in range(torch.cuda.device_count()):
        if f"cuda.{index}" in states:
            torch.cuda.set_rng_state(states[f"cuda.{index}"], index)


def _places(folder: str | Path) -> tuple[Path, Path, Path, Path]:
    """The checkpoint's folder, where it is written, where it waits complete, and where the previous one goes."""
    folder = Path(os.path.abspath(folder))
    aside, ready, old = (folder.with_name(f"{folder.name}{suffix}") for suffix in (".partial", ".ready", ".old"))
    return folder, aside, ready, old


def _settle(folder: Path) -> None:
    """Finish the rename that a killed save left open, and clear what it left behind."""
    folder, aside, ready, old = _places(folder)
    if ready.exists() and not folder.exists():
        os.rename(ready, folder)
    for left in (aside, ready, old):
        if left.exists():
            shutil.rmtree(left)


def _refuse_to_replace(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: a file is in the way of the checkpoint's folder")
    foreign = [p.name for p in folder.iterdir() if p.name != MANIFEST and p.suffix != ".safetensors"]
    if foreign:
        raise CheckpointError(f"{folder}: holds {foreign[0]!r}, so it is no checkpoint; choose another folder")


def _read_manifest(path: Path) -> tuple[dict[str, str], dict[str, Any], list[str] | None]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files, meta, groups = manifest["files"], manifest["meta"], manifest.get("groups")
        names_fit = all(_GROUP.fullmatch(name.removesuffix(".safetensors")) for name in files)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a checkpoint manifest ({error!r})") from error
    if not names_fit:
        raise CheckpointError(f"{path}: lists a file outside its folder")
    return files, meta, groups


def _storable(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, each with its own storage (safetensors refuses shared ones)."""
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in named.items():
        tensor = tensor.detach().to("cpu").contiguous()
        storage = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return result


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
