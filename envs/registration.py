"""Registers the environments with Gymnasium; what they need is imported when one is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium

if TYPE_CHECKING:
    from .stream_gen import StreamGenVectorEnv
    from .stream_gen_single import StreamGenEnv


def register_envs() -> None:
    """Register every environment of this package; doing it again changes nothing."""
    if "reelgym/StreamGen-v0" not in gymnasium.registry:
        gymnasium.register(
            "reelgym/StreamGen-v0",
            entry_point=f"{__name__}:stream_gen_env",
            vector_entry_point=f"{__name__}:stream_gen_vector_env",
        )


def stream_gen_env(preset: str = "tiny", **kwargs: Any) -> StreamGenEnv:
    """What `gymnasium.make("reelgym/StreamGen-v0", ...)` calls; see `stream_gen_parts` and StreamGenEnv."""
    from .presets import stream_gen_parts
    from .stream_gen_single import StreamGenEnv

    return StreamGenEnv(**stream_gen_parts(preset, **kwargs))


def stream_gen_vector_env(num_envs: int = 1, preset: str = "tiny", **kwargs: Any) -> StreamGenVectorEnv:
    """What `gymnasium.make_vec("reelgym/StreamGen-v0", ...)` calls; see `stream_gen_parts` and StreamGenVectorEnv."""
    from .presets import stream_gen_parts
    from .stream_gen import StreamGenVectorEnv

    return StreamGenVectorEnv(num_envs, **stream_gen_parts(preset, **kwargs))
