"""LoRAs in files: as WanPipeline.load_lora_weights reads them, and in ComfyUI's names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..checkpoint import CheckpointError
from .lora import ADAPTER, own_weights

if TYPE_CHECKING:
    from .wan import CausalWan

LORA = "pytorch_lora_weights.safetensors"
"""diffusers' name of the file in a folder."""
COMFYUI = "comfyui/lora.safetensors"
"""Beside it, in ComfyUI's names."""
_ORIGINAL = (
    ("attn1.", "self_attn."),
    ("attn2.", "cross_attn."),
    (".to_out.0", ".o"),
    (".to_", "."),
    ("ffn.net.0.proj", "ffn.0"),
    ("ffn.net.2", "ffn.2"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("proj_out", "head.head"),
)
"""From diffusers' names of layers to Wan's own, which ComfyUI uses."""


def lora_weights(model: CausalWan) -> dict[str, Tensor]:
    """The adapter that trains, by diffusers' names: `blocks.0.attn1.to_q.lora_A.weight` [rank, in] and `lora_B` [out,
    rank], float32, with alpha / rank within them."""
    found = {}
    scale = model.transformer.peft_config[ADAPTER]
    for name, tensor in own_weights(model).items():
        value = tensor.detach().float().cpu()
        plain = name.removeprefix("transformer.").replace(f".{ADAPTER}.", ".")
        found[plain] = value * (scale.lora_alpha / scale.r) if ".lora_B." in name else value.clone()
    return found


def save_lora(folder: str | Path, model: CausalWan) -> None:
    """Write the adapter that trains into a folder: for `WanPipeline.load_lora_weights`, and for ComfyUI."""
    write_lora(folder, lora_weights(model))


def write_lora(folder: str | Path, weights: Mapping[str, Tensor]) -> None:
    """Write `lora_weights` into a folder, both files."""
    from safetensors.torch import save_file

    folder = Path(folder)
    (folder / COMFYUI).parent.mkdir(parents=True, exist_ok=True)
    save_file({f"transformer.{name}": value for name, value in weights.items()}, folder / LORA, {"format": "pt"})
    named = {f"diffusion_model.{_original(name)}": value for name, value in weights.items()}
    save_file(named, folder / COMFYUI, {"format": "pt"})


def is_lora(place: Path) -> bool:
    """Whether a folder or a safetensors file holds a LoRA and no more."""
    if place.is_dir():
        return (place / LORA).is_file() and not (place / "transformer").is_dir()
    if place.suffix != ".safetensors" or not place.is_file():
        return False
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(place, "pt") as file:
            return any("lora" in name for name in file.keys())  # noqa: SIM118 (no mapping)
    except SafetensorError:
        return False


def lora_file(place: str | Path) -> Path:
    """The file of a LoRA: itself, or that of a folder; CheckpointError where there is none."""
    place = Path(place)
    file = place / LORA if place.is_dir() else place
    if not file.is_file():
        raise CheckpointError(f"{place}: no LoRA here; give a .safetensors file, or a folder with {LORA}")
    return file


def attach_loras(model: CausalWan, loras: Mapping[str, float]) -> CausalWan:
    """Add LoRAs, each a folder or a file with its scale, to a model, in place and frozen, in float32.

    Names of diffusers, ComfyUI and the trainers that diffusers knows. CheckpointError for one of other modules, of
    another width, or without its other half.
    """
    transformer, names = model.transformer, list[str]()
    for number, place in enumerate(loras):
        file, name = lora_file(place), f"loaded-{number}"
        weights, told = _read(file)
        _refuse_unfit(file, transformer, weights)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            transformer.load_lora_adapter(dict(weights), prefix=None, adapter_name=name, metadata=told)
        names.append(name)
        mine = [p for key, p in transformer.named_parameters() if f".{name}." in key]
        if any(p.dtype != torch.float32 for p in mine):
            _in_float32(transformer, weights, name, mine)
    if names:
        transformer.set_adapters(names, list(loras.values()))
        transformer.requires_grad_(False)
    return model


def _in_float32(transformer: nn.Module, weights: Mapping[str, Tensor], name: str, parameters: list[Any]) -> None:
    """PEFT has rounded them to the dtype of the base."""
    from peft import set_peft_model_state_dict

    for parameter in parameters:
        parameter.data = parameter.data.float()
    set_peft_model_state_dict(transformer, dict(weights), name)


def _read(file: Path) -> tuple[dict[str, Tensor], Any]:
    """A LoRA of the transformer by diffusers' names, and what the file says of its alpha."""
    from diffusers import WanPipeline
    from safetensors import SafetensorError

    try:
        found, told = WanPipeline.lora_state_dict(str(file), use_safetensors=True, return_lora_metadata=True)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a safetensors file, or damaged ({error})") from error
    except (ValueError, KeyError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{file}: not a LoRA for Wan's transformer ({reason})") from error
    start = "transformer."
    told = {key.removeprefix(start): value for key, value in (told or {}).items() if key.startswith(start)} or None
    return {name.removeprefix(start): value for name, value in found.items()}, told


def _refuse_unfit(file: Path, transformer: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """CheckpointError for the first of a LoRA's tensors that the transformer has no place for."""
    layers = dict(transformer.named_modules())
    for name, tensor in weights.items():
        module, side = _parted(name)
        layer: Any = layers.get(module)
        layer = getattr(layer, "base_layer", layer)
        if side is None or not isinstance(layer, nn.Linear):
            raise CheckpointError(f"{file}: a LoRA for other modules: the transformer has no linear layer for {name}")
        partner = weights.get(f"{module}.lora_{'B' if side == 'A' else 'A'}.weight")
        if partner is None or (name.endswith(".weight") and tensor.ndim != 2):
            raise CheckpointError(f"{file}: {name} {list(tensor.shape)} has no other half of its rank")
        if name.endswith(".bias"):
            continue
        rank = tensor.shape[0] if side == "A" else tensor.shape[1]
        width = tensor.shape[1] if side == "A" else tensor.shape[0]
        wanted = layer.in_features if side == "A" else layer.out_features
        if width != wanted:
            raise CheckpointError(f"{file}: {name} is {width} wide, the transformer's layer {wanted}")
        if rank != partner.shape[1 if side == "A" else 0]:
            raise CheckpointError(f"{file}: {name} is of rank {rank}, its other half {list(partner.shape)} is not")


def _parted(name: str) -> tuple[str, str | None]:
    """A tensor's layer, and which of the two matrices it is of."""
    found = re.fullmatch(r"(.+)\.lora_([AB])\.(weight|bias)", name)
    return (found[1], found[2]) if found else (name, None)


def _original(name: str) -> str:
    for ours, theirs in _ORIGINAL:
        name = name.replace(ours, theirs)
    return name
