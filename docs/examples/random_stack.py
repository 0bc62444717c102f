"""A stack of the real classes with random weights, small enough for a laptop: to try every command before you have
weights, or to test your own.

    python docs/examples/random_stack.py my-stack
    reelgym stack check my-stack/stack.toml

It writes Wan2.1 (WanTransformer3DModel, AutoencoderKLWan, UMT5), VideoReward on Qwen2-VL twice (the reward and a
held-out one), prompts, and captioned videos that PyAV encodes: 80x48 pixels, 8 frames a second.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from reelgym.video import write_video

WORDS = ("a", "red", "blue", "circle", "square", "moves", "left", "right", ";", "then")
TEXTS = (
    "a red circle moves left",
    "a blue square moves right",
    "a red circle moves left ; then a blue circle moves right",
)
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
TOML = """
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
teacher = { weights = "wan", guidance = 3.0, steps = 2 }

[parts.reward]
weights = "judge/reward"
backbone = "judge/backbone"
template = "judge/template.txt"
min_pixels = 3136
max_pixels = 6272
"""
"""80x48 pixels are 10x6 latent cells."""
HELDOUT = TOML[TOML.index("\n[parts.reward]") :].replace("parts.reward", "parts.heldout").replace("judge/", "other/")


@dataclass(frozen=True)
class QwenFiles:
    """What a user of VideoReward has: its folder, a Qwen2-VL folder, and a text file with the wording."""

    reward: Path
    backbone: Path
    template: Path


def main(folder: Path) -> Path:
    """Write all of it; the stack.toml."""
    save_wan(folder / "wan")
    for seed, name in enumerate(("judge", "other")):
        save_videoreward(folder / name, seed)
    splits = ("train", "train", "validation", "test")
    said = (*TEXTS[:2], "a red circle moves right", "a blue square moves left")
    rows = [{"text": text, "split": split} for text, split in zip(said, splits, strict=True)]
    (folder / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    told = []
    for number, row in enumerate(rows):
        write_video(folder / "clips" / f"{number}.mp4", footage(number), 8, made_by=None)
        told.append({"file_name": f"{number}.mp4", **row})
    (folder / "clips" / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in told))
    (folder / "stack.toml").write_text(TOML + HELDOUT)
    return folder / "stack.toml"


def footage(seed: int, frames: int = 5) -> torch.Tensor:
    """A square that moves over noise: uint8 [F, 48, 80, 3]."""
    pixels = torch.randint(256, (frames, 48, 80, 3), generator=torch.Generator().manual_seed(seed)) // 4
    for frame in range(frames):
        pixels[frame, 16:32, 8 + 8 * frame : 24 + 8 * frame, seed % 3] = 230
    return pixels.to(torch.uint8)


def save_videoreward(root: Path, seed: int = 0) -> QwenFiles:
    """VideoReward's folder, a Qwen2-VL's and a wording."""
    from transformers import Qwen2VLConfig, Qwen2VLModel

    files = QwenFiles(root / "reward", root / "backbone", root / "template.txt")
    vocabulary = save_tokenizer(files.backbone)
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 24, "mlp_ratio": 2, "num_heads": 2}
    config = Qwen2VLConfig(
        vocab_size=vocabulary, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, video_token_id=len(QWEN_WORDS) + 4, bos_token_id=None, eos_token_id=None,
        rope_scaling={"rope_type": "default", "mrope_section": [2, 2, 2]}, vision_config=vision,
    )  # fmt: skip
    config.save_pretrained(files.backbone)
    torch.manual_seed(seed)
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


def save_wan(folder: Path) -> None:
    """Wan2.1 in diffusers' layout, as WanPipeline.save_pretrained writes it."""
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


if __name__ == "__main__":
    print(f"{main(Path(sys.argv[1]))}: written")
