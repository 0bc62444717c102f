"""Video files in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_TEXT_ART = {"tty", "bin", "xbin", "adf", "idf"}  # FFmpeg renders plain text as a picture of a terminal


class VideoError(ValueError):
    """A video cannot be read or written; the message is one line and names the file."""


def read_video(
    path: str | Path,
    fps: float | None = None,
    max_frames: int | None = None,
    each: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, float]:
    """Decode any file that PyAV opens: (frames uint8 [F, H, W, 3] RGB, the file's own frames per second).

    With `fps`, frame k is the one shown nearest to k / fps seconds after the first. `max_frames` stops early. `each` is
    applied to every frame [H, W, 3] as it is decoded, so that a long video need not be held in full size. Its display
    matrix, turns and flips, is applied. Raises VideoError for a path that is no readable, complete video.
    """
    import av

    path = Path(path)
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise VideoError(f"fps must be a positive number, not {fps}")
    if max_frames is not None and max_frames < 1:
        raise VideoError(f"max_frames must be at least 1, not {max_frames}")
    check_file(path)
    frames: list[Tensor] = []
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(path, container)
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            if not rate > 0:
                raise VideoError(f"{path}: does not say how many frames a second it has; write it anew with a rate")
            for frame in _sample(_decode(path, container, stream, rate), fps, 1 / rate):
                pixels = torch.from_numpy(_upright(frame))
                frames.append(pixels if each is None else each(pixels))
                if frames[-1].shape != frames[0].shape:
                    raise VideoError(f"{path}: the picture changes size at frame {len(frames) - 1}")
                if len(frames) == max_frames:
                    break
    except (OSError, ValueError, av.error.FFmpegError) as error:
        if isinstance(error, VideoError):
            raise
        raise VideoError(f"{path}: not a video that can be read, or cut short ({reason(error)})") from error
    if not frames:
        raise VideoError(f"{path}: holds no video frames")
    return torch.stack(frames), rate


def check_file(path: Path) -> None:
    if path.is_dir():
        raise VideoError(f"{path}: is a folder, not a video file")
    if not path.exists():
        raise VideoError(f"{path}: no such file")
    if not path.is_file():
        raise VideoError(f"{path}: not a regular file")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: is empty (0 bytes)")


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    import av

    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if container.format.name in _TEXT_ART:
        raise VideoError(f"{path}: is text, not a video")
    if not streams:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise VideoError(f"{path}: has no video in it (found: {kinds})")
    return streams[0]


def _decode(
    path: Path, container: InputContainer, stream: VideoStream, rate: float
) -> Iterator[tuple[float, VideoFrame]]:
    """Yield (seconds since the first frame, frame); raise VideoError where the file ends before it says it does."""
    count, first, end = 0, 0.0, 0.0
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise VideoError(f"{path}: damaged or cut short at frame {count}")
        time = count / rate if frame.time is None else frame.time
        first = time if count == 0 else first
        held = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 1 / rate
        end = time - first + held
        yield time - first, frame
        count += 1
    stated = _stated_seconds(container, stream)
    # an edit list hides frames that the file has, and then the seconds are all there
    if stream.frames > count and (stated is None or stated - end > 0.5 / rate):
        raise VideoError(f"{path}: cut short, {count} of its {stream.frames} frames are there")
    if stated is not None and stated - end > 0.5 + 0.5 / rate:
        raise VideoError(f"{path}: cut short, {end:.1f} of its {stated:.1f} seconds are there")


def _stated_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """How long the file's header says the video is; None where it cannot be told apart from sound."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if "DURATION" in stream.metadata:
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / 1_000_000
    return None


def _sample(
    frames: Iterator[tuple[float, VideoFrame]], fps: float | None, frame_seconds: float
) -> Iterator[VideoFrame]:
    """Every frame, or with `fps` the nearest to each k / fps (the earlier one of two as near)."""
    if fps is None:
        yield from (frame for _, frame in frames)
        return
    index, previous = 0, None
    for current in frames:
        if previous is not None:
            while index / fps <= (previous[0] + current[0]) / 2:
                yield previous[1]
                index += 1
        previous = current
    while previous is not None and index / fps < previous[0] + frame_seconds - 1e-6:
        yield previous[1]
        index += 1


def _upright(frame: VideoFrame) -> np.ndarray:
    """Pixels [H, W, 3] as the display matrix, x' = a x + c y and y' = b x + d y, shows them, to a quarter turn."""
    pixels = frame.to_ndarray(format="rgb24")
    try:
        side: Any = frame.side_data
    except ValueError:  # it holds a kind that PyAV does not know: of the matrix the angle alone can be read
        return np.ascontiguousarray(np.rot90(pixels, k=round(frame.rotation / 90)))
    if "DISPLAYMATRIX" in {data.type.name for data in side}:
        a, b, _, c, d = np.frombuffer(bytes(side["DISPLAYMATRIX"]), np.int32)[:5].tolist()
        turned = abs(b) > abs(a)
        x, y = (c, b) if turned else (a, d)
        pixels = (pixels.swapaxes(0, 1) if turned else pixels)[:: -1 if y < 0 else 1, :: -1 if x < 0 else 1]
    return np.ascontiguousarray(pixels)


def reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
