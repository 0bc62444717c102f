"""The starting student: the teacher under a causal mask, sampled chunk by chunk in four steps without guidance."""

import copy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ...distill.causal_init import CausalInitConfig, causal_loss
from ...envs.stack import Stack
from ...envs.worlds.clips import LatentClips, encode_clips, make_clips, word_encoder
from ...models.generator import stream
from ...models.sampler import SAMPLER_SHIFT, step_sigmas
from ...models.tiny import STEPS, build_generator
from ...models.wan import CausalWan
from ...noise import stream_keys
from ...training.regression import Schedule
from .loop import Made, logged, pretrain
from .measure import held_out_clips, quality, words


@dataclass(frozen=True)
class StudentRecipe:
    """Velocity regression on the world's clips under a causal mask.

    By default a chunk learns beside a past as noisy as itself. What it lacks against its teacher is what streaming
    changes: four steps, no guidance, no view of the future, and a past that is clean but its own.
    """

    grammar: str = "plain"
    """Sub-grammar of the world."""
    clips: int = 6144
    """Rendered training clips."""
    objective: CausalInitConfig = field(default_factory=CausalInitConfig)
    """The regression; its learner, batch and seed are those of `schedule`."""
    compile: bool = False
    """Train through torch.compile (needs a C++ compiler)."""
    schedule: Schedule = field(
        default_factory=lambda: Schedule(steps=120, batch=24, learning_rate=5e-4, ema=0.998, muon_lr=0.005)
    )
    """Training length."""

    def train(self, name: str, stack: Stack, out: Path) -> Made:
        """Train from the teacher's weights; `plateau`: by what share the last third lowered the validation loss."""
        schedule, encoder, sigmas = self.schedule, word_encoder(self.grammar), step_sigmas(STEPS, SAMPLER_SHIFT)
        model = copy.deepcopy(stack.teacher).requires_grad_(True)
        world = make_clips(self.clips, split="train", seed=schedule.seed + 30, grammar=self.grammar)
        pool = encode_clips(stack.codec, world, encoder)
        held_out = held_out_clips(self.grammar)
        unseen = encode_clips(stack.codec, held_out, encoder)
        if self.compile:
            model.compile()

        def loss(model: CausalWan, generator: torch.Generator, share: slice) -> Tensor:
            x0, embeds = pool.draw(schedule.batch, generator)
            keys = torch.randint(2**62, (len(x0),), generator=generator)
            return causal_loss(model, x0[share], embeds[share], keys[share], sigmas, self.objective)

        def measure(model: CausalWan) -> dict[str, float]:
            return {"validation_loss": validation_loss(model, unseen, sigmas, self.objective)}

        every = max(1, schedule.steps // 6)
        trained, seconds = pretrain(name, model, loss, schedule, out, measure, every)
        before, figures = logged(out, "validation_loss").get(4 * every), measure(trained)
        figures |= {"plateau": 1 - figures["validation_loss"] / before} if before else {}
        generator = build_generator(trained, stack.codec)

        def sample(noise: Tensor, embeds: Tensor) -> Tensor:
            return stream(generator, embeds, stream_keys(int(noise[0, 0, 0, 0, 0].abs() * 1e6), len(embeds)))

        figures |= quality(sample, stack.codec, encoder, held_out)
        return Made(trained, {**figures, "seconds": seconds}, words(self.grammar))


@torch.no_grad()
def validation_loss(model: CausalWan, clips: LatentClips, sigmas: tuple[float, ...], config: CausalInitConfig) -> float:
    """The training loss on held-out clips, with fixed noise."""
    keys = stream_keys(1, len(clips.latents))
    embeds = clips.embeds[clips.prompts]
    return float(causal_loss(model, clips.latents, embeds, keys, sigmas, config))
