"""Video files out."""

from __future__ import annotations

import contextlib
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .mark import KEY, mark
from .read import VideoError, reason

CONTAINERS = (".mp4", ".mov", ".mkv")


def write_video(
    path: str | Path, frames: Tensor | np.ndarray, fps: float, *, made_by: str | None, crf: int | None = None
) -> None:
    """Write frames, uint8 [F, H, W, 3] RGB, as H.264 (yuv420p, plays in browsers).

    made_by: the model or agent, in a few words; the file's container then says that a model made it (`provenance` reads
    it back; the pixels hold nothing of it). None: no model made any of it, and the file bears no mark.

    An odd height or width is padded by repeating its last row or column. `crf` is x264's constant rate factor; by
    default 4 for pictures up to 128 pixels, where chroma is scarce, and 18 above. The file appears complete or not at
    all. Missing parent folders are made. Raises VideoError for wrong frames and for an output that cannot be written.
    """
    path = Path(path)
    _checked(path, frames)
    writer = VideoWriter(path, fps, made_by=made_by, crf=crf, whole=True)
    with writer:
        writer.write(frames)


class VideoWriter:
    """Writes a video as it comes, as H.264, into a file that plays whatever happens.

    Frames go to NAME.part.SUFFIX, which becomes the file itself when the `with` block ends well. When that ends with an
    exception, when the disk is full, and after a kill, the part plays up to the last seconds that were written. In the
    first two cases it takes the file's name, unless an earlier file has it: that one is kept. An earlier part is kept
    until the first frame comes.

    path, fps, made_by, crf: as in `write_video`.   whole: leave nothing of a file that is not complete.
    frames: written so far; after a failure, how many are in `left`: the file that holds what there is, or None.
    """

    def __init__(
        self, path: str | Path, fps: float, *, made_by: str | None, crf: int | None = None, whole: bool = False
    ) -> None:
        self.path, self.crf, self.whole = Path(path), crf, whole
        if not 0.001 <= fps <= 1000:
            raise VideoError(f"{path}: fps must be a number from 0.001 to 1000, not {fps}")
        if crf is not None and not 0 <= crf <= 51:
            raise VideoError(f"{path}: crf must be a number from 0 to 51, not {crf}")
        if self.path.suffix.lower() not in CONTAINERS:
            raise VideoError(f"{path}: cannot tell the container; name the file with one of {', '.join(CONTAINERS)}")
        self.fps, self.said = Fraction(fps).limit_denominator(100_000), None if made_by is None else mark(made_by)
        aside = f".{self.path.stem}.{os.getpid()}.tmp" if whole else f"{self.path.stem}.part"
        self.part = self.path.with_name(aside + self.path.suffix)
        self.frames = 0
        self.left: Path | None = None
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> VideoWriter:
        """Make missing parent folders; VideoError where the file could not be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for file in (self.path, self.part):
                if file.is_dir():
                    raise VideoError(f"{file}: is a folder, where a file is to be written")
            new = not self.part.exists()
            self.part.open("ab").close()
            if new:
                self.part.unlink()
        except OSError as error:
            raise VideoError(f"{self.path}: cannot be written ({reason(error)})") from error
        return self

    def write(self, frames: Tensor | np.ndarray) -> None:
        """Add frames, uint8 [F, H, W, 3] RGB, all of one size. Raises VideoError when they cannot be written; what came
        before them is in `left` then."""
        import av

        pixels = _checked(self.path, frames)
        try:
            if self._container is None:
                self._open(*pixels.shape[1:3])
            if pixels.shape[1:3] != (self._stream.height, self._stream.width):
                raise VideoError(f"{self.path}: frames are {self._stream.width}x{self._stream.height}, these are not")
            for picture in pixels:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame.pts, frame.time_base = self.frames, 1 / self.fps
                self._container.mux(self._stream.encode(frame))
                self.frames += 1
        except (OSError, av.error.FFmpegError) as error:
            raise self._failed(error) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Complete the file, or see to it that what there is of it plays."""
        import av

        if self._container is None:
            return
        try:
            if self._stream is not None:
                self._container.mux(self._stream.encode(None))
            self._container.close()
            self._container = None
            if error is None:
                os.replace(self.part, self.path)
        except (OSError, av.error.FFmpegError) as failure:
            if error is None:
                raise self._failed(failure) from failure
        if error is not None:
            self._settle()

    def _open(self, height: int, width: int) -> None:
        import av

        options = {"flush_packets": "1"}
        if self.path.suffix.lower() == ".mkv":
            options["cluster_time_limit"] = "2000"  # milliseconds that wait in memory
        else:
            options["movflags"] = "use_metadata_tags+hybrid_fragmented"
        self._container = av.open(str(self.part), "w", options=options)
        if self.said is not None:
            self._container.metadata.update({KEY: self.said, "comment": self.said})
        crf = self.crf if self.crf is not None else 4 if max(height, width) <= 128 else 18
        settings = {"crf": str(crf), "threads": "1", "tune": "zerolatency", "g": str(max(1, round(2 * self.fps)))}
        self._stream = self._container.add_stream("libx264", rate=self.fps, options=settings)
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"

    def _failed(self, error: Exception) -> VideoError:
        """What to raise after an error in writing, with what is left made playable."""
        self._settle()
        held = "" if self.left is None else f"; {self.left} holds the first {self.frames} frames and plays"
        return VideoError(f"{self.path}: cannot be written ({reason(error)}){held}")

    def _settle(self) -> None:
        """Close what can be closed, keep the part if it holds frames, and say in `left` and `frames` what is there."""
        import av

        if self._container is not None:
            with contextlib.suppress(OSError, av.error.FFmpegError):
                self._container.close()
            self._container = None
        self.frames = 0
        with contextlib.suppress(OSError):
            if not self.whole and self.part.exists():
                _cut_torn_box(self.part)
                self.frames = _whole_frames(self.part)
            if not self.frames:
                self.part.unlink(missing_ok=True)
                return
            self.left = self.part
            if not self.path.exists():
                os.replace(self.part, self.path)
                self.left = self.path


def _cut_torn_box(path: Path) -> None:
    """Shorten an MP4 file whose end was never written to its last whole fragment; others are left as they are."""
    if path.suffix.lower() == ".mkv":  # whose readers stop at a torn block by themselves
        return
    place, whole, end = 0, 0, path.stat().st_size
    with path.open("r+b") as file:
        while place < end:
            file.seek(place)
            head = file.read(16)
            size = int.from_bytes(head[:4], "big")
            size = int.from_bytes(head[8:16], "big") if size == 1 else size
            if size < 8 or place + size > end:
                break
            place += size
            if head[4:8] != b"moof":  # without the frames that it tells of it would be in the way
                whole = place
        if whole < end:
            file.truncate(whole)


def _whole_frames(path: Path) -> int:
    """How many frames of a file that was cut short are there in full; one packet is one frame, so none is decoded."""
    import av

    count = 0
    with contextlib.suppress(OSError, av.error.FFmpegError), av.open(str(path)) as container:
        for packet in container.demux(video=0):
            if packet.is_corrupt:
                break
            count += packet.size > 0
    return count


def _checked(path: Path, frames: Tensor | np.ndarray) -> np.ndarray:
    """The pixels, of even height and width."""
    pixels = frames.detach().cpu().numpy() if isinstance(frames, Tensor) else np.asarray(frames)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise VideoError(f"{path}: frames must be uint8 [F, H, W, 3], not {pixels.dtype} {list(pixels.shape)}")
    height, width = pixels.shape[1:3]
    return np.pad(pixels, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
