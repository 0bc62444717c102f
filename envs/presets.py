"""What a preset's name, or the folder of a trained stack, stands for: the arguments of each environment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..models.tiny import WEIGHTS, build_generator, load_encoder, load_manifest, load_tiny
from ..rewards.stream_reward import StreamReward
from .prompt_source import world_prompts
from .windows import TINY

PRESETS = {"tiny": WEIGHTS}


def stream_gen_parts(
    preset: str | Path = "tiny",
    *,
    grammar: str | None = None,
    split: str = "train",
    chunks: int | None = None,
    max_episode_steps: int | None = None,
    device: torch.device | str = "cpu",
    **given: Any,
) -> dict[str, Any]:
    """Arguments of StreamGenVectorEnv: codec, reward, prompts, clock and device.

    preset: "tiny", or a folder with a `codec` and a `reward` in it. grammar, split: of the prompts; by default the
    grammar that the reward was trained on. chunks, or max_episode_steps: length of a clip. What is given as codec,
    reward, prompts or clock is taken as it is. ValueError for a name that is no preset and no folder.
    """
    folder = stack_folder(preset)
    clock = given.pop("clock", replace(TINY, chunks=chunks or max_episode_steps or TINY.chunks))
    parts: dict[str, Any] = {"clock": clock, "device": device, **given}
    if "codec" not in parts:
        parts["codec"] = load_tiny("codec", folder / "codec", device)
    if "reward" not in parts:
        parts["reward"] = StreamReward(load_tiny("reward", folder / "reward", device))
    if "prompts" not in parts:
        named = grammar or load_manifest("reward", folder / "reward")["recipe"]["grammar"]
        parts["prompts"] = world_prompts(load_encoder("reward", folder / "reward"), clock.chunks, named, split)
    return parts


def stream_steer_parts(preset: str | Path = "tiny", **given: Any) -> dict[str, Any]:
    """Arguments of StreamSteerVectorEnv: those of `stream_gen_parts`, and generator, from the folder's `student`."""
    parts = stream_gen_parts(preset, **given)
    if "generator" not in parts:
        student = load_tiny("student", stack_folder(preset) / "student", parts["device"]).requires_grad_(False)
        parts["generator"] = build_generator(student, parts["codec"])
    return parts


def stack_folder(preset: str | Path) -> Path:
    """The folder that a preset's name stands for, or the folder itself; ValueError where there is none."""
    folder = PRESETS.get(str(preset), Path(preset))
    if not folder.is_dir():
        raise ValueError(f"{preset!r} is neither a preset ({', '.join(PRESETS)}) nor a folder with codec and reward")
    return folder
