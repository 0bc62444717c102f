"""What `reelgym bench streaming` times, part by part; whatever is compared runs in turns."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ...models.cache import CacheConfig, KVCache
from ...models.generator import Generator, StreamState, generate_chunk, stream
from ...models.sampler import renoise, x0_from_v
from ...models.streaming import StreamingGenerator
from ...noise import normal, stream_keys
from ..options import BenchOptions, cache_policies
from ..tables import Row
from .timing import Timed, median_timings, timed

PROMPT = "a red circle moves left"
_Done = Callable[[str], object]
FLAT, FASTER = 1.1, 5.0
"""Targets: latency of a late chunk over an early one, at most; full recomputation over the cache, at least."""

_Part = Literal["position", "recompute", "batch", "first", "compile"]
STREAM_POLICIES = ("window", "sink and window", "EMA sink and window", "window, absolute positions", "keep everything")


@dataclass(frozen=True)
class Config(BenchOptions):
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
    parts: tuple[_Part, ...] = ("position", "recompute", "batch", "first", "compile")
    """position: a late chunk against an early one. recompute: against no cache. batch: several streams at once.
    first: time to the first frame. compile: with torch.compile."""
    chunks: tuple[int, int] = (20, 200)
    """The early and the late chunk of `position`."""
    policies: tuple[str, ...] = STREAM_POLICIES
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
    out: Path = Path("runs/bench-streaming")
    """Folder for results.json."""


@torch.no_grad()
def position_rows(made: StreamingGenerator, config: Config, done: _Done) -> list[Row]:
    """The cost of the chunk after each of two lengths of the past, per policy: denoising, and with its decoding."""
    rows, cuts, rounds = [], config.chunks, config.rounds
    policies = cache_policies(made.generator.model.cache_config, made.generator.frames_per_chunk)
    for name, cache in policies.items():
        if name not in config.policies:
            continue
        parts, embeds, device = made.with_cache(cache), made.encode([PROMPT]), made.device
        states, state = [], StreamState.start(stream_keys(config.seed, 1, device))
        latents, decode, decodes = torch.empty(0), made.codec.open(), []
        for chunk in range(1, max(cuts)):
            latents, _, state = generate_chunk(parts.generator, state, embeds)
            _, decode = made.codec.decode_stream(latents, decode)
            if chunk + 1 in cuts:
                states.append(state)
                decodes.append(decode)
            done(name)
        works: list[Timed] = [partial(generate_chunk, parts.generator, state, embeds) for state in states]
        works += [partial(made.codec.decode_stream, latents, decode) for decode in decodes]
        early, late, *decoding = median_timings(works, rounds, device)
        kept = [_bytes(state.cache) for state in states]
        row: Row = {"kind": "position", "policy": name, "early": cuts[0], "late": cuts[1], "rounds": rounds}
        row |= {"early_ms": 1e3 * early, "late_ms": 1e3 * late, "ratio": late / early, "target_ratio": FLAT}
        row |= {"whole_ratio": (late + decoding[1]) / (early + decoding[0]), "decode_ms": 1e3 * decoding[1]}
        rows.append(row | {"early_mib": kept[0] / 2**20, "late_mib": kept[1] / 2**20})
    return rows


@torch.no_grad()
def recompute_rows(made: StreamingGenerator, config: Config, done: _Done) -> list[Row]:
    """A clip of so many latent frames with the cache, and by computing all frames so far anew in every step."""
    rows, rounds = [], max(1, config.rounds // 3)
    for size, batch in product(dict.fromkeys((made.generator.frames_per_chunk, 1)), config.streams):
        model = made.generator.model.with_cache(CacheConfig(), size)
        generator = replace(made.generator, model=model, frames_per_chunk=size)
        embeds, keys = made.encode([PROMPT] * batch), stream_keys(config.seed, batch, made.device)
        chunks = config.latents // size
        scripts = embeds[:, None].expand(-1, chunks, -1, -1)
        works = [partial(stream, generator, scripts, keys), partial(recomputed, generator, keys, embeds, chunks)]
        ours, theirs = median_timings(works, rounds, made.device)
        done(f"chunks of {size}")
        row: Row = {"kind": "recompute", "frames_per_chunk": size, "streams": batch, "latents": chunks * size}
        row |= {"rounds": rounds, "cached_s": ours, "anew_s": theirs, "ratio": theirs / ours, "target_ratio": FASTER}
        row |= {"passes_ratio": token_ratio(chunks, len(generator.sigmas))}
        rows.append(row | {"difference": float((works[0]() - works[1]()).abs().max())})
    return rows


def recomputed(generator: Generator, keys: Tensor, embeds: Tensor, chunks: int) -> Tensor:
    """Latents [B, chunks * f, C, h, w] without a cache: every step is a causal pass over all frames so far."""
    shape = (generator.frames_per_chunk, *generator.latent_shape)
    clip = keys.new_empty((len(keys), 0, *generator.latent_shape), dtype=torch.float32)
    for chunk in range(chunks):
        x = x0 = clip
        for step, sigma in enumerate(generator.sigmas):
            eps = normal(keys, chunk, step, shape)
            x = renoise(x0, eps, sigma) if step else eps
            levels = torch.tensor([0.0] * clip.shape[1] + [sigma] * shape[0], device=keys.device)
            frames = torch.cat((clip, x), 1)
            v = generator.model(frames, levels.expand(len(keys), -1), embeds, mask="causal")
            x0 = x0_from_v(x, v[:, clip.shape[1] :], sigma)
        clip = torch.cat((clip, x0), 1)
    return clip


def token_ratio(chunks: int, steps: int) -> float:
    """How many times more tokens go through the network without a cache: the most that per-token work can gain."""
    return steps * (chunks + 1) / 2 / (steps + 1)


@torch.no_grad()
def batch_rows(made: StreamingGenerator, config: Config, done: _Done) -> list[Row]:
    """Throughput of the next chunk with a full window, for several streams at once."""
    rows, rounds = [], max(1, config.rounds // 3)
    for batch in config.batches:
        embeds, state, latents, decode = _warm(made, batch, config.seed)
        decoded = partial(made.codec.decode_stream, latents, decode)
        works: list[Timed] = [partial(generate_chunk, made.generator, state, embeds), decoded]
        denoise, decoding = median_timings(works, rounds, made.device)
        frames = decoded()[0].shape[1]
        row: Row = {"kind": "batch", "streams": batch, "rounds": rounds, "denoise_ms": 1e3 * denoise}
        row |= {"denoise_fps": batch * frames / denoise, "decode_ms": 1e3 * decoding}
        rows.append(row | {"fps": batch * frames / (denoise + decoding), "shown_fps": made.fps})
        done(f"{batch} streams")
    return rows


def first_rows(made: StreamingGenerator, config: Config, done: _Done) -> list[Row]:
    """From a prompt to the first decoded frames, all loaded and warm: the prompt encoded, a chunk made and decoded."""
    cold, *found = [timed(lambda: next(made.open(PROMPT, config.seed)), made.device) for _ in range(config.rounds + 1)]
    done("time to first frame")
    return [{"kind": "first", "cold_ms": 1e3 * cold, "ms": 1e3 * statistics.median(found), "rounds": config.rounds}]


@torch.no_grad()
def compile_rows(made: StreamingGenerator, config: Config, done: _Done) -> list[Row]:
    """The next chunk with a full window, eager and compiled, in turns; and how long it took until all was compiled."""
    mode = config.mode or ("reduce-overhead" if made.device.type == "cuda" else None)
    compiled = replace(made, generator=replace(made.generator, model=copy.deepcopy(made.generator.model)))
    compiled.compile(mode)
    embeds, state, _, _ = _warm(made, 1, config.seed)
    warm_up = timed(lambda: _warm(compiled, 1, config.seed), made.device)
    works = [partial(generate_chunk, one.generator, state, embeds) for one in (made, compiled)]
    eager, fast = median_timings(works, config.rounds, made.device, warm_up=2)
    first, second = (work()[0] for work in works)
    done("torch.compile")
    row: Row = {"kind": "compile", "mode": mode or "default", "eager_ms": 1e3 * eager, "compiled_ms": 1e3 * fast}
    row |= {"ratio": eager / fast, "warm_up_s": warm_up, "rounds": config.rounds}
    return [row | {"difference": float((first - second).abs().max())}]


STREAM_PARTS = {
    "position": position_rows,
    "recompute": recompute_rows,
    "batch": batch_rows,
    "first": first_rows,
    "compile": compile_rows,
}


def _warm(made: StreamingGenerator, batch: int, seed: int) -> tuple[Tensor, StreamState, Tensor, Any]:
    """Streams whose window is full: prompts, state, latents of the last chunk, the decoder's state."""
    generator, embeds = made.generator, made.encode([PROMPT] * batch)
    room = generator.model.cache_config.room(generator.frames_per_chunk)
    chunks = -(-(18 if room is None else room) // generator.frames_per_chunk) + 1
    state, decode, latents = StreamState.start(stream_keys(seed, batch, made.device)), made.codec.open(), torch.empty(0)
    for _ in range(chunks):
        latents, _, state = generate_chunk(generator, state, embeds)
        _, decode = made.codec.decode_stream(latents, decode)
    return embeds, state, latents, decode


def _bytes(cache: KVCache | None) -> int:
    tensors = () if cache is None else (*cache.keys, *cache.values, cache.latents)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def describe(made: StreamingGenerator) -> Row:
    """What was timed, as a row."""
    h, w = made.size
    model = made.generator.model
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "kind": "model", "parameters": parameters, "height": h, "width": w, "dtype": str(model.dtype).split(".")[-1],
        "steps": len(made.generator.sigmas), "frames_per_chunk": made.generator.frames_per_chunk,
        "window": model.cache_config.window_frames, "sink": model.cache_config.sink_frames,
    }  # fmt: skip
