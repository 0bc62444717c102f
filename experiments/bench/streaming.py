"""`reelgym bench streaming`: what a chunk costs, early and late, with and without a cache, compiled, and in batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ...models.fit import parse_size
from ...models.stream_files import StreamSettings
from ...models.streaming import StreamingGenerator
from ..console import progress, publish
from ..jobs import on_threads
from ..options import load_generator
from ..results import pick_device
from ..tables import Column, Row, number, rows_of, sections
from .random_wan import random_wan
from .streaming_runs import STREAM_PARTS, STREAM_POLICIES, Config, describe

__all__ = ["COLUMNS", "Config", "report", "run"]
POSITION_COLUMNS = (
    Column("cache", "policy: sink of one chunk, window as the generator ships with it", lambda row: row["policy"]),
    Column("early (ms)", "denoising of the early chunk, one stream", number("early_ms", ",.1f")),
    Column("late (ms)", "denoising of the late chunk, timed in turns with the early one", number("late_ms", ",.1f")),
    Column("late / early", "denoising alone", number("ratio", ".3f")),
    Column("with decoding", "the same ratio, decoding included", number("whole_ratio", ".3f")),
    Column("at most", "target, set beforehand", number("target_ratio", ".2f")),
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
    Column("at least", "target, set beforehand", number("target_ratio", ".2f")),
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
        made = _load(config, device)
        rows: list[Row] = [describe(made)]
        with progress(None, "timing", " steps", log=False) as bar:

            def done(what: str) -> None:
                bar.set_postfix_str(what)
                bar.update()

            for part in config.parts:
                rows += STREAM_PARTS[part](made, config, done)
        publish(["reelgym", "bench", "streaming"], config, [config.seed], rows, report(rows), device)


def _load(config: Config, device: torch.device) -> StreamingGenerator:
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
    if unknown := [name for name in config.policies if name not in STREAM_POLICIES]:
        raise ValueError(f"no policy {unknown[0]!r}; choose from {', '.join(STREAM_POLICIES)}")
    if not 1 < config.chunks[0] < config.chunks[1]:
        raise ValueError(f"chunks {config.chunks[0]} {config.chunks[1]}: an early one from 2 on, and a later one")
    if config.rounds < 1 or config.latents < 1 or any(batch < 1 for batch in config.batches):
        raise ValueError("rounds, latents and batches are counted from 1")


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
