"""The prompt language of ShapeStream: clauses, scripts, parser, sampler and the split into train, validation and test.

A clause reads ``a [size] colour shape motion [direction] [speed] [in X light] [behind a bar]``; a script joins clauses
with ``; then``. What is left out takes the middle value: medium size, medium speed, plain light, no occluder.
"""

import difflib
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow", "cyan", "magenta", "orange", "white")
SIZES = ("small", "medium", "large")
MOTIONS = ("moves", "bounces", "orbits", "sways", "zigzags", "rests")
DIRECTIONS = ("right", "down-right", "down", "down-left", "left", "up-left", "up", "up-right")
SPEEDS = ("slow", "medium", "fast")
LIGHTS = ("plain", "dim", "red", "blue")
HEADED = frozenset({"moves", "bounces", "sways", "zigzags"})
SEPARATOR = "; then"
HELD_OUT_ONE_IN = 5
_TRIES = 20_000


class PromptError(ValueError):
    """A prompt that the grammar cannot read; the message says which word and what was expected."""


@dataclass(frozen=True)
class Clause:
    """What one stretch of a script asks for; every field is one of the module's word lists."""

    shape: str = "circle"
    colour: str = "red"
    size: str = "medium"
    motion: str = "rests"
    direction: str | None = None
    speed: str = "medium"
    light: str = "plain"
    occluder: bool = False

    def __str__(self) -> str:
        words = ["an" if self.size == "medium" and self.colour[0] in "aeiou" else "a"]
        words += [self.size] if self.size != "medium" else []
        words += [self.colour, self.shape, self.motion]
        words += [self.direction] if self.direction else []
        words += [self.speed] if self.speed != "medium" else []
        words += ["in", self.light, "light"] if self.light != "plain" else []
        words += ["behind", "a", "bar"] if self.occluder else []
        return " ".join(words)

    @property
    def held_out(self) -> bool:
        """True for the fifth of (colour, shape, motion) triples that training never sees."""
        place = COLOURS.index(self.colour) + 2 * SHAPES.index(self.shape) + 3 * MOTIONS.index(self.motion)
        return place % HELD_OUT_ONE_IN == 0


Script = tuple[Clause, ...]


@dataclass(frozen=True)
class Grammar:
    """The words that a sampler draws from, one written twice twice as often; `clauses`: how many a script may have."""

    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = COLOURS
    sizes: tuple[str, ...] = SIZES
    motions: tuple[str, ...] = MOTIONS
    directions: tuple[str, ...] = DIRECTIONS
    speeds: tuple[str, ...] = SPEEDS
    lights: tuple[str, ...] = LIGHTS
    occluders: tuple[bool, ...] = (False, True)
    clauses: tuple[int, ...] = (1, 2)

    def vocabulary(self) -> tuple[str, ...]:
        """Every word that a prompt of this grammar can hold, in a fixed order."""
        words = ["a", "an", *self.sizes, *self.colours, *self.shapes, *self.motions, *self.directions, *self.speeds]
        words += [word for light in self.lights if light != "plain" for word in ("in", light, "light")]
        words += ["behind", "bar"] if True in self.occluders else []
        return tuple(dict.fromkeys(words))


GRAMMARS = {
    "full": Grammar(),
    "plain": Grammar(
        sizes=("medium",),
        motions=("moves", "moves", "moves", "rests"),
        directions=("right", "down", "left", "up"),
        speeds=("medium", "fast"),
        lights=("plain",),
        occluders=(False,),
    ),
}


def script_text(script: Script) -> str:
    """The prompt that `parse` reads back as `script`."""
    return f" {SEPARATOR} ".join(str(clause) for clause in script)


def parse(text: str) -> Script:
    """Read a prompt into its clauses; raise PromptError naming the word at fault and its nearest known words."""
    parts = [part.strip() for part in text.lower().replace(" ;", ";").split(";")]
    if not any(parts):
        raise PromptError("the prompt is empty; try 'a red circle moves left fast ; then a blue square moves up'")
    clauses = []
    for number, part in enumerate(parts):
        words = part.split()
        if number and words[:1] == ["then"]:
            words = words[1:]
        clauses.append(_parse_clause(words, part))
    return tuple(clauses)


def _parse_clause(words: list[str], part: str) -> Clause:
    rest = list(words)

    def take(options: tuple[str, ...]) -> str | None:
        return rest.pop(0) if rest and rest[0] in options else None

    def need(options: tuple[str, ...], what: str) -> str:
        word = take(options)
        if word is None:
            raise PromptError(_complaint(rest, options, what, part))
        return word

    take(("a", "an"))
    size = take(SIZES) or "medium"
    colour, shape = need(COLOURS, "a colour"), need(SHAPES, "a shape")
    motion = need(MOTIONS, "a motion")
    direction = need(DIRECTIONS, "a direction") if motion in HEADED else None
    speed = take(SPEEDS) or "medium"
    light = "plain"
    if take(("in",)):
        light = need(LIGHTS, "a light")
        need(("light",), "the word 'light'")
    occluder = take(("behind",)) is not None
    if occluder:
        take(("a",))
        need(("bar",), "the word 'bar'")
    if rest:
        raise PromptError(_complaint(rest, GRAMMARS["full"].vocabulary(), "the end of the clause", part))
    return Clause(shape, colour, size, motion, direction, speed, light, occluder)


def _complaint(rest: list[str], options: tuple[str, ...], what: str, part: str) -> str:
    if not rest:
        return f"'{part}' ends where {what} should stand (one of: {', '.join(options)})"
    known = GRAMMARS["full"].vocabulary()
    near = difflib.get_close_matches(rest[0], known, n=3, cutoff=0.5)
    if rest[0] not in known:
        hint = f"; nearest words: {', '.join(near)}" if near else ""
        return f"unknown word '{rest[0]}' in '{part}': {what} was expected{hint}"
    return f"'{rest[0]}' in '{part}' stands where {what} was expected (one of: {', '.join(options)})"


def chunk_clauses(script: Script, chunks: int) -> tuple[Clause, ...]:
    """One clause per chunk: the clauses share the chunks evenly, earlier ones taking what does not divide."""
    if chunks < len(script):
        raise PromptError(f"{len(script)} clauses do not fit into {chunks} chunks; use fewer clauses or a longer clip")
    return tuple(script[chunk * len(script) // chunks] for chunk in range(chunks))


def chunk_prompts(text: str, chunks: int) -> list[str]:
    """The prompt that holds during each of `chunks` chunks of a script."""
    return [str(clause) for clause in chunk_clauses(parse(text), chunks)]


def split_of(script: Script) -> str:
    """ "train", "validation" or "test"; a script with a held-out triple is never training."""
    bucket = zlib.crc32(script_text(script).encode()) % 100
    if any(clause.held_out for clause in script):
        return "validation" if bucket < 50 else "test"
    return "train" if bucket < 80 else "validation" if bucket < 90 else "test"


def sample_scripts(
    count: int,
    *,
    split: str,
    seed: int,
    grammar: Grammar,
    clauses: int | None = None,
    distinct: bool = False,
    bend: Callable[[Script], Script | None] | None = None,
) -> list[Script]:
    """Draw `count` scripts of one split; outside training, half of them hold an unseen triple.

    `clauses` fixes the number of clauses (long streams); else it is drawn from the grammar. `distinct`: none twice.
    `bend` changes each drawn script, or drops it (None). ValueError where TRIES draws in a row give nothing new.
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"unknown split '{split}'; use train, validation or test")
    draw = random.Random(f"{split}-{seed}")
    scripts: list[Script] = []
    tries = 0
    while len(scripts) < count:
        tries += 1
        if tries > _TRIES:
            raise ValueError(f"only {len(scripts)} scripts of {count} were found in the {split} split: ask for fewer")
        unseen = split != "train" and len(scripts) % 2 == 0
        drawn = _draw_script(draw, grammar, clauses or draw.choice(grammar.clauses))
        script = bend(drawn) if bend else drawn
        if script is None or (distinct and script in scripts):
            continue
        if split_of(script) == split and unseen == any(clause.held_out for clause in script):
            scripts.append(script)
            tries = 0
    return scripts


def _draw_script(draw: random.Random, grammar: Grammar, clauses: int) -> Script:
    script: list[Clause] = []
    while len(script) < clauses:
        motion = draw.choice(grammar.motions)
        clause = Clause(
            shape=draw.choice(grammar.shapes),
            colour=draw.choice(grammar.colours),
            size=draw.choice(grammar.sizes),
            motion=motion,
            direction=draw.choice(grammar.directions) if motion in HEADED else None,
            speed=draw.choice(grammar.speeds) if motion != "rests" else "medium",
            light=draw.choice(grammar.lights),
            occluder=draw.choice(grammar.occluders),
        )
        if script and clause.direction and clause.direction == script[-1].direction:
            continue
        if script:
            clause = replace(clause, light=script[0].light, occluder=script[0].occluder)
        script.append(clause)
    return tuple(script)
