"""How each part of a stack is made from where it lies: our own folders, Wan's, UMT5's, VideoReward's, import paths."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..checkpoint import CheckpointError, has_checkpoint, quick_digest, sha256_file
from ..models.codec import WanCodec
from ..models.fit import refuse_unfit
from ..models.generator import Generator
from ..models.lora_files import attach_loras, is_lora, lora_file
from ..models.stream_files import LONG_CACHE, STUDENT, StreamSettings
from ..models.tiny import STEPS, TINY_FPS, build_generator, load_encoder, load_manifest, load_tiny
from ..models.umt5 import UMT5TextEncoder
from ..models.videoreward import VideoReward
from ..models.wan import CausalWan
from ..models.wan_files import load_transformer, load_vae, transformer_config
from ..plugins import find, resolve
from ..rewards.compose import as_reward
from .stack_file import StackFile
from .stack_kinds import CodecFile, EncoderFile, PartFile, RewardFile, StudentFile, TransformerFile

Make = Callable[[], Any]
READS: tuple[Literal["student"], Literal["reward"]] = ("student", "reward")
"""Parts of our own that know the words of prompts."""
_WITHIN = {"student": "transformer", "teacher": "transformer", "codec": "vae", "encoder": "text_encoder"}
"""Where a part lies in the folder of a diffusers pipeline."""


def make_parts(said: StackFile, device: torch.device, live: Mapping[str, Make]) -> dict[str, Make]:
    """What makes each part, when it is first asked for: those that are live, those that are said, and what follows."""
    parts = dict(live)
    for name, part in said.parts.items():
        parts.setdefault(name, cache(partial(_load, name, part, said, parts, device)))
    words = next((name for name in READS if name in said.parts and said.parts[name].is_tiny), None)
    if words is not None:
        place: Any = said.parts[words].place
        told = partial(load_manifest, words, place)
        parts.setdefault("encoder", cache(partial(load_encoder, words, place)))
        parts.setdefault("grammar", cache(lambda: str(told().get("recipe", {}).get("grammar", "plain"))))
    if {"codec", "student"} <= set(parts):
        parts.setdefault("generator", cache(partial(_generator, said, parts)))
    return parts


def files_of_part(name: str, place: Path) -> list[Path]:
    """Everything that is read of a part, in order."""
    if place.is_file() or has_checkpoint(place):
        return [place] if place.is_file() else [place / "checkpoint.json"]
    within = place / _WITHIN.get(name, "")
    return sorted(file for file in (within if within.is_dir() else place).rglob("*") if file.is_file())


def files_of_stack(said: StackFile) -> list[Path]:
    """Everything that is read of all parts, LoRAs included."""
    found = [file for name, part in said.parts.items() if part.place for file in files_of_part(name, part.place)]
    return sorted([*found, *(file for files in _lora_files(said).values() for file in files)])


def digests(said: StackFile) -> dict[str, str]:
    """SHA-256 of the weights of every part that has a folder, and of the LoRAs on it (`student-lora`)."""
    found = {name: digest_of_part(name, part.place) for name, part in sorted(said.parts.items()) if part.place}
    return found | {f"{name}-lora": quick_digest(files) for name, files in _lora_files(said).items()}


def _lora_files(said: StackFile) -> dict[str, list[Path]]:
    loras = {name: part.loras for name, part in said.parts.items() if isinstance(part, TransformerFile)}
    return {name: list(map(lora_file, places)) for name, places in loras.items() if places}


def digest_of_part(name: str, place: Path) -> str:
    """SHA-256 of a part's weights; of large files that are not ours their sizes and ends alone count."""
    if has_checkpoint(place):
        return sha256_file(place / "weights.safetensors")
    return quick_digest(files_of_part(name, place))


def _load(name: str, part: PartFile, said: StackFile, parts: Mapping[str, Make], device: torch.device) -> Any:
    """One part, frozen, on the device."""
    place = part.place
    if place is None:
        return _imported(name, part.weights)
    if name == "encoder" and has_checkpoint(place):
        return load_encoder("student", place)
    if has_checkpoint(place):
        known: Any = name
        network = load_tiny(known, place, device).requires_grad_(False)
        return as_reward(network) if isinstance(part, RewardFile) else _with_loras(part, network)
    dtype = getattr(torch, getattr(part, "dtype", None) or said.dtype or "float32")
    if isinstance(part, TransformerFile):
        return _frozen(_with_loras(part, _transformer(part, place, said, parts, dtype)), device)
    if isinstance(part, CodecFile):
        codec = WanCodec(load_vae(place), said.size or StreamSettings.size)
        nn.Module.to(codec.vae, dtype)  # diffusers' own warns of a list that is empty here
        return _frozen(codec, device)
    if isinstance(part, EncoderFile):
        return UMT5TextEncoder.from_pretrained(place, part.text_len, dtype, device)
    if isinstance(part, RewardFile):
        return as_reward(_videoreward(part, place, said, dtype, device))
    raise CheckpointError(f"{place}: no {name} weights here; give a folder of `reelgym train`, or an import path")


def _transformer(
    part: TransformerFile, place: Path, said: StackFile, parts: Mapping[str, Make], dtype: torch.dtype
) -> CausalWan:
    """Wan as a student, or as a teacher, which remembers nothing."""
    if is_lora(place):
        raise CheckpointError(f"{place}: holds a LoRA: name it as `lora`, and as `weights` what it goes onto")
    config = None if part.config is None else transformer_config(_inside(Path(part.config), "transformer"))
    transformer = load_transformer(place, config=config, which=part.which, dtype=dtype)
    encoder, chunk = said.parts.get("encoder"), said.layout.frames_per_chunk
    if isinstance(encoder, EncoderFile) and encoder.place and not encoder.is_tiny:
        length = encoder.text_len  # known before anything is loaded
    else:
        length = parts["encoder"]().text_len if "encoder" in parts else StreamSettings.text_len
    kept = {"cache": replace(LONG_CACHE, **said.cache)} if isinstance(part, StudentFile) else {}
    return CausalWan(transformer, chunk, length, rope_theta=part.rope_theta, **kept)


def _with_loras(part: PartFile, model: Any) -> Any:
    """The model with the LoRAs that its part names."""
    return attach_loras(model, part.loras) if isinstance(part, TransformerFile) else model


def _videoreward(part: RewardFile, place: Path, said: StackFile, dtype: torch.dtype, device: torch.device) -> Any:
    if not (place / "model_config.json").is_file():
        raise CheckpointError(
            f"{place}: no reward weights here; give VideoReward's folder (with model_config.json), one of `reelgym "
            "train reward`, or an import path"
        )
    bounds: dict[str, Any] = {"min_pixels": part.min_pixels, "max_pixels": part.max_pixels}
    student, fps = said.parts.get("student"), said.fps
    if fps is None and student is not None:  # else it is unknown, and the reward refuses to guess
        fps = TINY_FPS if student.is_tiny else StreamSettings.fps
    return VideoReward.from_pretrained(place, part.backbone, part.template, fps, dtype, device, **bounds)


def _generator(said: StackFile, parts: Mapping[str, Make]) -> Generator:
    """The student with its sampler and cache, in the codec's latents; ValueError where they do not fit."""
    model, codec, part = parts["student"](), parts["codec"](), said.parts.get("student")
    if isinstance(model, Generator):
        return model
    refuse_unfit(model, codec, prompt_width(said, parts))
    if said.cache:
        model = model.with_cache(replace(model.cache_config, **said.cache))
    steps, shift = (part.steps, part.shift) if isinstance(part, StudentFile) else (None, StudentFile.shift)
    return build_generator(model, codec, steps or _trained_steps(part), shift)


def _trained_steps(part: PartFile | None) -> int:
    """Of the sampler that a student was trained for, where that is known."""
    if part is None or part.place is None:
        return STEPS
    told = [place / STUDENT for place in part.files if (place / STUDENT).is_file()]
    if part.is_tiny and not told:
        return int(load_manifest("student", part.place).get("sampler_steps", STEPS))
    return int(json.loads(told[-1].read_text(encoding="utf-8"))["sampler_steps"]) if told else STEPS


def prompt_width(said: StackFile, parts: Mapping[str, Make]) -> int | None:
    """D of the prompts' embeddings, without loading UMT5 for it; None without an encoder."""
    part = said.parts.get("encoder")
    if part is not None and part.place is not None and not part.is_tiny and "encoder" in parts:
        config = _inside(part.place, "text_encoder") / "config.json"
        with config.open(encoding="utf-8") as file:
            return int(json.load(file)["d_model"])
    return getattr(parts["encoder"](), "dim", None) if "encoder" in parts else None


def _imported(name: str, path: str) -> Any:
    """A part of one's own."""
    if name in ("reward", "heldout"):
        return as_reward(find("rewards", path, {}))
    found = resolve(path)
    made = found() if inspect.isfunction(found) or isinstance(found, type) else found
    return made.requires_grad_(False).eval() if isinstance(made, nn.Module) else made


def _inside(folder: Path, part: str) -> Path:
    return folder / part if (folder / part).is_dir() else folder


def _frozen(module: nn.Module, device: torch.device) -> nn.Module:
    return module.requires_grad_(False).eval().to(device)
