"""Tianshou over a TensorVectorEnv."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from tianshou.env import BaseVectorEnv

from ..single import PLURAL
from ..vector import TensorVectorEnv
from .hosts import to_host

_SINGLE = {"action_space": "single_action_space", "observation_space": "single_observation_space"}


class TianshouVectorEnv(BaseVectorEnv):
    """`vector` as Tianshou's collectors want it: numpy in and out; they reset the rows that have ended.

    In lockstep all rows are stepped and reset together: a collector's `n_episode` has to be a multiple of N. Where rows
    end one by one, any rows may be; the others stay where they are. `infos`
    holds a dictionary with `env_id` for every row; what the vector says of all rows is `info`, that of the newest reset
    or step. Observations that are dictionaries come as arrays of dictionaries. `reset(options=...)` takes what one
    environment takes (`script`, `key`), of every row.

    Args:
        vector: of DISABLED autoreset.
    """

    def __init__(self, vector: TensorVectorEnv[Any]) -> None:
        mode = vector.metadata["autoreset_mode"]
        if mode is not AutoresetMode.DISABLED:
            raise ValueError(f"Tianshou resets environments itself: autoreset_mode is DISABLED, not {mode.name}")
        self.vector = vector
        self.info: dict[str, Any] = {}
        self.env_num = self.wait_num = vector.num_envs
        self.timeout, self.is_async, self.is_closed = None, False, False
        self.workers: list[Any] = []
        self.waiting_id: list[int] = []
        self.ready_id = list(range(self.env_num))
        self._ids = np.arange(self.env_num)
        self._infos = np.array([{"env_id": row} for row in range(self.env_num)], dtype=object)

    def reset(self, env_id: Any = None, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
        """Begin the rows env_id [M], or all: observations [M], infos [M]. kwargs: `seed` and `options`."""
        self._assert_is_not_closed()
        ids = self._some(env_id)
        one = kwargs.pop("options", None) or {}
        options: dict[str, Any] = {PLURAL.get(name, name): [value] * self.env_num for name, value in one.items()}
        if ids is not None:
            options["reset_mask"] = np.isin(self._ids, ids)
        observation, self.info = self.vector.reset(options=options, **kwargs)
        return self._rows(observation)[_all(ids)], self._infos[_all(ids)].copy()

    def step(self, action: Any, id: Any = None) -> tuple[np.ndarray, ...]:
        """Advance the rows id [M], or all: observations, rewards, terminated, truncated and infos, each [M]."""
        self._assert_is_not_closed()
        ids = self._some(id)
        actions = np.asarray(action)
        if ids is None:
            result = self.vector.step(torch.as_tensor(actions))
        else:
            result = self._step_some(actions, ids)
        *arrays, self.info = result
        reward, terminated, truncated = to_host(self.vector.device, *arrays[1:])
        chosen = _all(ids)
        observation = self._rows(arrays[0])[chosen]
        return observation, reward[chosen], terminated[chosen], truncated[chosen], self._infos[chosen].copy()

    def _step_some(self, actions: np.ndarray, ids: np.ndarray) -> Any:
        """What the vector's step gives for rows ids [M]; the others are then put back."""
        before, vector = self.vector.state, self.vector
        if vector.lockstep:
            raise ValueError(
                f"streams advance in lockstep, all {self.env_num} or none, not {len(ids)}: "
                "n_episode of a collector has to be a multiple of the number of environments"
            )
        stepped = np.isin(self._ids, ids)
        source = np.where(stepped, self._ids, ids[0])  # the others step along as copies of the first
        every = np.empty((self.env_num, *actions.shape[1:]), actions.dtype)
        every[:], every[ids] = actions[0], actions
        vector.state = before.take(torch.as_tensor(source))
        result = vector.step(torch.as_tensor(every))
        vector.state = vector.state.where(torch.as_tensor(~stepped, device=vector.device), before)
        return result

    def _some(self, ids: Any) -> np.ndarray | None:
        """The rows that are meant; None for all, in order."""
        if ids is None:
            return None
        chosen = np.atleast_1d(np.asarray(ids))
        return None if np.array_equal(chosen, self._ids) else chosen

    def _rows(self, observation: Any) -> np.ndarray:
        (values,) = to_host(self.vector.device, observation)
        if not isinstance(values, dict):
            return np.asarray(values)
        rows = zip(*values.values(), strict=True)
        return np.array([dict(zip(values, row, strict=True)) for row in rows], dtype=object)

    def seed(self, seed: Any = None) -> list[list[int] | None]:
        """Begin all episodes anew from one seed, the first of a list."""
        first = seed[0] if isinstance(seed, list) else seed
        self.vector.reset(seed=first)
        return [None if first is None else [first]] * self.env_num

    def get_env_attr(self, key: str, id: Any = None) -> list[Any]:
        """The vector's attribute, once for each row; of one environment for the spaces."""
        return [getattr(self.vector, _SINGLE.get(key, key))] * len(self._wrap_id(id))

    def set_env_attr(self, key: str, value: Any, id: Any = None) -> None:
        """Set the vector's attribute; ValueError for some of the rows."""
        if self._some(id) is not None:
            raise ValueError("the rows are one environment: leave id out")
        setattr(self.vector, key, value)

    def render(self, **kwargs: Any) -> list[Any]:
        """What the vector shows of every row."""
        return list(self.vector.render() or [None] * self.env_num)

    def close(self) -> None:
        """Close the vector."""
        self.vector.close()
        self.is_closed = True


def _all(ids: np.ndarray | None) -> Any:
    return slice(None) if ids is None else ids
