"""Banks of real, scripted-fake and generated clips, all filmed by one camera: what StreamDetect replays.

M clips, n chunks a clip, f frames a chunk, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ..models.codec import Codec
from ..models.generator import Generator, stream
from ..models.prompts import WordEncoder
from ..noise import stream_keys
from .prompt_source import ScriptPrompts
from .worlds.camera import CAMERAS, Camera, shoot
from .worlds.fakes import FAKES
from .worlds.grammar import GRAMMARS, Script, chunk_clauses, sample_scripts, script_text
from .worlds.render import render
from .worlds.scene import FPS, Scene, roll

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
AT_ONCE = 64

Scripts = Callable[[int, int], Sequence[Script]]
"""`scripts(count, seed)`: count scripts of a world, a pure function."""


@dataclass(frozen=True)
class Bank:
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
            raise ValueError(f"a bank's video is uint8 [M, n, f, C, H, W] of at least one clip, not {shape}")
        if not len(self.video) == len(self.label) == len(self.family) == len(self.texts):
            raise ValueError("video, label, family and texts of a bank are of one length")

    def __len__(self) -> int:
        return len(self.video)

    def to(self, device: torch.device | str) -> Bank:
        """The bank on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ("video", "label", "family")})


@dataclass(frozen=True)
class Source:
    """Where generated clips come from. generator: frozen.   codec: decodes.   encoder: of the generator's prompts."""

    generator: Generator
    codec: Codec
    encoder: WordEncoder

    @torch.no_grad()
    def __call__(self, scripts: Sequence[Script], chunks: int, seed: int) -> Tensor:
        """Clips [B, F, C, H, W] in [0, 1] of the scripts."""
        prompts = ScriptPrompts(self.encoder, chunks, lambda count, step: [])
        embeds, _ = prompts.encode([script_text(script) for script in scripts])
        keys = stream_keys(seed, len(embeds))
        device = next(self.generator.model.parameters()).device
        parts = zip(embeds.to(device).split(AT_ONCE), keys.to(device).split(AT_ONCE), strict=True)
        return torch.cat([self.codec.decode(stream(self.generator, some, key)).cpu() for some, key in parts])


def build_bank(
    clips: int = 512,
    *,
    seed: int = 0,
    grammar: str = "plain",
    split: str = "train",
    scripts: Scripts | None = None,
    chunks: int = 4,
    frames_per_chunk: int = 3,
    families: Sequence[str] | None = None,
    strength: tuple[float, float] = STRENGTH,
    source: Source | None = None,
    generated: float = 0.25,
    camera: str = "tinted",
    device: torch.device | str = "cpu",
) -> Bank:
    """A bank of `clips` clips, half of them real, a pure function of its arguments.

    Every script is played twice, once true and once faked, so that what is asked for says nothing. All clips go
    through the same camera, mixed.

    Args:
        grammar, split: of the scripts, unless `scripts(count, seed)` draws them.
        families: scripted fakes, equally often; by default all that are not held out. Those held out are refused in
            the split "train".
        strength: range of the scripted fakes' strength.
        source: makes the generated clips; None: there are none. generated: share of them among the fakes.
        camera: name of a camera of the world.
    """
    names = _families(families, split)
    if clips < 2 or clips % 2:
        raise ValueError(f"clips come in pairs of a real and a fake one: {clips} is no even number above 0")
    if camera not in CAMERAS:
        raise ValueError(f"unknown camera {camera!r}; use one of: {', '.join(CAMERAS)}")
    if not 0 <= generated <= 1:
        raise ValueError(f"generated is a share between 0 and 1, not {generated}")
    pairs = clips // 2
    made = round(generated * pairs) if source else 0
    random = torch.Generator().manual_seed(seed)
    drawn = list((scripts or _world_scripts(grammar, split))(pairs, seed))
    clauses = [chunk_clauses(script, chunks) for script in drawn]
    scene = roll(clauses, frames_per_chunk, random)
    real = render(scene)
    fake, family = scripted(_rows(scene, slice(pairs - made)), real[: pairs - made], names, strength, random)
    parts = [real, fake]
    if source and made:
        parts.append(source(drawn[pairs - made :], chunks, seed))
        if parts[-1].shape[1:] != real.shape[1:]:
            raise ValueError(f"generated clips are {list(parts[-1].shape[1:])}, the world's {list(real.shape[1:])}")
    family = torch.cat((torch.zeros(pairs).long(), family, torch.full((made,), NAMES.index("generated"))))
    order = torch.randperm(clips, generator=random)
    video = filmed(torch.cat(parts)[order], CAMERAS[camera], random)
    texts = [tuple(str(clause) for clause in row) for row in clauses] * 2
    family = family[order]
    told = tuple(texts[row] for row in order.tolist())
    return Bank(video.unflatten(1, (chunks, frames_per_chunk)), family != 0, family, told).to(device)


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
                fake[rows] = FAKES[name](_rows(scene, rows), amount[rows], random)
        unseen = (fake - real).abs().flatten(1).amax(1) < VISIBLE
        if not unseen.any():
            break
        turn = torch.where(unseen, (turn + 1) % len(names), turn)
    return fake, torch.tensor([NAMES.index(name) for name in names])[turn]


def filmed(video: Tensor, camera: Camera, random: torch.Generator) -> Tensor:
    """What the camera stores of clips [M, F, C, H, W] in [0, 1]: uint8."""
    return torch.cat([(shoot(part, camera, random) * 255).round().to(torch.uint8) for part in video.split(AT_ONCE)])


def _families(families: Sequence[str] | None, split: str) -> tuple[str, ...]:
    names = SHOWN if families is None else tuple(families)
    if not names or set(names) - set(FAKES):
        raise ValueError(f"families are some of: {', '.join(FAKES)}; not {', '.join(names) or 'none'}")
    held = [name for name in names if name in HELD_OUT]
    if held and split == "train":
        raise ValueError(f"{', '.join(held)}: held out of training; take another split")
    return names


def _world_scripts(grammar: str, split: str) -> Scripts:
    if grammar not in GRAMMARS:
        raise ValueError(f"unknown grammar '{grammar}'; use one of: {', '.join(GRAMMARS)}")
    return lambda count, seed: sample_scripts(count, split=split, seed=seed, grammar=GRAMMARS[grammar])


def _rows(scene: Scene, rows: Tensor | slice) -> Scene:
    return Scene(*(getattr(scene, field.name)[rows] for field in fields(scene)))
