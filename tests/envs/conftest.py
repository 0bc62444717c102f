"""What tests of environments share: a walk of which every step can be told from every other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from reelgym.envs.rows import Rows
from reelgym.envs.vector import TensorVectorEnv


@dataclass(frozen=True)
class WalkState(Rows):
    """place, steps, episode, row: [N]."""

    place: Tensor
    steps: Tensor
    episode: Tensor
    row: Tensor


class Walk(TensorVectorEnv[WalkState]):
    """Row i ends after `lengths[i]` steps, or all after `lengths`. Observation: place, which begins at chance and to
    which the action is added, steps, episode and row. Reward: the place, and a hundredth of the row."""

    def __init__(self, num_envs: int, lengths: int | list[int] = 3, discrete: bool = False, **others: Any) -> None:
        acted = Discrete(3) if discrete else Box(-1.0, 1.0, (1,), np.float32)
        super().__init__(num_envs, Box(-64.0, 64.0, (4,), np.float32), acted, **others)
        self.lengths = lengths if isinstance(lengths, int) else torch.tensor(lengths)

    def _initial(self, options: dict[str, Any]) -> WalkState:
        zeros = torch.zeros(self.num_envs, dtype=torch.int64)
        place = torch.as_tensor(self.np_random.random(self.num_envs, np.float32))
        return WalkState(place, zeros, zeros, torch.arange(self.num_envs))

    def _initial_some(self, mask: Tensor, options: dict[str, Any]) -> WalkState:
        return (
            super()._initial_some(mask, options) if isinstance(self.lengths, int) else self._autoreset(self.state, mask)
        )

    def _autoreset(self, state: WalkState, ended: Tensor) -> WalkState:
        return replace(state.where(ended, self._initial({})), episode=state.episode + ended)

    def _transition(self, state: WalkState, actions: Tensor) -> tuple[WalkState, Tensor, bool | Tensor]:
        place = state.place + actions.reshape(self.num_envs)
        state = replace(state, place=place, steps=state.steps + 1)
        return state, place + state.row / 100, self._terminal(state)

    def _terminal(self, state: WalkState) -> bool | Tensor:
        if isinstance(self.lengths, int):
            return bool(state.steps[0] == self.lengths)
        return state.steps >= self.lengths[state.row]

    def _observation(self, state: WalkState) -> Tensor:
        return torch.stack((state.place, state.steps, state.episode, state.row), 1).float()

    def _state_info(self, state: WalkState) -> dict[str, Any]:
        return {"steps": state.steps, "_steps": np.ones(self.num_envs, bool)}

    def _view(self, state: WalkState) -> Any:
        raise NotImplementedError


@pytest.fixture
def walk() -> Callable[..., Walk]:
    return Walk
