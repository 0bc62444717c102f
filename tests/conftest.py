"""What tests of environments and trainers share: small stand-ins for codec, reward and prompts that need no weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from reelgym.envs.prompt_source import ScriptPrompts
from reelgym.envs.stream_gen import StreamGenVectorEnv
from reelgym.envs.windows import Clock
from reelgym.models.codec import FrameState, Grid
from reelgym.models.generator import Generator
from reelgym.models.prompts import PromptBatch, WordEncoder
from reelgym.models.sampler import step_sigmas
from reelgym.models.wan import CausalWan
from reelgym.rewards.stream_reward import StreamReward

WORDS = ("a", "red", "blue", "circle", "square", "moves", "left", "right", ";", "then")
TEXTS = (
    "a red circle moves left",
    "a blue square moves right",
    "a red circle moves left ; then a blue circle moves right",
)


class PaintCodec:
    """Latents [B, F, 4, 4, 4] to video [B, F, 3, 8, 8]: colours are three of the channels, cells are 2x2 pixels."""

    channels = 4

    def encode(self, video: Tensor) -> Tensor:
        cells = video[..., ::2, ::2] * 4 - 2
        return torch.cat((cells, torch.zeros_like(cells[:, :, :1])), 2)

    def decode(self, latents: Tensor, clamp: bool | None = None) -> Tensor:
        return (latents[:, :, :3] / 4 + 0.5).repeat_interleave(2, -1).repeat_interleave(2, -2)

    def open(self) -> FrameState:
        return FrameState()

    def decode_stream(self, latents: Tensor, state: FrameState, clamp: bool | None = None) -> tuple[Tensor, FrameState]:
        return self.decode(latents), state

    def grid(self, frames: int, start: int = 0) -> Grid:
        return Grid(torch.arange(frames), 4, 4)


class ColourModel:
    """Scores: redness times "red" in the prompt, stillness, and brightness; the shortest clip is 3 frames."""

    axes = ("VQ", "MQ", "TA")
    min_frames = 3

    def __init__(self) -> None:
        self.mean = torch.tensor([0.4, 0.0, 0.5])
        self.std = torch.tensor([0.5, 1.0, 0.25])

    def score(self, video: Tensor, prompts: PromptBatch) -> Tensor:
        red = prompts.embeds[:, 1, WORDS.index("red")] * 2 - 1
        still = -(video[:, 1:] - video[:, :-1]).square().mean((1, 2, 3, 4))
        ta = red * (video[:, :, 0] - video[:, :, 2]).mean((1, 2, 3))
        return torch.stack((video.square().mean((1, 2, 3, 4)), still, ta), -1)


def sample(count: int, seed: int) -> list[str]:
    return [TEXTS[(seed + row) % len(TEXTS)] for row in range(count)]


@pytest.fixture
def clock() -> Clock:
    return Clock(chunks=4, frames_per_chunk=3, window_chunks=2)


@pytest.fixture
def codec() -> PaintCodec:
    return PaintCodec()


@pytest.fixture
def reward() -> StreamReward:
    return StreamReward(ColourModel())


@pytest.fixture
def prompts(clock: Clock) -> ScriptPrompts:
    return ScriptPrompts(WordEncoder(WORDS, 8), clock.chunks, sample)


@pytest.fixture
def make_wan(prompts: ScriptPrompts) -> Callable[[int], CausalWan]:
    from diffusers import WanTransformer3DModel

    def make(seed: int) -> CausalWan:
        torch.manual_seed(seed)
        transformer = WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=prompts.encoder.dim,
            freq_dim=16,
            ffn_dim=32,
            num_layers=1,
        )
        return CausalWan(transformer.eval(), 3, 8)

    return make


@pytest.fixture
def generator(make_wan: Callable[[int], CausalWan]) -> Generator:
    return Generator(make_wan(0), step_sigmas(4, 2.0), (4, 4, 4), 3)


@pytest.fixture
def env(codec: PaintCodec, reward: StreamReward, prompts: ScriptPrompts, clock: Clock) -> StreamGenVectorEnv:
    """Six streams."""
    return StreamGenVectorEnv(6, codec, reward, prompts, clock=clock, autoreset_mode="Disabled")
