"""An exam: the same prompts and the same noise for every system, judged by the oracle.

P prompts, K clips of each, Q prompts of long streams, n chunks a clip; videos [B, F, 3, H, W] in [0, 1].
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from ..envs.stack import Stack
from ..envs.worlds.grammar import GRAMMARS, Clause, Script, chunk_clauses, sample_scripts, script_text
from ..envs.worlds.oracle import LongScores, diversity, score_clips, score_streams
from ..envs.worlds.world import World
from ..models.prompts import PromptBatch
from ..noise import Domain, fold, stream_keys
from ..plugins import find, resolve
from ..rewards.stream_reward import Scores, StreamReward
from ..rewards.windows import clip_prompts
from .systems import Chunks, SupportsContinuation, VideoModel, encode_clauses

AXES = ("VQ", "MQ", "TA", "physics", "total")
"""Folded into an exam's noise, so that no training has met it."""
LONG = 4
"""How many times longer than a clip a long stream is, where an exam does not say."""


@dataclass(frozen=True)
class EvalConfig:
    """What is asked of every system."""

    prompts: int = 24
    """P."""
    clips: int = 4
    """K, at least 2 for a diversity."""
    long_prompts: int = 8
    """Q; 0 asks for no long streams."""
    longer: int = 0
    """Streams of Q more prompts, so many times longer than a clip; 0: none."""
    split: str = "test"
    """Split of the world's scripts; test scripts are looked at once."""
    grammar: str = "plain"
    """Sub-grammar of the world."""
    chunks: int = 4
    """n."""
    frames_per_chunk: int = 3
    """Video frames of a chunk."""
    slice_prompts: int = 0
    """Prompts of each edge slice; 0 leaves the slices out."""
    scripts_seed: int = 0
    """Which scripts are drawn."""
    batch: int = 32
    """Clips that are made at a time."""
    world: str = ""
    """Import path of a world of one's own, whose prompts and judge these are; empty: ShapeStream and its oracle."""
    judge: str = "oracle"
    """Who judges; for another than the oracle see evaluation/judged.py."""
    rows: tuple[tuple[str, ...], ...] = ()
    """P prompts by chunk, where another judges."""

    @property
    def own_world(self) -> World | None:
        """The user's, if there is one."""
        return find("worlds", self.world, {}) if self.world else None

    def scripts(self) -> list[Script]:
        """The P scripts of the clips."""
        return self._draw(self.prompts, None)

    def clauses(self) -> Chunks:
        """One clause per chunk for each of the P * K clips, K rows of a script together; of an own world, prompts."""
        if self.rows:
            return cast(Chunks, [row for row in self.rows for _ in range(self.clips)])
        if world := self.own_world:
            rows = world.prompts(self.prompts, chunks=self.chunks, split=self.split, seed=self.scripts_seed)
            return cast(Chunks, [tuple(row) for row in rows for _ in range(self.clips)])
        return [chunk_clauses(script, self.chunks) for script in self.scripts() for _ in range(self.clips)]

    def texts(self) -> list[str]:
        """The P prompts as one writes them."""
        if self.rows:
            return [" ; then ".join(dict.fromkeys(row)) for row in self.rows]
        if self.world:
            return [" ; then ".join(dict.fromkeys(map(str, row))) for row in self.clauses()[:: self.clips]]
        return texts_of(self.scripts())

    def long_scripts(self, times: int = LONG) -> list[Script]:
        """The Q scripts of the long streams, of one clause per clip length."""
        return self._draw(self.long_prompts, times)

    def _draw(self, count: int, clauses: int | None) -> list[Script]:
        grammar = GRAMMARS[self.grammar]
        seed = self.scripts_seed
        return sample_scripts(count, split=self.split, seed=seed, grammar=grammar, clauses=clauses, distinct=True)


@dataclass(frozen=True)
class EvalResult:
    """What a system earned, in the order of the exam's scripts.

    scores: per axis of AXES the mean over its K clips [P].   diversity: [P], in the oracle's own unit.
    late, drift: [Q], empty without long streams; further: both of clips [P K] and of longer streams [Q], by how many
    times longer than a clip they are, where the exam asks for longer ones.
    fps: frames a second, generation and decoding.
    first_chunk: seconds until a single stream's first chunk is there; None without long streams.
    video: the clips [P, K, F, 3, H, W].   long_video: the long streams [Q, F', 3, H, W].
    by_clip: per axis [P K], the clips of a prompt together.
    """

    scores: dict[str, Tensor]
    diversity: Tensor
    late: Tensor
    drift: Tensor
    further: dict[int, LongScores]
    fps: float
    first_chunk: float | None
    video: Tensor
    long_video: Tensor
    by_clip: dict[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def evaluate(
    system: VideoModel, exam: EvalConfig, seed: int, *, device: torch.device | str = "cpu", long: bool = True
) -> EvalResult:
    """Let a system sit the exam with the noise of `seed`; `long` False leaves the long streams out."""
    keys = fold(stream_keys(seed, 2, device), Domain.EXAM)
    short = exam.clauses()
    video, seconds = _make(system, short, _keys_of(keys[:1], len(short)), exam.batch)
    found = [oracle_scores(video[at], short[at], exam) for at in _batches(len(short), exam.batch)]
    scores = {axis: torch.cat([part[axis] for part in found]) for axis in found[0]}
    groups = video.unflatten(0, (exam.prompts, exam.clips))
    spread = diversity(groups) if exam.clips > 1 else torch.full((exam.prompts,), torch.nan)
    late = drift = torch.empty(0)
    streams, further = video[:0], dict[int, LongScores]()
    if long and exam.long_prompts and not exam.world:
        streams, judged = _streams(system, exam, keys[1:], LONG)
        late, drift = judged.tail, judged.drift
        if exam.longer:
            further = {1: score_streams(video, short, exam.frames_per_chunk)}
            further[exam.longer] = _streams(system, exam, keys[1:], exam.longer)[1]
    means = {axis: score.unflatten(0, (exam.prompts, exam.clips)).mean(1) for axis, score in scores.items()}
    fps = len(video) * video.shape[1] / seconds
    waited = _first_chunk(system, short[0], keys[:1]) if long and not exam.world else None
    return EvalResult(means, spread, late, drift, further, fps, waited, groups, streams, scores)


def _streams(system: VideoModel, exam: EvalConfig, key: Tensor, times: int) -> tuple[Tensor, LongScores]:
    rows = [chunk_clauses(script, times * exam.chunks) for script in exam.long_scripts(times)]
    streams, _ = _make(system, rows, _keys_of(key, len(rows)), exam.batch)
    return streams, score_streams(streams, rows, exam.frames_per_chunk)


def oracle_scores(video: Tensor, rows: Chunks, exam: EvalConfig) -> dict[str, Tensor]:
    """Per axis [B] what the world's judge thinks of clips [B, F, 3, H, W]; ValueError for one without a total."""
    world = exam.own_world
    if world is None:
        found = score_clips(video, rows, exam.frames_per_chunk)
        return {axis: getattr(found, axis) for axis in AXES}
    scores = dict(resolve(world.judge)(video, rows, exam.frames_per_chunk))
    if "total" not in scores or any(score.shape != (len(video),) for score in scores.values()):
        shapes = {axis: list(score.shape) for axis, score in scores.items()}
        raise ValueError(f"{world.judge} returned {shapes}: expected scores [{len(video)}] by axis, and a total")
    return {**dict.fromkeys(AXES, scores["total"]), **scores}


def exam_prompts(stack: Stack, exam: EvalConfig, rows: Sequence[int]) -> PromptBatch:
    """The prompts of an exam's clips at `rows`, as rewards of whole clips take them."""
    clauses = exam.clauses()
    chosen = [clauses[row] for row in rows]
    texts = [[str(clause) for clause in row] for row in chosen]
    return clip_prompts(encode_clauses(stack.encoder, chosen).to(stack.device), texts)


@torch.no_grad()
def reward_scores(stack: Stack, reward: StreamReward, exam: EvalConfig, grades: EvalResult) -> Scores:
    """What a reward thinks of an exam's clips, P * K of them: the return in the environment, and each axis."""
    scorer, video = reward.windowed(stack.layout, stack.codec), grades.video.flatten(0, 1)
    parts = [
        scorer.score(video[at].to(stack.device), exam_prompts(stack, exam, at.tolist()))
        for at in torch.arange(len(video)).split(exam.batch)
    ]
    return Scores(torch.cat([part.scores for part in parts]), torch.cat([part.reward for part in parts]))


def texts_of(scripts: Sequence[Script]) -> list[str]:
    """The prompts as one writes them."""
    return [script_text(script) for script in scripts]


def _keys_of(root: Tensor, count: int) -> Tensor:
    return fold(root.expand(count), torch.arange(count, device=root.device))


def _make(system: VideoModel, rows: Chunks, keys: Tensor, batch: int) -> tuple[Tensor, float]:
    started = _now(keys)
    video = torch.cat([system(rows[at], keys[at]) for at in _batches(len(rows), batch)])
    return video, _now(keys) - started


def _batches(count: int, batch: int) -> list[slice]:
    return [slice(start, start + batch) for start in range(0, count, batch)]


def _first_chunk(system: VideoModel, row: Sequence[Clause], key: Tensor) -> float:
    """The fastest of three."""
    first = [row[:1] if isinstance(system, SupportsContinuation) else row]
    return min(_make(system, first, key, 1)[1] for _ in range(3))


def _now(keys: Tensor) -> float:
    if keys.is_cuda:
        torch.cuda.synchronize(keys.device)
    return time.perf_counter()
