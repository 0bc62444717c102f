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

NAMES = ("generator_ema", "generator", "model", "state_dict")
"""Under which the Self Forcing family keeps state dicts, the one that is taken by default first."""
WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
"""What FSDP, torch.compile and activation checkpointing write into names."""
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

    path = Path(path)
    if (path / "transformer").is_dir():
        path = path / "transformer"
    if path.is_dir():
        config = dict(config) if config is not None else transformer_config(path)
        tensors = _folder_tensors(path)
    elif config is None:
        raise CheckpointError(
            f"{path}: a file does not tell the sizes of its model: pass config=, or load from a folder"
        )
    else:
        tensors = _chosen(path, _read_file(path), which)
    tensors = _diffusers_names(tensors)
    with torch.device("meta"):
        model = WanTransformer3DModel(**config)
    _fit(path, model, tensors)
    kept = set(model._keep_in_fp32_modules)
    cast = {
        name: tensor.to(torch.float32 if kept & set(name.split(".")) else dtype, copy=True)
        for name, tensor in tensors.items()
    }
    model.load_state_dict(cast, assign=True)
    rope = {"attention_head_dim": 0, "patch_size": 0, "max_seq_len": 0}
    rope |= {key: model.config[{"max_seq_len": "rope_max_seq_len"}.get(key, key)] for key in rope}
    model.rope = type(model.rope)(**rope)  # its tables are no weights
    return model.eval()


def load_vae(path: str | Path, config: Mapping[str, Any] | None = None) -> AutoencoderKLWan:
    """Wan's codec from a diffusers folder, or from the original `Wan2.1_VAE.pth` (config: diffusers' arguments, by
    default those of Wan2.1). Raises CheckpointError as `load_transformer` does."""
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    path = Path(path)
    if (path / "vae").is_dir():
        path = path / "vae"
    if path.is_dir():
        said = _json(path / "config.json")
        if said.get("_class_name") != "AutoencoderKLWan":
            raise CheckpointError(f"{path}: holds {said.get('_class_name', 'no model')}, not AutoencoderKLWan")
        model = AutoencoderKLWan(**_arguments(said))
        tensors = _folder_tensors(path)
    else:
        model = AutoencoderKLWan(**(config or {}))
        tensors = _chosen(path, _read_file(path), None)
        if not set(tensors) & set(model.state_dict()):
            tensors = convert_wan_vae_to_diffusers(dict(tensors))
    _fit(path, model, tensors)
    model.load_state_dict(tensors)
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
        "text_dim": said.get("text_dim", 4096),
    }


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
        shards = sorted(folder.glob(f"diffusion_pytorch_model*{ending}"))
        if shards:
            index = folder / f"diffusion_pytorch_model{ending}.index.json"
            wanted = set(_json(index)["weight_map"].values()) if index.is_file() else set()
            if lost := sorted(wanted - {shard.name for shard in shards}):
                raise CheckpointError(f"{folder}: lacks {', '.join(lost)}")
            parts = [read(shard) for shard in shards if not wanted or shard.name in wanted]
            return {name: tensor for part in parts for name, tensor in part.items()}
    raise CheckpointError(f"{folder}: has no diffusion_pytorch_model*.safetensors")


def _read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file, or damaged ({error})") from error


def _read_pickle(path: Path) -> dict[str, Any]:
    """A `.pt` of tensors; old ones, which are no archives, are read whole."""
    try:
        with path.open("rb") as file:
            archive = file.read(2) == b"PK"
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or "Unsupported class" in str(error):
            raise CheckpointError(
                f"{path}: holds more than tensors, and to load that could run code: refused"
            ) from error
        raise CheckpointError(f"{path}: not a checkpoint, or damaged") from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(f"{path}: not a checkpoint, or damaged ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}, not tensors by name")
    return dict(found)


def _chosen(path: Path, found: Mapping[str, Any], which: str | None) -> dict[str, Tensor]:
    """One state dict of those that a file holds."""
    groups = {name: value for name, value in found.items() if isinstance(value, Mapping)}
    if which is not None and which not in groups:
        held = ", ".join(groups) or "one state dict without a name"
        raise CheckpointError(f"{path} holds {held}, not {which!r}")
    name = which or next((name for name in NAMES if name in groups), None)
    chosen = found if name is None else groups[name]
    tensors = {str(key): value for key, value in chosen.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors by name; found {', '.join(map(str, found)) or 'nothing'}")
    return tensors


def _diffusers_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what wrappers wrote, and with diffusers' names."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    plain = {}
    for name, tensor in tensors.items():
        for wrapper in WRAPPERS:
            name = name.replace(wrapper, "")
        for prefix in ("module.", "model.", "diffusion_model."):
            name = name.removeprefix(prefix)
        plain[name] = tensor
    plain.pop("freqs", None)  # the original's table of rotations
    if any(name.startswith("condition_embedder.") for name in plain):
        return plain
    renamed: dict[str, Tensor] = convert_wan_transformer_to_diffusers(plain)
    return renamed


def _fit(path: Path, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError that lists every tensor that is missing, unexpected or of another shape."""
    own = model.state_dict()
    faults = [
        [f"missing {name}" for name in own if name not in tensors],
        [f"unexpected {name}" for name in tensors if name not in own],
        [
            f"{name} is {list(tensors[name].shape)}, expected {list(own[name].shape)}"
            for name in own
            if name in tensors and tensors[name].shape != own[name].shape
        ],
    ]
    said = [part if len(part) <= LISTED else [*part[:LISTED], f"and {len(part) - LISTED} more"] for part in faults]
    if any(said):
        raise CheckpointError(
            f"{path}: does not fit the configuration: " + "; ".join(one for part in said for one in part)
        )
