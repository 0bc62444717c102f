"""Datasets of real, scripted-fake and generated clips, all filmed by one camera: what StreamDetect replays.

M clips, n chunks a clip, f frames a chunk, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from ..models.fit import size_of
from ..models.generator import stream
from ..noise import stream_keys
from .stack import Stack
from .worlds.camera import CAMERAS, Camera, shoot
from .worlds.fakes import FAKES
from .worlds.grammar import GRAMMARS, Script, chunk_clauses, sample_scripts
from .worlds.render import render
from .worlds.scene import FPS, Scene, roll
from .worlds.slices import heard, slice_named, slice_scene, slice_scripts

NAMES = ("real", *FAKES, "generated")
"""Families of clips."""
SHOWN = tuple(name for name, fake in FAKES.items() if not fake.held_out)
"""Scripted fakes that training may see."""
HELD_OUT = tuple(name for name, fake in FAKES.items() if fake.held_out)
"""Scripted fakes that it may not."""
STRENGTH = (0.4, 1.0)
"""Of scripted fakes; each clip's own is drawn between them."""
VISIBLE = 0.1
"""A fake that changes no pixel by as much is none: a resting object cannot freeze."""
_CHUNKS = 4
_AT_ONCE = 64
_PIXELS = 2**22
"""Pixels of video, at most, that are made at a time."""

Scripts = Callable[[int, int], Sequence[Script]]
"""`scripts(count, seed)`: count scripts of a world, a pure function."""


@dataclass(frozen=True)
class ClipDataset:
    """Clips and what they are; all of one length, rate, size and depth.

    video: uint8 [M, n, f, C, H, W].   label: bool [M], whether it is a fake.   family: int64 [M], of `names`.
    texts: M rows of n prompts.   names: what the families are called, "real" first.   fps: frames a second.
    """

    video: Tensor
    label: Tensor
    family: Tensor
    texts: tuple[tuple[str, ...], ...]
    names: tuple[str, ...] = NAMES
    fps: float = FPS

    def __post_init__(self) -> None:
        if self.video.dtype != torch.uint8 or self.video.ndim != 6 or not len(self.video):
            shape = f"{self.video.dtype} {list(self.video.shape)}"
            raise ValueError(f"a dataset's video is uint8 [M, n, f, C, H, W] of at least one clip, not {shape}")
        if not len(self.video) == len(self.label) == len(self.family) == len(self.texts):
            raise ValueError("video, label, family and texts of a dataset are of one length")

    def __len__(self) -> int:
        return len(self.video)

    def to(self, device: torch.device | str) -> ClipDataset:
        """The dataset on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ("video", "label", "family")})


@torch.no_grad()
def generate(stack: Stack, scripts: Sequence[Script], chunks: int, seed: int, opening: Tensor | None = None) -> Tensor:
    """Clips [B, F, C, H, W] in [0, 1] that a stack's student makes of scripts in words that it knows; opening
    [B, f, C, H, W]: their first chunks, where it does not make them."""
    texts = [[str(clause) for clause in chunk_clauses(script, chunks)] for script in scripts]
    embeds = torch.stack([stack.encoder.encode(row) for row in texts])
    return made_clips(stack, embeds, seed, opening)


@torch.no_grad()
def made_clips(stack: Stack, embeds: Tensor, seed: int, opening: Tensor | None = None) -> Tensor:
    """Clips [B, F, C, H, W] in [0, 1], on the CPU, that a stack's student makes of prompts [B, n, L, D]."""
    pixels = stack.codec.frames_of(stack.layout.clip_frames) * prod(size_of(stack.codec, stack.device))
    few = max(1, min(_AT_ONCE, _PIXELS // pixels))
    keys, rows = stream_keys(seed, len(embeds)), torch.arange(len(embeds)).split(few)
    return torch.cat([_clips(stack, embeds[r], keys[r], None if opening is None else opening[r]) for r in rows])


def _clips(stack: Stack, embeds: Tensor, keys: Tensor, opening: Tensor | None) -> Tensor:
    generator, codec = stack.generator, stack.codec
    device = next(generator.model.parameters()).device
    given = None if opening is None else codec.encode(opening.to(device))
    video = codec.decode(stream(generator, embeds.to(device), keys.to(device), given)).cpu()
    return video if opening is None else torch.cat((opening, video[:, opening.shape[1] :]), 1)


def build_dataset(
    clips: int = 512,
    *,
    seed: int = 0,
    grammar: str | None = None,
    split: str = "train",
    slice: str | None = None,
    scripts: Scripts | None = None,
    chunks: int | None = None,
    frames_per_chunk: int = 3,
    families: Sequence[str] | None = None,
    strength: tuple[float, float] = STRENGTH,
    source: Stack | None = None,
    generated: float = 0.25,
    camera: str = "tinted",
    device: torch.device | str = "cpu",
) -> ClipDataset:
    """A dataset of `clips` clips, half of them real, a pure function of its arguments.

    Every script is played twice, once true and once faked, so that what is asked for says nothing. All clips go
    through the same camera, mixed.

    Args:
        grammar, split: of the scripts, unless an edge slice (worlds/slices.py) or `scripts(count, seed)` gives them.
        chunks: n; by default 4, in a slice of longer clips more.
        families: scripted fakes, equally often; by default all that are not held out. Those held out are refused in
            the split "train".
        strength: range of the scripted fakes' strength.
        source: whose student makes the generated clips; None: there are none. Of a slice, and of scripts with words
            that it lacks, they begin with the true clip's first chunk. generated: share of them among the fakes.
        camera: name of a camera of the world.
    """
    names, lens = _families(families, split), _camera(camera)
    if clips < 2 or clips % 2:
        raise ValueError(f"clips come in pairs of a real and a fake one: {clips} is no even number above 0")
    if not 0 <= generated <= 1:
        raise ValueError(f"generated is a share between 0 and 1, not {generated}")
    chunks = chunks or _CHUNKS * (slice_named(slice).length if slice else 1)
    pairs, random = clips // 2, torch.Generator().manual_seed(seed)
    made = round(generated * pairs) if source else 0
    drawn, scene = _played(pairs, seed, (chunks, frames_per_chunk), grammar, split, slice, scripts)
    real = render(scene)
    fake, family = scripted(scene.take(torch.arange(pairs - made)), real[: pairs - made], names, strength, random)
    parts = [real, fake]
    if source and made:
        true = real[pairs - made :]
        parts.append(_generated(source, drawn[pairs - made :], true, chunks, seed, slice is not None))
    family = torch.cat((torch.zeros(pairs).long(), family, torch.full((made,), NAMES.index("generated"))))
    order = torch.randperm(clips, generator=random)
    video = _filmed(torch.cat(parts)[order], lens, random).unflatten(1, (chunks, frames_per_chunk))
    texts = [tuple(str(clause) for clause in chunk_clauses(script, chunks)) for script in drawn] * 2
    told = tuple(texts[row] for row in order.tolist())
    return ClipDataset(video, family[order] != 0, family[order], told).to(device)


def scripted(
    scene: Scene, real: Tensor, names: Sequence[str], strength: tuple[float, float], random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Fakes [B, F, C, H, W] of true scenes and their video, the families alike in number, and the family [B] of each.

    Where a family shows nothing, the next one is tried.
    """
    count = len(real)
    turn = torch.arange(count) % len(names)
    turn = turn[torch.randperm(count, generator=random)]
    low, high = strength
    amount = low + (high - low) * torch.rand(count, generator=random)
    fake, unseen = real.clone(), torch.ones(count, dtype=torch.bool)
    for _ in names:
        for number, name in enumerate(names):
            rows = (unseen & (turn == number)).nonzero().flatten()
            if len(rows):
                fake[rows] = FAKES[name](scene.take(rows), amount[rows], random)
        unseen = (fake - real).abs().flatten(1).amax(1) < VISIBLE
        if not unseen.any():
            break
        turn = torch.where(unseen, (turn + 1) % len(names), turn)
    return fake, torch.tensor([NAMES.index(name) for name in names])[turn]


def _filmed(video: Tensor, camera: Camera, random: torch.Generator) -> Tensor:
    """What the camera stores of clips [M, F, C, H, W] in [0, 1]: uint8."""
    return torch.cat([(shoot(part, camera, random) * 255).round().to(torch.uint8) for part in video.split(_AT_ONCE)])


def _families(families: Sequence[str] | None, split: str) -> tuple[str, ...]:
    names = SHOWN if families is None else tuple(families)
    if not names or set(names) - set(FAKES):
        raise ValueError(f"families are some of: {', '.join(FAKES)}; not {', '.join(names) or 'none'}")
    held = [name for name in names if name in HELD_OUT]
    if held and split == "train":
        raise ValueError(f"{', '.join(held)}: held out of training; take another split")
    return names


def _camera(name: str) -> Camera:
    if name not in CAMERAS:
        raise ValueError(f"unknown camera {name!r}; use one of: {', '.join(CAMERAS)}")
    return CAMERAS[name]


def _played(
    count: int,
    seed: int,
    size: tuple[int, int],
    grammar: str | None,
    split: str,
    edge: str | None,
    scripts: Scripts | None,
) -> tuple[list[Script], Scene]:
    """Scripts, and the scenes of `size` (chunks, frames a chunk) that they are true to."""
    if sum(given is not None for given in (grammar, edge, scripts)) > 1:
        raise ValueError("grammar, slice and scripts exclude each other: give one of them")
    if edge is not None:
        drawn = slice_scripts(edge, count, split=split, seed=seed)
        return drawn, slice_scene(edge, drawn, *size, seed)
    named = grammar or "plain"
    if named not in GRAMMARS:
        raise ValueError(f"unknown grammar '{named}'; use one of: {', '.join(GRAMMARS)}")
    if scripts is None:
        drawn = sample_scripts(count, split=split, seed=seed, grammar=GRAMMARS[named])
    else:
        drawn = list(scripts(count, seed))
    clauses = [chunk_clauses(script, size[0]) for script in drawn]
    return drawn, roll(clauses, size[1], torch.Generator().manual_seed(seed))


def _generated(source: Stack, scripts: Sequence[Script], true: Tensor, chunks: int, seed: int, opened: bool) -> Tensor:
    """Generated clips of scripts, beside the true ones [B, F, C, H, W]."""
    known = [tuple(heard(clause, GRAMMARS[source.grammar]) for clause in script) for script in scripts]
    opened = opened or known != list(scripts)
    found = generate(source, known, chunks, seed, true[:, : true.shape[1] // chunks] if opened else None)
    if found.shape != true.shape:
        raise ValueError(f"generated clips are {list(found.shape[1:])}, the world's {list(true.shape[1:])}")
    return found
