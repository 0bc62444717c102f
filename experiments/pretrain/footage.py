"""Clips that detectors learn from and are measured on: the world's own, and made ones by family.

All of them went through the codec, so that what a codec leaves behind tells nothing apart. F frames, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...envs.clip_dataset import HELD_OUT, SHOWN, STRENGTH, VISIBLE, generate, scripted
from ...envs.self_play import coded
from ...envs.stack import Stack, StackSpec
from ...envs.worlds.clips import scenes
from ...envs.worlds.grammar import GRAMMARS, Script, chunk_clauses, sample_scripts
from ...envs.worlds.render import render
from ...models.tiny import CHUNKS, STEPS
from ...noise import stream_keys
from ..jobs import Job, Result, run_jobs
from ..systems import reference
from .own_footage import own_footage

REAL_FOOTAGE = "real"
STUDENTS = {"student": STEPS, "student-2": 2, "student-1": 1}
"""The shipped student by its number of denoising steps."""
LEARNED = (*STUDENTS, "teacher", "scripted")
"""Families of made clips that a detector may learn from."""
FOOTAGE_FAMILIES = (*LEARNED, *HELD_OUT)
_SPLITS = ("train", "validation", "test")
PART = 256
"""Clips of one job."""
_AT_ONCE = 32
_FEW = 4
"""Clips that go through the codec together: what fits into a processor's cache is done sooner."""


@dataclass(frozen=True)
class Footage:
    """`count` clips of one family.

    family: REAL or one of FAMILIES.   split: of the scripts.   part: clips of another part are other clips.   stack:
    what makes them.
    """

    family: str
    count: int
    split: str
    seed: int
    part: int
    stack: StackSpec


def footage(
    wanted: Mapping[str, int], split: str, seed: int, weights: Path | StackSpec, folder: Path, workers: int = 1
) -> dict[str, Tensor]:
    """Clips uint8 [M, F, 3, H, W] of each family, as many as `wanted` says; what `folder` holds is not made again."""
    jobs = clip_jobs(wanted, split, seed, weights if isinstance(weights, StackSpec) else StackSpec(str(weights)))
    made = run_jobs([job for row in jobs.values() for job in row], film, folder, workers=workers)
    return {family: torch.cat([made[job.name][0]["clips"]["video"] for job in row]) for family, row in jobs.items()}


def clip_jobs(wanted: Mapping[str, int], split: str, seed: int, stack: StackSpec) -> dict[str, list[Job]]:
    """The jobs by family, for `film` to do."""
    return {
        family: [
            Job(_name(split, family, part), Footage(family, size, split, seed, part, stack))
            for part, size in enumerate(_parts(count))
        ]
        for family, count in wanted.items()
    }


def film(config: Footage) -> Result:
    """Make clips. Of a held-out family those that show nothing are left out, so that there may be fewer."""
    stack = config.stack.load()
    seed = (config.seed * len(_SPLITS) + _SPLITS.index(config.split)) * 1000 + config.part
    if not stack.has("grammar"):
        return {"clips": {"video": own_footage(stack, config.family, config.count, config.split, seed)}}, {}
    scripts = sample_scripts(config.count, split=config.split, seed=seed, grammar=GRAMMARS[stack.grammar])
    video = clips_of(stack, config.family, scripts, seed, visible=True)
    return {"clips": {"video": (video.clamp(0, 1) * 255).round().to(torch.uint8)}}, {}


@torch.no_grad()
def clips_of(stack: Stack, family: str, scripts: Sequence[Script], seed: int, *, visible: bool = False) -> Tensor:
    """Clips [B, F, 3, H, W] in [0, 1] of scripts by one family: REAL, one of FAMILIES, or a scripted fake by its name;
    visible: leave out fakes that show nothing."""
    if family in STUDENTS:
        return generate(stack.with_steps(STUDENTS[family]), scripts, CHUNKS, seed)
    if family == "teacher":
        clauses, keys = [chunk_clauses(script, CHUNKS) for script in scripts], stream_keys(seed, len(scripts))
        rows = torch.arange(len(scripts)).split(_AT_ONCE)
        return torch.cat([reference(stack, "teacher")([clauses[r] for r in at.tolist()], keys[at]) for at in rows])
    scene, _ = scenes(list(scripts), seed)
    video = render(scene)
    if family != REAL_FOOTAGE:
        names = SHOWN if family == "scripted" else (family,)
        fake, _ = scripted(scene, video, names, STRENGTH, torch.Generator().manual_seed(seed))
        shows = (fake - video).abs().flatten(1).amax(1) >= VISIBLE
        video = fake[shows] if visible else fake
    return torch.cat([coded(few, stack.codec) for few in video.split(_FEW)])


def job_names(wanted: Mapping[str, int], split: str) -> list[str]:
    """The jobs in which `footage` keeps these clips."""
    return [_name(split, family, part) for family, count in wanted.items() for part in range(len(_parts(count)))]


def _name(split: str, family: str, part: int) -> str:
    return f"{split}-{family}-{part}"


def _parts(count: int) -> list[int]:
    return [min(PART, count - start) for start in range(0, count, PART)]
