"""Codecs (contract 8): video [B, F, 3, H, W] in [0, 1] to and from latents [B, F', C, h, w] of about unit variance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


@dataclass(frozen=True)
class Grid:
    """Where pixels lie on the latent grid. latent_of_frame: int64 [F], latent of each video frame; h, w: cells."""

    latent_of_frame: Tensor
    h: int
    w: int

    @property
    def latent_frames(self) -> int:
        return int(self.latent_of_frame[-1]) + 1


class DecodeState(Protocol):
    """What a codec carries from one decoded chunk to the next, per stream."""

    def take(self, rows: Tensor) -> Any: ...


class Codec(Protocol):
    """What every codec does; a state goes in and a new one comes out. channels: C of its latents."""

    channels: int

    def encode(self, video: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor, clamp: bool | None = None) -> Tensor: ...

    def open(self) -> Any: ...

    def decode_stream(self, latents: Tensor, state: Any, clamp: bool | None = None) -> tuple[Tensor, Any]: ...

    def grid(self, frames: int, start: int = 0) -> Grid: ...


def _to_unit(x: Tensor, latents: Tensor, clamp: bool | None) -> Tensor:
    """[-1, 1] to [0, 1]. clamp None: clamp unless a gradient runs through the latents (clamping would cut it)."""
    video = (x + 1) / 2
    if clamp is None:
        clamp = not (torch.is_grad_enabled() and latents.requires_grad)
    return video.clamp(0, 1) if clamp else video


def _from_unit(video: Tensor) -> Tensor:
    if video.dim() != 5:
        raise ValueError(f"video must be [B, F, 3, H, W] in [0, 1], not of shape {tuple(video.shape)}")
    return video * 2 - 1


@dataclass(frozen=True)
class FrameState:
    """A frame-wise codec carries nothing."""

    def take(self, rows: Tensor) -> FrameState:
        return self


class FrameCodec(nn.Module):
    """Every frame on its own, through diffusers' AutoencoderKL: one latent frame per video frame.

    vae: a built AutoencoderKL. Buffers shift, scale [C]: latents are (mean - shift) / scale; set by `calibrate`.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae
        self.channels: int = vae.config.latent_channels
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.size: int = vae.config.sample_size
        self.register_buffer("shift", torch.zeros(self.channels))
        self.register_buffer("scale", torch.ones(self.channels))

    @classmethod
    def from_config(cls, **config: Any) -> FrameCodec:
        """config: AutoencoderKL's arguments."""
        from diffusers import AutoencoderKL

        return cls(AutoencoderKL(**config))

    def encode(self, video: Tensor) -> Tensor:
        """video [B, F, 3, H, W] in [0, 1]. Returns the posterior's mean, normalised: [B, F, C, h, w]."""
        mean = self._posterior(video).mode()
        return ((mean - _channels(self.shift)) / _channels(self.scale)).unflatten(0, video.shape[:2])

    def decode(self, latents: Tensor, clamp: bool | None = None) -> Tensor:
        """latents [B, F, C, h, w]. Returns video [B, F, 3, H, W]; clamp None: to [0, 1] unless a gradient runs."""
        z = latents.flatten(0, 1) * _channels(self.scale) + _channels(self.shift)
        x: Tensor = self.vae.decode(z).sample
        return _to_unit(x, latents, clamp).unflatten(0, latents.shape[:2])

    def open(self) -> FrameState:
        return FrameState()

    def decode_stream(self, latents: Tensor, state: FrameState, clamp: bool | None = None) -> tuple[Tensor, FrameState]:
        """latents: the next chunk [B, f, C, h, w]. Returns its video [B, f, 3, H, W] and the state after it."""
        return self.decode(latents, clamp), state

    def grid(self, frames: int, start: int = 0) -> Grid:
        """Grid of video frames start to start + frames of a stream, at the model's own resolution."""
        device = self.shift.device
        return Grid(torch.arange(frames, device=device), self.size // self.factor, self.size // self.factor)

    @torch.no_grad()
    def calibrate(self, video: Tensor) -> None:
        """Set shift and scale so that the latents of this video [B, F, 3, H, W] have mean 0, variance 1 per channel."""
        mean = self._posterior(video).mode()
        self.shift.copy_(mean.mean(dim=(0, 2, 3)))
        self.scale.copy_(mean.std(dim=(0, 2, 3)).clamp_min(1e-6))

    def loss(self, video: Tensor, weight: Tensor | None = None, kl_weight: float = 1e-5) -> Tensor:
        """Training loss: mean |e| + 2 e^2 of the reconstruction (pixels in [-1, 1]) from a posterior sample, plus
        kl_weight times the KL to N(0, I) per latent element. video [B, F, 3, H, W] in [0, 1]; weight: per-pixel
        weights that broadcast to video, e.g. [B, F, 1, H, W], or None for all ones."""
        posterior = self._posterior(video)
        error = (self.vae.decode(posterior.sample()).sample - _from_unit(video).flatten(0, 1)).unflatten(
            0, video.shape[:2]
        )
        pixel = error.abs() + 2 * error.square()
        if weight is not None:
            pixel = pixel * weight / weight.mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return pixel.mean() + kl_weight * kl

    def _posterior(self, video: Tensor) -> Any:
        return self.vae.encode(_from_unit(video).flatten(0, 1)).latent_dist


def _channels(x: Tensor) -> Tensor:
    return x.view(1, -1, 1, 1)
