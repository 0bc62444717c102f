"""Registers the environments with Gymnasium and PettingZoo; what they need is imported when one is made."""

from __future__ import annotations

import sys

import gymnasium

ENVS = {
    "reelgym/StreamGen-v0": ("reelgym.envs.stream_gen:make", "reelgym.envs.stream_gen:make_single"),
    "reelgym/StreamDenoise-v0": ("reelgym.envs.stream_denoise:make", "reelgym.envs.stream_denoise:make_single"),
    "reelgym/StreamSteer-v0": ("reelgym.envs.stream_steer:make", "reelgym.envs.stream_steer:make_single"),
    "reelgym/StreamDetect-v0": ("reelgym.envs.stream_detect:make", "reelgym.envs.stream_detect:make_single"),
    "reelgym/SelfPlayGenerator-v0": (
        "reelgym.envs.self_play_generator:make",
        "reelgym.envs.self_play_generator:make_single",
    ),
    "reelgym/SelfPlayDetector-v0": (
        "reelgym.envs.self_play_detector:make",
        "reelgym.envs.self_play_detector:make_single",
    ),
}
"""Every id, with what makes N of the environment over tensors, and one with numpy in and out."""
PARALLEL = "reelgym/SelfPlay-v0"
"""The id of the game for two, in PettingZoo's registry of parallel environments."""


def register_envs() -> None:
    """Register every environment of this package; doing it again changes nothing.

    PettingZoo is not imported for it: the game for two is registered where it is loaded already, and by importing
    `reelgym.envs.parallel`.
    """
    if "pettingzoo" in sys.modules:
        register_parallel()
    for name, (make, make_single) in ENVS.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point=make_single, vector_entry_point=make)


def register_parallel() -> None:
    """Register the game for two with PettingZoo; doing it again changes nothing."""
    import pettingzoo

    if PARALLEL not in pettingzoo.parallel_registry:
        pettingzoo.register("parallel", PARALLEL, "reelgym.envs.parallel:make")
