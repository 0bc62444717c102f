"""The one implementation behind every environment: N of them as one transition over torch tensors on a device."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, Space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from ..noise import stream_keys
from .draw import View, all_canvases, newest_canvases

RENDER_FPS = {"rgb_array": 3, "rgb_array_list": 8}
"""Pictures a second at which a recording plays: of all frames, the world's own; of one a step, about as fast, where a
chunk has three frames."""
METADATA: dict[str, Any] = {"render_modes": list(RENDER_FPS), "render_fps": RENDER_FPS["rgb_array_list"]}
MODES = (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)
_ROUNDING = 1e-4
"""How far outside its Box an action may lie by rounding alone."""

_Observation = Tensor | dict[str, Tensor]
StepResult = tuple[Any, Tensor, Tensor, Tensor, dict[str, Any]]


class Indexable(Protocol):
    """A state of N rows; `rows.Rows` is a base for such."""

    def __len__(self) -> int: ...

    def take(self, rows: Tensor) -> Any:
        """The rows [M] (int64), in that order; a row may occur several times (a fork)."""
        ...


EnvState = TypeVar("EnvState", bound=Indexable)


class TensorVectorEnv(VectorEnv[Any, Tensor, Tensor], Generic[EnvState]):
    """N environments in one: a state goes in, the next state comes out, and a step loops over nothing in Python.

    A subclass says how a state begins (`_initial`), goes on (`_transition`), and looks (`_observation`, `_state_info`).
    Its states are frozen dataclasses of tensors with `take(rows)`, never written in place. Where `_transition` returns
    a bool as `ended`, all rows end together (lockstep), and a reset begins all of them; where it returns a tensor [N],
    rows end one by one and `_autoreset` begins those that did.

    Every step gives tensors on `device`; nothing in it waits for the device, unless `check` is on. Actions that do not
    fit their space raise gymnasium.error.InvalidAction, a step before the first reset or after the end
    gymnasium.error.ResetNeeded, an unknown option ValueError.

    Args:
        num_envs: N.
        observation_space, action_space: of one environment.
        autoreset_mode: SAME_STEP (a new episode begins in the step that ends the old one, whose last observation is
            `info["final_obs"]`) or DISABLED.
        render_mode: None, "rgb_array" or "rgb_array_list".
        check: look at values of actions for NaN and range, and, where rows end one by one under DISABLED, whether one
            has ended; None: on the CPU only, since on a GPU looking waits for the device.
    """

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"reset_mask"})
    """What `reset(options=...)` may hold."""
    BOUNDED: ClassVar[bool] = True
    """Whether an action outside its Box is refused."""

    def __init__(
        self,
        num_envs: int,
        observation_space: Space[Any],
        action_space: Space[Any],
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
        device: torch.device | str = "cpu",
        check: bool | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, not {num_envs}")
        mode = AutoresetMode(autoreset_mode)
        if mode not in MODES:
            raise ValueError(f"autoreset_mode is SAME_STEP or DISABLED, not {mode.name}")
        if render_mode not in (None, *METADATA["render_modes"]):
            raise ValueError(f"unknown render_mode {render_mode!r}; use one of {METADATA['render_modes']}")
        self.mode, self.render_mode, self.device = mode, render_mode, torch.device(device)
        self.check = self.device.type == "cpu" if check is None else check
        fps = METADATA["render_fps"] if render_mode is None else RENDER_FPS[render_mode]
        self.metadata = {**METADATA, "render_fps": fps, "autoreset_mode": mode}
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self._state: EnvState | None = None
        self._over: bool | Tensor = False
        self._integers = not isinstance(action_space, Box)
        self._action_dtype = torch.int64 if self._integers else torch.float32
        self._range = _range(action_space, self.BOUNDED)
        self._size(num_envs)

    def _size(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._action_shape = torch.Size(self.action_space.shape or ())
        self._no_row = torch.zeros(num_envs, dtype=torch.bool, device=self.device)

    @property
    def state(self) -> EnvState:
        """Where the rows stand; assign what `state.take(rows)` gave, of num_envs rows, to branch."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset() before step() or state")
        return self._state

    @state.setter
    def state(self, state: EnvState) -> None:
        if len(state) != self.num_envs:
            raise ValueError(f"a state of {len(state)} rows does not fit num_envs={self.num_envs}")
        self._state, self._over = state, self._terminal(state)

    @property
    def lockstep(self) -> bool:
        """Whether all rows end together."""
        return not isinstance(self._terminal(self.state), Tensor)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin episodes. options: those that the environment names, and `reset_mask`, bool [N], the rows to begin."""
        super().reset(seed=seed)
        options = options or {}
        unknown = sorted(set(options) - self.OPTIONS)
        if unknown:
            raise ValueError(f"unknown option {unknown[0]!r}: reset takes {', '.join(sorted(self.OPTIONS))}")
        mask = options.get("reset_mask")
        self._state = self._initial(options) if mask is None else self._initial_some(self._mask(mask), options)
        self._over = self._terminal(self._state)
        return self._observation(self._state), self._state_info(self._state)

    def step(self, actions: Tensor | np.ndarray) -> StepResult:
        """Advance every row. Returns observation, reward [N], terminated bool [N], truncated bool [N], info."""
        state = self.state
        if self._over is True or (self._over is not False and self.check and bool(self._over.any())):
            raise gymnasium.error.ResetNeeded("an episode has ended: call reset()")
        with torch.no_grad():
            actions = self._checked(actions)
            state, reward, ended = self._transition(state, actions)
            observation, info = self._observation(state), self._state_info(state)
            if isinstance(ended, Tensor):
                terminated, again = ended.clone(), True
            else:
                terminated, again = (torch.ones_like if ended else torch.zeros_like)(self._no_row), ended
            self._over = ended if self.mode is AutoresetMode.DISABLED else False
            if again and self.mode is AutoresetMode.SAME_STEP:
                final = {"final_obs": observation, "final_info": info}
                state = self._autoreset(state, terminated)
                observation, info = self._observation(state), self._state_info(state)
                info |= final | {"_final_obs": terminated, "_final_info": terminated}
        self._state = state
        return observation, reward, terminated, torch.zeros_like(terminated), info

    def render(self) -> tuple[Any, ...] | None:
        """Of each row a canvas, uint8 [H, W, 3], of the newest frame ("rgb_array"), black before the first; or a list
        of those of the newest chunk's frames ("rgb_array_list"). All canvases of an environment have one size."""
        if self.render_mode is None:
            return None
        view = self._view(self.state)
        return newest_canvases(view) if self.render_mode == "rgb_array" else all_canvases(view)

    def fork(self, rows: Tensor) -> Any:
        """Another environment whose rows continue this one's at rows [M] (int64), sharing all that is not state."""
        branch = copy.copy(self)
        branch._np_random = copy.deepcopy(self._np_random)
        branch._size(len(rows))
        branch.state = self.state.take(rows)
        return branch

    def _checked(self, actions: Any) -> Tensor:
        """The actions as a tensor on the device; InvalidAction where they do not fit the space."""
        if not isinstance(actions, Tensor):
            try:
                actions = torch.from_numpy(actions) if isinstance(actions, np.ndarray) else torch.as_tensor(actions)
            except (TypeError, ValueError, RuntimeError) as error:
                raise gymnasium.error.InvalidAction(f"actions cannot be read as a tensor ({error})") from error
        if actions.shape != self._action_shape:
            expected = tuple(self._action_shape)
            raise gymnasium.error.InvalidAction(f"actions have shape {tuple(actions.shape)}, expected {expected}")
        if actions.dtype is not self._action_dtype or actions.device != self.device:
            exact = not (actions.is_floating_point() or actions.is_complex() or actions.dtype is torch.bool)
            if not (exact if self._integers else actions.is_floating_point()):
                kind = "integers" if self._integers else "floating point"
                raise gymnasium.error.InvalidAction(f"actions are {actions.dtype}, expected {kind}")
            actions = actions.to(self.device, self._action_dtype)
        if self.check:
            self._check_values(actions)
        return actions

    def _check_values(self, actions: Tensor) -> None:
        lowest, highest = actions.aminmax()
        low, high = lowest.item(), highest.item()
        least, most, slack = self._range
        if least - slack <= low and high <= most + slack:
            return
        if low != low:
            raise gymnasium.error.InvalidAction("actions hold NaN: a policy has diverged")
        if not self.BOUNDED:
            raise gymnasium.error.InvalidAction("actions hold infinity: a policy has diverged")
        spans = f"{low:g} to {high:g}, the space in {least:g} to {most:g}"
        raise gymnasium.error.InvalidAction(f"actions lie in {spans}: clip them")

    def _keys(self, options: dict[str, Any]) -> Tensor:
        """Keys of the rows' noise, int64 [N]: those of the options, else drawn."""
        if options.get("keys") is None:
            return stream_keys(int(self.np_random.integers(2**62)), self.num_envs, self.device)
        return self._one_a_row("keys", options["keys"])

    def _one_a_row(self, name: str, given: Any) -> Tensor:
        """The option `name`, one integer a row, as a tensor [N] of its own."""
        values = torch.as_tensor(given, dtype=torch.int64, device=self.device).clone()
        if values.shape != (self.num_envs,):
            found = f"{name} have shape {tuple(values.shape)}"
            raise ValueError(f"{found}, expected ({self.num_envs},): one integer a stream")
        return values

    def _mask(self, mask: Any) -> Tensor:
        mask = torch.as_tensor(mask, dtype=torch.bool, device=self.device)
        if mask.shape != (self.num_envs,):
            raise ValueError(f"reset_mask has shape {tuple(mask.shape)}, expected ({self.num_envs},)")
        return mask

    def _initial_some(self, mask: Tensor, options: dict[str, Any]) -> EnvState:
        """Begin the rows of mask [N]; in lockstep all of them or none."""
        if not bool(mask.all()):
            raise ValueError("streams advance in lockstep: reset_mask must be all True, or left out")
        return self._initial(options)

    def _initial(self, options: dict[str, Any]) -> EnvState:
        """N new episodes."""
        raise NotImplementedError

    def _transition(self, state: EnvState, actions: Tensor) -> tuple[EnvState, Tensor, bool | Tensor]:
        """The next state, the reward [N], and whether the episodes have ended."""
        raise NotImplementedError

    def _autoreset(self, state: EnvState, ended: Tensor) -> EnvState:
        """The state with new episodes where ended [N]; in lockstep that is everywhere."""
        return self._initial({})

    def _terminal(self, state: EnvState) -> bool | Tensor:
        """Whether a state that is given, or begun, is at its end."""
        return False

    def _observation(self, state: EnvState) -> Any:
        """What the agents see: tensors [N, ...]."""
        raise NotImplementedError

    def _view(self, state: EnvState) -> View:
        """What `render` draws."""
        raise NotImplementedError

    def _state_info(self, state: EnvState) -> dict[str, Any]:
        """A new dictionary."""
        return {}


def _range(space: Space[Any], bounded: bool) -> tuple[float, float, float]:
    """The least and the most that actions of the space may be, and by how much rounding may take them further."""
    if isinstance(space, Discrete):
        return float(space.start), float(space.start + space.n - 1), 0.0
    if not isinstance(space, Box):
        return -np.inf, np.inf, 0.0
    if not bounded:
        finite = np.finfo(np.float32)
        return float(finite.min), float(finite.max), 0.0
    return float(space.low.min()), float(space.high.max()), _ROUNDING
