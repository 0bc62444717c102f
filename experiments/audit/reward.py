"""`reelgym audit reward`: what the reward can be gamed with.

Clips are scored as the environment scores them, the mean over their windows. Each gaming clip stands against the true
clip that it was made from, under the same prompt. The oracle, which the reward never saw, says how bad it is.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ...envs.stack import Stack
from ...envs.worlds.clips import WorldClips
from ...envs.worlds.exploits import EXPLOITS, ground
from ...envs.worlds.grammar import COLOURS, Clause
from ...envs.worlds.oracle import score_clips
from ...envs.worlds.scene import RGB
from ...models.codec import Codec
from ...models.generator import stream
from ...models.prompts import PromptBatch
from ...models.tiny import CHUNKS, FRAMES_PER_CHUNK
from ...noise import stream_keys
from ...rewards.reliability import BalanceConfig, BalanceState, balance
from ...rewards.stream_reward import Scores, StreamReward
from ...rewards.windows import ChunkLayout, clip_prompts
from ..console import publish
from ..jobs import one_thread
from ..options import StackOptions
from ..pretrain.reward_measure import visibly_changed
from ..systems import encode_clauses
from ..tables import Column, Row, markdown_table, number, rows_of
from .probe import real_clips

BAR = 0.95
BETAS = (0.9, 0.99)
"""Of ascents."""
_BATCH = 32


@dataclass(frozen=True)
class Config(StackOptions):
    """What the reward is audited with."""

    clips: int = 256
    """True clips, each gamed in every way."""
    strengths: tuple[float, ...] = (0.5, 1.0)
    """Of the exploits; 1 is the worst."""
    climbers: int = 16
    """Clips that climb the reward's gradient, from each start."""
    steps: tuple[int, ...] = (4, 100)
    """Steps of ascent: as few as the reward met in training, and many."""
    rate: float = 0.02
    """How far a step may carry a pixel, of a range of 1."""
    split: Literal["train", "validation", "test"] = "test"
    """Prompts that the clips are of."""
    seed: int = 0
    """Of the clips and of the student's noise."""
    out: Path = Path("runs/audit-reward")
    """Folder for results.json."""


EXPLOIT_COLUMNS = (
    Column("exploit", "what was done to a true clip", lambda row: row["exploit"]),
    Column("in training", "whether the reward met its like when it was trained", lambda row: row["trained"]),
    Column("strength", "1 is the worst", number("strength", ".1f")),
    Column("pairs", "clips on which it is to be seen", number("pairs", "d")),
    *(Column(axis, f"share ranked below the true clip by {axis}", number(axis, ".2f")) for axis in ("VQ", "MQ", "TA")),
    Column("reward", "share ranked below the true clip by the reward, the mean of the axes", number("below", ".3f")),
    Column("oracle", "mean oracle total of the gamed clips", number("oracle", ".2f")),
    Column("of true ones", "mean oracle total of the true clips that they were made from", number("truth", ".2f")),
)
ASCENT_COLUMNS = (
    Column("ascent from", "where it began; latents: through the codec, as a generator could", lambda row: row["start"]),
    Column("steps", "in training: a few, in pixels", number("steps", "d")),
    Column("clips", "", number("pairs", "d")),
    Column("reward before", "mean reward", number("before", ".2f")),
    Column("reward after", "mean reward", number("after", ".2f")),
    Column("true clips", "mean reward of the true clips of the same prompts", number("real", ".2f")),
    Column("below the true clip", "share of the climbed clips that the reward ranks so", number("below", ".2f")),
    Column("oracle before", "mean total", number("oracle_before", ".3f")),
    Column("oracle after", "mean total", number("oracle_after", ".3f")),
)
BOUND_COLUMNS = (
    Column("bound", "of the exponent beta r", lambda row: "none" if row["bound"] is None else f"{row['bound']:g}"),
    Column("least weight", "of a clip", number("least", ".3f")),
    Column("greatest weight", "of a clip", number("greatest", ".2f")),
    Column("clips clamped", "share", number("clamped", ".2f")),
    Column("heaviest tenth", "share of all weight that a tenth of the clips carries", number("top", ".2f")),
    Column("effective sample", "(sum w)^2 / sum w^2 over the number of clips", number("effective", ".2f")),
)


COLUMNS = (*EXPLOIT_COLUMNS, *ASCENT_COLUMNS, *BOUND_COLUMNS)


def run(config: Config) -> None:
    """Audit, print the tables and the verdict, write results.json."""
    stack = config.spec.load()
    clips = real_clips(config.clips, config.split, config.seed, stack.grammar)
    with one_thread():
        rows = exploit_rows(stack, clips, config)
        rows += ascent_rows(stack, clips, config)
        rows += bound_rows(student_scores(stack, clips, config))
    publish(["reelgym", "audit", "reward"], config, [config.seed], rows, report(rows), stack.device)


def exploit_rows(stack: Stack, clips: WorldClips, config: Config) -> list[Row]:
    """One row for every exploit and strength."""
    video = clips.frames(torch.arange(len(clips.clauses)))
    rgb = torch.tensor([RGB[COLOURS.index(row[-1].colour)] for row in clips.clauses])
    real = score(stack, video, clips.clauses)
    truth = score_clips(video, clips.clauses, FRAMES_PER_CHUNK).total
    rows: list[Row] = []
    for name, exploit in EXPLOITS.items():
        for strength in config.strengths:
            gamed = exploit(video, rgb, torch.full((len(video),), strength))
            seen = visibly_changed(video, gamed)
            found = score(stack, gamed, clips.clauses)
            oracle = score_clips(gamed, clips.clauses, FRAMES_PER_CHUNK).total
            axes = [_mean(column[seen]) for column in (found.scores < real.scores).unbind(dim=1)]
            row: Row = {"kind": "exploit", "exploit": name, "trained": "no" if exploit.held_out else "yes"}
            row |= {"strength": strength, "pairs": int(seen.sum()), **dict(zip(stack.reward.axes, axes, strict=True))}
            marks = {"below": found.reward < real.reward, "oracle": oracle, "truth": truth}
            rows.append(row | {key: _mean(values[seen]) for key, values in marks.items()})
    return rows


def _mean(values: Tensor) -> float | None:
    """Their mean; None where there are none."""
    return float(values.float().mean()) if len(values) else None


def ascent_rows(stack: Stack, clips: WorldClips, config: Config) -> list[Row]:
    """One row for every start and number of steps: reward and oracle before and after ascent on the reward."""
    clauses = clips.clauses[: config.climbers]
    video = clips.frames(torch.arange(len(clauses))).to(stack.device)
    reward, prompts = stack.reward.windowed(ChunkLayout(), stack.codec), chunk_texts(stack, clauses)
    real = reward(video, prompts).reward
    rows: list[Row] = []
    begun = starts(video, config.seed)
    for steps, (name, start) in itertools.product(config.steps, begun.items()):
        codec = stack.codec if name == "latents" else None
        end = ascend(reward, start, prompts, steps, config.rate, codec)
        row: Row = {"kind": "ascent", "start": name, "steps": steps, "pairs": len(clauses)}
        found = {}
        for when, clip in (("before", start), ("after", end)):
            found[when] = reward(clip, prompts).reward
            row[f"oracle_{when}"] = _mean(score_clips(clip.cpu(), clauses, FRAMES_PER_CHUNK).total)
        marks = {**found, "real": real, "below": found["after"] < real}
        rows.append(row | {key: _mean(values) for key, values in marks.items()})
    return rows


@torch.no_grad()
def student_scores(stack: Stack, clips: WorldClips, config: Config) -> Tensor:
    """z-scores [B, A] of the student's clips: what reliability weighs in training."""
    keys = stream_keys(config.seed, len(clips.clauses), stack.device)
    embeds = chunk_texts(stack, clips.clauses).embeds.unflatten(0, (-1, CHUNKS))
    rows = torch.arange(len(embeds)).split(_BATCH)
    made = (stream(stack.generator, embeds[part], keys[part]) for part in rows)
    video = torch.cat([stack.codec.decode(latents).cpu() for latents in made])
    return score(stack, video, clips.clauses).scores


def bound_rows(scores: Tensor) -> list[Row]:
    """What bounding the exponent does to the reliability of clips with z-scores [B, A]."""
    rows: list[Row] = []
    for bound in (1.0, 2.0, 4.0, math.inf):
        config = BalanceConfig(bound=bound)
        weight, _ = balance(scores, BalanceState.open(scores.shape[-1], config, scores.device), config)
        top = weight.sort(descending=True).values[: math.ceil(len(weight) / 10)]
        row: Row = {"kind": "bound", "bound": None if math.isinf(bound) else bound}
        row |= {"least": float(weight.min()), "greatest": float(weight.max()), "top": float(top.sum() / weight.sum())}
        row["clamped"] = _mean((config.beta * scores.mean(dim=-1)).abs() > bound)
        rows.append(row | {"effective": float(weight.sum() ** 2 / weight.square().sum() / len(weight))})
    return rows


def score(stack: Stack, video: Tensor, clauses: list[tuple[Clause, ...]]) -> Scores:
    """The environment's return of whole clips, on the CPU."""
    reward, prompts = stack.reward.windowed(ChunkLayout(), stack.codec), chunk_texts(stack, clauses)
    places = torch.arange(len(prompts.text)).view(len(video), -1)
    parts = [
        reward(video[rows].to(stack.device), prompts.take(places[rows].flatten()))
        for rows in torch.arange(len(video)).split(_BATCH)
    ]
    return Scores(*(torch.cat([getattr(part, name).cpu() for part in parts]) for name in ("scores", "reward")))


def ascend(
    reward: StreamReward, video: Tensor, prompts: PromptBatch, steps: int, rate: float, codec: Codec | None = None
) -> Tensor:
    """`steps` of Adam (1412.6980) on the pixels of video [B, F, 3, H, W], kept in [0, 1]; with a codec on its latents,
    through the decoder. rate: how far a step may carry a pixel, or a latent. Returns the video."""
    place = video if codec is None else codec.encode(video).detach()
    mean, square = torch.zeros_like(place), torch.zeros_like(place)
    for step in range(1, steps + 1):
        leaf = place.detach().requires_grad_()
        with torch.enable_grad():
            total = reward(leaf if codec is None else codec.decode(leaf), prompts).reward.sum()
        (slope,) = torch.autograd.grad(total, leaf)
        mean = BETAS[0] * mean + (1 - BETAS[0]) * slope
        square = BETAS[1] * square + (1 - BETAS[1]) * slope.square()
        size = (square / (1 - BETAS[1] ** step)).sqrt() + 1e-8
        place = place + rate * mean / (1 - BETAS[0] ** step) / size
        place = place.clamp(0, 1) if codec is None else place
    with torch.no_grad():
        return place if codec is None else codec.decode(place)


def starts(video: Tensor, seed: int) -> dict[str, Tensor]:
    """Where ascents begin: the true clips, their latents, their empty background, and noise; each like video."""
    noise = torch.rand(video.shape, generator=torch.Generator().manual_seed(seed)).to(video.device)
    return {"real": video, "latents": video, "blank": ground(video).expand_as(video), "noise": noise}


def chunk_texts(stack: Stack, clauses: list[tuple[Clause, ...]]) -> PromptBatch:
    """The prompts of every chunk of every clip, as a windowed reward wants them."""
    texts = [[str(clause) for clause in row] for row in clauses]
    return clip_prompts(encode_clauses(stack.encoder, clauses).to(stack.device), texts)


def report(rows: list[Row]) -> str:
    """The three tables and what follows from the first, as Markdown."""
    exploits, ascents, bounds = (rows_of({"rows": rows}, kind) for kind in ("exploit", "ascent", "bound"))
    parts = [markdown_table(EXPLOIT_COLUMNS, exploits), exploit_verdict(exploits)]
    return "\n\n".join([*parts, markdown_table(ASCENT_COLUMNS, ascents), markdown_table(BOUND_COLUMNS, bounds)])


def exploit_verdict(rows: list[Row]) -> str:
    """Exploits met in training and held out, apart: over all pairs, and which miss the bar."""
    lines = []
    for trained, name in (("no", "held out"), ("yes", "met in training")):
        chosen = [row for row in rows if row["trained"] == trained and row["pairs"]]
        pairs = sum(row["pairs"] for row in chosen)
        if not pairs:
            lines.append(f"Exploits {name}: none is to be seen on these clips.")
            continue
        share = sum(row["below"] * row["pairs"] for row in chosen) / pairs
        low = [row for row in chosen if row["below"] < BAR]
        below = [f"{row['exploit']} at {row['strength']:g} ({row['below']:.3f})" for row in low]
        misses = f"below {BAR}: {', '.join(below)}" if below else f"each at least {BAR}"
        lines.append(f"Exploits {name}: {share:.3f} of {pairs:,} pairs rank below the true clip; {misses}.")
    return "\n".join(lines)
