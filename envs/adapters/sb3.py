"""Stable-Baselines3 over a TensorVectorEnv."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv

from ..single import PLURAL
from ..vector import TensorVectorEnv
from .hosts import to_host


class SB3VecEnv(VecEnv):
    """`vector` as a stable_baselines3 VecEnv: numpy in and out, as in `PPO("MlpPolicy", SB3VecEnv(vector))`.

    Ends are terminal. In the step that ends an episode `infos[i]` holds `terminal_observation` and `episode`, its
    return `r`, length `l` and seconds since the first reset `t`: no Monitor is needed. The other rows' infos are empty:
    what the vector says of all rows is in `info`, that of the newest reset or step. Every step gives arrays of its own:
    SB3 stores an observation only after the step that follows it. The rows are one environment: a method is called
    once, an attribute set for all. `set_options` takes what one environment takes (`script`, `key`), or N such.

    Args:
        vector: of SAME_STEP autoreset.
    """

    def __init__(self, vector: TensorVectorEnv[Any]) -> None:
        mode = vector.metadata["autoreset_mode"]
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(f"SB3 wants environments that reset themselves: SAME_STEP autoreset, not {mode.name}")
        self.vector = vector
        self.info: dict[str, Any] = {}
        super().__init__(vector.num_envs, vector.single_observation_space, vector.single_action_space)
        self._start = time.perf_counter()
        self._clear()

    def _clear(self) -> None:
        self._returns = np.zeros(self.num_envs)
        self._steps, self._begun = 0, np.zeros(self.num_envs, dtype=np.int64)

    def reset(self) -> Any:
        """Begin all episodes, with the seed and the options that `seed` and `set_options` left."""
        names = {name for row in self._options for name in row}
        if any(set(row) != names for row in self._options):
            raise ValueError(f"give every row the same options: {', '.join(sorted(names))} are in some rows alone")
        options = {PLURAL.get(name, name): [row[name] for row in self._options] for name in names}
        observation, self.info = self.vector.reset(seed=self._seeds[0], options=options)
        self._reset_seeds()
        self._reset_options()
        self._clear()
        return to_host(self.vector.device, observation)[0]

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for step_wait."""
        self._actions: Any = actions

    def step_wait(self) -> Any:
        """Observation, reward float32 [N], done bool [N], N infos."""
        observation, reward, ended, _, self.info = self.vector.step(self._actions)
        observation, reward, done = to_host(self.vector.device, observation, reward, ended)
        self._steps += 1
        self._returns += reward
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if np.count_nonzero(done):
            self._end(infos, np.flatnonzero(done))
        return observation, reward, done, infos

    def _end(self, infos: list[dict[str, Any]], rows: np.ndarray) -> None:
        """Replace the infos of rows [M], which have ended."""
        (final,) = to_host(self.vector.device, self.info["final_obs"])
        seconds = round(time.perf_counter() - self._start, 6)
        for row in rows.tolist():
            last = {name: part[row] for name, part in final.items()} if isinstance(final, dict) else final[row]
            length = self._steps - int(self._begun[row])
            episode = {"r": round(float(self._returns[row]), 6), "l": length, "t": seconds}
            infos[row] = {"terminal_observation": last, "TimeLimit.truncated": False, "episode": episode}
        self._returns[rows], self._begun[rows] = 0, self._steps

    def get_images(self) -> Sequence[np.ndarray | None]:
        """The newest frame of every row."""
        return list(self.vector.render() or [None] * self.num_envs)

    def close(self) -> None:
        """Close the vector."""
        self.vector.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The vector's attribute, once for each row."""
        return [getattr(self.vector, attr_name)] * len(self._rows(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set the vector's attribute; ValueError for some of the rows."""
        self._whole(indices)
        setattr(self.vector, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """What the vector's method, called once, returns, for each row; ValueError for some of the rows."""
        self._whole(indices)
        return [getattr(self.vector, method_name)(*method_args, **method_kwargs)] * self.num_envs

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """False for each row: no row has a wrapper of its own."""
        return [False] * len(self._rows(indices))

    def _rows(self, indices: Any) -> list[int]:
        return list(self._get_indices(indices))

    def _whole(self, indices: Any) -> None:
        if sorted(self._rows(indices)) != list(range(self.num_envs)):
            raise ValueError("the rows are one environment: leave indices out")
