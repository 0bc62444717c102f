"""One environment with numpy in and out: the view of any vector environment at N = 1."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete
from torch import Tensor

from .vector import METADATA, TensorVectorEnv

PLURAL = {"script": "scripts", "key": "keys", "clip": "clips"}
"""Options of one environment, and what a vector of them calls a list of such."""


class SingleEnv(gymnasium.Env[Any, Any]):
    """Row 0 of `vector`, whose num_envs is 1 and whose autoreset_mode is DISABLED.

    `reset(options=...)` takes `script`, `key` and `clip` where the vector takes `scripts`, `keys` and `clips`.
    """

    metadata = METADATA

    def __init__(self, vector: TensorVectorEnv[Any]) -> None:
        if vector.num_envs != 1:
            raise ValueError(f"the single view is of one environment, not of {vector.num_envs}")
        self.vector = vector
        self.render_mode = vector.render_mode
        self.metadata = {name: value for name, value in vector.metadata.items() if name != "autoreset_mode"}
        self.action_space, self.observation_space = vector.single_action_space, vector.single_observation_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        if seed is not None or self.vector._np_random is None:
            self.vector.np_random = self.np_random
        many = {PLURAL.get(name, name): [value] for name, value in (options or {}).items()}
        observation, info = self.vector.reset(options=many)
        return to_numpy(observation, self.observation_space), _first(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step; gymnasium.error.InvalidAction for an action that does not fit its space."""
        observation, reward, terminated, truncated, info = self.vector.step(np.asarray(action)[None].copy())
        return (
            to_numpy(observation, self.observation_space),
            float(reward),
            bool(terminated),
            bool(truncated),
            _first(info),
        )

    def render(self) -> Any:
        """A canvas, uint8 [H, W, 3] (rgb_array), or a list of them (rgb_array_list): see TensorVectorEnv."""
        frames = self.vector.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        """Nothing is held open."""


def to_numpy(observation: Tensor | dict[str, Tensor], spaces: Any) -> Any:
    """Row 0 of a vector's observation as numpy has it."""
    if isinstance(observation, Tensor):
        return observation[0].cpu().numpy()
    return {
        name: np.int64(value[0]) if isinstance(spaces[name], Discrete) else value[0].cpu().numpy()
        for name, value in observation.items()
    }


def _first(info: dict[str, Any]) -> dict[str, Any]:
    """Row 0 of a vector's info, without the masks."""
    return {name: _plain(value[0]) for name, value in info.items() if not name.startswith("_")}


def _plain(value: Any) -> Any:
    return value.cpu().numpy() if isinstance(value, Tensor) else value
