"""Other people's networks as detectors: any torch module over clips, and video classifiers of Hugging Face.

B clips, f frames a chunk, F frames that a network takes, K kinds, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from .detector import DetectorState, sides_of

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and spread of pixels that VideoMAE and others were trained with."""


class NetworkDetector:
    """A network over whole clips as a detector: after every chunk it is shown the last frames.

    network: video [B, F, 3, H, W] in [0, 1] to logits [B], above 0 for "made", or [B, K], of which kind `made` is the
    one. frames: F. size: a side, or (H, W), to which frames are brought. Before F frames were seen, the first one
    stands for those that are missing.
    """

    def __init__(self, network: nn.Module, frames: int, size: int | Sequence[int], made: int = 1) -> None:
        if min(frames, *sides_of(size)) < 1 or made < 0:
            raise ValueError(f"frames and size are at least 1, made at least 0: {frames}, {size}, {made}")
        self.network, self.frames, self.size, self.made = network, frames, size, made
        self.sides = sides_of(size)

    def open(self, count: int, device: torch.device) -> DetectorState:
        """Before the first frame: how many were seen, and the last F."""
        seen = torch.zeros(count, dtype=torch.int64, device=device)
        return DetectorState((seen, torch.zeros(count, self.frames, 3, *self.sides, device=device)))

    def watch(self, video: Tensor, state: DetectorState) -> tuple[Tensor, DetectorState]:
        """Logits [B] after one more chunk [B, f, 3, H, W], and the state behind it; ValueError where the chunk or what
        the network returns has another shape or is not finite."""
        seen, frames = state.parts
        if video.ndim != 5 or video.shape[2] != 3 or len(video) != len(seen) or not video.shape[1]:
            raise ValueError(f"a chunk is [{len(seen)}, f, 3, H, W], not {list(video.shape)}")
        chunk = self._resized(video)
        before = torch.where((seen > 0)[:, None, None, None, None], frames, chunk[:, :1].detach())
        film = torch.cat((before, chunk), 1)[:, -self.frames :]
        logits = self._checked(self.network(film), len(video))
        return logits, DetectorState((seen + video.shape[1], film.detach()))

    def _resized(self, video: Tensor) -> Tensor:
        if video.shape[-2:] == self.sides:
            return video
        small = interpolate(video.flatten(0, 1), self.sides, mode="bilinear", align_corners=False, antialias=True)
        return small.unflatten(0, video.shape[:2])

    def _checked(self, found: Tensor, count: int) -> Tensor:
        """Logits [B] of what the network returned, the log-odds of its kind `made`."""
        if found.shape != (count,) and not (
            found.ndim == 2 and len(found) == count and found.shape[1] > max(self.made, 1)
        ):
            wanted = f"[{count}] or [{count}, K] with K above {max(self.made, 1)}"
            raise ValueError(f"the network returned {list(found.shape)} for {count} clips: expected {wanted}")
        if not bool(found.isfinite().all()):
            raise ValueError("the network returned logits that are not finite")
        if found.ndim == 1:
            return found
        others = torch.cat((found[:, : self.made], found[:, self.made + 1 :]), 1)
        return found[:, self.made] - others.logsumexp(1)


class VideoClassifier(nn.Module):
    """A video classifier of Hugging Face transformers: video [B, F, 3, H, W] in [0, 1] to logits [B, K].

    mean, std: of pixels, by channel, that the model was trained with.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32).view(3, 1, 1))

    def forward(self, video: Tensor) -> Tensor:
        """[B, K]."""
        logits: Tensor = self.model(pixel_values=(video - self.mean) / self.std).logits
        return logits


def load_classifier(source: str | Path, made: str | int, device: torch.device | str = "cpu") -> NetworkDetector:
    """A video classifier of Hugging Face (VideoMAE, TimeSformer, ...) as a detector, in evaluation mode.

    source: its folder or hub id; weights are read from safetensors alone. made: name or number of the label that means
    "made". Pixels are scaled as preprocessor_config.json says, or as ImageNet's where there is none. ValueError for
    what is no video classifier, and for a label that it does not have.
    """
    from transformers import AutoModelForVideoClassification
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        model = AutoModelForVideoClassification.from_pretrained(str(source), use_safetensors=True)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{source}: no video classifier that transformers can load ({reason})") from error
    config = model.config
    names = {int(number): name for number, name in config.id2label.items()}
    chosen = [number for number, name in names.items() if made in (number, name)]
    if not chosen:
        raise ValueError(f"{source}: no label {made!r}; it has {', '.join(names.values())}")
    if not isinstance(config.image_size, int):
        raise ValueError(f"{source}: takes frames of {config.image_size}, and only square ones can be made here")
    try:
        told = ImageProcessingMixin.get_image_processor_dict(str(source))[0]
    except OSError:
        told = {}
    mean, std = told.get("image_mean", IMAGENET[0]), told.get("image_std", IMAGENET[1])
    network = VideoClassifier(model, mean, std).to(device).eval()
    return NetworkDetector(network, config.num_frames, config.image_size, chosen[0])
