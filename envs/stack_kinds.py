"""What each part of a stack may say of itself: the keys of [parts] in a `stack.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from ..checkpoint import has_checkpoint
from ..models.causal_attention import THETA
from ..models.lora_files import is_lora
from ..models.sampler import SAMPLER_SHIFT, TeacherSampling

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class PartFile:
    """A part in a folder of `reelgym train`, or of one's own."""

    weights: str
    """A folder or a file, from where the toml lies, or an import path `module:name`: of the part, or of a function
    without arguments that makes it."""

    @property
    def place(self) -> Path | None:
        """Where it is read from; None for an import path."""
        return None if ":" in self.weights and not Path(self.weights).exists() else Path(self.weights)

    @property
    def is_tiny(self) -> bool:
        """Whether `reelgym train` wrote it."""
        return self.place is not None and has_checkpoint(self.place)

    @property
    def files(self) -> list[Path]:
        """All folders and files that it is read from."""
        return [] if self.place is None else [self.place]

    def at(self, place: Path) -> Self:
        """Read from another folder."""
        return replace(self, weights=str(place))


@dataclass(frozen=True, kw_only=True)
class TransformerFile(PartFile):
    """Wan's transformer, in any layout that `models.wan_files` reads."""

    config: str | None = None
    """Folder whose config.json says the sizes, for weights in a single file."""
    which: str | None = None
    """The state dict in such a file; by default generator_ema where there is one."""
    rope_theta: float = THETA
    """Base of the rotary frequencies."""
    dtype: Dtype | None = None
    """Of the weights; by default the stack's."""
    lora: str | list | None = None
    """A LoRA on the weights, a folder or a file, or a list of them."""
    lora_scale: float | list | None = None
    """What they are multiplied by, one number for all or one for each."""

    @property
    def loras(self) -> dict[str, float]:
        """Where each LoRA lies, and its scale."""
        places = [self.lora] if isinstance(self.lora, str) else self.lora or []
        scale = 1.0 if self.lora_scale is None else self.lora_scale
        scales = scale if isinstance(scale, list) else [scale] * len(places)
        if not all(isinstance(place, str) for place in places):
            raise ValueError(f"lora is a folder or a file, or a list of them, not {self.lora!r}")
        if len(scales) != len(places) or not all(isinstance(one, int | float) for one in scales):
            raise ValueError(f"lora_scale is a number, or one for each of {len(places)} LoRAs, not {self.lora_scale!r}")
        return dict(zip(places, map(float, scales), strict=True))

    @property
    def files(self) -> list[Path]:
        """All folders and files that it is read from."""
        return [*super().files, *map(Path, self.loras)]

    def at(self, place: Path) -> Self:
        """Read from another folder, without a LoRA; a LoRA goes onto what is there."""
        if self.weights and not has_checkpoint(place) and is_lora(place):
            return self.with_loras({**self.loras, str(place): 1.0})
        return replace(self.with_loras({}), weights=str(place), config=None, which=None)

    def with_loras(self, loras: Mapping[str, float]) -> Self:
        """With these in place of its own."""
        return replace(self, lora=list(loras) or None, lora_scale=list(loras.values()) or None)

    def __post_init__(self) -> None:
        if self.loras and self.place is None:
            raise ValueError(f"a LoRA goes onto weights in files, not onto {self.weights}")


@dataclass(frozen=True, kw_only=True)
class StudentFile(TransformerFile):
    """What streams."""

    steps: int | None = None
    """Denoising steps of a chunk; by default those that it was made for, or 4."""
    shift: float = SAMPLER_SHIFT
    """How far their levels are moved towards noise."""


@dataclass(frozen=True, kw_only=True)
class TeacherFile(TransformerFile):
    """What teaches: bidirectional, over whole clips."""

    steps: int = TeacherSampling.steps
    """Euler steps, where it makes videos."""
    guidance: float = TeacherSampling.guidance
    """Of its score, in sampling and in distillation; 1 halves its passes."""
    shift: float = TeacherSampling.shift
    """How far its levels are moved towards noise."""

    @property
    def sampling(self) -> TeacherSampling:
        """How it makes videos."""
        return TeacherSampling(self.steps, self.guidance, self.shift)


@dataclass(frozen=True, kw_only=True)
class CodecFile(PartFile):
    """AutoencoderKLWan, from a folder of diffusers or the original file."""

    dtype: Dtype | None = None
    """Of the weights; by default the stack's."""


@dataclass(frozen=True, kw_only=True)
class EncoderFile(PartFile):
    """UMT5, from a folder with text_encoder/ and tokenizer/."""

    text_len: int = 512
    """Most tokens of a prompt."""
    dtype: Dtype | None = None
    """Of the weights; by default the stack's."""


@dataclass(frozen=True, kw_only=True)
class RewardFile(PartFile):
    """VideoReward, or a small one of `reelgym train reward`, or one that is shipped (local)."""

    backbone: str | None = None
    """VideoReward: folder or hub id of Qwen2-VL-2B-Instruct."""
    template: str | None = None
    """VideoReward: a checkout of VideoAlign, or a text file with its wording."""
    min_pixels: int | None = None
    """VideoReward: least pixels of a frame as it is read."""
    max_pixels: int | None = None
    """VideoReward: most pixels of a frame as it is read."""
    dtype: Dtype | None = None
    """VideoReward: of its backbone's weights; by default the stack's."""


PART_KINDS: dict[str, type[PartFile]] = {
    "codec": CodecFile,
    "encoder": EncoderFile,
    "student": StudentFile,
    "teacher": TeacherFile,
    "reward": RewardFile,
    "heldout": RewardFile,
    "detector": PartFile,
    "rival": PartFile,
}
"""Parts that a stack.toml may name."""
