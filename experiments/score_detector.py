"""A detector on a video file: how likely the file was made by a generator, over time.

F frames, W windows, n chunks a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..envs.self_play import coded, pooled_film
from ..envs.stack import Stack
from ..models.calibration import Calibration
from ..models.codec import Codec
from ..models.detector import ClipDetector, sides_of
from ..models.tiny import load_manifest
from .jobs import one_thread
from .scorer import Config, VideoScores, check_length, read_windows, windows
from .tables import Row

_AT_ONCE = 64
"""Frames, or windows, that go through a network together."""
_BARS = "▁▂▃▄▅▆▇█"
SCOPE = (
    "It knows the procedural world alone: real is a clip of that world, made is what its generators and scripted fakes "
    "make. Of any other video, filmed ones included, these numbers say nothing."
)


@dataclass(frozen=True)
class DetectorScorer:
    """A detector of `reelgym train detector` with all that its verdicts need.

    codec: through which every video passes first, as all clips did in training.   pool: side of the squares of pixels
    that it sees averaged.   chunk: frames of a chunk.   fps: at which files are read, by default as it was trained.
    """

    detector: ClipDetector
    calibration: Calibration
    codec: Codec
    pool: int
    chunk: int
    fps: float

    @classmethod
    def load(cls, config: Config, device: torch.device) -> DetectorScorer:
        """The stack's detector, or the one in a folder of its own; ValueError for one without calibration."""
        stack = Stack.load(config.stack, device)
        if config.detector_weights is not None:
            stack = stack.with_weights(detector=config.detector_weights)
        detector: Any = stack.detector
        folder = stack.places["detector"]
        if not isinstance(detector.size, int):
            raise ValueError(f"{folder}: this detector sees {detector.size} pixels of its own stack, score squares")
        manifest = load_manifest("detector", folder)
        try:
            calibration = Calibration.from_manifest(manifest)
            pool, chunk, fps = int(manifest["pool"]), int(manifest["chunk"]), float(manifest["fps"])
        except (KeyError, ValueError) as error:
            raise ValueError(f"{folder}: train the detector with `reelgym train detector` ({error})") from None
        return cls(detector, calibration, stack.codec, pool, chunk, fps if config.fps is None else config.fps)

    def score(self, file: Path) -> VideoScores:
        """In windows, one every chunk."""
        video, read = read_windows(file, self.fps, sides_of(self.detector.size)[0] * self.pool)
        check_length(file, len(video), self.fps, self.chunk, "detector")
        with one_thread():
            rows = self.examine(video)
        return VideoScores(read, rows, _table(rows))

    @torch.no_grad()
    def examine(self, video: Tensor) -> list[Row]:
        """Rows of video [F, 3, H, W] in [0, 1] in windows as long as the clips of training: one for the whole, judged
        by the mean logit of its windows, one for every chunk of every window."""
        chunks = min(self.calibration.chunks, len(video) // self.chunk)
        length = chunks * self.chunk
        starts = windows(len(video), length, self.chunk)
        device = next(self.detector.parameters()).device
        passed = [coded(part[None].to(device), self.codec) for part in video.split(_AT_ONCE)]
        seen = pooled_film(torch.cat(passed, 1), self.pool)[0] / 255
        clips = torch.stack([seen[start : start + length] for start in starts])
        logits = torch.cat([self.detector(part) for part in clips.split(_AT_ONCE)])[:, self.chunk - 1 :: self.chunk]
        if not bool(logits.isfinite().all()):
            raise ValueError("the detector's logits are not finite: its weights are damaged")
        columns = [self._figures(column, count) for count, column in enumerate(logits.cpu().unbind(1), 1)]
        (whole,) = self._figures(logits.cpu()[:, -1].mean()[None], chunks)
        rows: list[Row] = [{"kind": "clip", "verdict": "made" if whole["probability"] > 0.5 else "real", **whole}]
        for window, start in enumerate(starts):
            for count, column in enumerate(columns, 1):
                end = start + count * self.chunk
                where = {"kind": "moment", "window": window, "first_frame": start, "last_frame": end - 1}
                rows.append({**where, "chunks": count, "seconds": end / self.fps, **column[window]})
        return rows

    def _figures(self, logits: Tensor, chunks: int) -> list[Row]:
        """What logits [W] after so many chunks mean, where real and made videos are as many."""
        made, false = self.calibration.probability(logits, chunks), self.calibration.false_positives(logits, chunks)
        each = zip(logits.tolist(), made.tolist(), false.tolist(), strict=True)
        return [{"logit": logit, "probability": p, "false_positive_rate": rate} for logit, p, rate in each]


def _table(rows: Sequence[Row]) -> str:
    """The curve over time and the verdict, for a terminal."""
    whole, *moments = rows
    last = moments[-1]["chunks"]
    ends = [row for row in moments if row["chunks"] == last]
    curve = [*moments[: last - 1], *ends]  # every moment once: the first window's chunks, then every window's end
    lines = ["", f"{'seen':>12}  {'until':>8}  made with  false positives"]
    for row in curve:
        seen, probability = f"{row['first_frame']}-{row['last_frame']}", row["probability"]
        figures = f"{probability:9.3f}  {_percent(row):>15}  {'#' * round(20 * probability)}"
        lines.append(f"{seen:>12}  {row['seconds']:6.2f} s  {figures}")
    spark = "".join(_BARS[min(int(row["probability"] * len(_BARS)), len(_BARS) - 1)] for row in curve)
    lines += ["", f"curve: {spark}"]
    lines.append(
        f"verdict: {whole['verdict']}; made with probability {whole['probability']:.3f} where real and made clips are "
        f"as many; {_percent(whole)} of real clips look at least as made"
    )
    return "\n".join([*lines, SCOPE])


def _percent(row: Row) -> str:
    return f"{100 * row['false_positive_rate']:.2f}%"
