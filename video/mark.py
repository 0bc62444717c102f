"""The mark of what a model made, in a video file's container."""

import importlib.metadata
from pathlib import Path

from .read import VideoError, check_file, reason

KEY = "reelgym_provenance"
"""Of the container's tag that holds the mark; `comment` holds it too, and outlives most remuxing."""
MADE = "made by a model: "
"""How every mark begins."""


def mark(made_by: str) -> str:
    """The line that a medium bears which a model or an agent made; ValueError where nobody is named."""
    who = " ".join(made_by.split())
    if not who:
        raise ValueError("made_by names who made the video, or is None where no model did")
    return f"{MADE}{who}; written by reelgym {_version()}"


def provenance(path: str | Path) -> str | None:
    """The mark that a video file bears, or None. Whoever copies pixels leaves it behind, so that None proves nothing.

    Raises VideoError for a path that is no readable video.
    """
    import av

    path = Path(path)
    check_file(path)
    try:
        with av.open(str(path)) as container:
            tags = {name.lower(): value for name, value in container.metadata.items()}
    except (OSError, ValueError, av.error.FFmpegError) as error:
        raise VideoError(f"{path}: not a video that can be read ({reason(error)})") from error
    found = tags.get(KEY, tags.get("comment", ""))
    return found if found.startswith(MADE) else None


def _version() -> str:
    try:
        return importlib.metadata.version("reelgym")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
