"""Recordings of episodes, all frames of them, through PyAV.

Gymnasium's RecordVideo works with these environments too, one frame a step, where moviepy is installed; moviepy wants
an older Pillow than this package does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from ..video import write_video


class RecordClips(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Writes each episode to FOLDER/NAME-000000.mp4 and so on, counting episodes; a name that exists is replaced.

    An episode is written when it ends, or when it is cut off by `reset` or `close`; nothing of it is kept after that.

    Args:
        env: with render_mode "rgb_array_list", for all frames, or "rgb_array", for one a step.
        folder: made where it is missing.
        name: what file names begin with.
        trigger: which episodes to record, by their number; None for all.
        fps: frames a second; None for the environment's `render_fps`.
        made_by: see write_video; None where all that is shown is the world's own.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        folder: str | Path,
        name: str = "clip",
        trigger: Callable[[int], bool] | None = None,
        fps: float | None = None,
        made_by: str | None = "an agent in an environment",
    ) -> None:
        RecordConstructorArgs.__init__(self, folder=folder, name=name, trigger=trigger, fps=fps, made_by=made_by)
        super().__init__(env)
        if env.render_mode not in ("rgb_array_list", "rgb_array"):
            raise ValueError(f"nothing to record at render_mode={env.render_mode!r}: make it with 'rgb_array_list'")
        self.folder, self.name, self.trigger, self.made_by = Path(folder), name, trigger, made_by
        self.fps = float(env.metadata["render_fps"] if fps is None else fps)
        self.episode = -1
        self._frames: list[NDArray[np.uint8]] = []

    @property
    def path(self) -> Path:
        """Where the newest episode's video is, or will be."""
        return self.folder / f"{self.name}-{self.episode:06d}.mp4"

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; one that has not ended is written as far as it went."""
        self._write()
        found = self.env.reset(**kwargs)
        self.episode += 1
        self._look()
        return found

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step; the last one writes the file."""
        found = self.env.step(action)
        self._look()
        if found[2] or found[3]:
            self._write()
        return found

    def close(self) -> None:
        """Write what is left."""
        self._write()
        super().close()

    def _look(self) -> None:
        if self.trigger is None or self.trigger(self.episode):
            seen: Any = self.env.render()
            self._frames += seen if isinstance(seen, list) else [seen]

    def _write(self) -> None:
        frames, self._frames = self._frames, []
        if frames:
            write_video(self.path, np.stack(frames), self.fps, made_by=self.made_by)
