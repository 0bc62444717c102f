"""Video files in and out, through PyAV; what a model made says so in its container."""

from .mark import mark, provenance
from .read import VideoError, read_video
from .write import CONTAINERS, VideoWriter, write_video

__all__ = ["CONTAINERS", "VideoError", "VideoWriter", "mark", "provenance", "read_video", "write_video"]
