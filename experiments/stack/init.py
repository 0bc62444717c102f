"""`reelgym stack init --wan FOLDER --reward FOLDER`: write a commented stack.toml for the weights that there are."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from ...envs.stack import Stack
from ...models.fit import parse_size

TEXT = """\
# What streams, what teaches it and what judges it; every command takes this file as --stack.
# `reelgym stack check` loads all of it and says what does not fit. Paths are from where this file lies.

size = {size}  # pixels of the video; multiples of 16
fps = {fps:g}  # frames a second
dtype = {dtype}  # of the weights, where a part says nothing else: float32, bfloat16 or float16
{prompts}  # one a line, or a CSV or JSONL file with a column text
{clips}  # a folder of videos with metadata.jsonl or metadata.csv: file_name, text

[layout]  # how a clip is cut
chunks = 7  # 21 latent frames, 81 frames of video
frames_per_chunk = 3  # latent frames that the student makes at a time
window_chunks = 2  # the newest chunks, which the reward looks at together

[cache]  # what the student remembers, in latent frames
sink_frames = 3  # the first ones, which are never forgotten
window_frames = 21  # in all, the new chunk among them; -1 keeps everything
positions = "relative"  # counted within the window, or "absolute"

[parts]
codec = {codec}  # AutoencoderKLWan

[parts.encoder]  # of prompts: UMT5
weights = {encoder}
text_len = 512  # most tokens of a prompt

[parts.student]  # what streams, and is trained
weights = {student}
{config}  # folder that says the sizes, for weights in a single file
steps = 4  # denoising steps of a chunk
shift = 5.0  # how far their levels are moved towards noise

[parts.teacher]  # what it is distilled from
weights = {wan}
guidance = 3.0  # of its score; 1 halves its passes
steps = 50  # where it makes videos itself
shift = 5.0

{reward}"""
REWARD = """\
[parts.reward]  # what is maximised
weights = {reward}
{backbone}  # folder or hub id of Qwen2-VL-2B-Instruct
{template}  # a checkout of github.com/KwaiVGI/VideoAlign, or a text file with its wording

# [parts.heldout]  # another reward, which nobody maximises: it watches over trainings
# weights = "my_package.rewards:mine"  # an import path, or a folder
"""


@dataclass(frozen=True)
class Config:
    """Which weights there are."""

    wan: Path
    """Folder of Wan2.1, text to video: as for diffusers, or the original."""
    reward: str | None = None
    """VideoReward's folder, local, a folder that reelgym train made, or an import path module:name."""
    checkpoint: Path | None = None
    """Weights of the student: a .pt of the Self Forcing family; by default Wan's own, which cannot stream well yet."""
    encoder: Path | None = None
    """Folder with text_encoder and tokenizer; by default that of Wan."""
    backbone: str | None = None
    """VideoReward: folder or hub id of Qwen2-VL-2B-Instruct."""
    template: Path | None = None
    """VideoReward: a checkout of VideoAlign, or a text file with its wording."""
    prompts: Path | None = None
    """A file of prompts."""
    clips: Path | None = None
    """A folder of captioned clips."""
    size: str = "832x480"
    """WIDTHxHEIGHT of the video."""
    fps: float = 16.0
    """Frames a second of the video."""
    dtype: str = "bfloat16"
    """Of the weights: bfloat16, float32 or float16."""
    out: Path = Path("stack.toml")
    """The file to write; there must be none yet."""


def run(config: Config) -> None:
    """Write it, and read it as every command will; ValueError for weights that are not where they are said to be."""
    if config.out.exists():
        raise ValueError(f"{config.out}: is there already; move it away, or give another --out")
    parse_size(config.size)
    text = _text(config)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text(text, encoding="utf-8")
    try:
        Stack.load(config.out)
    except ValueError:
        config.out.unlink()
        raise
    print(f"{config.out}: written; next, reelgym stack check {config.out}")


def _text(config: Config) -> str:
    """The toml; what is not given stands in it as a comment."""
    folder, wan = config.out.parent, config.wan
    encoder = config.encoder or wan
    codec = wan if (wan / "vae").is_dir() else wan / "Wan2.1_VAE.pth"
    if not codec.exists():
        raise ValueError(f"{wan}: has neither vae/ nor Wan2.1_VAE.pth: give a folder of Wan2.1, text to video")
    if not (encoder / "text_encoder").is_dir():
        raise ValueError(f"{encoder}: has no text_encoder/; give --encoder, a folder of Wan2.1 as for diffusers")
    weights = {"wan": wan, "encoder": encoder, "codec": codec, "student": config.checkpoint or wan}
    places = {name: json.dumps(_from(folder, place)) for name, place in weights.items()}
    said = {name: json.dumps(value) for name, value in (("size", config.size), ("dtype", config.dtype))}
    lines = {
        "prompts": _line("prompts", config.prompts, folder, "prompts.txt"),
        "clips": _line("clips", config.clips, folder, "clips"),
        "config": _line("config", wan if config.checkpoint else None, folder, "Wan2.1"),
        "reward": _reward(config, folder),
    }
    return TEXT.format(fps=config.fps, **said, **places, **lines)


def _reward(config: Config, folder: Path) -> str:
    """The reward's table: a comment without one."""
    own = config.reward is not None and (config.reward == "local" or not Path(config.reward).exists())
    given = config.reward if own or config.reward is None else _from(folder, Path(config.reward))
    backbone = (
        config.backbone if config.backbone is None or not Path(config.backbone).exists() else Path(config.backbone)
    )
    text = REWARD.format(
        reward=json.dumps(given or "VideoReward"),
        backbone=_line("backbone", backbone, folder, "Qwen2-VL-2B-Instruct"),
        template=_line("template", config.template, folder, "VideoAlign"),
    )
    if given is not None:
        return text
    return "".join(f"# {line}" if line[0] not in "#\n" else line for line in text.splitlines(True))


def _line(key: str, place: str | Path | None, folder: Path, example: str) -> str:
    """`key = "place"`, or an example of it as a comment."""
    if place is None:
        return f"# {key} = {json.dumps(example)}"
    return f"{key} = {json.dumps(place if isinstance(place, str) else _from(folder, place))}"


def _from(folder: Path, place: Path) -> str:
    """A place from the toml's folder, where it lies inside; else from the root."""
    inside = os.path.relpath(place, folder)
    return inside if not inside.startswith("..") else str(place.resolve())
