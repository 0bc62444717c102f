"""VideoReward's published files: settings, and the checkpoint's tensors under today's names with LoRA merged in.

A folder holds `model_config.json` and `checkpoint-<step>/` with `model.pth` (PEFT-wrapped, or already merged), or with
`adapter_model.safetensors` and `non_lora_state_dict.pth`, whose frozen weights are the backbone's own.
"""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...checkpoint import CheckpointError
from .pixels import IMAGE_MIN_PIXELS, MAX_PIXELS, VIDEO_MIN_PIXELS

VIDEOREWARD_AXES: tuple[str, ...] = ("VQ", "MQ", "TA")
STATS = ("mean", "std")
EMBEDDING = "backbone.language_model.embed_tokens.weight"
_SUPPORTED: dict[str, dict[str, Any]] = {
    "model_config": {"output_dim": 1, "reward_token": "special", "use_special_tokens": True},
    "data_config": {
        "eval_dim": list(VIDEOREWARD_AXES),
        "num_frames": None,
        "sample_type": "uniform",
        "prompt_template_type": "detailed_special",
    },
}
_SECTIONS = ("model_config", "data_config", "peft_lora_config", "inference_config")
_REQUIRED = ("output_dim", "reward_token")
_PREFIXES = (
    ("model.visual.", "backbone.visual."),
    ("model.language_model.", "backbone.language_model."),
    ("visual.", "backbone.visual."),
    ("model.", "backbone.language_model."),
    ("rm_head.", "head."),
)
_LORA = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")


@dataclass(frozen=True)
class Settings:
    """What model_config.json says. mean, std: of the axes' logits, for z-scores. lora_scale: what an update counts, by
    its rank. special_token_ids: of the three reward tokens, None where the tokenizer decides."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    lora_scale: Mapping[int, float]
    special_token_ids: tuple[int, ...] | None
    fps: float
    min_pixels: int
    max_pixels: int


def read_settings(folder: Path) -> Settings:
    """The settings in `folder`/model_config.json.

    Without inference_config, logits are their own z-scores, as in the published code. With a data_config, small frames
    grow to the 100,352 pixels of the published video reader; without one to the image processor's 3,136.
    CheckpointError for a missing or damaged file and for settings that are not supported.
    """
    path = folder / "model_config.json"
    config = read_json(path)
    sections = _sections(path, config)
    data = sections["data_config"]
    scores = sections["inference_config"] or {
        f"{axis}_{key}": float(key == "std") for axis in VIDEOREWARD_AXES for key in STATS
    }
    ids = config.get("special_token_ids")
    try:
        mean, std = (tuple(float(scores[f"{axis}_{key}"]) for axis in VIDEOREWARD_AXES) for key in STATS)
        settings = Settings(
            mean,
            std,
            _lora_scale(sections["peft_lora_config"]),
            None if ids is None else tuple(int(token) for token in ids),
            float(data.get("fps", 2.0)),
            VIDEO_MIN_PIXELS if data else IMAGE_MIN_PIXELS,
            int(data.get("max_frame_pixels", MAX_PIXELS)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: missing or no number: {error}") from error
    if not (all(map(math.isfinite, mean)) and all(value > 0 for value in std)):
        raise CheckpointError(f"{path}: inference_config must hold finite means and positive deviations")
    if settings.special_token_ids is not None and len(set(settings.special_token_ids)) != len(VIDEOREWARD_AXES):
        raise CheckpointError(f"{path}: special_token_ids must be three different ids, not {ids}")
    return settings


def _sections(path: Path, config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The parts of model_config.json that matter, empty where absent, once their settings are known to be supported."""
    sections = {name: config.get(name) or {} for name in _SECTIONS}
    faults = [f"{name} is no JSON object" for name, section in sections.items() if not isinstance(section, dict)]
    faults = faults or [
        f"{name}.{key} is {given!r}, supported is {wanted!r}"
        for name, supported in _SUPPORTED.items()
        for key, wanted in supported.items()
        if (given := sections[name].get(key, None if key in _REQUIRED else wanted)) != wanted
    ]
    if faults:
        raise CheckpointError(f"{path}: {'; '.join(faults)}")
    return sections


def _lora_scale(config: Mapping[str, Any]) -> dict[int, float]:
    if not config.get("lora_enable"):
        return {}
    rank, alpha = int(config["lora_r"]), float(config["lora_alpha"])
    return {rank: alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)}


def find_checkpoint(folder: Path, step: int | None) -> Path:
    """`folder`/checkpoint-<step>, by default of the highest step; CheckpointError, which names what there is."""
    steps = {
        int(path.name.removeprefix("checkpoint-")): path
        for path in folder.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdecimal()
    }
    if not steps:
        raise CheckpointError(f"{folder}: no checkpoint-<step> folder in it")
    if step is not None and step not in steps:
        raise CheckpointError(f"{folder}: no checkpoint-{step}; there are steps {', '.join(map(str, sorted(steps)))}")
    return steps[max(steps) if step is None else step]


def read_tensors(checkpoint: Path) -> tuple[dict[str, Tensor], bool]:
    """All tensors of a checkpoint-<step> folder under their own names, and whether frozen ones are left out of it."""
    whole = checkpoint / "model.pth"
    if whole.is_file():
        return _load_pth(whole), False
    adapter, rest = checkpoint / "adapter_model.safetensors", checkpoint / "non_lora_state_dict.pth"
    missing = [path.name for path in (adapter, rest) if not path.is_file()]
    if missing:
        raise CheckpointError(f"{checkpoint}: neither model.pth nor {' and '.join(missing)} in it")
    return {**load_safetensors(adapter), **_load_pth(rest)}, True


def backbone_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a Qwen2-VL folder (one safetensors file or several), under VideoReward's names."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"backbone {folder}: no safetensors in it, and the checkpoint leaves out frozen weights")
    return {own_name(name): tensor for file in files for name, tensor in load_safetensors(file).items()}


def own_name(name: str) -> str:
    """A tensor's name in this package, from PEFT's, from transformers before 4.52 or from later ones."""
    name = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
    for old, new in _PREFIXES:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


class Weights:
    """A checkpoint's tensors by own name, LoRA pairs apart. `faults` lists names that came twice."""

    def __init__(self, tensors: Mapping[str, Tensor], lora_scale: Mapping[int, float]) -> None:
        self.dense: dict[str, Tensor] = {}
        self.pairs: dict[str, dict[str, Tensor]] = {}
        self.scale = lora_scale
        self.faults: list[str] = []
        for name, tensor in tensors.items():
            lora = _LORA.fullmatch(name)
            place, key = (self.dense, own_name(name))
            if lora:
                place, key = self.pairs.setdefault(own_name(f"{lora[1]}.weight"), {}), lora[2]
            elif key.startswith("lm_head."):
                continue
            if key in place:
                self.faults.append(f"{name} is there twice, under an old and a new name")
            place[key] = tensor

    def fill(self, frozen: Mapping[str, Tensor]) -> None:
        """Take tensors of the backbone for those that are not there."""
        for name, tensor in frozen.items():
            if name not in self.dense and not name.startswith("lm_head."):
                self.dense[name] = tensor

    def check(self, shapes: Mapping[str, torch.Size]) -> None:
        """CheckpointError listing all that is missing, unexpected or misshapen."""
        faults = [*self.faults, *(f"missing {name}" for name in shapes if name not in self.dense)]
        faults += [f"unexpected {name}" for name in self.dense if name not in shapes]
        faults += [
            f"{name} is {list(self.dense[name].shape)}, expected {list(shape)}"
            for name, shape in shapes.items()
            if name in self.dense and self.dense[name].shape != shape
        ]
        for name, pair in self.pairs.items():
            faults += self._pair_faults(name, pair, shapes.get(name))
        if faults:
            raise CheckpointError("nothing was loaded, the weights do not fit: " + "; ".join(faults))

    def _pair_faults(self, name: str, pair: Mapping[str, Tensor], shape: torch.Size | None) -> Iterable[str]:
        if shape is None or len(shape) != 2:
            yield f"unexpected LoRA update of {name}"
        elif set(pair) != {"A", "B"}:
            yield f"missing lora_{'B' if 'A' in pair else 'A'} of {name}"
        elif len(pair["A"]) not in self.scale:
            known = ", ".join(map(str, self.scale)) or "none, lora_enable is not set"
            yield f"LoRA rank of {name} is {len(pair['A'])}, in model_config.json {known}"
        elif (pair["B"].shape[0], pair["A"].shape[1]) != shape or pair["B"].shape[1:] != pair["A"].shape[:1]:
            sizes = f"{list(pair['B'].shape)} by {list(pair['A'].shape)}"
            yield f"LoRA update of {name} is {sizes}, expected a product of {list(shape)}"

    def merged(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Every tensor once, in dtype: W + scale B A, summed in float32 or better."""
        return {name: self._merge(name, tensor).to(dtype) for name, tensor in self.dense.items()}

    def _merge(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self.pairs:
            return tensor
        exact = torch.promote_types(tensor.dtype, torch.float32)
        a, b = (self.pairs[name][key].to(exact) for key in ("A", "B"))
        return tensor.to(exact) + self.scale[len(a)] * (b @ a)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; CheckpointError where there is none."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return found


def load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from error


def _load_pth(path: Path) -> dict[str, Tensor]:
    """A state dict of tensors only: nothing in the file is executed."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: not a file of tensors ({str(error).splitlines()[0]})") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path}: not a state dict, it holds more than named tensors")
    return dict(found)
