"""What tests of environments and trainers share: small stand-ins for codec, reward and prompts that need no weights."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
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
        video = (latents[:, :, :3] / 4 + 0.5).repeat_interleave(2, -1).repeat_interleave(2, -2)
        return video if torch.is_grad_enabled() and latents.requires_grad else video.clamp(0, 1)

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


REAL_STACK = """
size = "80x48"
fps = 8
prompts = "prompts.jsonl"
clips = "clips"

[layout]
chunks = 2
frames_per_chunk = 1
window_chunks = 2

[parts]
codec = "wan"
student = "wan"
encoder = { weights = "wan", text_len = 8 }
teacher = { weights = "wan", guidance = 3.0 }

[parts.reward]
weights = "judge/reward"
backbone = "judge/backbone"
template = "judge/template.txt"
min_pixels = 3136
max_pixels = 6272
"""
"""What a user with Wan2.1 and VideoReward writes, in the small; 80x48 pixels are 10x6 latent cells."""


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
    (folder / "stack.toml").write_text(REAL_STACK)
    return folder / "stack.toml"


CHAT = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}<|im_start|> system be helpful <|im_end|>{% endif %}"
    "<|im_start|> {{ message.role }} "
    "{% for part in message.content %}"
    "{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
QWEN_WORDS = ("[UNK]", "system", "user", "assistant", "be", "helpful", "look", "at", "it", ":", *WORDS)


@dataclass(frozen=True)
class QwenFiles:
    """What a user of VideoReward has on disk, with small random weights. reward: its folder; backbone: a Qwen2-VL
    folder; template: a text file."""

    reward: Path
    backbone: Path
    template: Path


@pytest.fixture(scope="session")
def qwen_files(tmp_path_factory: pytest.TempPathFactory) -> QwenFiles:
    from transformers import Qwen2VLConfig, Qwen2VLModel

    root = tmp_path_factory.mktemp("videoreward")
    files = QwenFiles(root / "reward", root / "backbone", root / "template.txt")
    vocabulary = save_tokenizer(files.backbone)
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 24, "mlp_ratio": 2, "num_heads": 2}
    config = Qwen2VLConfig(
        vocab_size=vocabulary, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, video_token_id=len(QWEN_WORDS) + 4, bos_token_id=None, eos_token_id=None,
        rope_scaling={"rope_type": "default", "mrope_section": [2, 2, 2]}, vision_config=vision,
    )  # fmt: skip
    config.save_pretrained(files.backbone)
    torch.manual_seed(0)
    tensors = {
        name.replace("language_model.", "model."): torch.randn(tensor.shape) * (len(tensor) / tensor.numel()) ** 0.5
        for name, tensor in Qwen2VLModel(config).state_dict().items()
    }
    tensors |= {"rm_head.weight": torch.randn(1, 24), "lm_head.weight": torch.randn(vocabulary, 24)}
    (files.reward / "checkpoint-7").mkdir(parents=True)
    torch.save({f"base_model.model.{name}": t for name, t in tensors.items()}, files.reward / "checkpoint-7/model.pth")
    settings = {
        "model_config": {"output_dim": 1, "reward_token": "special", "use_special_tokens": True},
        "data_config": {"fps": 2.0, "max_frame_pixels": 200704, "num_frames": None, "sample_type": "uniform"},
        "inference_config": {f"{axis}_{key}": 0.5 for axis in ("VQ", "MQ", "TA") for key in ("mean", "std")},
    }
    (files.reward / "model_config.json").write_text(json.dumps(settings))
    files.template.write_text("look <|VQ_reward|> look <|MQ_reward|> at it : {text_prompt} <|TA_reward|> .")
    return files


def save_tokenizer(folder: Path) -> int:
    """A word-level tokenizer with Qwen2-VL's conversation tokens; returns its size with the three reward tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(QWEN_WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_special_tokens(list(CHAT_TOKENS))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, chat_template=CHAT, unk_token="[UNK]")
    tokenizer.save_pretrained(folder)
    return len(tokenizer) + 3


@pytest.fixture(scope="session")
def wan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan")
    save_wan(folder)
    return folder


def save_wan(folder: Path) -> None:
    """Wan2.1 in diffusers' layout, small and with random weights, as WanPipeline.save_pretrained writes it."""
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    vocabulary = {word: place for place, word in enumerate(("<pad>", "</s>", "<unk>", "&", *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    sizes = {"vocab_size": len(vocabulary), "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    pipeline = WanPipeline(
        tokenizer,
        UMT5EncoderModel(UMT5Config(**sizes)).eval(),
        AutoencoderKLWan(
            base_dim=4, z_dim=4, dim_mult=[1, 1, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True],
            latents_mean=[0.1, -0.1, 0.0, 0.2], latents_std=[1.0, 0.9, 1.1, 1.0],
        ),
        FlowMatchEulerDiscreteScheduler(),
        WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=16,
            ffn_dim=32, num_layers=2,
        ),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
