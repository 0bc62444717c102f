"""Two speeds that the package promises: `python -m reelgym.experiments.speed` measures them on one core."""

import subprocess
import sys

import torch

from ..envs.worlds.grammar import GRAMMARS, chunk_clauses, sample_scripts
from ..envs.worlds.render import render
from ..envs.worlds.scene import roll
from .bench.timing import interleaved_timings

_FRAMES = 5_000
IMPORT = 1.2


def rendered_frames_a_second(clips: int = 256, rounds: int = 10) -> float:
    """Frames of 32x32 pixels of the full grammar, the best of `rounds`."""
    scripts = sample_scripts(clips, split="train", seed=0, grammar=GRAMMARS["full"])
    scene = roll([chunk_clauses(script, 4) for script in scripts], 3, torch.Generator().manual_seed(0))
    (seconds,) = interleaved_timings([lambda: render(scene)], rounds, torch.device("cpu"))
    return clips * 12 / min(seconds)


def import_seconds(module: str, rounds: int = 5) -> float:
    """Seconds to import `module` in a new interpreter, the best of `rounds`."""
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(rounds)
    ]
    return min(float(run.stdout) for run in runs)


def main() -> None:
    """Print what was promised beside what was measured."""
    torch.set_num_threads(1)
    print(f"rendering: {rendered_frames_a_second():,.0f} frames/s (promised: at least {_FRAMES:,})")
    torch_alone = import_seconds("torch")
    ours = import_seconds("reelgym")
    print(f"import reelgym: {ours:.2f} s (promised: at most {IMPORT}; torch alone {torch_alone:.2f} s)")


if __name__ == "__main__":
    main()
