"""Registers the environments with Gymnasium and PettingZoo; what they need is imported when one is made."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import gymnasium

KINDS = {
    "reelgym/StreamGen-v0": "stream_gen",
    "reelgym/StreamDenoise-v0": "stream_denoise",
    "reelgym/StreamSteer-v0": "stream_steer",
    "reelgym/StreamDetect-v0": "stream_detect",
    "reelgym/SelfPlayGenerator-v0": "self_play_generator",
    "reelgym/SelfPlayDetector-v0": "self_play_detector",
}
"""Every id, and its kind: the module that holds it, and the function KIND_parts of presets.py for its arguments."""


PARALLEL = "reelgym/SelfPlay-v0"
"""The id of the game for two, in PettingZoo's registry of parallel environments."""


def register_envs() -> None:
    """Register every environment of this package; doing it again changes nothing.

    PettingZoo is not imported for it: the game for two is registered where it is loaded already, and by importing
    `reelgym.envs.parallel`.
    """
    if "pettingzoo" in sys.modules:
        register_parallel()
    for name, kind in KINDS.items():
        if name not in gymnasium.registry:
            gymnasium.register(
                name,
                entry_point=f"{__name__}:single_env",
                vector_entry_point=f"{__name__}:vector_env",
                kwargs={"kind": kind},
            )


def register_parallel() -> None:
    """Register the game for two with PettingZoo; doing it again changes nothing."""
    import pettingzoo

    if PARALLEL not in pettingzoo.parallel_registry:
        pettingzoo.register("parallel", PARALLEL, f"{__name__}:parallel_env")


def parallel_env(preset: str = "tiny", render_mode: str | None = None, **kwargs: Any) -> Any:
    """What `pettingzoo.make("parallel", PARALLEL, ...)` calls: the game of one stream over what `preset` stands for."""
    from .parallel import SelfPlayEnv
    from .presets import self_play_parts
    from .self_play import SelfPlayGame

    return SelfPlayEnv(SelfPlayGame(1, **self_play_parts(preset, **kwargs)), render_mode)


def vector_env(kind: str, num_envs: int = 1, preset: str = "tiny", **kwargs: Any) -> Any:
    """What `gymnasium.make_vec(ID, ...)` calls: the vector environment over what `preset` stands for (presets.py)."""
    parts = getattr(import_module(".presets", __package__), f"{kind}_parts")
    name = "".join(word.capitalize() for word in kind.split("_")) + "VectorEnv"
    return getattr(import_module(f".{kind}", __package__), name)(num_envs, **parts(preset, **kwargs))


def single_env(kind: str, preset: str = "tiny", **kwargs: Any) -> Any:
    """What `gymnasium.make(ID, ...)` calls: the numpy view of one environment."""
    from .single import SingleEnv

    return SingleEnv(vector_env(kind, 1, preset, autoreset_mode="Disabled", **kwargs))
