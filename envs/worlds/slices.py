"""Edge slices: named kinds of clips that lie at the edge of what the shipped models were trained on.

A slice differs from the grammar "plain" in one thing. Its clips are asked for in the words that a generator knows
(`heard`), and begin with a chunk of the world's own: the question is whether what the world began is carried on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .grammar import DIRECTIONS, GRAMMARS, HEADED, SIZES, SPEEDS, Clause, Grammar, Script, chunk_clauses, sample_scripts
from .render import BAR_HALF_WIDTH
from .scene import SIDE, Scene, roll

_TRIES = 200
APART = 1_000_003
PLAIN = GRAMMARS["plain"]
TRAVELS = frozenset({"moves", "bounces", "zigzags"})


@dataclass(frozen=True)
class Slice:
    """What makes a clip one of the slice.

    meaning: one line for tables.   grammar: the words of its scripts.   clauses: how many; None as in the grammar.
    bend: a drawn script made one of the slice, None where that cannot be.   length: times a clip's usual length.
    holds: bool [B], which rolled scenes are of the slice, whose first frames (their number) the world gives.
    """

    meaning: str
    grammar: Grammar = PLAIN
    clauses: int | None = None
    bend: Callable[[Script], Script | None] | None = None
    length: int = 1
    holds: Callable[[Scene, int], Tensor] | None = None


def slice_named(name: str) -> Slice:
    """The slice of that name; ValueError that lists the names."""
    if name not in SLICES:
        raise ValueError(f"unknown slice {name!r}; use one of: {', '.join(SLICES)}")
    return SLICES[name]


def slice_scripts(name: str, count: int, *, split: str, seed: int, distinct: bool = False) -> list[Script]:
    """`count` scripts of a slice and a split, as `sample_scripts` draws them."""
    edge = slice_named(name)
    return sample_scripts(
        count, split=split, seed=seed, grammar=edge.grammar, clauses=edge.clauses, distinct=distinct, bend=edge.bend
    )


def slice_scene(
    name: str,
    scripts: Sequence[Script],
    chunks: int,
    frames_per_chunk: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> Scene:
    """The true clips of a slice's scripts, a pure function of its arguments; the first chunk is the one to be given.

    Scenes that are not of the slice (an object that meets no wall) begin again elsewhere.
    """
    rows = [chunk_clauses(script, chunks) for script in scripts]
    scene = roll(rows, frames_per_chunk, torch.Generator().manual_seed(seed), device)
    holds = slice_named(name).holds
    if holds is None:
        return scene
    for attempt in range(1, _TRIES):
        good = holds(scene, frames_per_chunk)
        if good.all():
            return scene
        draw = torch.Generator().manual_seed(seed + attempt * APART)  # a row's tries do not depend on the other rows
        scene = roll(rows, frames_per_chunk, draw, device).where(good, scene)
    raise ValueError(f"no clip of slice {name!r} was found in {_TRIES} tries: make the clips longer")


def heard(clause: Clause, grammar: Grammar) -> Clause:
    """The clause in the words of a grammar: what it lacks is left out, or becomes the nearest that it has.

    Of the motions that it lacks, those that get somewhere become `moves`, those that stay around a place `rests`.
    """
    motion = clause.motion
    if motion not in grammar.motions:
        motion = "moves" if motion in TRAVELS else "rests"
    turn = DIRECTIONS.index(clause.direction) if clause.direction else 0
    ways = [DIRECTIONS.index(way) for way in grammar.directions]
    way = min(ways, key=lambda other: min((turn - other) % 8, (other - turn) % 8))
    return replace(
        clause,
        motion=motion,
        direction=DIRECTIONS[way] if motion in HEADED else None,
        size=_nearest(clause.size, grammar.sizes, SIZES),
        speed="medium" if motion == "rests" else _nearest(clause.speed, grammar.speeds, SPEEDS),
        light=clause.light if clause.light in grammar.lights else "plain",
        occluder=clause.occluder and True in grammar.occluders,
    )


def _nearest(word: str, known: Sequence[str], scale: Sequence[str]) -> str:
    return min(known, key=lambda other: abs(scale.index(other) - scale.index(word)))


def _same_colour(script: Script) -> Script | None:
    first, second = script
    return (first, replace(second, colour=first.colour)) if first.shape != second.shape else None


def _all_change(script: Script) -> Script | None:
    first, second = script
    return script if first.colour != second.colour and first.shape != second.shape and _turns(script) else None


def _same_object(script: Script) -> Script | None:
    first, second = script
    return (first, replace(second, colour=first.colour, shape=first.shape)) if _turns(script) else None


def _turns(script: Script) -> bool:
    """Whether every clause moves otherwise than the one before."""
    ways = [(clause.motion, clause.direction) for clause in script]
    return all(old != new for old, new in zip(ways[:-1], ways[1:], strict=True))


def _hides(scene: Scene, given: int) -> Tensor:
    """Whether the bar hides a good part of the object in some frame that is not given."""
    off = (scene.position[:, given:, 0] - SIDE / 2).abs()
    return (off < BAR_HALF_WIDTH + 0.5 * scene.radius[:, given:]).any(1)


def _hits(scene: Scene, given: int) -> Tensor:
    """Whether a straight path bends or ends in some frame that is not given."""
    bends = scene.position.diff(dim=1).diff(dim=1).norm(dim=-1) > 0.1
    return bends[:, max(0, given - 2) :].any(1)


SLICES = {
    "odd_light": Slice("red or blue light", replace(PLAIN, lights=("red", "blue"))),
    "occluder": Slice("a bar hides some of the object", replace(PLAIN, occluders=(True,)), holds=_hides),
    "rare_motion": Slice(
        "it bounces, orbits, sways or zigzags", replace(PLAIN, motions=("bounces", "orbits", "sways", "zigzags"))
    ),
    "low_contrast": Slice("dim light", replace(PLAIN, lights=("dim",))),
    "same_colours": Slice("another object of the same colour follows", clauses=2, bend=_same_colour),
    "collision": Slice(
        "it runs into a wall, or bounces off it",
        replace(PLAIN, motions=("moves", "bounces"), speeds=("fast",)),
        clauses=1,
        holds=_hits,
    ),
    "cut": Slice("colour, shape and movement change at one moment", clauses=2, bend=_all_change),
    "prompt_switch": Slice("the same object is told to move otherwise", clauses=2, bend=_same_object),
    "long_horizon": Slice("four times as long, with four clauses", clauses=4, length=4),
}
