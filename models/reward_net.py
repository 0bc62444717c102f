"""The tiny video reward model: three raw scores (VQ, MQ, TA) of a short clip, and the loss that trains it.

Shape letters: B clips, F frames, C channels, H W pixels, N visual tokens, L words, K keypoints, E width of the tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .prompts import PromptBatch

REWARD_AXES: tuple[str, ...] = ("VQ", "MQ", "TA")
LOG_K = math.log(5.0)
SHARPNESS = 2.0
PADDED = 8192.0


def bradley_terry_with_ties(d: Tensor, label: Tensor) -> Tensor:
    """Negative log-likelihood of preferences under Bradley-Terry with ties (Rao and Kupper; k = 5 as in VideoReward).

    d: score of the first clip minus score of the second, any shape. label: same shape; 1 the first clip wins, -1 the
    second, 0 a tie. Win: -log sigmoid(d_winner - ln 5). Tie: -log sigmoid(d - ln 5) - log sigmoid(-d - ln 5) - ln 24.
    """
    first = -functional.logsigmoid(d - LOG_K)
    second = -functional.logsigmoid(-d - LOG_K)
    tie = first + second - math.log(24.0)
    return torch.where(label > 0, first, torch.where(label < 0, second, tie))


def smooth_minimum(parts: Tensor) -> Tensor:
    """Score [B, 1] of what has parts [B, N] (PADDED: no part): one bad part spoils it, and the gradient goes there."""
    count = parts.lt(PADDED).sum(dim=-1, keepdim=True)
    return count.log() - torch.logsumexp(-parts, dim=-1, keepdim=True)


class Residual(nn.Module):
    """Two 3x3 convolutions around a group norm each, added to the input. [*, C, H, W] to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(4, channels) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            h = conv(functional.silu(norm(h)))
        return x + h


class TemporalMix(nn.Module):
    """Each cell reads the frames before and after it (ends repeat). [B, F, C, h, w] to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.mix = nn.Linear(3 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.silu(self.norm(x.flatten(0, 1))).flatten(2)
        weight = torch.cat(self.mix.weight.chunk(3, dim=1))
        before, here, after = (weight @ h).unflatten(1, (3, -1)).unflatten(0, x.shape[:2]).unbind(2)
        before = torch.cat([before[:, :1], before[:, :-1]], dim=1)
        after = torch.cat([after[:, 1:], after[:, -1:]], dim=1)
        mixed = before + here + after
        return x + mixed.unflatten(-1, x.shape[-2:]) + self.mix.bias[:, None, None]


class _Attention(nn.Module):
    """Multi-head attention in plain matrix products, so that a vector-Jacobian product can be batched over it."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, keep: Tensor | None = None) -> Tensor:
        """x [B, Q, E] reads memory [B, N, E]; keep: bool [B, N], False where memory is padding."""
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.key_value(memory).chunk(2, dim=-1))
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if keep is not None:
            logits = logits.masked_fill(~keep[:, None, None], -1e4)
        return self.out((logits.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm transformer block; with `cross`, also reads a memory."""

    def __init__(self, width: int, cross: bool = False) -> None:
        super().__init__()
        self.norm_self, self.attend = nn.LayerNorm(width), _Attention(width)
        self.norm_cross = nn.LayerNorm(width) if cross else None
        self.read = _Attention(width) if cross else None
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, keep: Tensor | None = None, memory: Tensor | None = None) -> Tensor:
        h = self.norm_self(x)
        x = x + self.attend(h, h, keep)
        if self.norm_cross is not None and self.read is not None and memory is not None:
            x = x + self.read(self.norm_cross(x), memory)
        return x + self.mlp(x)


class FrameEncoder(nn.Module):
    """Colour, and change since the frame before, to per-frame tokens and per-cell tokens.

    Keypoints (spatial softmax over 16x16 maps) give positions far finer than a cell; their first and second differences
    in time are what motion is read from.
    """

    def __init__(self, width: int, keypoints: int = 8, fine: int = 32, coarse: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(6, fine, 4, stride=2, padding=1), Residual(fine))
        self.attention_maps = nn.Sequential(nn.GroupNorm(4, fine), nn.Conv2d(fine, keypoints, 1))
        self.down = nn.Sequential(nn.Conv2d(fine, coarse, 4, stride=2, padding=1), Residual(coarse))
        self.mix = nn.Sequential(TemporalMix(coarse), TemporalMix(coarse))
        self.frame = nn.Linear(coarse + keypoints * (fine + 6), width)
        self.cell = nn.Linear(coarse, width)

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """video [B, F, 3, H, W] in [0, 1]. Returns frame tokens [B, F, E] and cell tokens [B, F, h/2, w/2, E]."""
        x = video * 2 - 1
        change = x - torch.cat([x[:, :1], x[:, :-1]], dim=1)
        fine = self.stem(torch.cat([x, 4 * change], dim=2).flatten(0, 1))
        points, looks = self._keypoints(fine)
        points = points.unflatten(0, video.shape[:2])
        coarse = self.mix(self.down(fine).unflatten(0, video.shape[:2]))
        features = [coarse.mean(dim=(-1, -2)), looks.unflatten(0, video.shape[:2]), points, *_differences(points)]
        cells = functional.avg_pool2d(coarse.flatten(0, 1), 2).unflatten(0, video.shape[:2])
        return self.frame(torch.cat(features, dim=-1)), self.cell(cells.movedim(2, -1))

    def _keypoints(self, fine: Tensor) -> tuple[Tensor, Tensor]:
        """Centres in [-1, 1] ([B*F, 2K]) and mean features ([B*F, K*C]) under K spatial softmax maps."""
        maps = (SHARPNESS * self.attention_maps(fine)).flatten(2).softmax(dim=-1)
        ys = torch.linspace(-1, 1, fine.shape[-2], device=fine.device, dtype=fine.dtype)
        xs = torch.linspace(-1, 1, fine.shape[-1], device=fine.device, dtype=fine.dtype)
        place = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1).flatten(0, 1)
        return (maps @ place).flatten(1), (maps @ fine.flatten(2).transpose(1, 2)).flatten(1)


def _differences(points: Tensor) -> tuple[Tensor, Tensor]:
    """First and second differences in time of points [B, F, P], zero where undefined, scaled to about one."""
    zero = torch.zeros_like(points[:, :1])
    velocity = torch.cat([zero, points[:, 1:] - points[:, :-1]], dim=1)
    change = torch.cat([zero, zero, velocity[:, 2:] - velocity[:, 1:-1]], dim=1)
    return 10 * velocity, 10 * change


class TinyReward(nn.Module):
    """Scores of clips of 3 or more frames at the resolution of the tiny tier, on three axes.

    VQ and MQ are read without the prompt; TA by the prompt's words, which attend to the frames, then to frames and
    cells: one wrong word spoils the prompt. Frame positions count from the end, where the prompt holds. Buffers mean,
    std [3]: raw score statistics for z-scores (`calibrate`).
    """

    axes = REWARD_AXES
    min_frames = 3
    mean: Tensor
    std: Tensor

    def __init__(self, text_dim: int, width: int = 96) -> None:
        super().__init__()
        self.text_dim = text_dim
        self.width = width
        self.encoder = FrameEncoder(width)
        self.time_blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.norm, self.norm_cells = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.randn(2, width) * 0.02)
        self.pool = _Attention(width)
        self.heads = nn.ModuleList(_head(width) for _ in REWARD_AXES)
        self.words = nn.Linear(text_dim, width)
        self.register = nn.Parameter(torch.randn(1, width) * 0.02)
        self.align_blocks = nn.ModuleList(Block(width, cross=True) for _ in range(2))
        self.gate = nn.Linear(width, width)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))

    @classmethod
    def from_config(cls, **config: Any) -> TinyReward:
        """Untrained, with the arguments that `config` holds."""
        return cls(**config)

    @property
    def config(self) -> dict[str, Any]:
        """What `from_config` takes to make it again."""
        return {"text_dim": self.text_dim, "width": self.width}

    def forward(self, video: Tensor, embeds: Tensor) -> Tensor:
        """video [B, F, 3, H, W] in [0, 1]; embeds [B, L, D], the prompt that holds at the clip's end. Returns raw
        scores [B, 3] in the order of `axes`. ValueError for fewer than 3 frames or an embedding of another width."""
        quality, agreement = self.read(video, embeds[:, None])
        return torch.cat([quality, smooth_minimum(agreement[:, 0])], dim=-1)

    def read(self, video: Tensor, embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Look at clips once and read K prompts for each: video [B, F, 3, H, W], embeds [B, K, L, D].

        Returns VQ and MQ [B, 2], and how far every word agrees with what is seen [B, K, 1 + L]: a logit, PADDED where
        there is no word. The first is no word's: it speaks for the prompt as a whole.
        """
        self._check(video, embeds)
        frames, cells = self.encoder(video)
        when = _from_the_end(video.shape[1], self.width, video)
        frames = frames + when
        for block in self.time_blocks:
            frames = block(frames)
        frames = self.norm(frames)
        pooled = self.pool(self.queries.expand(len(video), -1, -1), frames)
        quality = torch.cat([self.heads[i](pooled[:, i]) for i in range(2)], dim=-1)
        seen = torch.cat([frames, (self.norm_cells(cells) + when[:, None, None]).flatten(1, 3)], dim=1)
        memories = [memory.repeat_interleave(embeds.shape[1], dim=0) for memory in (frames, seen)]
        return quality, self._agreement(memories, embeds.flatten(0, 1)).unflatten(0, embeds.shape[:2])

    def score(self, video: Tensor, prompts: PromptBatch) -> Tensor:
        """The same for prompts as a reward is handed them: raw scores [B, 3]."""
        return self(video, prompts.embeds)

    @torch.no_grad()
    def calibrate(self, scores: Tensor) -> None:
        """Set mean and std from raw scores [M, 3] of a reference set, M >= 2."""
        if len(scores) < 2:
            raise ValueError(f"calibration needs the scores of 2 clips or more, not of {len(scores)}")
        self.mean.copy_(scores.mean(dim=0))
        self.std.copy_(scores.std(dim=0).clamp_min(1e-6))

    def _agreement(self, memories: list[Tensor], embeds: Tensor) -> Tensor:
        """Words (and a register, so that none is fine) read the frames, then the frames and cells; agreement
        [B, 1 + L] is read from what each found, times the word."""
        keep = torch.cat([torch.ones_like(embeds[:, :1, 0], dtype=torch.bool), embeds.ne(0).any(dim=-1)], dim=1)
        words = torch.cat([self.register.expand(len(embeds), -1, -1), self.words(embeds)], dim=1)
        x = words
        for block, memory in zip(self.align_blocks, memories, strict=True):
            x = block(x, keep, memory)
        return self.heads[2]((x - words) * self.gate(words)).squeeze(-1).masked_fill(~keep, PADDED)

    def _check(self, video: Tensor, embeds: Tensor) -> None:
        if video.shape[1] < self.min_frames:
            raise ValueError(f"the reward needs at least {self.min_frames} frames, not {video.shape[1]}")
        if embeds.shape[-1] != self.text_dim or len(embeds) != len(video):
            raise ValueError(
                f"prompts {tuple(embeds.shape)} do not fit {len(video)} clips and width {self.text_dim}: "
                "encode one prompt per clip with the reward's own vocabulary"
            )


def _head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))


def _from_the_end(frames: int, width: int, like: Tensor) -> Tensor:
    """Sinusoidal embedding [F, E] of how many frames lie after each frame."""
    age = torch.arange(frames - 1, -1, -1, device=like.device, dtype=like.dtype)
    rate = torch.exp(torch.arange(width // 2, device=like.device, dtype=like.dtype) * (-math.log(200.0) * 2 / width))
    angle = age[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
