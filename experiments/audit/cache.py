"""`reelgym audit cache`: long streams under several cache policies, prompt switches, and bfloat16, on the oracle.

Nothing is trained. Every policy streams the same prompts with the same noise, ten times longer than the student was
trained on; the oracle judges window by window. After a switch of the prompt it judges chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...envs.worlds.grammar import GRAMMARS, Clause, Script, chunk_clauses, sample_scripts, script_text
from ...envs.worlds.oracle import score_clips, score_streams
from ...models.cache import CacheConfig
from ...models.generator import StreamState, generate_chunk, stream, update_cache
from ...models.streaming import StreamingGenerator
from ...models.tiny import CHUNKS
from ...noise import Domain, fold, stream_keys
from ..console import progress, publish
from ..jobs import on_threads
from ..options import BenchOptions, StackName, cache_policies, load_generator
from ..plots import Line, animation, contact_sheet, line_chart, stacked_svg
from ..results import pick_device
from ..stats import mean_interval, paired_difference
from ..systems import encode_clauses
from ..tables import Column, Row, interval, number, rows_of, sections

PICTURES = ("cache-policies.webp", "cache-policies.svg")
_FRAMES = 3
REACHED = 0.8
"""Text alignment at which a chunk is said to show its prompt."""
_MADE_BY = "the shipped student"
_ENDS = {"late": "tail", "drift": "drift"}
"""Columns, and what they are called in what the oracle found."""


@dataclass(frozen=True)
class Config(BenchOptions):
    """What is asked of the shipped student."""

    horizon: int = 10
    """Length of the long streams, as a multiple of the clips that the student was trained on (4 chunks)."""
    prompts: int = 12
    """Test scripts, a new clause every 4 chunks."""
    seeds: int = 4
    """Noise seeds; each streams every script."""
    settle: int = 8
    """Chunks of the first clause before the prompt is switched."""
    follow: int = 8
    """Chunks after the switch that are judged."""
    drift_chunks: int = 200
    """Chunks over which bfloat16 is held against float32."""
    stack: StackName = "tiny"
    """Stack with codec and student: a name, a folder or a stack.toml; or a streaming generator's folder or hub id."""
    out: Path = Path("runs/audit-cache")
    """Folder for results.json, cache-policies.webp and cache-policies.svg."""


POLICIES = ("keep everything", "window", "window, absolute positions", "sink and window", "EMA sink and window")
"""The student was trained on clips as long as the window, with nothing evicted."""
SHOWN_CHUNKS = ("keep everything", "window", "sink and window")
"""Policies in the moving picture."""

POLICY_COLUMNS = (
    Column("cache", "policy", lambda row: row["policy"]),
    Column("total [95%]", "the oracle's total over windows of 4 chunks, higher is better", interval("total", ".3f")),
    Column("first", "of the first window alone", number("first", ".3f")),
    Column("late", "of the last 15% of the stream", number("late", ".3f")),
    Column("drift", "how far late lies from the first 15%; 0 is best", number("drift", ".3f")),
    Column("against the window [95%]", "paired difference of totals", interval("difference", "+.3f", "d_")),
    Column("cache (frames)", "latent frames that are kept at the end", number("kept", "d")),
)
SWITCH_COLUMNS = (
    Column("cache", "policy", lambda row: row["policy"]),
    Column("on a switch", "keep the cache, or recache: read it anew under the new prompt", lambda row: row["how"]),
    Column("before", "text alignment of the last chunk before the switch", number("before", ".2f")),
    *(
        Column(
            f"+{chunk}",
            f"text alignment of chunk {chunk} after the switch, to the new prompt",
            number(f"ta{chunk}", ".2f"),
        )
        for chunk in (1, 2, 3, 4, 8)
    ),
    Column(
        "latency [95%]",
        "chunks until alignment first reaches .8, streams that never do counted as one more than were judged",
        interval("latency", ".2f"),
    ),
    Column("never", "share of streams that do not get there", number("never", ".0%")),
    Column("total", "the oracle's total over the chunks after the switch", number("total", ".3f")),
)
DRIFT_COLUMNS = (
    Column("cache", "policy", lambda row: row["policy"]),
    Column("chunk", "number of the chunk", number("chunk", "d")),
    Column("error", "of a bfloat16 chunk that follows the float32 stream, relative to it", number("error", ".4f")),
    Column("apart", "distance of a bfloat16 stream left to itself, relative to it", number("apart", ".3f")),
)  # fmt: skip
COLUMNS = (*POLICY_COLUMNS, *SWITCH_COLUMNS, *DRIFT_COLUMNS)


def run(config: Config) -> None:
    """Stream, score, draw; print the tables, write results.json."""
    if min(config.horizon, config.prompts, config.seeds, config.settle, config.follow, config.drift_chunks) < 1:
        raise ValueError("horizon, prompts, seeds and chunks are counted from 1")
    device = pick_device(config.device)
    made = load_generator(config.stack, device, dtype="float32")
    known = cache_policies(made.generator.model.cache_config, _FRAMES)
    named = {name: known[name] for name in POLICIES}
    cut = {name: cache for name, cache in named.items() if name != "keep everything"}
    with on_threads(config.threads), progress(2 * len(named) + len(cut), "streaming", "policy", log=False) as bar:
        rows, videos = long_rows(made, named, config, bar)
        rows += switch_rows(made, named, config, bar)
        rows += [row for name, cache in cut.items() for row in drift_rows(made, name, cache, config, bar)]
        publish(["reelgym", "audit", "cache"], config, list(range(config.seeds)), rows, report(rows), device)
    draw(rows, videos, config.out)
    print(f"pictures: {config.out}")


@torch.no_grad()
def long_rows(
    made: StreamingGenerator, named: dict[str, CacheConfig], config: Config, bar: Any
) -> tuple[list[Row], dict[str, Tensor]]:
    """A row a policy, a row for each of its windows, and the first videos of the policies that are shown."""
    scripts = _scripts(config.prompts, config.horizon)
    clauses = [chunk_clauses(script, config.horizon * CHUNKS) for script in scripts]
    judged: dict[str, list[Any]] = {name: [] for name in named}
    videos, kept = {}, {}
    for name, cache in named.items():
        for seed in range(config.seeds):
            video, kept[name] = _streamed(made.with_cache(cache), clauses, config.seed + seed)
            judged[name].append(score_streams(video, clauses, _FRAMES))
            if seed == 0 and name in SHOWN_CHUNKS:
                videos[name] = video[:3]
        bar.update()
    rows = [
        {"kind": "prompt", "place": place, "prompt": script_text(script)} for place, script in enumerate(scripts[:3])
    ]
    totals = {name: np.array([part.total.tolist() for part in parts]) for name, parts in judged.items()}
    for name, parts in judged.items():
        windows = torch.stack([part.windows for part in parts])
        row: Row = {"kind": "policy", "policy": name, **mean_interval(totals[name]).cells("total", "")}
        row |= {"first": float(windows[..., 0].mean()), "kept": kept[name]}
        row |= {key: float(torch.stack([getattr(part, at) for part in parts]).mean()) for key, at in _ENDS.items()}
        if name != "window":
            beside = paired_difference(totals[name], totals["window"])
            row |= beside.cells("difference", "d_") | {"verdict": beside.verdict}
        rows.append(row)
        for place, total in enumerate(windows.mean((0, 1)).tolist()):
            rows.append({"kind": "window", "policy": name, "chunk": (place + 1) * CHUNKS, "total": total})
    return rows, videos


@torch.no_grad()
def switch_rows(made: StreamingGenerator, named: dict[str, CacheConfig], config: Config, bar: Any) -> list[Row]:
    """What a switch of the prompt takes, per policy, with the cache kept and with it read anew."""
    rows, chunks = [], config.settle + config.follow
    clauses = [(script[0],) * config.settle + (script[1],) * config.follow for script in _scripts(config.prompts, 2)]
    for name, cache in named.items():
        for how in ("keep", "recache"):
            parts = made.with_cache(replace(cache, on_prompt_switch=how))
            aligned, totals = [], []
            for seed in range(config.seeds):
                video, _ = _streamed(parts, clauses, config.seed + seed)
                aligned.append([_alignment(video, clauses, chunk) for chunk in range(config.settle - 1, chunks)])
                totals.append(score_clips(video, clauses, _FRAMES, given=config.settle * _FRAMES).total)
            rows.append({"kind": "switch", "policy": name, "how": how, **_latency(torch.tensor(aligned))})
            rows[-1]["total"] = float(torch.stack(totals).mean())
        bar.update()
    return rows


def _latency(aligned: Tensor) -> Row:
    """From text alignment [seeds, 1 + follow, prompts], the first of which is the chunk before the switch."""
    before, after = aligned[:, 0], aligned[:, 1:]
    reached = after >= REACHED
    first = torch.where(reached.any(1), reached.float().argmax(1) + 1, after.shape[1] + 1)
    row: Row = {"before": float(before.mean()), **mean_interval(first.numpy()).cells("latency", "")}
    row |= {f"ta{chunk + 1}": float(after[:, chunk].mean()) for chunk in range(after.shape[1])}
    return row | {"never": float((~reached.any(1)).float().mean())}


def _alignment(video: Tensor, clauses: Sequence[Sequence[Clause]], chunk: int) -> list[float]:
    """Text alignment of one chunk, which is judged as what goes on from the chunks before it."""
    upto, begun = (chunk + 1) * _FRAMES, [row[: chunk + 1] for row in clauses]
    values: list[float] = score_clips(video[:, :upto], begun, _FRAMES, given=chunk * _FRAMES).TA.tolist()
    return values


@torch.no_grad()
def drift_rows(made: StreamingGenerator, name: str, cache: CacheConfig, config: Config, bar: Any) -> list[Row]:
    """bfloat16 against float32 along one long stream: an error that grew with position would show here."""
    single = made.with_cache(cache)
    half = load_generator(config.stack, made.device, dtype="bfloat16").with_cache(cache)
    clause = _scripts(1, 1)[0]
    embeds = encode_clauses(made.encoder, [clause])[:, 0].to(made.device)
    states = [StreamState.start(_keys(config.seed, 1, made.device))] * 3
    rows: list[Row] = []
    for chunk in range(1, config.drift_chunks + 1):
        x0, _, _ = generate_chunk(single.generator, states[0], embeds)
        near, _, _ = generate_chunk(half.generator, states[1], embeds)
        free, _, after = generate_chunk(half.generator, states[2], embeds)
        both = ((single, states[0]), (half, states[1]))
        states = [*(update_cache(one.generator, state, x0, embeds) for one, state in both), after]
        error, apart = (float((one - x0).norm() / x0.norm()) for one in (near, free))
        rows.append({"kind": "drift", "policy": name, "chunk": chunk, "error": error, "apart": apart})
    bar.update()
    return rows


def _streamed(made: StreamingGenerator, clauses: Sequence[Sequence[Clause]], seed: int) -> tuple[Tensor, int]:
    """Video of a stream for each row of clauses (one a chunk), and how many latent frames stay in the cache."""
    embeds = encode_clauses(made.encoder, clauses).to(made.device)
    latents = stream(made.generator, embeds, _keys(seed, len(clauses), made.device))
    cache, size = made.generator.model.cache_config, made.generator.frames_per_chunk
    room = cache.room(size)
    return made.codec.decode(latents), latents.shape[1] if room is None else min(room, latents.shape[1])


def _keys(seed: int, count: int, device: torch.device) -> Tensor:
    return fold(stream_keys(seed, count, device), Domain.EXAM)


def _scripts(count: int, clauses: int) -> list[Script]:
    return sample_scripts(count, split="test", seed=0, grammar=GRAMMARS["plain"], clauses=clauses, distinct=True)


def draw(rows: Sequence[Row], videos: dict[str, Tensor], out: Path) -> None:
    """The moving picture, a prompt a row and a policy a column; and the oracle's total along the stream."""
    clips = {name: (video.cpu().movedim(2, -1) * 255).round().to(torch.uint8).numpy() for name, video in videos.items()}
    count = len(next(iter(clips.values())))
    sheet = contact_sheet([[clip[row] for clip in clips.values()] for row in range(count)], list(clips), scale=3)
    (out / PICTURES[0]).write_bytes(animation(sheet, 8, quality=60, made_by=_MADE_BY))
    found = rows_of({"rows": list(rows)}, "window")
    lines = [
        Line(name, tuple((row["chunk"], row["total"]) for row in found if row["policy"] == name), place)
        for place, name in enumerate(POLICIES)
    ]
    chart = line_chart(lines, "oracle total of 4 chunks, along the stream", "chunk")
    (out / PICTURES[1]).write_text(stacked_svg([chart], POLICIES))


def report(rows: list[dict[str, Any]]) -> str:
    """The tables as Markdown."""
    policies, switches, drifts = (rows_of({"rows": rows}, kind) for kind in ("policy", "switch", "drift"))
    worst = max((row["error"] for row in drifts), default=0.0)
    shown = [row for row in drifts if row["chunk"] in (1, 20, 100, 200)]
    return sections(
        ("Long streams, a new clause every 4 chunks.", POLICY_COLUMNS, policies),
        ("After a switch of the prompt.", SWITCH_COLUMNS, switches),
        (f"bfloat16 against float32, one stream. Largest error of any chunk: {worst:.4f}.", DRIFT_COLUMNS, shown),
    )
