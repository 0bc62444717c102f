"""Registers the environments with Gymnasium; what they need is imported when one is made."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import gymnasium

KINDS = {
    "reelgym/StreamGen-v0": "stream_gen",
    "reelgym/StreamDenoise-v0": "stream_denoise",
    "reelgym/StreamSteer-v0": "stream_steer",
    "reelgym/StreamDetect-v0": "stream_detect",
}
"""Every id, and its kind: the module that holds it, and the function KIND_parts of presets.py for its arguments."""


def register_envs() -> None:
    """Register every environment of this package; doing it again changes nothing."""
    for name, kind in KINDS.items():
        if name not in gymnasium.registry:
            gymnasium.register(
                name,
                entry_point=f"{__name__}:single_env",
                vector_entry_point=f"{__name__}:vector_env",
                kwargs={"kind": kind},
            )


def vector_env(kind: str, num_envs: int = 1, preset: str = "tiny", **kwargs: Any) -> Any:
    """What `gymnasium.make_vec(ID, ...)` calls: the vector environment over what `preset` stands for (presets.py)."""
    parts = getattr(import_module(".presets", __package__), f"{kind}_parts")
    name = "".join(word.capitalize() for word in kind.split("_")) + "VectorEnv"
    return getattr(import_module(f".{kind}", __package__), name)(num_envs, **parts(preset, **kwargs))


def single_env(kind: str, preset: str = "tiny", **kwargs: Any) -> Any:
    """What `gymnasium.make(ID, ...)` calls: the numpy view of one environment."""
    from .single import SingleEnv

    return SingleEnv(vector_env(kind, 1, preset, autoreset_mode="Disabled", **kwargs))
