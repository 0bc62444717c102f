"""The oracle of ShapeStream: how good a video is for its prompts, judged from the pixels and the law of the world.

It judges and trains nothing: only experiments and tests may import it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .grammar import Clause
from .oracle_fit import anchor_of, area_of
from .oracle_law import CHUNKS_PER_SEGMENT, Explained, Segments, cut, explain
from .oracle_measure import Measures, measure
from .render import render
from .scene import BACKGROUND, LIGHT_GAIN, RGB, SIDE, SPEED, Orders, Scene, margin

ORACLE_AXES = ("VQ", "MQ", "TA", "physics")
TAIL_SHARE = 0.15


@dataclass(frozen=True)
class OracleScores:
    """Scores in [0, 1], each [B] (or [B, W] over windows): three axes, physics, and their geometric mean."""

    VQ: Tensor
    MQ: Tensor
    TA: Tensor
    physics: Tensor
    total: Tensor

    def take(self, rows: Tensor | slice) -> "OracleScores":
        """The scores of some rows."""
        return OracleScores(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class LongScores:
    """A long stream: total [B, W] of every window of four chunks, mean total [B], that of the last 15% and the drift.

    drift [B] is the absolute difference of the totals of the last and the first 15% (at least two chunks each).
    """

    windows: Tensor
    total: Tensor
    tail: Tensor
    drift: Tensor


def score_clips(
    video: Tensor,
    chunk_clauses: Sequence[Sequence[Clause]],
    frames_per_chunk: int,
    *,
    fresh: bool = True,
    given: int = 0,
) -> OracleScores:
    """Score videos [B, F, 3, 32, 32] in [0, 1] against the clauses [B][chunks] that hold during their chunks.

    `fresh` says that each clip begins its clause; pass False for a window cut out of a longer stream. The first `given`
    frames are looked at, since a clip has to go on from them, and do not count.
    """
    frames, weight = _frame_scores(video, chunk_clauses, frames_per_chunk, fresh)
    return _average(frames[:, given:], weight[:, given:])


def score_streams(
    video: Tensor, chunk_clauses: Sequence[Sequence[Clause]], frames_per_chunk: int, *, fresh: bool = True
) -> LongScores:
    """Score long streams in windows of four chunks, and their end against their beginning."""
    frames, weight = _frame_scores(video, chunk_clauses, frames_per_chunk, fresh)
    chunks = frames.shape[1] // frames_per_chunk
    size = CHUNKS_PER_SEGMENT * frames_per_chunk
    parts = zip(frames.split(size, 1), weight.split(size, 1), strict=True)
    windows = torch.stack([_average(part, share).total for part, share in parts], 1)
    end = frames_per_chunk * min(chunks, max(2, round(TAIL_SHARE * chunks)))
    head = _average(frames[:, :end], weight[:, :end]).total
    tail = _average(frames[:, -end:], weight[:, -end:]).total
    return LongScores(windows, windows.mean(1), tail, (tail - head).abs())


def error_map(video: Tensor, chunk_clauses: Sequence[Sequence[Clause]], frames_per_chunk: int) -> Tensor:
    """Where a video [B, F, 3, 32, 32] is wrong: the root mean square, over RGB, of its distance [B, F, 32, 32] from a
    faultless one, which shows what the prompts ask for on the lawful course nearest to what is seen."""
    seen, segments = measure(video), cut(chunk_clauses, frames_per_chunk, True, video.device)
    here, of = segments.order.take(segments.of_frame.flatten()), segments.of_frame
    shape, radius = here.shape.view(of.shape), here.radius.view(of.shape)
    weight = (seen.visible.square() + 0.01).clamp_max(1) * (seen.presence + 1e-3)
    moved = explain(anchor_of(seen.centre, radius, shape), seen.presence > 0.3, weight, segments)
    within = torch.arange(of.shape[1], device=video.device) - segments.first[of]
    rgb, gain = (video.new_tensor(table) for table in (RGB, LIGHT_GAIN))
    colour, light = rgb[here.colour].view(*of.shape, 3), gain[here.light].view(*of.shape, 3)
    occluder = here.occluder.view(of.shape)[:, 0]
    return (
        (video - render(Scene(moved.law[of, within], radius, shape, colour, light, occluder))).square().mean(2).sqrt()
    )


def diversity(groups: Tensor) -> Tensor:
    """How different the K clips of each prompt are: groups [P, K, F, 3, 32, 32] -> [P].

    The mean over pairs of the distance of centroids (in frame sides) and of the root mean square pixel distance;
    divide by the value of the world's own clips of the same prompts.
    """
    prompts, clips = groups.shape[:2]
    if clips < 2:
        raise ValueError(f"diversity compares clips of one prompt: give at least 2 per prompt, got {clips}")
    centre = measure(groups.flatten(0, 1)).centre.unflatten(0, (prompts, clips)) / SIDE
    first, second = torch.triu_indices(clips, clips, 1, device=groups.device)
    path = (centre[:, first] - centre[:, second]).norm(dim=-1).mean((1, 2))
    pixels = (groups[:, first] - groups[:, second]).flatten(2).square().mean(2).sqrt().mean(1)
    return path + pixels


def _frame_scores(
    video: Tensor, chunk_clauses: Sequence[Sequence[Clause]], frames_per_chunk: int, fresh: bool
) -> tuple[Tensor, Tensor]:
    """Axis scores [B, F, 4] of every frame, and the frames' weights [B, F] (what a bar hides counts less)."""
    chunks = {len(script) for script in chunk_clauses}
    if len(chunk_clauses) != len(video) or chunks != {video.shape[1] // frames_per_chunk}:
        raise ValueError(
            f"{len(video)} clips of {video.shape[1]} frames need {len(video)} scripts of "
            f"{video.shape[1] // frames_per_chunk} chunks ({frames_per_chunk} frames each), got {len(chunk_clauses)} "
            f"scripts of {sorted(chunks)}"
        )
    seen = measure(video)
    segments = cut(chunk_clauses, frames_per_chunk, fresh, video.device)
    here = segments.order.take(segments.of_frame.flatten())
    shape, radius = here.shape.view(segments.of_frame.shape), here.radius.view(segments.of_frame.shape)
    place = anchor_of(seen.centre, radius, shape)
    weight = (seen.visible.square() + 0.01).clamp_max(1)
    moved = explain(place, seen.presence > 0.3, weight * (seen.presence + 1e-3), segments)
    spread = segments.of_frame
    quality = _crisp(seen) * _steady(seen, segments)[spread]
    motion = _lively(moved, segments)[spread]
    aligned = _looks(seen, here) * _follows(moved, weight, segments)[spread]
    lawful = _stays_in(place, radius) * _physical(moved, seen, segments)[spread]
    axes = torch.stack([quality, motion, aligned, lawful], -1) * seen.presence[..., None]
    return axes, weight


def _average(frames: Tensor, weight: Tensor) -> OracleScores:
    axes = (frames * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)
    quality, motion, aligned, lawful = axes.unbind(-1)
    return OracleScores(quality, motion, aligned, lawful, axes.clamp_min(0).prod(-1) ** (1 / len(ORACLE_AXES)))


def _near(error: Tensor, slack: float | Tensor, tolerance: float | Tensor) -> Tensor:
    """1 up to `slack`, then a Gaussian's fall of width `tolerance`."""
    return torch.exp(-0.5 * ((error - slack).clamp_min(0) / tolerance) ** 2)


def _crisp(seen: Measures) -> Tensor:
    """VQ of frames [B, F]: some shape explains the outline, nothing strays outside it, its inside is even."""
    outline = _near(1 - seen.fit.max(-1).values, 0.03, 0.10)
    return outline * _near(seen.stray, 0.03, 0.20) * _near(seen.grain, 0.06, 0.12)


def _steady(seen: Measures, segments: Segments) -> Tensor:
    """VQ of segments [S]: brightness of object and background do not flicker."""
    luma = torch.stack([seen.front.mean(-1), seen.back.mean(-1)], -1)
    change = torch.zeros_like(luma)
    change[:, 1:] = luma[:, 1:] - luma[:, :-1]
    there = seen.presence > 0.3
    same = torch.zeros_like(there)
    same[:, 1:] = (segments.of_frame[:, 1:] == segments.of_frame[:, :-1]) & there[:, 1:] & there[:, :-1]
    jump = change.abs().sum(-1) / luma.sum(-1).clamp_min(0.1)
    return _near(segments.mean(jump, same), 0.02, 0.06)


def _lively(moved: Explained, segments: Segments) -> Tensor:
    """MQ of segments [S]: as much movement as the law has, and no acceleration that it has not."""
    pace, due = moved.seen_step.norm(dim=-1), moved.law_step.norm(dim=-1)
    steps = moved.has_step.sum(1).clamp_min(1)
    lacking = ((pace - due).abs() * moved.has_step).sum(1) / steps
    typical = (due * moved.has_step).sum(1) / steps
    amount = _near(lacking, 0.08 + 0.05 * typical, 0.15 + 0.20 * typical)
    odd = moved.seen_step - moved.law_step
    twice = moved.has_step[:, 1:] & moved.has_step[:, :-1]
    jolt = ((odd[:, 1:] - odd[:, :-1]).square().sum(-1) * twice).sum(1) / twice.sum(1).clamp_min(1)
    return amount * _near(jolt.sqrt(), 0.15, 0.8)


def _looks(seen: Measures, here: Orders) -> Tensor:
    """TA of frames [B, F]: colour, shape, size, light and occluder are the prompted ones."""
    size = seen.area.shape
    gain = seen.front.new_tensor(LIGHT_GAIN)[here.light].view(*size, 3)
    rgb = seen.front.new_tensor(RGB)[here.colour].view(*size, 3)
    colour = _near((seen.front / gain - rgb).norm(dim=-1), 0.07, 0.12)
    light = _near((seen.back - BACKGROUND * gain).abs().max(-1).values, 0.015, 0.02)
    kind = here.shape.view(size)
    shape = (seen.fit / 0.02).softmax(-1).gather(-1, kind[..., None])[..., 0]
    due = area_of(here.radius.view(size), kind)
    extent = _near(0.5 * (seen.area.clamp_min(1) / due).log().abs(), 0.04, 0.10)
    bar = _near((seen.bar - here.occluder.view(size).float()).abs(), 0.15, 0.3)
    return colour * light * shape * extent * bar


def _follows(moved: Explained, weight: Tensor, segments: Segments) -> Tensor:
    """TA of segments [S]: the trajectory is the clause's, its direction and speed included."""
    share = segments.pick(weight) * segments.live
    share = (share / share.sum(1, keepdim=True))[..., None]
    error = ((moved.seen - moved.law).square() * share).sum((1, 2)).sqrt()
    middle = (moved.law * share).sum(1, keepdim=True)
    spread = ((moved.law - middle).square() * share).sum((1, 2)).sqrt()
    return _near(error, 0.1 + 0.05 * spread, (0.3 * spread).clamp(0.25, 1.5))


def _stays_in(place: Tensor, radius: Tensor) -> Tensor:
    """Physics of frames [B, F]: the object keeps off the walls as far as the law demands."""
    low = margin(radius)[..., None]
    beyond = torch.maximum(low - place, place - (SIDE - low)).max(-1).values
    return _near(beyond, 0.4, 1.0)


def _physical(moved: Explained, seen: Measures, segments: Segments) -> Tensor:
    """Physics of segments [S]: no teleport, no gain or loss of speed or of size, and the object never vanishes."""
    pace, due = moved.seen_step.norm(dim=-1), moved.law_step.norm(dim=-1)
    known = moved.has_step.float()
    limit = torch.maximum(due, (due * known).max(1, keepdim=True).values)
    leap = ((pace - limit) * known).max(1).values
    continuous = _near(leap, 0.4, 1.2)
    steps = torch.arange(known.shape[1], device=known.device)
    late = (steps >= (segments.length[:, None] + 1) // 2) * known
    early = known - late
    surplus = (pace - due) * known
    trend = (surplus * late).sum(1) / late.sum(1).clamp_min(1) - (surplus * early).sum(1) / early.sum(1).clamp_min(1)
    energy = _near(trend.abs() / (SPEED[0] + (due * known).sum(1) / known.sum(1).clamp_min(1)), 0.06, 0.25)
    size = seen.area.clamp_min(1).log()
    there = seen.presence > 0.3
    middle = segments.mean(size, there)
    swelling = segments.mean((size - middle[segments.of_frame]).abs(), there)
    present = segments.mean(seen.presence, torch.ones_like(there))
    return continuous * energy * _near(0.5 * swelling, 0.015, 0.07) * present
