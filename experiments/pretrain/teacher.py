"""The bidirectional teacher: flow matching over whole clips of codec latents, guided at sampling time."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ...envs.stack import Stack
from ...envs.worlds.clips import encode_clips, make_clips, word_encoder
from ...models.sampler import renoise, sample_teacher, shifted, sloped
from ...models.tiny import TEACHER_SAMPLING, build_wan
from ...models.wan import CausalWan
from ...training.regression import Schedule
from .loop import Made, pretrain
from .measure import held_out_clips, quality, words

_LEAST = 0.02
"""Frames with less noise than this have no velocity worth predicting: they are context alone."""


@dataclass(frozen=True)
class TeacherRecipe:
    """Velocity regression under noise levels that rise along the clip, prompts dropped now and then for guidance.

    At one level for a whole clip a small model hears almost nothing of where an object is to go: every frame is as
    blurred as its neighbours. With a cleaner past it has to carry the motion forward as the prompt says, and what it
    learns there it uses at equal levels too (levels per frame after Diffusion Forcing, arXiv 2407.01392; the slope is
    ours).
    """

    grammar: str = "plain"
    """Sub-grammar of the world."""
    clips: int = 12288
    """Rendered training clips."""
    shift: float = 5.0
    """Noise levels are uniform, then shifted by this much towards noise."""
    slope: float = 2.0
    """How much more noise the last frame has than the first, before the shift: uniform up to this, per clip."""
    level_share: float = 0.25
    """Share of clips with one noise level for all frames."""
    drop_prompt: float = 0.1
    """Share of clips that are trained under the null prompt."""
    compile: bool = False
    """Train through torch.compile (needs a C++ compiler; 1.5 times faster)."""
    schedule: Schedule = field(
        default_factory=lambda: Schedule(steps=6000, batch=32, learning_rate=1.5e-3, ema=0.999, muon_lr=0.015)
    )
    """Training length."""

    def train(self, name: str, stack: Stack, out: Path) -> Made:
        """Train from random weights on freshly rendered clips."""
        schedule = self.schedule
        torch.manual_seed(schedule.seed)
        encoder = word_encoder(self.grammar)
        model = build_wan(encoder.dim)
        world = make_clips(self.clips, split="train", seed=schedule.seed + 10, grammar=self.grammar)
        pool = encode_clips(stack.codec, world, encoder)
        if self.compile:
            model.compile()

        def loss(model: CausalWan, generator: torch.Generator, share: slice) -> Tensor:
            x0, embeds = pool.draw(schedule.batch, generator, self.drop_prompt)
            noise = torch.randn(x0.shape, generator=generator)
            slope = self.slope * torch.rand(x0.shape[0], generator=generator)
            slope *= torch.rand(x0.shape[0], generator=generator) >= self.level_share
            sigma = shifted(sloped(torch.rand(x0.shape[0], generator=generator), slope, x0.shape[1]), self.shift)
            error = model(renoise(x0, noise, sigma)[share], sigma[share], embeds[share]) - (noise - x0)[share]
            noisy = sigma[share] > _LEAST
            return (error.square().mean((2, 3, 4)) * noisy).sum() / noisy.sum()

        trained, seconds = pretrain(name, model, loss, schedule, out)

        def sample(noise: Tensor, embeds: Tensor) -> Tensor:
            return sample_teacher(trained, embeds, pool.embeds[0], noise, TEACHER_SAMPLING)

        figures = quality(sample, stack.codec, encoder, held_out_clips(self.grammar))
        return Made(trained, {**figures, "seconds": seconds}, words(self.grammar))
