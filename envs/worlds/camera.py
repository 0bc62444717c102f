"""The camera through which real and generated clips pass alike wherever a detector or a reward model looks."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

KERNEL_REACH = 3


@dataclass(frozen=True)
class Camera:
    """Ranges (low, high) from which every clip's own parameters are drawn.

    blur: standard deviation of the lens in pixels   gain: factor on brightness   noise: standard deviation of the
    sensor   tint: factor on each colour channel   bits: depth of what is stored
    """

    blur: tuple[float, float] = (0.0, 0.0)
    gain: tuple[float, float] = (1.0, 1.0)
    noise: tuple[float, float] = (0.0, 0.0)
    tint: tuple[float, float] = (1.0, 1.0)
    bits: int = 8

    def __post_init__(self) -> None:
        for name in ("blur", "gain", "noise", "tint"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"camera {name} needs 0 <= low <= high, got {(low, high)}")
        if not 1 <= self.bits <= 16:
            raise ValueError(f"camera bits must be between 1 and 16, got {self.bits}")


CAMERAS = {
    "clean": Camera(),
    "phone": Camera(blur=(0.0, 0.3), gain=(0.95, 1.03), noise=(0.0, 0.015)),
    "webcam": Camera(blur=(0.1, 0.4), gain=(0.97, 1.05), noise=(0.005, 0.02), bits=7),
    "tinted": Camera(blur=(0.0, 0.3), noise=(0.0, 0.015), tint=(0.3, 1.0)),
    "dusk": Camera(blur=(0.2, 0.8), gain=(0.9, 1.1), noise=(0.03, 0.08)),
    "night": Camera(blur=(0.3, 1.0), gain=(0.8, 1.1), noise=(0.1, 0.2)),
}
"""dusk: in which a small network learns to tell the shipped student's clips, but not at once.   night: so dark that it
is unsure of them; what self-play is filmed with."""


@dataclass(frozen=True)
class Lens:
    """Parameters of B clips' own: blur, gain, noise [B], tint [B, C]."""

    blur: Tensor
    gain: Tensor
    noise: Tensor
    tint: Tensor

    def take(self, rows: Tensor) -> "Lens":
        """Those of the clips at rows [M] (int64)."""
        return Lens(self.blur[rows], self.gain[rows], self.noise[rows], self.tint[rows])


def lens_of(camera: Camera, draws: Tensor) -> Lens:
    """The lens that draws [B, 3 + C] in [0, 1) pick from the camera's ranges."""
    blur, gain, noise = (
        low + (high - low) * draws[:, place]
        for place, (low, high) in enumerate((camera.blur, camera.gain, camera.noise))
    )
    low, high = camera.tint
    return Lens(blur, gain, noise, low + (high - low) * draws[:, 3:])


def shoot(video: Tensor, camera: Camera, generator: torch.Generator | None = None) -> Tensor:
    """Film video [B, F, C, H, W] in [0, 1]: lens, gain, tint, sensor noise, rounding; parameters drawn per clip.

    The generator lives on the CPU, so that one seed gives one film on every device.
    """
    draws = torch.rand(3, len(video), generator=generator).T
    shape = (len(video), video.shape[2])
    tint = torch.rand(shape, generator=generator) if camera.tint != (1.0, 1.0) else torch.zeros(shape)
    grain = torch.randn(video.shape, generator=generator).to(video.device) if camera.noise[1] > 0 else None
    return shoot_through(video, camera, lens_of(camera, torch.cat((draws, tint), 1).to(video.device)), grain)


def shoot_through(video: Tensor, camera: Camera, lens: Lens, grain: Tensor | None = None) -> Tensor:
    """Film video [B, F, C, H, W] in [0, 1] with a camera whose lens is known; grain: standard normal, like video."""
    top = 2**camera.bits - 1
    return (exposed(video, camera, lens, grain).clamp(0, 1) * top).round() / top


def exposed(video: Tensor, camera: Camera, lens: Lens, grain: Tensor | None = None) -> Tensor:
    """`shoot_through` before the film is cut to [0, 1] and rounded, which no gradient survives."""
    film = video
    if camera.blur[1] > 0:
        film = blurred(film, lens.blur[:, None].expand(video.shape[:2]))
    film = film * lens.gain[:, None, None, None, None]
    if camera.tint != (1.0, 1.0):
        film = film * lens.tint[:, None, :, None, None]
    if camera.noise[1] > 0 and grain is not None:
        film = film + grain * lens.noise[:, None, None, None, None]
    return film


def blurred(video: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of every frame of video [B, F, C, H, W] by its own sigma [B, F] in pixels; 0 leaves it alone."""
    count, frames, channels, height, width = video.shape
    reach = torch.arange(-KERNEL_REACH, KERNEL_REACH + 1, device=video.device)
    kernel = torch.exp(-0.5 * (reach / sigma.reshape(-1, 1).clamp_min(0.05)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None, :, None]
    images = video.reshape(1, -1, height, width)
    for weight, pad in ((kernel, (0, 0, KERNEL_REACH, KERNEL_REACH)), (kernel.mT, (KERNEL_REACH, KERNEL_REACH, 0, 0))):
        images = F.conv2d(F.pad(images, pad, mode="replicate"), weight, groups=len(weight))
    return images.reshape(video.shape)
