"""`reelgym plan`: what a training will take on cards that nobody has rented yet, from its real modules, pretended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..agents.finetune_recipes import FINETUNE
from ..agents.forecast import forward_method
from ..agents.forward_process import ForwardProcess
from ..distill.forecast import matching_method
from ..distill.recipes import DISTILL
from ..distill.trainer import DistillConfig
from ..envs.stack import Stack
from ..models.lora import AdapterConfig
from ..models.stream_files import StreamSettings
from ..models.wan import CausalWan
from ..training.forecast import Forecast, Method, Shape, forecast
from .bench.random_wan import WAN_1_3B
from .console import publish
from .options import StackName
from .stack.check import amount
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
    """dmd, or forward."""
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
    """Print memory by role, FLOPs by part, and what fits; ValueError for a recipe that cannot be planned."""
    shape = shape_of(config.stack)
    adapter = None if config.lora_rank is None else AdapterConfig(config.lora_rank)
    found = forecast(shape, method_of(config.recipe, shape), config.batch, adapter, config.recompute)
    rows = [*_parts(found), *(row for gpus in config.gpus for row in _cards(config, found, gpus))]
    lines = [f"{row['name']:<22} {amount(row['amount'])}{row['unit']}" for row in rows if row["kind"] == "part"]
    cards = [row for row in rows if row["kind"] == "cards"]
    text = "\n".join([*lines, "", plain_table(COLUMNS, cards), *_advice(config, cards)])
    publish(["reelgym", "plan"], config, [config.seed], rows, text)


def shape_of(stack: str) -> Shape:
    """Of a stack's student, or of WAN_SIZES."""
    if stack in WAN_SIZES:
        with torch.device("meta"):
            said = StreamSettings()
            small = WAN_SIZES[stack] | {"num_layers": 1}
            model = CausalWan.from_config(small, said.frames_per_chunk, said.text_len, said.cache, said.rope_theta)
        h, w = (side // 8 for side in said.size)
        shape = Shape(model.config, (model.transformer.config.in_channels, h, w), 7, len(said.sigmas), torch.bfloat16)
        return shape.with_layers(WAN_SIZES[stack]["num_layers"])
    loaded = Stack.load(stack)
    student = loaded.generator
    chunks, steps = loaded.layout.chunks, len(student.sigmas)
    return Shape(student.model.config, student.latent_shape, chunks, steps, student.model.dtype)


def method_of(name: str, shape: Shape) -> Method:
    """Of a recipe by its name; ValueError for one whose parts are not known here."""
    recipe: Any = {**DISTILL, **FINETUNE}.get(name)
    if isinstance(recipe, DistillConfig) and recipe.matching == "dmd":
        return matching_method(recipe, shape.steps)
    if isinstance(getattr(recipe, "direction", None), ForwardProcess):
        return forward_method(recipe)
    raise ValueError(f"{name} cannot be planned yet: dmd and its kind can, and forward")


def _parts(found: Forecast) -> list[Row]:
    rows: list[Row] = [{"kind": "part", "name": role, "amount": size, "unit": "B"} for role, size in found.held.items()]
    flops = {f"{part} (FLOPs)": count for part, count in found.work.flops.items()}
    rows += [{"kind": "part", "name": part, "amount": count, "unit": ""} for part, count in flops.items()]
    return [*rows, {"kind": "part", "name": "an update needs", "amount": found.work.peak, "unit": "B"}]


def _cards(config: Config, found: Forecast, gpus: int) -> list[Row]:
    """With whole weights on each card and, on several, in shards."""
    if gpus < 1:
        raise ValueError(f"--gpus counts cards from 1, not {gpus}")
    seconds = found.flops / (config.tflops * 1e12 * config.utilisation)
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
