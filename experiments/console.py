"""What every command does alike: a progress bar, a count of worker processes, tables beside their results.json."""

import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from .results import command_line, write_results
from .tables import Row


def progress(total: int | None, what: str, unit: str = "job", log: bool = True) -> tqdm:
    """The progress bar, on stderr. log: where nobody watches it is written too, every five seconds at most."""
    watched = sys.stderr.isatty()
    pause = 0.1 if watched else 5.0
    return tqdm(total=total, desc=what, unit=unit, file=sys.stderr, mininterval=pause, disable=not (watched or log))


def worker_count(device: torch.device | str = "cpu", asked: int | None = None) -> int:
    """Worker processes: as many as were asked for, else one on a GPU, and up to two on a CPU."""
    if asked:
        return asked
    return 1 if torch.device(device).type == "cuda" else min(2, os.cpu_count() or 1)


def estimate(name: str, core_seconds: float, config: Any) -> None:
    """Say on stderr about how long a study takes."""
    workers = worker_count(config.device, config.workers)
    print(f"{name}: about {core_seconds / workers / 60:.0f} minutes on {workers} idle cores", file=sys.stderr)


def publish(
    words: Sequence[str],
    config: Any,
    seeds: Sequence[int],
    rows: Sequence[Row],
    text: str,
    device: torch.device | str = "cpu",
) -> None:
    """Write results.json into config's `out`, print the text and where the results are.

    words: the command, as far as its options do not say it ("reelgym", "score", FILE).
    """
    path = write_results(config.out, command_line(words, config), seeds, config, rows, device)
    print(f"{text}\n\nresults: {path}")
