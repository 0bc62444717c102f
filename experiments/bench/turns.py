"""Clocks for what is compared: everything runs in turns, so that a slow minute of the machine hits all alike."""

import time
from collections.abc import Callable, Sequence

import torch


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call, the device waited for before and after."""
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def in_turns(works: Sequence[Callable[[], object]], rounds: int, device: torch.device) -> list[list[float]]:
    """Seconds of every call: one list per work, of `rounds` numbers; every second round goes backwards."""
    found: list[list[float]] = [[] for _ in works]
    for count in range(rounds):
        places = range(len(works)) if count % 2 == 0 else reversed(range(len(works)))
        for place in places:
            found[place].append(seconds_of(works[place], device))
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
