"""Scenes: what every frame of a clip holds, rolled out from scripts by one shared law of motion.

Positions are in pixels of a 32x32 frame (x right, y down), speeds in pixels per frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..rows import Rows
from .grammar import COLOURS, DIRECTIONS, LIGHTS, MOTIONS, SHAPES, SIZES, SPEEDS, Clause

SIDE = 32
FPS = 8
RADIUS = (3.2, 4.6, 6.0)
SPEED = (0.6, 1.2, 2.0)
BACKGROUND = 0.12
RGB = (
    (0.90, 0.15, 0.15),
    (0.15, 0.80, 0.20),
    (0.20, 0.30, 0.95),
    (0.95, 0.90, 0.15),
    (0.15, 0.85, 0.90),
    (0.90, 0.20, 0.85),
    (0.95, 0.55, 0.10),
    (0.95, 0.95, 0.95),
)
LIGHT_GAIN = ((1.0, 1.0, 1.0), (0.55, 0.55, 0.55), (1.0, 0.6, 0.6), (0.6, 0.6, 1.0))
ORBIT_RADIUS = 6.0
SWAY_REACH = 5.0
ZIGZAG_FRAMES = 3


@dataclass(frozen=True)
class Orders:
    """Clauses as tensors, one row per stream.

    motion, shape, colour, light: [B] long   index into the grammar's word lists
    heading: [B, 2]   unit vector, zero where the motion has none
    speed, radius: [B]   pixels per frame, pixels
    occluder: [B] bool
    """

    motion: Tensor
    shape: Tensor
    colour: Tensor
    light: Tensor
    heading: Tensor
    speed: Tensor
    radius: Tensor
    occluder: Tensor

    def take(self, rows: Tensor) -> "Orders":
        """The orders of `rows` [K]."""
        return Orders(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class Body(Rows):
    """The moving state: position [B, 2], sign [B, 2] (bounces), phase [B] (radians or frames), spin [B] (orbits)."""

    position: Tensor
    sign: Tensor
    phase: Tensor
    spin: Tensor


@dataclass(frozen=True)
class Scene(Rows):
    """What the renderer draws; light, occluder and background hold for a whole clip, the rest per frame.

    position: [B, F, 2]   radius: [B, F]   shape: [B, F] long   rgb: [B, F, 3]   light: [B, F, 3]   occluder: [B] bool
    """

    position: Tensor
    radius: Tensor
    shape: Tensor
    rgb: Tensor
    light: Tensor
    occluder: Tensor

    def frames(self, start: int, end: int) -> "Scene":
        """Frames start..end of the scene."""
        parts = (getattr(self, field.name) for field in fields(self))
        return Scene(*(part[:, start:end] if part.dim() > 1 else part for part in parts))


def orders(clauses: Sequence[Clause], device: torch.device | str = "cpu") -> Orders:
    """Clauses [B] as tensors."""

    def column(values: list, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    angle = [DIRECTIONS.index(c.direction) * torch.pi / 4 if c.direction else 0.0 for c in clauses]
    headed = column([1.0 if c.direction else 0.0 for c in clauses])[:, None]
    turns = column(angle)
    return Orders(
        motion=column([MOTIONS.index(c.motion) for c in clauses], torch.long),
        shape=column([SHAPES.index(c.shape) for c in clauses], torch.long),
        colour=column([COLOURS.index(c.colour) for c in clauses], torch.long),
        light=column([LIGHTS.index(c.light) for c in clauses], torch.long),
        heading=torch.stack([turns.cos(), turns.sin()], -1) * headed,
        speed=column([SPEED[SPEEDS.index(c.speed)] for c in clauses]),
        radius=column([RADIUS[SIZES.index(c.size)] for c in clauses]),
        occluder=column([c.occluder for c in clauses], torch.bool),
    )


def margin(radius: Tensor) -> Tensor:
    """How near to a wall a centre may come: every shape of that radius stays inside the frame."""
    return 1.35 * radius + 0.3


def advance(body: Body, order: Orders) -> Body:
    """One frame of motion. Walls stop what moves, sways, orbits or zigzags and reflect what bounces."""
    kind = order.motion[:, None]
    step = order.speed[:, None] * order.heading
    turn = order.speed / ORBIT_RADIUS * body.spin
    angle = body.phase
    orbit = ORBIT_RADIUS * torch.stack([(angle + turn).cos() - angle.cos(), (angle + turn).sin() - angle.sin()], -1)
    swing = 1.5 * order.speed / SWAY_REACH
    sway = (SWAY_REACH * ((angle + swing).sin() - angle.sin()))[:, None] * order.heading
    side = torch.stack([-order.heading[:, 1], order.heading[:, 0]], -1) * order.speed[:, None]
    leg = 1.0 - 2.0 * ((angle / ZIGZAG_FRAMES).floor() % 2)
    choices = torch.stack(
        [step, step * body.sign, orbit, sway, 0.8 * step + 0.6 * leg[:, None] * side, torch.zeros_like(step)], 1
    )
    delta = choices.gather(1, kind[:, :, None].expand(-1, 1, 2))[:, 0]
    low = margin(order.radius)[:, None]
    high = SIDE - low
    free = body.position + delta
    bounces = kind == MOTIONS.index("bounces")
    hit = bounces & ((free < low) | (free > high))
    reflected = torch.where(free < low, 2 * low - free, torch.where(free > high, 2 * high - free, free))
    position = torch.where(bounces, reflected, free).clamp(low, high)
    pace = torch.stack([turn * 0, turn * 0, turn, swing, torch.ones_like(turn), turn * 0], 1)
    phase = angle + pace.gather(1, order.motion[:, None])[:, 0]
    return Body(position, torch.where(hit, -body.sign, body.sign), phase, body.spin)


def begin(order: Orders, generator: torch.Generator | None = None) -> Body:
    """A random first position that leaves a travelling object room ahead of it, and a random phase and spin."""
    count, device = order.speed.shape[0], order.speed.device
    draw = torch.rand(count, 5, generator=generator).to(device)
    phase = draw[:, 2] * 2 * torch.pi
    low = margin(order.radius)[:, None]
    room = SIDE - 2 * low
    along = order.heading.abs() > 0.1
    travels = (order.motion == MOTIONS.index("moves")) | (order.motion == MOTIONS.index("zigzags"))
    share = torch.where(along & travels[:, None], 0.35 * draw[:, :2], draw[:, :2])
    share = torch.where(along & travels[:, None] & (order.heading < 0), 1 - share, share)
    position = low + room * share
    orbits = (order.motion == MOTIONS.index("orbits"))[:, None]
    ring = torch.stack([phase.cos(), phase.sin()], -1) * ORBIT_RADIUS
    centre = low + ORBIT_RADIUS + (room - 2 * ORBIT_RADIUS).clamp_min(0) * draw[:, :2]
    position = torch.where(orbits, (centre + ring).clamp(low, low + room), position)
    spin = torch.where(draw[:, 3] < 0.5, -1.0, 1.0)
    return Body(position, torch.ones_like(position), phase, spin)


def restart(body: Body, order: Orders) -> Body:
    """What a new clause inherits: the place; signs start afresh, and what left its walls is brought back."""
    low = margin(order.radius)[:, None]
    start = torch.where(order.motion == MOTIONS.index("zigzags"), torch.zeros_like(body.phase), body.phase)
    return Body(body.position.clamp(low, SIDE - low), torch.ones_like(body.sign), start, body.spin)


def roll(
    chunk_clauses: Sequence[Sequence[Clause]],
    frames_per_chunk: int,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Scene:
    """Play scripts [B][chunks] of clauses for chunks * frames_per_chunk frames; the first frame is the start itself."""
    columns = list(zip(*chunk_clauses, strict=True))
    table = [orders(column, device) for column in columns]
    changed = [
        torch.tensor([a != b for a, b in zip(old, new, strict=True)], device=device)
        for old, new in zip(columns[:-1], columns[1:], strict=True)
    ]
    body = restart(begin(table[0], generator), table[0])
    places, picked = [], []
    for chunk, order in enumerate(table):
        if chunk:
            body = body.where(changed[chunk - 1], restart(body, order))
        for frame in range(frames_per_chunk):
            if chunk or frame:
                body = advance(body, order)
            places.append(body.position)
            picked.append(order)
    rgb = torch.tensor(RGB, device=device)
    gain = torch.tensor(LIGHT_GAIN, device=device)
    return Scene(
        position=torch.stack(places, 1),
        radius=torch.stack([o.radius for o in picked], 1),
        shape=torch.stack([o.shape for o in picked], 1),
        rgb=torch.stack([rgb[o.colour] for o in picked], 1),
        light=torch.stack([gain[o.light] for o in picked], 1),
        occluder=table[0].occluder,
    )
