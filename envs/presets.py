"""What a preset's name, or the folder of a trained stack, stands for: the arguments of each environment."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..models.generator import Generator
from ..models.tiny import WEIGHTS, build_generator, load_encoder, load_manifest, load_tiny
from ..rewards.stream_reward import StreamReward
from ..rewards.windows import TINY
from .detect_bank import Bank, Source, build_bank
from .game_rules import ThresholdPolicy
from .prompt_source import slice_prompts, world_prompts
from .stream_denoise import SIGMAS
from .worlds.slices import slice_named

PRESETS = {"tiny": WEIGHTS}
DETECTS = {"settings", "autoreset_mode", "render_mode", "check"}
"""What StreamDetectVectorEnv takes that is not about its bank."""


def stream_gen_parts(
    preset: str | Path = "tiny",
    *,
    grammar: str | None = None,
    slice: str | None = None,
    split: str = "train",
    chunks: int | None = None,
    max_episode_steps: int | None = None,
    device: torch.device | str = "cpu",
    **given: Any,
) -> dict[str, Any]:
    """Arguments of StreamGenVectorEnv: codec, reward, prompts, clock and device.

    preset: "tiny", or a folder with a `codec` and a `reward` in it. grammar, split: of the prompts; by default the
    grammar that the reward was trained on. slice: an edge slice in its stead, whose first chunk the world gives.
    chunks, or max_episode_steps: length of a clip. What is given as codec, reward, prompts or clock is taken as it is.
    ValueError for a name that is no preset and no folder, for one that is no slice, and for prompts of two kinds.
    """
    folder = stack_folder(preset)
    if "clock" in given and (chunks is not None or max_episode_steps is not None):
        raise ValueError("clock says how long a clip is: leave out chunks and max_episode_steps, or clock")
    if grammar is not None and "prompts" in given:
        raise ValueError("prompts are drawn by what is given as prompts: leave out grammar, or prompts")
    if slice is not None and (grammar is not None or "prompts" in given):
        raise ValueError(f"slice={slice!r} brings its own prompts: leave out grammar and prompts, or slice")
    longer = slice_named(slice).length if slice else 1
    length = next(n for n in (chunks, max_episode_steps, longer * TINY.chunks) if n is not None)
    clock = given.pop("clock", None) or replace(TINY, chunks=length)
    parts: dict[str, Any] = {"clock": clock, "device": device, **given}
    if "codec" not in parts:
        parts["codec"] = load_tiny("codec", folder / "codec", device)
    if "reward" not in parts:
        parts["reward"] = StreamReward(load_tiny("reward", folder / "reward", device))
    if "prompts" not in parts:
        named = grammar or load_manifest("reward", folder / "reward")["recipe"]["grammar"]
        encoder = load_encoder("reward", folder / "reward")
        parts["prompts"] = (
            slice_prompts(encoder, clock.chunks, clock.frames_per_chunk, slice, grammar=named, split=split)
            if slice
            else world_prompts(encoder, clock.chunks, named, split)
        )
    return parts


def stream_denoise_parts(
    preset: str | Path = "tiny", *, max_episode_steps: int | None = None, **given: Any
) -> dict[str, Any]:
    """Arguments of StreamDenoiseVectorEnv: those of `stream_gen_parts`; max_episode_steps counts denoising steps."""
    if max_episode_steps is not None:
        steps = len(given.get("sigmas", SIGMAS))
        if max_episode_steps < steps or max_episode_steps % steps:
            raise ValueError(f"max_episode_steps={max_episode_steps} is no multiple of the {steps} steps of a chunk")
        given["chunks"] = max_episode_steps // steps
    return stream_gen_parts(preset, **given)


def stream_steer_parts(preset: str | Path = "tiny", **given: Any) -> dict[str, Any]:
    """Arguments of StreamSteerVectorEnv: those of `stream_gen_parts`, and generator, from the folder's `student`."""
    parts = stream_gen_parts(preset, **given)
    if "generator" not in parts:
        parts["generator"] = _student(preset, parts)
    return parts


def self_play_parts(preset: str | Path = "tiny", **given: Any) -> dict[str, Any]:
    """Arguments of SelfPlayGame: those of `stream_gen_parts`; rules and truth are taken as they are."""
    if given.get("slice") is not None:
        raise ValueError("slice: both players begin at a clip's first chunk, which a slice would give; use grammar")
    return stream_gen_parts(preset, **given)


def self_play_generator_parts(preset: str | Path = "tiny", **given: Any) -> dict[str, Any]:
    """Arguments of SelfPlayGeneratorVectorEnv: those of `self_play_parts`, and opponent, from the folder's `rival`."""
    parts = self_play_parts(preset, **given)
    if "opponent" not in parts:
        rival = load_tiny("rival", stack_folder(preset) / "rival", parts["device"]).requires_grad_(False)
        parts["opponent"] = ThresholdPolicy(rival)
    return parts


def self_play_detector_parts(
    preset: str | Path = "tiny", *, max_episode_steps: int | None = None, **given: Any
) -> dict[str, Any]:
    """Arguments of SelfPlayDetectorVectorEnv: those of `self_play_parts` without a reward, and opponent, from the
    folder's `student`. max_episode_steps counts moves, one more than chunks."""
    if max_episode_steps is not None:
        if max_episode_steps < 2:
            raise ValueError(f"a clip of one chunk takes 2 moves, not max_episode_steps={max_episode_steps}")
        given["chunks"] = max_episode_steps - 1
    parts = self_play_parts(preset, reward=None, **given)
    del parts["reward"]
    if "opponent" not in parts:
        parts["opponent"] = _student(preset, parts)
    return parts


def stream_detect_parts(
    preset: str | Path = "tiny",
    *,
    bank: Bank | None = None,
    max_episode_steps: int | None = None,
    device: torch.device | str = "cpu",
    **given: Any,
) -> dict[str, Any]:
    """Arguments of StreamDetectVectorEnv: bank and device; what it does not know itself goes to `build_bank`.

    The generated clips are of the folder's `student`. max_episode_steps: chunks of a clip. Asked for again in the same
    process, a bank is not built again.
    """
    parts = {name: given.pop(name) for name in DETECTS & set(given)}
    if bank is None:
        if max_episode_steps:
            given.setdefault("chunks", max_episode_steps)
        frozen = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        folder = stack_folder(preset)
        bank = _bank(folder, (folder / "student" / "checkpoint.json").read_text(), torch.device(device), **frozen)
    elif given:
        raise ValueError(f"{', '.join(sorted(given))}: of a bank to be built, where one is given")
    return {"bank": bank, "device": device, **parts}


def _student(preset: str | Path, parts: dict[str, Any]) -> Generator:
    """The folder's student, frozen, beside the codec of parts."""
    student = load_tiny("student", stack_folder(preset) / "student", parts["device"]).requires_grad_(False)
    return build_generator(student, parts["codec"])


@lru_cache(maxsize=4)
def _bank(folder: Path, student: str, device: torch.device, **given: Any) -> Bank:
    """A bank with clips of a folder's student, whose manifest tells one student from another."""
    if given.get("generated") == 0:
        return build_bank(device=device, **given)
    codec = load_tiny("codec", folder / "codec", device)
    model = load_tiny("student", folder / "student", device).requires_grad_(False)
    grammar = load_manifest("student", folder / "student").get("recipe", {}).get("grammar", "plain")
    source = Source(build_generator(model, codec), codec, load_encoder("student", folder / "student"), grammar)
    return build_bank(source=source, device=device, **given)


def stack_folder(preset: str | Path) -> Path:
    """The folder that a preset's name stands for, or the folder itself; ValueError where there is none."""
    folder = PRESETS.get(str(preset), Path(preset))
    if not folder.is_dir():
        raise ValueError(f"{preset!r} is neither a preset ({', '.join(PRESETS)}) nor a folder with codec and reward")
    return folder
