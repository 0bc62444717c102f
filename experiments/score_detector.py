"""`reelgym score FILE --detector`: how likely a video file was made by a generator, over time.

F frames, W windows, n chunks a window, f frames a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..envs.self_play import coded, stored
from ..models.calibration import Calibration
from ..models.codec import Codec
from ..models.detector import ClipDetector
from ..models.tiny import WEIGHTS, load_manifest, load_tiny
from ..video import VideoError
from .jobs import one_thread
from .results import command_line, pick_device, write_results
from .score import Config, load_clip, windows

AT_ONCE = 64
"""Frames, or windows, that go through a network together."""
BARS = "▁▂▃▄▅▆▇█"
SCOPE = (
    "It knows the procedural world alone: real is a clip of that world, made is what its generators and scripted fakes "
    "make. Of any other video, filmed ones included, these numbers say nothing."
)


@dataclass(frozen=True)
class Suspicion:
    """What a detector thought of a video, chunk after chunk.

    starts: first frame of each of W windows.   chunk: f.   logits, probability, false_positives: [W, n].   seconds:
    [W, n], when the chunk ends.   overall: logit, probability and false-positive rate of the whole video.
    """

    starts: Sequence[int]
    chunk: int
    logits: Tensor
    probability: Tensor
    false_positives: Tensor
    seconds: Tensor
    overall: tuple[float, float, float]

    @property
    def verdict(self) -> str:
        """Where real and made videos are as many."""
        return "made" if self.overall[1] > 0.5 else "real"

    def curve(self) -> list[tuple[int, int]]:
        """The windows and chunks that tell of every moment once: the first window's chunks, then every window's end."""
        last = self.logits.shape[1] - 1
        return [(0, chunk) for chunk in range(last)] + [(window, last) for window in range(len(self.starts))]


@dataclass(frozen=True)
class Examiner:
    """A detector with all that its verdicts need.

    codec: through which every video passes first, as all clips did in training.   pool: side of the squares of pixels
    that it sees averaged.   chunk: f.   fps: of the clips that it learned from.
    """

    detector: ClipDetector
    calibration: Calibration
    codec: Codec
    size: int
    pool: int
    chunk: int
    fps: float

    @classmethod
    def load(cls, folder: Path, codec: Path, device: torch.device) -> Examiner:
        """From the folder of a detector and that of a codec; ValueError for a detector without calibration."""
        detector, manifest = load_tiny("detector", folder, device), load_manifest("detector", folder)
        try:
            calibration = Calibration.from_manifest(manifest)
            pool, chunk, fps = int(manifest["pool"]), int(manifest["chunk"]), float(manifest["fps"])
        except (KeyError, ValueError) as error:
            raise ValueError(f"{folder}: train the detector with `reelgym train detector` ({error})") from None
        size = detector.size * pool
        return cls(detector, calibration, load_tiny("codec", codec, device), size, pool, chunk, fps)

    @torch.no_grad()
    def examine(self, video: Tensor, fps: float) -> Suspicion:
        """Video [F, 3, H, W] in [0, 1] at `fps` in windows as long as the clips of training, one every chunk.

        The whole is judged by the mean logit of its windows.
        """
        chunks = min(self.calibration.chunks, len(video) // self.chunk)
        length = chunks * self.chunk
        starts = windows(len(video), length, self.chunk)
        device = next(self.detector.parameters()).device
        passed = [coded(part[None].to(device), self.codec) for part in video.split(AT_ONCE)]
        seen = stored(torch.cat(passed, 1), self.pool)[0] / 255
        clips = torch.stack([seen[start : start + length] for start in starts])
        parts = [self.detector(part) for part in clips.split(AT_ONCE)]
        logits = torch.cat(parts)[:, self.chunk - 1 :: self.chunk].cpu()
        if not bool(logits.isfinite().all()):
            raise ValueError("the detector's logits are not finite: its weights are damaged")
        counts = range(1, chunks + 1)
        made, false = (
            torch.stack([read(column, count) for column, count in zip(logits.unbind(1), counts, strict=True)], 1)
            for read in (self.calibration.probability, self.calibration.false_positives)
        )
        mean = logits[:, -1].mean()[None]
        whole = (mean, self.calibration.probability(mean, chunks), self.calibration.false_positives(mean, chunks))
        ends = torch.tensor(starts)[:, None] + self.chunk * torch.arange(1, chunks + 1)
        overall = (float(whole[0]), float(whole[1]), float(whole[2]))
        return Suspicion(starts, self.chunk, logits, made, false, ends / fps, overall)


def run_detector(config: Config) -> None:
    """Tell how likely the file was made, over time."""
    used = ("file", "fps", "out", "seed", "device", "weights", "detector", "detector_weights")
    others = [
        field.name
        for field in fields(config)
        if field.name not in used and getattr(config, field.name) != field.default
    ]
    if others:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise ValueError(f"{options}: of no use to a detector, leave it out")
    device, weights = pick_device(config.device), config.weights or WEIGHTS
    examiner = Examiner.load(config.detector_weights or weights / "detector", weights / "codec", device)
    fps = examiner.fps if config.fps is None else config.fps
    video, source_fps = load_clip(config.file, fps, examiner.size)
    check_length(config.file, len(video), examiner.chunk, fps)
    with one_thread():
        found = examiner.examine(video, fps)
    size = f"{examiner.size} x {examiner.size} pixels"
    print(f"{config.file}: {len(video)} frames at {fps:g} fps (the file has {source_fps:g}), {size}")
    print(table(found))
    command = command_line(["reelgym", "score", str(config.file)], config)
    print(f"results: {write_results(config.out, command, [config.seed], config, to_rows(found), device)}")


def check_length(path: Path, frames: int, least: int, fps: float) -> None:
    """VideoError where a file has too few frames."""
    if frames < least:
        raise VideoError(
            f"{path}: {frames} frames at {fps:g} fps are too few, the detector needs {least}: give a longer video "
            "or a higher --fps"
        )


def to_rows(found: Suspicion) -> list[dict[str, Any]]:
    """One row for the clip, one for every chunk of every window."""
    logit, probability, false_positives = found.overall
    figures = {"logit": logit, "probability": probability, "false_positive_rate": false_positives}
    rows: list[dict[str, Any]] = [{"kind": "clip", "verdict": found.verdict, **figures}]
    for window, start in enumerate(found.starts):
        for chunk in range(found.logits.shape[1]):
            rows.append(
                {
                    "kind": "moment",
                    "window": window,
                    "first_frame": start,
                    "last_frame": start + (chunk + 1) * found.chunk - 1,
                    "chunks": chunk + 1,
                    "seconds": found.seconds[window, chunk],
                    "logit": found.logits[window, chunk],
                    "probability": found.probability[window, chunk],
                    "false_positive_rate": found.false_positives[window, chunk],
                }
            )
    return rows


def table(found: Suspicion) -> str:
    """The curve over time and the verdict, for a terminal."""
    moments = found.curve()
    curve = [float(found.probability[at]) for at in moments]
    lines = ["", f"{'seen':>12}  {'until':>8}  made with  false positives"]
    for (window, chunk), probability in zip(moments, curve, strict=True):
        start = found.starts[window]
        seen, until = f"{start}-{start + (chunk + 1) * found.chunk - 1}", float(found.seconds[window, chunk])
        rate = _percent(float(found.false_positives[window, chunk]))
        lines.append(f"{seen:>12}  {until:6.2f} s  {probability:9.3f}  {rate:>15}  {_bar(probability)}")
    spark = "".join(BARS[min(int(value * len(BARS)), len(BARS) - 1)] for value in curve)
    _, whole, flagged = found.overall
    lines += ["", f"curve: {spark}"]
    lines.append(
        f"verdict: {found.verdict}; made with probability {whole:.3f} where real and made clips are as many; "
        f"{_percent(flagged)} of real clips look at least as made"
    )
    return "\n".join([*lines, SCOPE])


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _bar(probability: float) -> str:
    return "#" * round(20 * probability)
