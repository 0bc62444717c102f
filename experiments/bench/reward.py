"""`reelgym bench reward`: one call for scores and saliency against the procedure that the published code follows.

That procedure takes clips one by one; for each, one forward pass for the scores, another for the saliency, and then one
backward pass an axis, each of which computes the vision tower again (activation checkpointing). Ours takes the whole
batch, one forward pass, and the backward passes on its graph. Same model, same clips; the weights must be equal.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...envs.stack import Stack
from ...models.codec import Grid
from ...models.prompts import PromptBatch
from ...rewards.microbatch import activation_bytes
from ...rewards.reward_model import RewardModel
from ...rewards.stream_reward import RewardSettings, StreamReward
from ..console import publish
from ..jobs import on_threads
from ..options import BenchOptions
from ..results import pick_device
from ..tables import Column, Row, markdown_table, number
from .random_wan import stand_in_chat
from .timing import median_timings

_PROMPT = "a red circle moves left fast"


@dataclass(frozen=True)
class Config(BenchOptions):
    """What is timed."""

    models: tuple[Literal["tiny", "qwen"], ...] = ("tiny", "qwen")
    """tiny: the shipped reward on windows of 6 frames; qwen: a random Qwen2-VL behind VideoReward, on 4 frames."""
    batches: tuple[int, ...] = (1, 4, 16)
    """Clips scored together."""
    repeats: int = 7
    """Measurements of each; the two procedures take turns, and medians are compared."""
    threads: int = 2
    """Torch threads, the same for both."""
    width: int = 128
    """Width of the random Qwen2-VL's language model; its vision tower has half of that."""
    layers: int = 4
    """Layers of its vision tower, and of its language model."""
    side: int = 112
    """Height and width of its clips."""
    out: Path = Path("runs/bench-reward")
    """Folder for results.json."""


@dataclass(frozen=True)
class _Subject:
    """A model under the clock: clips [N, F, 3, H, W], their prompts and latent grid, and which modules see pixels."""

    name: str
    model: Any
    video: Tensor
    prompts: PromptBatch
    grid: Grid
    towers: tuple[str, ...]

    def take(self, count: int) -> tuple[Tensor, PromptBatch]:
        """The first `count` clips and their prompts."""
        return self.video[:count], self.prompts.take(torch.arange(count))


COLUMNS = (
    Column("model", "its parameters in millions in brackets", lambda row: f"{row['model']} ({row['millions']:.1f} M)"),
    Column("clips", "scored in one call", number("clips", "d")),
    Column("published (ms)", "clip by clip, two forwards, an axis after the other", number("published_ms", ",.0f")),
    Column("ours (ms)", "one call", number("ours_ms", ",.0f")),
    Column("times faster", "published over ours", number("ratio", ".2f")),
    Column("weights differ by", "largest difference of any perplexity weight", number("difference", ".0e")),
    Column("published (MiB)", "kept from forward to backward, one clip at a time", number("published_mib", ",.1f")),
    Column("ours (MiB)", "kept from forward to backward, the whole batch", number("ours_mib", ",.1f")),
    Column("ours, bounded (ms)", "in a memory budget of four clips", number("bounded_ms", ",.0f")),
)


def run(config: Config) -> None:
    """Time every model at every batch size, print the table, write results.json."""
    device = pick_device(config.device)
    rows = []
    with on_threads(config.threads):
        for name in config.models:
            subject = tiny_subject(config, device) if name == "tiny" else qwen_subject(config, device)
            rows += [_measured(subject, count, config.repeats) for count in config.batches]
        publish(["reelgym", "bench", "reward"], config, [config.seed], rows, report(rows), device)


def report(rows: list[Row]) -> str:
    """The table as Markdown."""
    return markdown_table(COLUMNS, rows)


def _measured(subject: _Subject, clips: int, repeats: int) -> Row:
    """One row: both procedures on the first `clips` clips, in turns."""
    video, prompts = subject.take(clips)
    ours = StreamReward(subject.model)
    published = StreamReward(recomputing(subject.model, subject.towers), RewardSettings(batched=False))
    one, every = (kept_bytes(subject.model, *subject.take(count)) for count in (1, clips))
    bounded = StreamReward(subject.model, RewardSettings(memory=4 * one))

    def weights(reward: StreamReward) -> Tensor:
        return reward.weights(video, prompts, subject.grid).perplexity

    def alone(row: Tensor) -> Tensor:
        published.score(video[row], prompts.take(row))
        return published.weights(video[row], prompts.take(row), subject.grid).perplexity

    def sequential() -> Tensor:
        return torch.cat([alone(row) for row in torch.arange(clips).split(1)])

    row: Row = {"kind": "speed", "model": subject.name, "clips": clips}
    row["millions"] = sum(p.numel() for p in subject.model.parameters()) / 1e6
    row["difference"] = float((weights(ours) - sequential()).abs().max())
    runs = (sequential, lambda: weights(ours), lambda: weights(bounded))
    theirs, here, within = (1000 * median for median in median_timings(runs, repeats, video.device, warm_up=0))
    row |= {"published_ms": theirs, "ours_ms": here, "bounded_ms": within, "ratio": theirs / here}
    return row | {"published_mib": kept_bytes(published.model, *subject.take(1)) / 2**20, "ours_mib": every / 2**20}


def kept_bytes(model: RewardModel, video: Tensor, prompts: PromptBatch) -> int:
    """What a forward pass keeps for the backward passes."""
    leaf = video.detach().clone().requires_grad_()
    return activation_bytes(lambda: model.score(leaf, prompts), model)


def recomputing(model: Any, towers: Sequence[str]) -> Any:
    """A copy of the model whose towers keep no activations and are computed again in every backward pass."""
    twin = copy.deepcopy(model)
    for name in towers:
        twin.set_submodule(name, Recomputed(twin.get_submodule(name)))
    return twin


class Recomputed(nn.Module):
    """A module that keeps its input alone and runs again in every backward pass (activation checkpointing)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(self.inner, *args, use_reentrant=False, **kwargs)


def tiny_subject(config: Config, device: torch.device) -> _Subject:
    """The shipped reward on random clips of the environment's window."""
    count, frames = max(config.batches), 6
    video = torch.rand(count, frames, 3, 32, 32, generator=torch.Generator().manual_seed(config.seed))
    stack = Stack.load("tiny", device)
    prompts = PromptBatch((_PROMPT,) * count, stack.encoder.encode([_PROMPT] * count).to(device))
    grid = Grid(torch.arange(frames), 8, 8)
    return _Subject("tiny", stack.reward.model, video.to(device), prompts, grid, ("encoder",))


def qwen_subject(config: Config, device: torch.device) -> _Subject:
    """VideoReward around a Qwen2-VL with random weights, on 4 random frames at 2 a second."""
    from transformers import Qwen2VLConfig, Qwen2VLModel

    from ...models.videoreward import VideoReward
    from ...models.videoreward.pixels import PixelConfig

    if config.width % 64:
        raise ValueError(f"--width must be a multiple of 64, not {config.width}")
    torch.manual_seed(config.seed)
    wide, heads = config.width, 4
    vision = {"depth": config.layers, "embed_dim": wide // 2, "hidden_size": wide, "num_heads": heads, "mlp_ratio": 4}
    sizes = Qwen2VLConfig(
        vocab_size=512,
        hidden_size=wide,
        intermediate_size=4 * wide,
        num_hidden_layers=config.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        rope_scaling={"type": "default", "mrope_section": [wide // 32, wide // 32 * 3 // 2, wide // 32 * 3 // 2]},
        vision_start_token_id=500,
        vision_end_token_id=501,
        video_token_id=502,
        image_token_id=503,
        vision_config=vision,
    )
    special = (504, 505, 506)

    chat = stand_in_chat(sizes.video_token_id, special)
    options: dict[str, Any] = {"pixels": PixelConfig(min_pixels=28 * 28, rounding=False), "chat": chat}
    backbone = Qwen2VLModel(sizes)
    model = VideoReward(backbone, special, source_fps=2.0, **options).to(device).eval()
    count = max(config.batches)
    video = torch.rand(count, 4, 3, config.side, config.side).to(device)
    prompts = PromptBatch(("",) * count, torch.zeros(count, 1, 1, device=device))
    return _Subject("Qwen2-VL, random", model, video, prompts, Grid(torch.arange(4), 8, 8), ("backbone.visual",))
