"""Wan checkpoints in every layout: diffusers' folders, the original names, and students of the Self Forcing family.

Whatever does not fit is listed, all of it, and then nothing is loaded. No pickle is run.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..checkpoint import CheckpointError

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

_NAMES = ("generator_ema", "generator", "model", "state_dict")
"""Under which the Self Forcing family keeps state dicts, the one that is taken by default first."""
WRAPPERS = {"module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"}
"""What DDP, FSDP, activation checkpointing and torch.compile write into names, at any depth."""
ORIGINAL_CONFIG = {
    "num_heads": "num_attention_heads",
    "num_layers": "num_layers",
    "ffn_dim": "ffn_dim",
    "freq_dim": "freq_dim",
    "in_dim": "in_channels",
    "out_dim": "out_channels",
    "eps": "eps",
}
"""From the original config.json to diffusers' arguments."""
LISTED = 20
"""Faults of a kind that an error spells out."""


def load_transformer(
    path: str | Path,
    *,
    config: Mapping[str, Any] | None = None,
    which: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> WanTransformer3DModel:
    """Wan's transformer from a diffusers or an original folder, or from a `.pt`, `.pth`, `.bin` or `.safetensors` file.

    Args:
        path: what to read. Files may hold original or diffusers' names, and a state dict alone or several by name.
        config: arguments of diffusers' WanTransformer3DModel, for files, which do not tell them all.
        which: the state dict to take from a file that holds several; by default the averaged one where there is one.
        dtype: of the weights, but for those that diffusers keeps in float32.

    Raises:
        CheckpointError: nothing there, or damaged, or more than tensors in a pickle; tensors that are missing,
            unexpected or of another shape, all listed; an image-to-video model; config missing.
    """
    from diffusers import WanTransformer3DModel

    path = _place(path, "transformer")
    if path.is_dir():
        if which is not None:
            raise CheckpointError(f"{path}: a folder holds one state dict; which={which!r} is for files")
        config = dict(config) if config is not None else transformer_config(path)
        tensors = _folder_tensors(path)
    elif config is None:
        raise CheckpointError(f"{path}: a file does not tell its model's sizes: pass config=, or load from a folder")
    else:
        tensors = _chosen(path, _read_file(path), which)
    if config.get("image_dim") is not None or config.get("added_kv_proj_dim") is not None:
        raise CheckpointError(f"{path}: an image-to-video model; load a text-to-video one")
    model = _empty(path, WanTransformer3DModel, config)
    _fill(path, model, _diffusers_names(path, tensors), dtype)
    said = model.config
    model.rope = type(model.rope)(said.attention_head_dim, said.patch_size, said.rope_max_seq_len)  # no weights
    return model.eval()


def load_vae(path: str | Path, config: Mapping[str, Any] | None = None) -> AutoencoderKLWan:
    """Wan's codec, in float32, from a diffusers folder, or from the original `Wan2.1_VAE.pth` (config: diffusers'
    arguments, by default the folder's or those of Wan2.1). Raises CheckpointError as `load_transformer` does."""
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    path = _place(path, "vae")
    if path.is_dir():
        said = _json(path / "config.json")
        if said.get("_class_name") != "AutoencoderKLWan":
            raise CheckpointError(f"{path}: holds {said.get('_class_name', 'no model')}, not AutoencoderKLWan")
        model = _empty(path, AutoencoderKLWan, _arguments(said) if config is None else config)
        tensors = _folder_tensors(path)
    else:
        model = _empty(path, AutoencoderKLWan, config or {})
        tensors = _chosen(path, _read_file(path), None)
        if not set(tensors) & set(model.state_dict()):
            tensors = convert_wan_vae_to_diffusers(dict(tensors))
    _fill(path, model, tensors, torch.float32)
    return model.eval()


def transformer_config(folder: str | Path) -> dict[str, Any]:
    """Arguments of diffusers' class, from the config.json of a diffusers or an original folder."""
    said = _json(Path(folder) / "config.json")
    kind = said.get("_class_name")
    if kind == "WanTransformer3DModel":
        return _arguments(said)
    if kind != "WanModel":
        raise CheckpointError(f"{folder}: holds {kind or 'no model'}, not WanTransformer3DModel or WanModel")
    if said.get("model_type", "t2v") != "t2v":
        raise CheckpointError(f"{folder}: a model of type {said['model_type']}; load a text-to-video one (t2v)")
    missing = [name for name in (*ORIGINAL_CONFIG, "dim") if name not in said]
    if missing:
        raise CheckpointError(f"{folder}: config.json lacks {', '.join(missing)}")
    return {ours: said[theirs] for theirs, ours in ORIGINAL_CONFIG.items()} | {
        "attention_head_dim": said["dim"] // said["num_heads"],
        **{key: said[key] for key in ("text_dim",) if key in said},
    }


def _place(path: str | Path, part: str) -> Path:
    """A pipeline folder's part, or the path itself."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    return path / part if (path / part).is_dir() else path


def _empty(path: Path, kind: Any, config: Mapping[str, Any]) -> Any:
    """A model of diffusers without weights."""
    try:
        with torch.device("meta"):
            return kind(**_arguments(config))
    except TypeError as error:
        raise CheckpointError(f"{path}: the configuration is not one of {kind.__name__} ({error})") from error


def _arguments(said: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in said.items() if not key.startswith("_")}


def _json(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from error
    if not isinstance(said, dict):
        raise CheckpointError(f"{path}: not a model's config.json")
    return said


def _folder_tensors(folder: Path) -> dict[str, Tensor]:
    """Every shard of a folder, safetensors where there are any."""
    for ending, read in ((".safetensors", _read_safetensors), (".bin", _read_pickle)):
        tensors: dict[str, Tensor] = {}
        for shard in _shards(folder, ending):
            part = _chosen(shard, read(shard), None)
            if again := [name for name in part if name in tensors]:
                raise CheckpointError(f"{shard}: holds what another file does: {_listed(again)}")
            tensors |= part
        if tensors:
            return tensors
    raise CheckpointError(f"{folder}: has no diffusion_pytorch_model*.safetensors")


def _shards(folder: Path, ending: str) -> list[Path]:
    """The files that the index names; without one the file of all tensors, or else whatever has its name's start."""
    stem = "diffusion_pytorch_model"
    found = sorted(folder.glob(f"{stem}*{ending}"))
    index, whole = folder / f"{stem}{ending}.index.json", folder / f"{stem}{ending}"
    if not index.is_file():
        return [whole] if whole in found else found
    places = _json(index).get("weight_map")
    if not isinstance(places, dict):
        raise CheckpointError(f"{index}: has no weight_map")
    wanted = {str(name) for name in places.values()}
    if lost := sorted(wanted - {shard.name for shard in found}):
        raise CheckpointError(f"{folder}: lacks {', '.join(lost)}")
    return [shard for shard in found if shard.name in wanted]


def _read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file, or damaged ({error})") from error


def _read_pickle(path: Path) -> dict[str, Any]:
    """A `.pt` of tensors; old ones, which are no archives, are read whole."""
    try:
        with path.open("rb") as file:
            archive = file.read(4) == b"PK\x03\x04"
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or "Unsupported class" in str(error):
            raise CheckpointError(
                f"{path}: holds more than tensors, and to load that could run code: refused"
            ) from error
        raise CheckpointError(f"{path}: not a checkpoint, or damaged") from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, OSError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise CheckpointError(f"{path}: not a checkpoint, or damaged ({reason})") from error
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}, not tensors by name")
    return dict(found)


def _chosen(path: Path, found: Mapping[str, Any], which: str | None) -> dict[str, Tensor]:
    """One state dict of those that a file holds."""
    groups = {name: value for name, value in found.items() if isinstance(value, Mapping)}
    if which is not None and which not in groups:
        held = ", ".join(groups) or "one state dict without a name"
        raise CheckpointError(f"{path} holds {held}, not {which!r}")
    name = which or next((name for name in _NAMES if name in groups), None)
    chosen = found if name is None else groups[name]
    tensors = {str(key): value for key, value in chosen.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors by name; found {', '.join(map(str, found)) or 'nothing'}")
    return tensors


def _diffusers_names(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what wrappers wrote, and with diffusers' names; CheckpointError where two tensors get the same one."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    plain: dict[str, Tensor] = {}
    twice = []
    for name, tensor in tensors.items():
        name = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        name = name.removeprefix("model.").removeprefix("diffusion_model.")
        if name in plain:
            twice.append(name)
        plain[name] = tensor
    if twice:
        raise CheckpointError(f"{path}: holds two tensors for one name: {_listed(twice)}")
    plain.pop("freqs", None)  # the original's table of rotations
    if any(name.startswith("condition_embedder.") for name in plain):
        return plain
    renamed: dict[str, Tensor] = convert_wan_transformer_to_diffusers(plain)
    return renamed


def _fill(path: Path, model: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Give an empty model its weights, in dtype but for modules that diffusers keeps in float32."""
    _fit(path, model, tensors)
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    cast = {
        name: tensor.to(torch.float32 if kept & set(name.split(".")) else dtype, copy=True)
        for name, tensor in tensors.items()
    }
    model.load_state_dict(cast, assign=True)


def _fit(path: Path, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError that lists every tensor that is missing, unexpected, of another shape or not floating."""
    own = model.state_dict()
    both = [name for name in own if name in tensors]
    faults = [
        [f"missing {name}" for name in own if name not in tensors],
        [f"unexpected {name}" for name in tensors if name not in own],
        [
            f"{name} is {list(tensors[name].shape)}, expected {list(own[name].shape)}"
            for name in both
            if tensors[name].shape != own[name].shape
        ],
        [f"{name} is {tensors[name].dtype}" for name in both if not tensors[name].is_floating_point()],
    ]
    if any(faults):
        said = "; ".join(_listed(part, "; ") for part in faults if part)
        raise CheckpointError(f"{path}: does not fit the configuration: {said}")


def _listed(items: list[str], between: str = ", ") -> str:
    """The first of them, and how many more there are."""
    more = [f"... and {len(items) - LISTED} more"] if len(items) > LISTED else []
    return between.join([*items[:LISTED], *more])
