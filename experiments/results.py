"""results.json: what a command measured, and on what."""

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import write_json

_VERSIONS = ("reelgym", "torch", "diffusers", "gymnasium", "numpy")
_ROOT = Path(__file__).resolve().parent.parent


def write_results(
    out: str | Path,
    command: str,
    seeds: Sequence[int],
    config: Any,
    rows: Iterable[Mapping[str, Any]],
    device: str | torch.device = "cpu",
) -> Path:
    """Write `out`/results.json and return its path; `out` is made when it is missing.

    `config` is a dataclass or a mapping; its `out` decides nothing that is measured and is left out. Each row is one
    flat record of strings, numbers, booleans and None; numbers that are not finite become null. Raises ValueError for a
    row that is not flat.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    settings = dict(config) if isinstance(config, Mapping) else dataclasses.asdict(config)
    settings.pop("out", None)
    write_json(
        out / "results.json",
        {
            "command": command,
            "commit": commit(),
            "versions": versions(),
            "device": _describe(device),
            "seeds": list(seeds),
            "config": json.loads(json.dumps(settings, default=str)),
            "rows": [_flat(row) for row in rows],
        },
    )
    return out / "results.json"


def command_line(words: Sequence[str], config: Any) -> str:
    """The command that runs again what `config`, a dataclass, says: `words`, then every option that is not its default.
    Fields without default are among the words already; `out` decides nothing that is measured."""
    given = list(words)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "out" or field.default is dataclasses.MISSING or value == field.default:
            continue
        name = field.name.replace("_", "-")
        if isinstance(value, bool):
            given.append(f"--{name}" if value else f"--no-{name}")
        else:
            given += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(given)


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is a GPU where there is one. Raises ValueError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used ({reason}); try auto, cpu or cuda") from error
    return device


def commit() -> str | None:
    """The commit of the checkout that this package runs from, "-dirty" when files differ from it; None outside one."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(_ROOT), *args], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != _ROOT:
            return None
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _VERSIONS}}


def _describe(device: str | torch.device) -> str:
    """The device in words: a GPU by its name, a CPU by its model, usable cores and torch's threads."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_cpu_model()}, {cores} cores, {torch.get_num_threads()} torch threads"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    def plain(key: str, value: Any) -> Any:
        value = value.item() if hasattr(value, "item") else value
        if not (value is None or isinstance(value, str | int | float)):
            raise ValueError(f"results row: {key} is a {type(value).__name__}, not a string, a number or None")
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {key: plain(key, value) for key, value in row.items()}
