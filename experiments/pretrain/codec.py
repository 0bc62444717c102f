"""The frame-wise codec: reconstruct single frames, the object weighted above the background."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ...envs.stack import Stack
from ...envs.worlds.clips import WorldClips, make_clips
from ...envs.worlds.scene import BACKGROUND
from ...models.codec import FrameCodec
from ...models.tiny import build_codec
from ...training.regression import Schedule
from .loop import Made, pretrain
from .measure import fraction

FOREGROUND_WEIGHT = 9.0


@dataclass(frozen=True)
class CodecRecipe:
    """Three quarters of the frames come from `grammar`, one quarter from the full one."""

    grammar: str = "plain"
    """Sub-grammar of the world."""
    clips: int = 4096
    """Rendered clips to draw frames from."""
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=3600, batch=32, learning_rate=2e-3, ema=0.995))
    """Training length."""

    def train(self, name: str, stack: Stack, out: Path) -> Made:
        """Train, calibrate the latents to unit variance, and measure on validation clips."""
        seed, batch = self.schedule.seed, self.schedule.batch
        torch.manual_seed(seed)
        codec = build_codec()
        pools = [
            make_clips(self.clips * 3 // 4, split="train", seed=seed, grammar=self.grammar),
            make_clips(self.clips // 4, split="train", seed=seed + 1, grammar="full"),
        ]
        frames = torch.cat([pool.video.flatten(0, 1) for pool in pools])
        held_out = make_clips(128, split="validation", seed=seed, grammar=self.grammar)

        def loss(model: FrameCodec, generator: torch.Generator, share: slice) -> Tensor:
            rows = torch.randint(frames.shape[0], (batch,), generator=generator)
            video = frames[rows[share], None].float() / 255
            return model.loss(video, foreground_weight(video))

        def measure(model: FrameCodec) -> dict[str, float]:
            return {"mse": squared_error(model, held_out)}

        trained, seconds = pretrain(name, codec, loss, self.schedule, out, measure, 500)
        trained.calibrate(pools[0].frames(torch.arange(512)))
        with torch.no_grad():
            rebuilt = trained.decode(trained.encode(held_out.frames(torch.arange(len(held_out.clauses)))))
        figures = {"squared_error": squared_error(trained, held_out), **fraction(rebuilt, held_out)}
        return Made(trained, {**figures, "seconds": seconds})


def foreground_weight(video: Tensor) -> Tensor:
    """Per-pixel weight [B, F, 1, H, W]: 9 where the picture leaves the background, 1 elsewhere."""
    away = (video - BACKGROUND).abs().amax(2, keepdim=True) > 0.03
    return 1 + (FOREGROUND_WEIGHT - 1) * away


@torch.no_grad()
def squared_error(codec: FrameCodec, clips: WorldClips) -> float:
    """Mean squared error of the reconstruction, pixels in [0, 1]."""
    video = clips.frames(torch.arange(clips.video.shape[0]))
    return float((codec.decode(codec.encode(video)) - video).square().mean())
