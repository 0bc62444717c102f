"""Returns and lengths of episodes over tensors, without waiting for the device."""

from __future__ import annotations

import time
from typing import Any

import torch
from gymnasium.vector import AutoresetMode, VectorWrapper
from torch import Tensor

from .vector import StepResult, TensorVectorEnv


class RecordEpisodeStatistics(VectorWrapper[Any, Tensor, Any, Tensor, Tensor]):
    """Says in `info["episode"]` what Gymnasium's wrapper of that name says, in tensors [N], and in every step.

    `r`, `l` and `t`: return, length and seconds of the episodes that end in this step, which are those where
    `info["_episode"]` is True; 0 elsewhere.
    """

    def __init__(self, env: TensorVectorEnv[Any]) -> None:
        super().__init__(env)
        self.device = env.device
        self._stops = env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
        self._clear()

    def _clear(self) -> None:
        self._returns = torch.zeros(self.num_envs, device=self.device)
        self._lengths = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        self._over = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        self._begun = torch.full((self.num_envs,), time.perf_counter(), dtype=torch.float64, device=self.device)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin episodes, as the environment does."""
        observation, info = self.env.reset(seed=seed, options=options)
        mask = (options or {}).get("reset_mask")
        if mask is None:
            self._clear()
        else:
            mask = torch.as_tensor(mask, dtype=torch.bool, device=self.device)
            self._forget(mask)
            self._over = self._over & ~mask
        return observation, info

    def step(self, actions: Tensor) -> StepResult:
        """Advance every row."""
        observation, reward, terminated, truncated, info = self.env.step(actions)
        ended = terminated | truncated
        if self._stops:  # a row that is over stays so, and counts no more
            ended = ended & ~self._over
            self._returns = self._returns + reward.masked_fill(self._over, 0)
            self._lengths = self._lengths + ~self._over
            self._over = self._over | ended
        else:
            self._returns, self._lengths = self._returns + reward, self._lengths + 1
        parts = {"r": self._returns, "l": self._lengths, "t": time.perf_counter() - self._begun}
        others = ~ended
        info["episode"] = {name: part.masked_fill(others, 0) for name, part in parts.items()}
        info["_episode"] = ended
        if not self._stops:
            self._forget(ended)
        return observation, reward, terminated, truncated, info

    def _forget(self, rows: Tensor) -> None:
        self._returns, self._lengths = self._returns.masked_fill(rows, 0), self._lengths.masked_fill(rows, 0)
        self._begun = self._begun.masked_fill(rows, time.perf_counter())
