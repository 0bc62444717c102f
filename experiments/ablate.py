"""`reelgym ablate`: what each part of Stream-R1 adds to DMD, on a student of two steps, at equal updates.

The rows are a comparison's, and so are tables, curves and report. A row's curve says what it had reached at equal
seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import compare
from .options import StackOptions


@dataclass(frozen=True)
class Config(StackOptions):
    """How often to train every row; a run that was killed goes on where it was."""

    seed: int = 0
    """The first of the seeds."""
    seeds: int | None = None
    """How many runs of each row; 5 by default."""
    out: Path = Path("runs/ablate")
    """Folder for results.json, report.html, TensorBoard events and the jobs."""
    workers: int | None = None
    """Processes of one thread each; by default 2, or as many as there are cores; 1 on a GPU."""


def run(config: Config) -> None:
    """Train, examine, report; prints the tables and where the report is."""
    compare.run(compare.Config(preset="ablation", **vars(config)))
