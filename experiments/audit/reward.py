"""`reelgym audit reward`: what the reward can be gamed with.

Clips are scored as the environment scores them, the mean over their windows. Each gaming clip stands against the true
clip that it was made from, under the same prompt. The oracle, which the reward never saw, says how bad it is.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ...envs.stack import Stack
from ...envs.worlds.clips import WorldClips
from ...envs.worlds.exploits import EXPLOITS
from ...envs.worlds.grammar import Clause
from ...envs.worlds.oracle import judge
from ...models.generator import stream
from ...models.tiny import CHUNKS, FRAMES_PER_CHUNK
from ...noise import stream_keys
from ...rewards.reliability import BalanceConfig, BalanceState, balance
from ...rewards.stream_reward import Scores
from ...rewards.windows import Clock
from ..console import publish
from ..jobs import one_thread
from ..options import StackOptions
from ..pretrain.reward_measure import changed
from ..tables import Column, markdown_table, number
from .ascent import ascend, starts
from .clips import chunk_texts, colours, real_clips

BAR = 0.95
BATCH = 32


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


def exploit_rows(stack: Stack, clips: WorldClips, config: Config) -> list[dict[str, Any]]:
    """One row for every exploit and strength."""
    video, rgb = clips.frames(torch.arange(len(clips.clauses))), colours([row[-1] for row in clips.clauses])
    real = score(stack, video, clips.clauses)
    truth = judge(video, clips.clauses, FRAMES_PER_CHUNK).total
    rows: list[dict[str, Any]] = []
    for name, exploit in EXPLOITS.items():
        for strength in config.strengths:
            gamed = exploit(video, rgb, torch.full((len(video),), strength))
            seen = changed(video, gamed)
            found = score(stack, gamed, clips.clauses)
            oracle = judge(gamed, clips.clauses, FRAMES_PER_CHUNK).total
            axes = [_mean(column[seen]) for column in (found.scores < real.scores).unbind(dim=1)]
            rows.append(
                {
                    "kind": "exploit",
                    "exploit": name,
                    "trained": "no" if exploit.held_out else "yes",
                    "strength": strength,
                    "pairs": int(seen.sum()),
                    **dict(zip(stack.reward.axes, axes, strict=True)),
                    "below": _mean((found.reward < real.reward)[seen]),
                    "oracle": _mean(oracle[seen]),
                    "truth": _mean(truth[seen]),
                }
            )
    return rows


def _mean(values: Tensor) -> float | None:
    """Their mean; None where there are none."""
    return float(values.float().mean()) if len(values) else None


def ascent_rows(stack: Stack, clips: WorldClips, config: Config) -> list[dict[str, Any]]:
    """One row for every start and number of steps: reward and oracle before and after ascent on the reward."""
    clauses = clips.clauses[: config.climbers]
    video = clips.frames(torch.arange(len(clauses))).to(stack.device)
    reward, prompts = stack.reward.windowed(Clock(), stack.codec), chunk_texts(stack, clauses)
    real = reward(video, prompts).reward
    rows = []
    begun = starts(video, config.seed)
    for steps, (name, start) in itertools.product(config.steps, begun.items()):
        codec = stack.codec if name == "latents" else None
        end = ascend(reward, start, prompts, steps, config.rate, codec)
        before, after = reward(start, prompts).reward, reward(end, prompts).reward
        verdicts = [judge(clip.cpu(), clauses, FRAMES_PER_CHUNK).total.mean() for clip in (start, end)]
        rows.append(
            {
                "kind": "ascent",
                "start": name,
                "steps": steps,
                "pairs": len(clauses),
                "before": float(before.mean()),
                "after": float(after.mean()),
                "real": float(real.mean()),
                "below": float((after < real).float().mean()),
                "oracle_before": float(verdicts[0]),
                "oracle_after": float(verdicts[1]),
            }
        )
    return rows


@torch.no_grad()
def student_scores(stack: Stack, clips: WorldClips, config: Config) -> Tensor:
    """z-scores [B, A] of the student's clips: what reliability weighs in training."""
    keys = stream_keys(config.seed, len(clips.clauses), stack.device)
    embeds = chunk_texts(stack, clips.clauses).embeds.unflatten(0, (-1, CHUNKS))
    rows = torch.arange(len(embeds)).split(BATCH)
    made = (stream(stack.generator, embeds[part], keys[part]) for part in rows)
    video = torch.cat([stack.codec.decode(latents).cpu() for latents in made])
    return score(stack, video, clips.clauses).scores


def bound_rows(scores: Tensor) -> list[dict[str, Any]]:
    """What bounding the exponent does to the reliability of clips with z-scores [B, A]."""
    rows = []
    for bound in (1.0, 2.0, 4.0, math.inf):
        config = BalanceConfig(bound=bound)
        weight, _ = balance(scores, BalanceState.open(scores.shape[-1], config, scores.device), config)
        top = weight.sort(descending=True).values[: math.ceil(len(weight) / 10)]
        rows.append(
            {
                "kind": "bound",
                "bound": None if math.isinf(bound) else bound,
                "least": float(weight.min()),
                "greatest": float(weight.max()),
                "clamped": float((config.beta * scores.mean(dim=-1)).abs().gt(bound).float().mean()),
                "top": float(top.sum() / weight.sum()),
                "effective": float(weight.sum() ** 2 / weight.square().sum() / len(weight)),
            }
        )
    return rows


def score(stack: Stack, video: Tensor, clauses: list[tuple[Clause, ...]]) -> Scores:
    """The environment's return of whole clips, on the CPU."""
    reward, prompts = stack.reward.windowed(Clock(), stack.codec), chunk_texts(stack, clauses)
    places = torch.arange(len(prompts.text)).view(len(video), -1)
    parts = [
        reward(video[rows].to(stack.device), prompts.take(places[rows].flatten()))
        for rows in torch.arange(len(video)).split(BATCH)
    ]
    return Scores(*(torch.cat([getattr(part, name).cpu() for part in parts]) for name in ("scores", "reward")))


def report(rows: list[dict[str, Any]]) -> str:
    """The three tables and what follows from the first, as Markdown."""
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("exploit", "ascent", "bound")}
    parts = [markdown_table(EXPLOIT_COLUMNS, kinds["exploit"]), verdict(kinds["exploit"])]
    parts += [markdown_table(ASCENT_COLUMNS, kinds["ascent"]), markdown_table(BOUND_COLUMNS, kinds["bound"])]
    return "\n\n".join(parts)


def verdict(rows: list[dict[str, Any]]) -> str:
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
