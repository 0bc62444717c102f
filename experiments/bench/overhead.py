"""What a vector step costs when the environment does nothing: ours, and the vector environments that people use.

The transition is one for all: a counter in 0 .. 255 rises by the action (0 .. 3), the reward is the action, and the
observation is the counter's frame, 3x32x32 bytes out of a table of 256. Ours gathers the frames of all rows into a new
tensor every step. A rival's single environment hands out a view of its frame, and its vector copies.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from ...envs.rows import Rows
from ...envs.vector import TensorVectorEnv
from ..tables import Row
from .timing import median_timings

SHAPE = (3, 32, 32)
_FRAMES = np.random.default_rng(0).integers(256, size=(256, *SHAPE), dtype=np.uint8)
ACTIONS = Discrete(4)
PICTURE = Box(0, 255, SHAPE, np.uint8)
COUNTER = Box(0, 255, (), np.int64)


@dataclass(frozen=True)
class Count(Rows):
    """count: int64 [N]."""

    count: Tensor


class CounterVectorEnv(TensorVectorEnv[Count]):
    """The counter on our base. pictures: observe the frames, else the counters alone."""

    def __init__(self, num_envs: int, *, pictures: bool = True, **others: Any) -> None:
        super().__init__(num_envs, PICTURE if pictures else COUNTER, ACTIONS, **others)
        self.pictures = pictures
        self.frames = torch.from_numpy(_FRAMES).to(self.device)
        self.most = torch.tensor(255, device=self.device)

    def _initial(self, options: dict[str, Any]) -> Count:
        return Count(torch.zeros(self.num_envs, dtype=torch.int64, device=self.device))

    def _transition(self, state: Count, actions: Tensor) -> tuple[Count, Tensor, bool]:
        return Count((state.count + actions) & self.most), actions.float(), False

    def _observation(self, state: Count) -> Tensor:
        return self.frames.index_select(0, state.count) if self.pictures else state.count.clone()


class CounterCalls:
    """The counter in the torch calls that it takes, and no environment around them: what remains of a step's cost."""

    def __init__(self, num_envs: int, device: torch.device) -> None:
        self.frames, self.most = torch.from_numpy(_FRAMES).to(device), torch.tensor(255, device=device)
        self.count = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self.no_row = torch.zeros(num_envs, dtype=torch.bool, device=device)

    def reset(self) -> None:
        """Nothing to begin."""

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """What CounterVectorEnv gives."""
        self.count = (self.count + actions) & self.most
        ended, cut = torch.zeros_like(self.no_row), torch.zeros_like(self.no_row)
        return self.frames.index_select(0, self.count), actions.float(), ended, cut, {}

    def close(self) -> None:
        """Nothing to close."""


class CounterEnv(gymnasium.Env[Any, Any]):
    """The counter as one environment with numpy."""

    observation_space, action_space = PICTURE, ACTIONS

    def __init__(self) -> None:
        self.count = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The counter at 0."""
        super().reset(seed=seed)
        self.count = 0
        return _FRAMES[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The counter goes on."""
        self.count = (self.count + int(action)) & 255
        return _FRAMES[self.count], float(action), False, False, {}


Open = Callable[[int, torch.device], Any]
"""Makes the vector environment of N on a device."""


@dataclass(frozen=True)
class Subject:
    """name: a row of the table. open: makes the vector environment of N. tensors: whether it takes and gives tensors.
    share: of the steps of the fastest that it runs. processes: whether it runs its environments in processes of their
    own. target, target_more: microseconds at 64 environments, and more than at 1, that were set beforehand."""

    name: str
    open: Open
    tensors: bool = False
    share: float = 1.0
    processes: bool = False
    target: float | None = None
    target_more: float | None = None


def _ours(**how: Any) -> Open:
    return lambda num_envs, device: CounterVectorEnv(num_envs, device=device, **how)


def _adapted(module: str, name: str, **how: Any) -> Open:
    """Ours behind an adapter of envs/adapters."""

    def open(num_envs: int, device: torch.device) -> Any:
        return getattr(import_module(f"...envs.adapters.{module}", __package__), name)(_ours(**how)(num_envs, device))

    return open


def _rival(module: str, name: str, **how: Any) -> Open:
    """Another package's vector of single environments."""
    return lambda num_envs, _: getattr(import_module(module), name)([CounterEnv] * num_envs, **how)


GYMNASIUM, SB3, TIANSHOU = "gymnasium.vector", "stable_baselines3.common.vec_env", "tianshou.env"
SUBJECTS = (
    Subject("reelgym", _ours(), True, target=10, target_more=4),
    Subject("reelgym, check=False", _ours(check=False), True),
    Subject("reelgym, no pictures", _ours(pictures=False), True),
    Subject("torch calls alone", CounterCalls, True),
    Subject("reelgym through SB3VecEnv", _adapted("sb3", "SB3VecEnv"), target=16),
    Subject("reelgym through TianshouVectorEnv", _adapted("tianshou", "TianshouVectorEnv", autoreset_mode="Disabled")),
    Subject("Gymnasium SyncVectorEnv", _rival(GYMNASIUM, "SyncVectorEnv"), share=0.25),
    Subject("SB3 DummyVecEnv", _rival(SB3, "DummyVecEnv"), share=0.25),
    Subject("Tianshou DummyVectorEnv", _rival(TIANSHOU, "DummyVectorEnv"), share=0.25),
    Subject("Gymnasium AsyncVectorEnv", _rival(GYMNASIUM, "AsyncVectorEnv"), share=0.05, processes=True),
    # SB3's default way to start imports torch in every process
    Subject("SB3 SubprocVecEnv", _rival(SB3, "SubprocVecEnv", start_method="fork"), share=0.05, processes=True),
)


def overhead_rows(many: int, steps: int, rounds: int, device: torch.device) -> list[Row]:
    """One row per subject, in microseconds a vector step with one environment and with `many`, medians over rounds.

    Those in this process take turns; those with processes of their own are measured one by one.
    """
    together = tuple(subject for subject in SUBJECTS if not subject.processes)
    groups = (together, *((subject,) for subject in SUBJECTS if subject.processes))
    alone, beside = (
        {name: us for group in groups for name, us in measured(group, count, steps, rounds, device).items()}
        for count in (1, many)
    )
    rows: list[Row] = []
    for subject in SUBJECTS:
        one, more = alone[subject.name], beside[subject.name]
        row: Row = {"kind": "overhead", "subject": subject.name, "envs": many, "us_1": one, "us_many": more}
        row["us_more"] = None if one is None or more is None else more - one
        rows.append(row | {"target_us": subject.target, "target_us_more": subject.target_more})
    return rows


def measured(
    subjects: Sequence[Subject], num_envs: int, steps: int, rounds: int, device: torch.device
) -> dict[str, float | None]:
    """Microseconds a vector step of every subject by name, in turns; None for one that is not installed."""
    found: dict[str, float | None] = {subject.name: None for subject in subjects}
    counts = {subject.name: max(1, int(steps * subject.share)) for subject in subjects}
    works = {}
    with ExitStack() as stack:
        for subject in subjects:
            with suppress(ImportError):
                env = subject.open(num_envs, device)
                stack.callback(env.close)
                env.reset()
                works[subject.name] = _steps(env, subject, num_envs, counts[subject.name], device)
        seconds = median_timings(list(works.values()), rounds, device)
    return found | {name: 1e6 * one / counts[name] for name, one in zip(works, seconds, strict=True)}


def _steps(env: Any, subject: Subject, num_envs: int, count: int, device: torch.device) -> Callable[[], None]:
    drawn = np.random.default_rng(1).integers(int(ACTIONS.n), size=(16, num_envs))
    actions: list[Any] = list(torch.from_numpy(drawn).to(device) if subject.tensors else drawn)

    def work() -> None:
        step = env.step
        for place in range(count):
            step(actions[place % 16])

    return work
