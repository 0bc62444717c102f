"""TensorBoard events of a comparison: what every training logged, its learning curve, and film strips of the clips."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..envs.draw import enlarge
from .plots import film_strip
from .report import Media


def write_events(folder: Path, runs: Mapping[str, Mapping[str, Any]], media: Media) -> None:
    """Replace the events in `folder`: one TensorBoard run per result of `runs` (by name), and one named "clips"."""
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    for name, result in runs.items():
        with SummaryWriter(str(folder / name)) as writer:
            for row in result.get("log", ()):
                _scalars(writer, "train", row)
            for row in result.get("curve", ()):
                _scalars(writer, "validation", row)
    with SummaryWriter(str(folder / "clips")) as writer:
        for name, clips in media.items():
            if name.startswith(("clips/", "long/")):
                for place, clip in enumerate(clips):
                    writer.add_image(name, enlarge(film_strip(clip), 2), place, dataformats="HWC")


def _scalars(writer: Any, group: str, row: Mapping[str, Any]) -> None:
    for key, value in row.items():
        if key != "update" and isinstance(value, int | float):
            writer.add_scalar(f"{group}/{key}", value, int(row["update"]))
