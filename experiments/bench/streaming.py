"""`reelgym bench streaming`: what a chunk costs, early and late, with and without a cache, compiled, and in batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from ...models.stream_files import StreamSettings
from ...models.streaming import StreamingGenerator
from ..console import progress, publish
from ..jobs import on_threads
from ..options import load_generator, parse_size
from ..results import pick_device
from ..tables import Column, Row, number, rows_of, sections
from . import streaming_runs as runs
from .random_wan import random_wan

Part = Literal["position", "recompute", "batch", "first", "compile"]
POLICIES = ("window", "sink and window", "EMA sink and window", "window, absolute positions", "keep everything")


@dataclass(frozen=True)
class Config:
    """What is timed, and on what."""

    config: Literal["tiny", "wan-1.3b"] = "tiny"
    """tiny: the shipped student. wan-1.3b: Wan2.1-T2V-1.3B's shape."""
    random_weights: bool = False
    """wan-1.3b: random weights, and a stand-in for the text encoder; nothing is downloaded."""
    weights: str | None = None
    """wan-1.3b: folder or hub id of Wan2.1 in diffusers' layout."""
    checkpoint: Path | None = None
    """wan-1.3b: a .pt of the Self Forcing family for the transformer."""
    size: str = "832x480"
    """wan-1.3b: WIDTHxHEIGHT of the video."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the weights; by default float32 on a CPU and bfloat16 on a GPU."""
    attention: str | None = None
    """Attention backend by its name in diffusers' dispatcher: native, flash, _flash_3, sage, _native_cudnn, ..."""
    parts: tuple[Part, ...] = ("position", "recompute", "batch", "first", "compile")
    """position: a late chunk against an early one. recompute: against no cache. batch: several streams at once.
    first: time to the first frame. compile: with torch.compile."""
    chunks: tuple[int, int] = (20, 200)
    """The early and the late chunk of `position`."""
    policies: tuple[str, ...] = POLICIES
    """Cache policies of `position`."""
    latents: int = 21
    """Latent frames of the clip of `recompute`."""
    streams: tuple[int, ...] = (1, 16)
    """Streams at once in `recompute`."""
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Streams at once in `batch`."""
    mode: str | None = None
    """torch.compile's mode; by default its default on a CPU, and reduce-overhead (CUDA graphs) on a GPU."""
    rounds: int = 15
    """Rounds of each measurement, in turns; medians are shown."""
    threads: int = 1
    """Torch threads."""
    seed: int = 0
    """Of the noise."""
    device: str = "auto"
    """auto, cpu or cuda."""
    out: Path = Path("runs/bench-streaming")
    """Folder for results.json."""


def _most(row: Row) -> str:
    return f"{row['target_ratio']:.2f}"


POSITION_COLUMNS = (
    Column("cache", "policy: sink of one chunk, window as the generator ships with it", lambda row: row["policy"]),
    Column("early (ms)", "denoising of the early chunk, one stream", number("early_ms", ",.1f")),
    Column("late (ms)", "denoising of the late chunk, timed in turns with the early one", number("late_ms", ",.1f")),
    Column("late / early", "denoising alone", number("ratio", ".3f")),
    Column("with decoding", "the same ratio, decoding included", number("whole_ratio", ".3f")),
    Column("at most", "target, set beforehand", _most),
    Column("early (MiB)", "what the cache holds at the early chunk", number("early_mib", ",.2f")),
    Column("late (MiB)", "what the cache holds at the late chunk", number("late_mib", ",.2f")),
)
RECOMPUTE_COLUMNS = (
    Column("frames a chunk", "latent frames", number("frames_per_chunk", "d")),
    Column("streams", "that advance together", number("streams", "d")),
    Column("latents", "frames of the clip", number("latents", "d")),
    Column("cached (s)", "the clip with the cache, nothing evicted", number("cached_s", ",.3f")),
    Column("computed anew (s)", "every step a causal pass over all frames so far", number("anew_s", ",.3f")),
    Column("times faster", "anew over cached", number("ratio", ".2f")),
    Column("at least", "target, set beforehand", _most),
    Column(
        "fewer tokens", "how many times fewer tokens pass the network: the bound where attention is cheap",
        number("passes_ratio", ".2f"),
    ),
    Column("latents differ by", "largest difference between the two", number("difference", ".0e")),
)  # fmt: skip
BATCH_COLUMNS = (
    Column("streams", "that advance together", number("streams", "d")),
    Column("denoising (ms)", "of a chunk, the pass that fills the cache included", number("denoise_ms", ",.1f")),
    Column(
        "denoising only (fps)", "video frames a second of all streams, nothing decoded", number("denoise_fps", ",.1f")
    ),
    Column("decoding (ms)", "of a chunk, latents to pixels", number("decode_ms", ",.1f")),
    Column("end to end (fps)", "denoising and decoding", number("fps", ",.1f")),
    Column("shown at", "frames a second of the video; below it a stream is slower than life", number("shown_fps", "g")),
)
FIRST_COLUMNS = (
    Column("first frames (ms)", "prompt encoded, a chunk made and decoded, all loaded", number("ms", ",.1f")),
    Column("of the first stream (ms)", "the very first in the process", number("cold_ms", ",.1f")),
)
COMPILE_COLUMNS = (
    Column("mode", "of torch.compile", lambda row: row["mode"]),
    Column("eager (ms)", "denoising of a chunk, window full", number("eager_ms", ",.1f")),
    Column("compiled (ms)", "the same, in turns", number("compiled_ms", ",.1f")),
    Column("times faster", "eager over compiled", number("ratio", ".2f")),
    Column("warm-up (s)", "until every length of the filling window is compiled", number("warm_up_s", ",.0f")),
    Column("latents differ by", "largest difference between the two", number("difference", ".0e")),
)
COLUMNS = (*POSITION_COLUMNS, *RECOMPUTE_COLUMNS, *BATCH_COLUMNS, *FIRST_COLUMNS, *COMPILE_COLUMNS)


def run(config: Config) -> None:
    """Time what is asked for, print the tables, write results.json."""
    _check(config)
    device = pick_device(config.device)
    with on_threads(config.threads):
        made = load(config, device)
        rows: list[Row] = [dict(runs.describe(made))]
        with progress(None, "timing", " steps", log=False) as bar:

            def done(what: str) -> None:
                bar.set_postfix_str(what)
                bar.update()

            for part in config.parts:
                rows += _measure(part, made, config, done)
        publish(["reelgym", "bench", "streaming"], config, [config.seed], rows, report(rows), device)


def load(config: Config, device: torch.device) -> StreamingGenerator:
    """The generator that is timed, with the attention backend that is asked for."""
    if config.config == "tiny":
        made = load_generator("tiny", device, dtype=config.dtype)
    elif config.random_weights:
        dtype = config.dtype or ("bfloat16" if device.type == "cuda" else "float32")
        made = random_wan(replace(StreamSettings(), size=parse_size(config.size)), device, getattr(torch, dtype))
    else:
        assert config.weights is not None
        wan: dict[str, Any] = {"checkpoint": config.checkpoint, "size": config.size}
        made = load_generator(config.weights, device, dtype=config.dtype, **wan)
    if config.attention is not None:
        made.generator.model.transformer.set_attention_backend(config.attention)
    return made


def _check(config: Config) -> None:
    if config.config == "wan-1.3b" and not config.random_weights and config.weights is None:
        raise ValueError("wan-1.3b needs --weights FOLDER (or a hub id), or --random-weights")
    if config.config == "tiny" and (config.random_weights or config.weights or config.checkpoint):
        raise ValueError("--random-weights, --weights and --checkpoint go with --config wan-1.3b")
    if unknown := [name for name in config.policies if name not in POLICIES]:
        raise ValueError(f"no policy {unknown[0]!r}; choose from {', '.join(POLICIES)}")
    if not 1 < config.chunks[0] < config.chunks[1]:
        raise ValueError(f"chunks {config.chunks[0]} {config.chunks[1]}: an early one from 2 on, and a later one")
    if config.rounds < 1 or config.latents < 1 or any(batch < 1 for batch in config.batches):
        raise ValueError("rounds, latents and batches are counted from 1")


def _measure(part: Part, made: StreamingGenerator, config: Config, done: runs.Done) -> list[Row]:
    rounds, seed = config.rounds, config.seed
    if part == "position":
        return runs.position_rows(made, config.chunks, rounds, seed, config.policies, done)
    if part == "recompute":
        return runs.recompute_rows(made, config.latents, config.streams, max(1, rounds // 3), seed, done)
    if part == "batch":
        return runs.batch_rows(made, config.batches, max(1, rounds // 3), seed, done)
    if part == "first":
        return [runs.first_row(made, rounds, seed, done)]
    mode = config.mode or ("reduce-overhead" if made.device.type == "cuda" else None)
    return [runs.compile_row(made, mode, rounds, seed, done)]


def report(rows: list[dict[str, Any]]) -> str:
    """The tables as Markdown."""
    results = {"rows": rows}
    (model,) = rows_of(results, "model")
    what = (
        f"{model['parameters'] / 1e6:,.1f} million parameters, {model['width']}x{model['height']} pixels, "
        f"{model['dtype']}, {model['steps']} steps, chunks of {model['frames_per_chunk']} latent frames, window "
        f"{model['window']} and sink {model['sink']} as it ships."
    )
    shown = rows_of(results, "position")
    cuts = f"Chunk {shown[0]['late']} against chunk {shown[0]['early']}, one stream." if shown else ""
    tables = sections(
        (cuts, POSITION_COLUMNS, shown),
        ("Against full recomputation.", RECOMPUTE_COLUMNS, rows_of(results, "recompute")),
        ("Several streams at once, window full.", BATCH_COLUMNS, rows_of(results, "batch")),
        ("Time to the first frames.", FIRST_COLUMNS, rows_of(results, "first")),
        ("With torch.compile, one stream.", COMPILE_COLUMNS, rows_of(results, "compile")),
    )
    return f"{what}\n\n{tables}" if tables else what
