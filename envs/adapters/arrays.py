"""numpy in and out of a TensorVectorEnv, so that Gymnasium's own vector wrappers work on top of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import VectorWrapper

from ..vector import TensorVectorEnv
from .hosts import to_host


class ArrayVectorEnv(VectorWrapper[Any, Any, Any, Any, Any]):
    """`vector` with numpy arrays in place of tensors, as in `RecordEpisodeStatistics(ArrayVectorEnv(vector))`.

    `final_obs` and `final_info` are there in steps that end a row, the former as Gymnasium has it: an array of the
    ended rows' observations, None for the others.
    """

    def __init__(self, vector: TensorVectorEnv[Any]) -> None:
        super().__init__(vector)
        self.device = vector.device

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin episodes, as the vector does."""
        observation, info = to_host(self.device, *self.env.reset(seed=seed, options=options))
        return observation, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Advance every row."""
        observation, reward, terminated, truncated, info = to_host(self.device, *self.env.step(actions))
        if "final_obs" in info:
            ended = info["_final_obs"]
            if ended.any():
                info["final_obs"] = _each_row(info["final_obs"], ended)
            else:
                info = {name: value for name, value in info.items() if "final_" not in name}
        return observation, reward, terminated, truncated, info


def _each_row(observation: Any, chosen: np.ndarray) -> np.ndarray:
    rows = np.full(len(chosen), None, dtype=object)
    for row in np.flatnonzero(chosen):
        parts = observation
        rows[row] = {name: part[row] for name, part in parts.items()} if isinstance(parts, dict) else parts[row]
    return rows
