"""What tests of environments and trainers share: small stand-ins for codec, reward and prompts that need no weights."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reelgym.envs.prompt_source import ScriptPrompts
from reelgym.envs.stream_gen import StreamGenVectorEnv
from reelgym.envs.worlds.grammar import GRAMMARS
from reelgym.models.codec import FrameState, Grid
from reelgym.models.detector import ClipDetector
from reelgym.models.generator import Generator
from reelgym.models.prompts import PromptBatch, WordEncoder
from reelgym.models.sampler import step_sigmas
from reelgym.models.tiny import TEXT_LEN, build_codec, build_reward, build_wan, save_tiny
from reelgym.models.wan import CausalWan
from reelgym.rewards.stream_reward import StreamReward
from reelgym.rewards.windows import ChunkLayout
from reelgym.video import write_video

os.environ.setdefault("NUMBA_DISABLE_JIT", "1")
"""Tianshou's small loops run as Python: to compile them takes longer than all that they do here."""


@pytest.fixture(autouse=True)
def one_thread():
    """Tests run beside each other: whatever a command before this test took, torch has one thread again."""
    torch.set_num_threads(1)


_spec = importlib.util.spec_from_file_location(
    "random_stack", Path(__file__).parent.parent / "docs/examples/random_stack.py"
)
random_stack = importlib.util.module_from_spec(_spec)
sys.modules["random_stack"] = random_stack
_spec.loader.exec_module(random_stack)
QwenFiles, TEXTS, WORDS = random_stack.QwenFiles, random_stack.TEXTS, random_stack.WORDS


class PaintCodec:
    """Latents [B, F, 4, 4, 4] to video [B, F, 3, 8, 8]: colours are three of the channels, cells are 2x2 pixels."""

    channels = 4

    def encode(self, video: Tensor) -> Tensor:
        cells = video[..., ::2, ::2] * 4 - 2
        return torch.cat((cells, torch.zeros_like(cells[:, :, :1])), 2)

    def decode(self, latents: Tensor, clamp: bool | None = None) -> Tensor:
        video = (latents[:, :, :3] / 4 + 0.5).repeat_interleave(2, -1).repeat_interleave(2, -2)
        return video if torch.is_grad_enabled() and latents.requires_grad else video.clamp(0, 1)

    def open(self) -> FrameState:
        return FrameState()

    def decode_stream(self, latents: Tensor, state: FrameState, clamp: bool | None = None) -> tuple[Tensor, FrameState]:
        return self.decode(latents), state

    def grid(self, frames: int, start: int = 0) -> Grid:
        return Grid(torch.arange(frames), 4, 4)

    def frames_of(self, latents: int, before: int = 0) -> int:
        return latents


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
def layout() -> ChunkLayout:
    return ChunkLayout(chunks=4, frames_per_chunk=3, window_chunks=2)


@pytest.fixture
def codec() -> PaintCodec:
    return PaintCodec()


@pytest.fixture
def reward() -> StreamReward:
    return StreamReward(ColourModel())


@pytest.fixture
def prompts(layout: ChunkLayout) -> ScriptPrompts:
    return ScriptPrompts(WordEncoder(WORDS, 8), layout.chunks, sample)


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
def env(codec: PaintCodec, reward: StreamReward, prompts: ScriptPrompts, layout: ChunkLayout) -> StreamGenVectorEnv:
    """Six streams."""
    return StreamGenVectorEnv(6, codec, reward, prompts, layout=layout, autoreset_mode="Disabled")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of an untrained stack: codec, teacher, student, reward, held-out reward and rival."""
    folder = tmp_path_factory.mktemp("stack")
    vocab = GRAMMARS["plain"].vocabulary()
    torch.manual_seed(0)
    save_tiny(folder / "codec", build_codec(), {})
    text_dim = WordEncoder(vocab, TEXT_LEN).dim
    reward = build_reward(text_dim)
    manifest = {"vocab": list(vocab), "recipe": {"grammar": "plain"}}
    save_tiny(folder / "student", build_wan(text_dim), manifest)
    save_tiny(folder / "reward", reward, manifest)
    save_tiny(folder / "teacher", build_wan(text_dim), manifest)
    save_tiny(folder / "heldout", build_reward(text_dim), manifest)
    save_tiny(folder / "rival", ClipDetector(), {})
    return str(folder)


@pytest.fixture(scope="session")
def real_stack(tmp_path_factory: pytest.TempPathFactory, wan_folder: Path, qwen_files: QwenFiles) -> Path:
    """A stack.toml over random models of the real classes: Wan, AutoencoderKLWan, UMT5, Qwen2-VL with a head."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "wan").symlink_to(wan_folder)
    (folder / "judge").symlink_to(qwen_files.reward.parent)
    rows = ({"text": text, "split": split} for split in ("train", "validation") for text in (f"{split} left", TEXTS[0]))
    (folder / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in list(rows)[:3]))
    (folder / "clips").mkdir()
    pixels = torch.randint(256, (5, 48, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_video(folder / "clips" / "one.mp4", pixels, 8, made_by=None)
    (folder / "clips" / "metadata.jsonl").write_text('{"file_name": "one.mp4", "text": "a circle", "split": "train"}\n')
    (folder / "stack.toml").write_text(random_stack.TOML)
    return folder / "stack.toml"


@pytest.fixture(scope="session")
def qwen_files(tmp_path_factory: pytest.TempPathFactory) -> QwenFiles:
    return random_stack.save_videoreward(tmp_path_factory.mktemp("videoreward"))


@pytest.fixture(scope="session")
def wan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan")
    random_stack.save_wan(folder)
    return folder
