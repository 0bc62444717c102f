"""Clocks for what is compared: everything runs in turns, so that a slow minute of the machine hits all alike."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

Timed = Callable[[], object]


def timed(work: Timed, device: torch.device) -> float:
    """Wall-clock seconds of one call, the device waited for before and after."""
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def interleaved_timings(
    works: Sequence[Timed], rounds: int, device: torch.device, warm_up: int = 0
) -> list[list[float]]:
    """Seconds of every call: one list per work, of `rounds` numbers; every second round goes backwards.

    warm_up: rounds before these, which do not count.
    """
    found: list[list[float]] = [[] for _ in works]
    for count in (*range(warm_up), *range(rounds)):
        places = range(len(works)) if count % 2 == 0 else reversed(range(len(works)))
        for place in places:
            found[place].append(timed(works[place], device))
    return [times[warm_up:] for times in found]


def median_timings(works: Sequence[Timed], rounds: int, device: torch.device, warm_up: int = 1) -> list[float]:
    """The median seconds of each work."""
    return [statistics.median(times) for times in interleaved_timings(works, rounds, device, warm_up)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
