"""Codecs: video [B, F, 3, H, W] in [0, 1] to and from latents [B, F', C, h, w] of about unit variance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ..checkpoint import given_arguments

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderKLWan


_FRAMES_AT_ONCE = 48


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
    """What a codec carries from one decoded chunk to the next, per stream.

    pack: its tensors by name and what JSON holds of it; `unpack` of the same state, freshly opened, gives it back.
    """

    def take(self, rows: Tensor) -> Any: ...

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]: ...

    def unpack(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Any: ...


class Codec(Protocol):
    """What every codec does; a state goes in and a new one comes out. channels: C of its latents. frames_of: how many
    video frames so many latent frames are decoded to, when so many came before."""

    channels: int

    def encode(self, video: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor, clamp: bool | None = None) -> Tensor: ...

    def open(self) -> Any: ...

    def decode_stream(self, latents: Tensor, state: Any, clamp: bool | None = None) -> tuple[Tensor, Any]: ...

    def grid(self, frames: int, start: int = 0) -> Grid: ...

    def frames_of(self, latents: int, before: int = 0) -> int: ...


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

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {}

    def unpack(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> FrameState:
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
    def from_config(cls, config: Mapping[str, Any]) -> FrameCodec:
        """Untrained. config: AutoencoderKL's arguments."""
        from diffusers import AutoencoderKL

        return cls(AutoencoderKL(**config))

    @property
    def config(self) -> dict[str, Any]:
        """What `from_config` takes to make it again."""
        return {"config": given_arguments(self.vae.config)}

    def encode(self, video: Tensor) -> Tensor:
        """video [B, F, 3, H, W] in [0, 1]. Returns the posterior's mean, normalised: [B, F, C, h, w]."""
        mean = _in_parts(lambda frames: self.vae.encode(frames).latent_dist.mode(), _from_unit(video).flatten(0, 1))
        return ((mean - _channels(self.shift)) / _channels(self.scale)).unflatten(0, video.shape[:2])

    def decode(self, latents: Tensor, clamp: bool | None = None) -> Tensor:
        """latents [B, F, C, h, w]. Returns video [B, F, 3, H, W]; clamp None: to [0, 1] unless a gradient runs."""
        z = latents.flatten(0, 1) * _channels(self.scale) + _channels(self.shift)
        x = _in_parts(lambda frames: self.vae.decode(frames).sample, z)
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

    def frames_of(self, latents: int, before: int = 0) -> int:
        """See Codec."""
        return latents

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


def _in_parts(net: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
    """A network of frames [N, C, H, W], on a CPU so few at a time that they stay in its cache: up to twice as fast."""
    if frames.device.type != "cpu" or len(frames) <= _FRAMES_AT_ONCE:
        return net(frames)
    return torch.cat([net(part) for part in frames.split(_FRAMES_AT_ONCE)])


def _channels(x: Tensor) -> Tensor:
    return x.view(1, -1, 1, 1)


@dataclass(frozen=True)
class WanState:
    """features: what each causal convolution of the decoder keeps of its past, per stream, or None before the first
    frame (a string marks a layer that has seen one frame). frames: latent frames decoded so far."""

    features: tuple[Tensor | str | None, ...]
    frames: int = 0

    def take(self, rows: Tensor) -> WanState:
        """Streams in the order of rows[B'] (repeats allowed)."""
        return WanState(tuple(f[rows] if isinstance(f, Tensor) else f for f in self.features), self.frames)

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See DecodeState."""
        tensors = {str(place): f for place, f in enumerate(self.features) if isinstance(f, Tensor)}
        marks = [f if isinstance(f, str) else None for f in self.features]
        return tensors, {"frames": self.frames, "marks": marks}

    def unpack(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> WanState:
        """See DecodeState; ValueError for the state of another decoder."""
        if len(meta["marks"]) != len(self.features):
            raise ValueError(f"the state is of {len(meta['marks'])} layers, this decoder has {len(self.features)}")
        return WanState(
            tuple(tensors.get(str(place), mark) for place, mark in enumerate(meta["marks"])), meta["frames"]
        )

    def detach(self) -> WanState:
        return WanState(tuple(f.detach() if isinstance(f, Tensor) else f for f in self.features), self.frames)


class WanCodec(nn.Module):
    """diffusers' AutoencoderKLWan: causal in time; the first latent is of one frame, each later one of four.

    vae: a built AutoencoderKLWan; its config's latents_mean and latents_std normalise. size: (H, W) of the video.
    """

    frames_per_latent = 4
    shift: Tensor
    scale: Tensor

    def __init__(self, vae: AutoencoderKLWan, size: tuple[int, int]) -> None:
        super().__init__()
        self.vae = vae
        self.channels: int = vae.config.z_dim
        self.factor = 2 ** (len(vae.config.dim_mult) - 1) * (vae.config.patch_size or 1)
        self.size = size
        self.register_buffer("shift", torch.tensor(vae.config.latents_mean, dtype=torch.float32), persistent=False)
        self.register_buffer("scale", torch.tensor(vae.config.latents_std, dtype=torch.float32), persistent=False)

    @classmethod
    def from_config(cls, size: tuple[int, int], **config: Any) -> WanCodec:
        """config: AutoencoderKLWan's arguments."""
        from diffusers import AutoencoderKLWan

        return cls(AutoencoderKLWan(**config), size)

    def encode(self, video: Tensor) -> Tensor:
        """video [B, 1 + 4n, 3, H, W] in [0, 1]. Returns the posterior's mean, normalised: [B, 1 + n, C, h, w]."""
        if (video.shape[1] - 1) % self.frames_per_latent:
            raise ValueError(f"this codec takes 1, 5, 9, ... frames, not {video.shape[1]}: cut or extend the clip")
        z = _from_unit(video).transpose(1, 2).to(self.vae.dtype)
        mean = self.vae.encode(z).latent_dist.mode().transpose(1, 2).to(video)
        return (mean - _channels(self.shift)) / _channels(self.scale)

    def decode(self, latents: Tensor, clamp: bool | None = None) -> Tensor:
        """latents [B, 1 + n, C, h, w]. Returns video [B, 1 + 4n, 3, H, W]; clamp None: to [0, 1] unless a gradient
        runs."""
        return self._decode(latents, self.open(), clamp)[0]

    def open(self) -> WanState:
        from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

        return WanState((None,) * sum(isinstance(m, WanCausalConv3d) for m in self.vae.decoder.modules()))

    def decode_stream(self, latents: Tensor, state: WanState, clamp: bool | None = None) -> tuple[Tensor, WanState]:
        """latents: the next chunk [B, f, C, h, w]. Returns its video (4 f frames, 3 fewer for the first chunk) and the
        state after it, detached: a gradient does not cross chunks."""
        video, state = self._decode(latents, state, clamp)
        return video, state.detach()

    def grid(self, frames: int, start: int = 0) -> Grid:
        """Grid of video frames start to start + frames of a stream; latents count from that of frame start."""
        frame = torch.arange(start, start + frames, device=self.shift.device)
        latent = (frame + self.frames_per_latent - 1) // self.frames_per_latent
        return Grid(latent - latent[0], self.size[0] // self.factor, self.size[1] // self.factor)

    def frames_of(self, latents: int, before: int = 0) -> int:
        """See Codec."""
        first = self.frames_per_latent - 1 if latents and not before else 0
        return self.frames_per_latent * latents - first

    def _decode(self, latents: Tensor, state: WanState, clamp: bool | None) -> tuple[Tensor, WanState]:
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        z = (latents * _channels(self.scale) + _channels(self.shift)).transpose(1, 2)
        z = self.vae.post_quant_conv(z.to(self.vae.dtype))
        features = list(state.features)
        parts = [
            self.vae.decoder(frame, feat_cache=features, feat_idx=[0], first_chunk=state.frames + i == 0)
            for i, frame in enumerate(z.split(1, dim=2))
        ]
        x = unpatchify(torch.cat(parts, dim=2), self.vae.config.patch_size or 1).transpose(1, 2).to(latents)
        return _to_unit(x, latents, clamp), WanState(tuple(features), state.frames + latents.shape[1])
