"""Streaming generators in files: the shipped ones, ours, Wan2.1's folders, and students of the Self Forcing family."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch

from ..checkpoint import CheckpointError, has_checkpoint, replacing, write_json
from .cache import CacheConfig
from .causal_attention import THETA
from .codec import Codec, FrameCodec, WanCodec
from .fit import refuse_unfit, size_text
from .generator import Generator
from .lora import adapter_of, plain_model
from .lora_files import save_lora
from .prompts import TextEncoder, WordEncoder
from .sampler import consistency, step_sigmas
from .tiny import TINY_FPS, WEIGHTS, build_generator, load_encoder, load_tiny
from .wan import CausalWan

_SETTINGS = "streaming.json"
STUDENT = "student.json"
"""How a trained transformer was made, beside it."""
LONG_CACHE = CacheConfig(sink_frames=3, window_frames=21, positions="relative")
"""What Wan students stream with: as many frames as they were trained on, positions that never leave those, a sink."""


@dataclass(frozen=True)
class StreamSettings:
    """What a checkpoint of a Wan student does not say of itself; the defaults are those of the Self Forcing family."""

    frames_per_chunk: int = 3
    """Latent frames of a chunk."""
    sigmas: tuple[float, ...] = step_sigmas(4, 5.0)
    """Noise levels at which a chunk is denoised, falling from 1."""
    cache: CacheConfig = field(default_factory=lambda: LONG_CACHE)
    """What is remembered from chunk to chunk."""
    text_len: int = 512
    """Tokens of a prompt."""
    fps: float = 16.0
    """Frames a second of the video."""
    size: tuple[int, int] = (480, 832)
    """(H, W) of the video in pixels."""
    rope_theta: float = THETA
    """Base of the rotary frequencies."""


@dataclass(frozen=True)
class StreamingParts:
    """What a streaming generator is made of.

    generator: the causal transformer with its noise levels and cache.   codec: between its latents and pixels.
    encoder: of prompts.   fps: frames a second at which the video is meant to be shown.   size: its (H, W).
    """

    generator: Generator
    codec: Codec
    encoder: TextEncoder
    fps: float
    size: tuple[int, int]

    def with_cache(self, cache: CacheConfig) -> Self:
        """The same weights under another cache policy; ValueError for one that a chunk does not fit."""
        model = self.generator.model.with_cache(cache)
        return replace(self, generator=replace(self.generator, model=model))


def load(
    source: str | Path,
    *,
    checkpoint: str | Path | None = None,
    which: str | None = None,
    settings: StreamSettings | None = None,
    cache: CacheConfig | None = None,
    size: tuple[int, int] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> StreamingParts:
    """The parts of a streaming generator from its files.

    Args:
        source: "tiny", the generator that ships with the package; a folder that `save` or `reelgym train` wrote; a
            folder with Wan2.1 in diffusers' layout (text to video), or its id on the Hugging Face hub.
        checkpoint: weights for the transformer of a Wan2.1 source: a `.pt` of the Self Forcing family, or anything else
            that `wan_files.load_transformer` reads. which: the state dict in it, by default the averaged one.
        settings: chunks, noise levels and the like, which Wan checkpoints do not say. By default what the folder says,
            or else what the Self Forcing family was trained with.
        cache, size: in place of those of the settings.
        dtype: of the weights (latents stay float32 between passes).

    Raises:
        ValueError: a source that is not there or holds none of these, weights that do not fit, a cache without room
            for a chunk, a size that codec and transformer cannot take.
    """
    folder = WEIGHTS if str(source) == "tiny" else _fetched(source)
    asked = _Asked(checkpoint, which, settings, size, dtype)
    if has_checkpoint(folder / "student"):
        if checkpoint is not None or settings is not None:
            raise ValueError(f"{source}: a stack of reelgym's; checkpoint and settings are for Wan2.1 folders")
        made = _stack(folder)
    elif (folder / _SETTINGS).is_file():
        made = _ours(folder, asked)
    elif (folder / "transformer").is_dir():
        made = _wan(folder, asked)
    else:
        raise CheckpointError(
            f"{source}: holds no generator that is known; give a folder that save_pretrained wrote, one with "
            "transformer/, vae/, text_encoder/ and tokenizer/ (Wan2.1 in diffusers' layout), or tiny"
        )
    made = made if cache is None else made.with_cache(cache)
    if size is not None and made.size != size:
        makes = f"makes videos of {size_text(made.size)} pixels and of no other size"
        raise ValueError(f"{source}: {makes}, not {size_text(size)}")
    return _placed(made, torch.device(device), dtype)


def save(made: StreamingParts, folder: str | Path) -> None:
    """Write transformer/ and vae/ as diffusers does, a text encoder beside them, and streaming.json; all or nothing.

    Replaces an earlier folder of this kind; ValueError for any other that is not empty, and for parts without a
    layout in files.
    """
    described = _described(made)
    codec: Any = made.codec
    encoder: Any = made.encoder
    with replacing(folder, _SETTINGS) as aside:
        plain_model(made.generator.model).transformer.save_pretrained(aside / "transformer")
        codec.vae.save_pretrained(aside / "vae")
        if not isinstance(encoder, WordEncoder):
            encoder.save_pretrained(aside)
        write_json(aside / _SETTINGS, described)


def save_transformer(folder: str | Path, model: CausalWan, told: Mapping[str, Any]) -> None:
    """Write transformer/ as diffusers does, or the LoRA that was trained, and how it was made in student.json; all or
    nothing.

    Replaces an earlier folder of this kind; CheckpointError for any other that is not empty.
    """
    with replacing(folder, STUDENT) as aside:
        if adapter_of(model):
            save_lora(aside, model)
        else:
            plain_model(model).transformer.save_pretrained(aside / "transformer")
        write_json(aside / STUDENT, dict(told))


def _described(made: StreamingParts) -> dict[str, Any]:
    """streaming.json."""
    generator, codec, encoder = made.generator, made.codec, made.encoder
    if generator.kernel is not consistency:
        raise ValueError("only a generator with the consistency sampler has a layout in files")
    if not (isinstance(encoder, WordEncoder) or hasattr(encoder, "save_pretrained")):
        raise ValueError(f"{type(encoder).__name__}: a text encoder without save_pretrained has no layout in files")
    settings = StreamSettings(
        generator.frames_per_chunk, generator.sigmas, generator.model.cache_config, encoder.text_len, made.fps,
        made.size, generator.model.rope_theta,
    )  # fmt: skip
    words: dict[str, Any] = {"vocab": list(encoder.vocab)} if isinstance(encoder, WordEncoder) else {}
    if isinstance(codec, FrameCodec):
        words |= {"codec": "frame", "shift": codec.shift.tolist(), "scale": codec.scale.tolist()}
    elif isinstance(codec, WanCodec):
        words |= {"codec": "wan"}
    else:
        raise ValueError(f"{type(codec).__name__}: only FrameCodec and WanCodec have a layout in files")
    return {"format": 1, **words, "settings": asdict(settings)}


def _stack(folder: Path) -> StreamingParts:
    """codec/ and student/ as `reelgym train` writes them."""
    codec = load_tiny("codec", folder / "codec")
    generator = build_generator(load_tiny("student", folder / "student"), codec)
    return StreamingParts(
        generator, codec, load_encoder("student", folder / "student"), TINY_FPS, (codec.size, codec.size)
    )


@dataclass(frozen=True)
class _Asked:
    """What the caller of `load` wants of a Wan folder."""

    checkpoint: str | Path | None
    which: str | None
    settings: StreamSettings | None
    size: tuple[int, int] | None
    dtype: torch.dtype


def _ours(folder: Path, asked: _Asked) -> StreamingParts:
    """What `save` wrote."""
    try:
        said = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        stored = dict(said["settings"])
        cache, sigmas = CacheConfig(**stored.pop("cache")), tuple(stored.pop("sigmas"))
        known = StreamSettings(cache=cache, sigmas=sigmas, **stored | {"size": tuple(stored["size"])})
        kind = said["codec"]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder / _SETTINGS}: not what save_pretrained writes ({error!r})") from error
    if kind == "wan":
        return _wan(folder, replace(asked, settings=asked.settings or known), said.get("vocab"))
    if asked.checkpoint is not None or asked.settings is not None:
        raise ValueError(f"{folder}: checkpoint and settings are for Wan2.1 folders")
    from diffusers import AutoencoderKL

    from .wan_files import load_transformer

    codec = FrameCodec(AutoencoderKL.from_pretrained(folder / "vae"))
    codec.shift.copy_(torch.tensor(said["shift"]))
    codec.scale.copy_(torch.tensor(said["scale"]))
    return joined(load_transformer(folder / "transformer"), codec, WordEncoder(said["vocab"], known.text_len), known)


def _wan(folder: Path, asked: _Asked, vocab: list[str] | None = None) -> StreamingParts:
    """transformer/, vae/, text_encoder/ and tokenizer/; the transformer's weights may come from elsewhere."""
    from .umt5 import UMT5TextEncoder
    from .wan_files import load_transformer, load_vae, transformer_config

    settings = asked.settings or StreamSettings()
    settings = settings if asked.size is None else replace(settings, size=asked.size)
    if asked.checkpoint is None:
        transformer = load_transformer(folder / "transformer", dtype=asked.dtype)
    else:
        config = transformer_config(folder / "transformer")
        transformer = load_transformer(asked.checkpoint, config=config, which=asked.which, dtype=asked.dtype)
    codec = WanCodec(load_vae(folder / "vae"), settings.size)
    encoder = (
        WordEncoder(vocab, settings.text_len)
        if vocab
        else UMT5TextEncoder.from_pretrained(folder, settings.text_len, asked.dtype)
    )
    return joined(transformer, codec, encoder, settings)


def joined(transformer: Any, codec: FrameCodec | WanCodec, encoder: Any, settings: StreamSettings) -> StreamingParts:
    """The parts as one, where they fit together."""
    model = CausalWan(transformer, settings.frames_per_chunk, settings.text_len, settings.cache, settings.rope_theta)
    refuse_unfit(model, codec, getattr(encoder, "dim", None))
    h, w = settings.size
    shape = (codec.channels, h // codec.factor, w // codec.factor)
    generator = Generator(model, settings.sigmas, shape, settings.frames_per_chunk)
    return StreamingParts(generator, codec, encoder, settings.fps, settings.size)


def _placed(made: StreamingParts, device: torch.device, dtype: torch.dtype) -> StreamingParts:
    """On the device, in evaluation mode, without gradients; dtype as diffusers loads it: norms stay float32."""
    cast(made.generator.model.transformer, dtype).to(device)
    codec: Codec = made.codec
    parts: list[Any] = [codec, made.generator.model, getattr(made.encoder, "encoder", None)]
    for part in parts:
        if part is not None:
            part.requires_grad_(False).eval().to(device)
    if isinstance(codec, WanCodec):
        torch.nn.Module.to(codec.vae, dtype)  # diffusers' own warns of a list that is empty here
    return made


def cast(transformer: Any, dtype: torch.dtype) -> Any:
    """The transformer's weights in dtype, in place, but for those that diffusers keeps in float32."""
    kept = transformer._keep_in_fp32_modules
    for name, parameter in transformer.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if set(name.split(".")) & set(kept) else dtype)
    return transformer


def _fetched(source: str | Path) -> Path:
    """The folder itself, or the hub's, downloaded."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{source}: a file; pass the folder as the source and this as checkpoint=")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise CheckpointError(f"{source}: no such folder, and no id of the form owner/name on the hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = [f"{part}/*" for part in ("transformer", "vae", "text_encoder", "tokenizer")]
    try:
        return Path(snapshot_download(str(source), allow_patterns=[*wanted, _SETTINGS, "model_index.json"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{source}: no such folder, and the hub does not give it ({reason})") from error
