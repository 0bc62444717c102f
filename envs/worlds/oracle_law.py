"""The law of motion as the oracle applies it: each stretch of a clip against every lawful course it could take."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .grammar import MOTIONS, Clause
from .scene import ORBIT_RADIUS, SIDE, ZIGZAG_FRAMES, Body, Orders, advance, margin, orders, restart

CHUNKS_PER_SEGMENT = 4
CANDIDATES = 32
CYCLIC = (MOTIONS.index("orbits"), MOTIONS.index("sways"))
PHASES = 16
LEGS = 2 * ZIGZAG_FRAMES
REFINED = 7


@dataclass(frozen=True)
class Segments:
    """Stretches of one clause, S in all, at most CHUNKS_PER_SEGMENT chunks long (L frames).

    order: Orders [S]   what the stretch should show
    row: [S] long   its clip
    first, length: [S] long   its first frame and how many frames it has
    fresh: [S] bool   the clause begins here, so signs and zigzags do too
    of_frame: [B, F] long   the segment of every frame
    frame: [S, L] long   the frames of every segment; live: [S, L] bool   which of them it has
    """

    order: Orders
    row: Tensor
    first: Tensor
    length: Tensor
    fresh: Tensor
    of_frame: Tensor
    frame: Tensor
    live: Tensor

    def pick(self, values: Tensor, back: int = 0) -> Tensor:
        """Values [B, F, ...] at the segments' frames, or `back` frames before them: [S, L, ...]."""
        return values[self.row[:, None], (self.frame - back).clamp_min(0)]

    def mean(self, values: Tensor, mask: Tensor) -> Tensor:
        """Means [S] of values [B, F] over the frames of each segment where mask [B, F] holds; 0 where none does."""
        share = (self.live & self.pick(mask)).float()
        return (self.pick(values) * share).sum(1) / share.sum(1).clamp_min(1)


@dataclass(frozen=True)
class Explained:
    """Observed and lawful movement per segment; frame l is the segment's own, its step leads to it.

    has_step: [S, L] bool   frames in which, as in the frame before, the object is there
    seen, law: [S, L, 2]   observed scene positions, and the best lawful ones shifted onto them
    seen_step, law_step: [S, L, 2]   displacement to each frame, zero without a predecessor
    """

    has_step: Tensor
    seen: Tensor
    law: Tensor
    seen_step: Tensor
    law_step: Tensor


def cut(
    chunk_clauses: Sequence[Sequence[Clause]], frames_per_chunk: int, fresh: bool, device: torch.device
) -> Segments:
    """Cut clips at every new clause and at every CHUNKS_PER_SEGMENT-th chunk; `fresh`: the clips begin their clause."""
    rows: list[int] = []
    firsts: list[int] = []
    lengths: list[int] = []
    begins: list[bool] = []
    clauses: list[Clause] = []
    of_chunk: list[list[int]] = []
    for row, script in enumerate(chunk_clauses):
        of_chunk.append([])
        for chunk, clause in enumerate(script):
            new = clause != script[chunk - 1] if chunk else fresh
            if new or chunk % CHUNKS_PER_SEGMENT == 0:
                rows.append(row)
                firsts.append(chunk * frames_per_chunk)
                lengths.append(0)
                begins.append(new)
                clauses.append(clause)
            lengths[-1] += frames_per_chunk
            of_chunk[-1].append(len(rows) - 1)
    frame_map = torch.tensor(of_chunk, device=device).repeat_interleave(frames_per_chunk, 1)
    numbers = torch.tensor([rows, firsts, lengths, begins], device=device)
    row, first, length = numbers[:3]
    steps = torch.arange(max(lengths), device=device)
    frame = (first[:, None] + steps).clamp_max(frame_map.shape[1] - 1)
    live = steps < length[:, None]
    return Segments(orders(clauses, device), row, first, length, numbers[3].bool(), frame_map, frame, live)


def explain(place: Tensor, there: Tensor, weight: Tensor, segments: Segments) -> Explained:
    """Find the lawful trajectory nearest to the observed places [B, F, 2], frames weighted by weight [B, F].

    there [B, F] bool: an object was seen.

    Candidates: both signs of each bounce axis and all zigzag legs where the segment continues something, all phases
    and both spins of orbits and sways. Each is shifted onto the observation before it is compared.
    """
    live = segments.live
    seen, before = segments.pick(place), segments.pick(place, back=1)
    has_step = live & (segments.frame > 0) & segments.pick(there) & segments.pick(there, back=1)
    trust = (segments.pick(weight) + 1e-6) * live
    phase, spin, flip = _candidates(segments)
    tracks = _play(segments, before[:, 0], phase, spin, flip)
    index = torch.arange(len(seen), device=seen.device)
    best = _misfit(tracks, seen, trust).argmin(1)
    phase, spin, flip = _refine(segments, phase[index, best], spin[index, best], flip[index, best])
    tracks = _play(segments, before[:, 0], phase, spin, flip)
    track = tracks[index, _misfit(tracks, seen, trust).argmin(1)]
    law, past = track[:, 1:], track[:, :-1]
    shift = ((seen - law) * trust[..., None]).sum(1, keepdim=True) / trust.sum(1)[:, None, None]
    known = has_step[..., None]
    return Explained(has_step, seen, law + shift, (seen - before) * known, (law - past) * known)


def _candidates(segments: Segments) -> tuple[Tensor, Tensor, Tensor]:
    """Phases [S, K], spins [S, K] and sign flips [S, K, 2] worth trying."""
    motion = segments.order.motion
    cycles = ((motion == CYCLIC[0]) | (motion == CYCLIC[1])).any()
    number = torch.arange(CANDIDATES if cycles else LEGS, device=segments.row.device)
    cyclic = (number % PHASES) * (2 * torch.pi / PHASES)
    leg = torch.where(segments.fresh[:, None], 0, number % LEGS).float()
    zigzags = (segments.order.motion == MOTIONS.index("zigzags"))[:, None]
    phase = torch.where(zigzags, leg, cyclic)
    spin = torch.where(number < PHASES, 1.0, -1.0).expand_as(phase)
    signs = torch.stack([1 - 2 * (number % 2), 1 - 2 * (number // 2 % 2)], -1).float()
    flip = torch.where(segments.fresh[:, None, None], torch.ones_like(signs), signs)
    return phase, spin, flip


def _refine(segments: Segments, phase: Tensor, spin: Tensor, flip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Phases between the chosen candidate [S] and its neighbours; legs of a zigzag have none."""
    half = torch.pi / PHASES
    near = torch.linspace(-half, half, REFINED, device=phase.device)
    zigzags = (segments.order.motion == MOTIONS.index("zigzags"))[:, None]
    phases = phase[:, None] + torch.where(zigzags, 0.0, near)
    return phases, spin[:, None].expand_as(phases), flip[:, None].expand(-1, REFINED, 2)


def _play(segments: Segments, start: Tensor, phase: Tensor, spin: Tensor, flip: Tensor) -> Tensor:
    """Lawful tracks [S, K, 1 + L, 2] that start with the place before each segment, at frame 0 with its first place."""
    count, tries = phase.shape
    rows = torch.arange(count, device=phase.device).repeat_interleave(tries)
    order = segments.order.take(rows)
    body = Body(start[rows], flip.flatten(0, 1), phase.flatten(), spin.flatten())
    opening = (segments.first == 0)[rows]
    inside = restart(body, order).position
    entry = torch.where(opening[:, None], _opening(body, order, segments.fresh[rows]), inside)
    body = replace(body, position=entry)
    track = [torch.where(opening[:, None], entry, start[rows])]
    for step in range(segments.frame.shape[1]):
        after = advance(body, order)
        body = _choose(opening, body, after) if step == 0 else after
        track.append(body.position)
    return torch.stack(track, 1).reshape(count, tries, -1, 2)


def _choose(mask: Tensor, yes: Body, no: Body) -> Body:
    wide = mask[:, None]
    return Body(
        torch.where(wide, yes.position, no.position),
        torch.where(wide, yes.sign, no.sign),
        torch.where(mask, yes.phase, no.phase),
        torch.where(mask, yes.spin, no.spin),
    )


def _opening(body: Body, order: Orders, fresh: Tensor) -> Tensor:
    """The lawful first place nearest to the one seen: with room ahead for a traveller, around an orbit's centre."""
    low = margin(order.radius)[:, None]
    room = SIDE - 2 * low
    along = order.heading.abs() > 0.1
    travels = (order.motion == MOTIONS.index("moves")) | (order.motion == MOTIONS.index("zigzags"))
    share = (body.position - low) / room
    ahead = torch.where(order.heading < 0, share.clamp_min(0.65), share.clamp_max(0.35))
    share = torch.where(along & (travels & fresh)[:, None], ahead, share).clamp(0, 1)
    ring = torch.stack([body.phase.cos(), body.phase.sin()], -1) * ORBIT_RADIUS
    inner = low + ORBIT_RADIUS
    centre = torch.maximum(torch.minimum(body.position - ring, SIDE - inner), inner)
    circling = (order.motion == MOTIONS.index("orbits")) & fresh
    return torch.where(circling[:, None], (centre + ring).clamp(low, low + room), low + room * share)


def _misfit(tracks: Tensor, seen: Tensor, trust: Tensor) -> Tensor:
    """Root mean square distance [S, K] of tracks [S, K, 1 + L, 2] from the observation, best shift removed."""
    share = (trust / trust.sum(1, keepdim=True))[:, None, :, None]
    off = tracks[:, :, 1:] - seen[:, None]
    off = off - (off * share).sum(2, keepdim=True)
    return (off.square() * share).sum((2, 3)).sqrt()
