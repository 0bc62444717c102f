"""`reelgym plan`: what a training will take on cards that nobody has rented yet, from its real modules, pretended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..agents.finetune_recipes import RECIPES
from ..envs.stack import Stack
from ..models.codec import WanCodec
from ..models.lora import AdapterConfig
from ..models.stream_files import StreamSettings
from ..models.tiny import build_generator
from ..models.wan import CausalWan
from ..rewards.windows import ChunkLayout
from ..training.forecast import Footprint, forecast
from ..training.recipe import find_recipe
from .bench.random_wan import WAN_1_3B, NoEncoder, hollow_videoreward
from .console import publish
from .options import StackName
from .presets import METHOD_RECIPES
from .stack.check import OnePrompt, amount
from .tables import Column, Row, number, plain_table

WAN_14B: dict[str, Any] = WAN_1_3B | {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}
WAN_SIZES = {"wan-1.3b": WAN_1_3B, "wan-14b": WAN_14B}
"""Students that need no files: 832x480 pixels, 7 chunks of 3 latent frames, bfloat16."""
CUDA_BYTES = 4e9
"""Bytes of a card that are not a training's: CUDA's own, and gaps."""


@dataclass(frozen=True)
class Config:
    """What is to be trained, and on what."""

    stack: StackName = "wan-1.3b"
    """wan-1.3b, wan-14b (their sizes need no files), or whatever else --stack takes."""
    recipe: str = "dmd"
    """What `reelgym finetune` or `reelgym distill` takes: a name or an import path."""
    gpus: tuple[int, ...] = (1,)
    """Numbers of cards to plan for."""
    memory: float = 80.0
    """Of a card, in GB."""
    batch: int = 1
    """Clips an update, on each card."""
    lora_rank: int | None = None
    """Train a LoRA of this rank."""
    recompute: bool = False
    """Make the student's activations again in the backward pass."""
    updates: int = 1000
    """For how long."""
    tflops: float = 989.0
    """What a card can do in a second, in 10^12 operations: an H100 in bfloat16."""
    utilisation: float = 0.4
    """Share of it that a training reaches."""
    seed: int = 0
    """Nothing is drawn."""
    device: str = "cpu"
    """Where nothing is computed."""
    out: Path = Path("runs/plan")
    """Folder for results.json."""


COLUMNS = (
    Column("cards", "", lambda row: f"{row['gpus']}{' --shard' if row['shard'] else ''}"),
    Column("GB a card", "most memory at once", number("gigabytes", ".1f")),
    Column("fits", "leaving 4 GB to CUDA", lambda row: "yes" if row["fits"] else "no"),
    Column("clips", "an update, over all cards", number("clips", "d")),
    Column("hours", "of all updates", number("hours", ".1f")),
)


def run(config: Config) -> None:
    """Print memory and FLOPs by part, and what fits."""
    adapter = None if config.lora_rank is None else AdapterConfig(config.lora_rank)
    recipe = find_recipe(config.recipe, {**RECIPES, **METHOD_RECIPES}).with_batch(config.batch)
    if config.stack in WAN_SIZES:
        one, two = (forecast(recipe, stack_of(config.stack, n), adapter, config.recompute) for n in (1, 2))
        found = two.at(one, (2, 1), WAN_SIZES[config.stack]["num_layers"])
    else:
        found = forecast(recipe, Stack.load(config.stack), adapter, config.recompute)
    rows = [*_parts(found), *(row for gpus in config.gpus for row in _cards(config, found, gpus))]
    lines = [f"{row['name']:<22} {amount(row['amount'])}{row['unit']}" for row in rows if row["kind"] == "part"]
    cards = [row for row in rows if row["kind"] == "cards"]
    text = "\n".join([*lines, "", plain_table(COLUMNS, cards), *_advice(config, cards)])
    publish(["reelgym", "plan"], config, [config.seed], rows, text)


def stack_of(name: str, layers: int) -> Stack:
    """One of WAN_SIZES with so many layers, on the meta device; its reward is VideoReward's shape."""
    from diffusers import AutoencoderKLWan

    said = StreamSettings()
    with torch.device("meta"):
        sizes = (WAN_SIZES[name] | {"num_layers": layers}, said.frames_per_chunk, said.text_len)
        student, teacher = (CausalWan.from_config(*sizes, *more).eval() for more in ((said.cache,), ()))
        vae = AutoencoderKLWan()
    codec = WanCodec(vae, said.size).requires_grad_(False)
    live: dict[str, Any] = {
        "student": student.to(torch.bfloat16).requires_grad_(False),
        "teacher": teacher.to(torch.bfloat16).requires_grad_(False),
        "codec": codec,
        "encoder": NoEncoder(said.text_len, WAN_SIZES[name]["text_dim"]),
        "world": OnePrompt("a cat walks over the grass"),
        "reward": hollow_videoreward(said.fps),
    }
    live["generator"] = build_generator(live["student"], codec)
    return Stack({}, ChunkLayout(7, said.frames_per_chunk, 2)).with_parts(**live)


def _parts(found: Footprint) -> list[Row]:
    sizes = {f"{name}'s weights": size for name, size in found.weights.items()} | {"optimisers": found.optimizer}
    for who, held in found.held.items():
        sizes[f"while {who} works"] = held.bytes
    rows: list[Row] = [{"kind": "part", "name": name, "amount": size, "unit": "B"} for name, size in sizes.items()]
    flops = {f"{part} (FLOPs)": count for part, count in found.flops.items()}
    return [*rows, *({"kind": "part", "name": part, "amount": count, "unit": ""} for part, count in flops.items())]


def _cards(config: Config, found: Footprint, gpus: int) -> list[Row]:
    """With whole weights on each card and, on several, in shards."""
    if gpus < 1:
        raise ValueError(f"--gpus counts cards from 1, not {gpus}")
    seconds = sum(found.flops.values()) / (config.tflops * 1e12 * config.utilisation)
    rows = []
    for shard in (False, True) if gpus > 1 else (False,):
        taken = found.memory(gpus, shard)
        row: Row = {"kind": "cards", "gpus": gpus, "shard": shard, "gigabytes": taken / 1e9}
        row |= {"fits": taken + CUDA_BYTES <= config.memory * 1e9, "clips": config.batch * gpus}
        rows.append(row | {"hours": config.updates * seconds / 3600})
    return rows


def _advice(config: Config, cards: list[Row]) -> list[str]:
    if any(row["fits"] for row in cards):
        return []
    left = ["--recompute"] * (not config.recompute) + ["--lora-rank 32"] * (config.lora_rank is None)
    left += ["--batch 1"] * (config.batch > 1) + ["more cards, which --shard then shares out among"]
    return ["", f"Nothing fits: try {', '.join(left)}."]
