"""The exam's edge slices: each system carries on clips that the world began, and the oracle judges against the truth.

A generator is told what is heard of a clause; what it made is judged by the clause itself. Q prompts a slice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..envs.worlds.grammar import GRAMMARS, Clause, chunk_clauses
from ..envs.worlds.oracle import score_clips
from ..envs.worlds.render import render
from ..envs.worlds.slices import SLICES, heard, slice_scene, slice_scripts
from ..noise import Domain, fold, stream_keys
from .evaluate import AXES, EvalConfig
from .systems import Chunks, SupportsContinuation


@torch.no_grad()
def examine_slices(
    system: object, exam: EvalConfig, seed: int, *, device: torch.device | str = "cpu"
) -> dict[str, dict[str, Tensor]]:
    """Per slice and axis of AXES the scores [Q]; nothing for a system that cannot carry on, or where none are asked.

    The world gives the first chunk; the oracle looks at all frames and counts those after it.
    """
    if not exam.slice_prompts or exam.world or not isinstance(system, SupportsContinuation):
        return {}
    papers = {name: _paper(name, exam, seed) for name in SLICES}
    found = {}
    for length in dict.fromkeys(edge.length for edge in SLICES.values()):
        names = [name for name in SLICES if SLICES[name].length == length]
        clauses = [row for name in names for row in papers[name][0]]
        truth = torch.cat([papers[name][1] for name in names]).to(device)
        made = _carried_on(system, truth, clauses, exam, fold(stream_keys(seed, len(truth), device), Domain.SLICE_EXAM))
        for name, video in zip(names, made.split(exam.slice_prompts), strict=True):
            scores = score_clips(video, papers[name][0], exam.frames_per_chunk, given=exam.frames_per_chunk)
            found[name] = {axis: getattr(scores, axis) for axis in AXES}
    return {name: found[name] for name in SLICES}


def _paper(name: str, exam: EvalConfig, seed: int) -> tuple[list[tuple[Clause, ...]], Tensor]:
    """True clauses and true clips of one slice; the scripts are the exam's, where the clips begin is the seed's."""
    chunks = exam.chunks * SLICES[name].length
    scripts = slice_scripts(name, exam.slice_prompts, split=exam.split, seed=exam.scripts_seed, distinct=True)
    scene = slice_scene(name, scripts, chunks, exam.frames_per_chunk, seed)
    return [chunk_clauses(script, chunks) for script in scripts], render(scene)


def _carried_on(system: SupportsContinuation, truth: Tensor, clauses: Chunks, exam: EvalConfig, keys: Tensor) -> Tensor:
    said = [tuple(heard(clause, GRAMMARS[exam.grammar]) for clause in row) for row in clauses]
    parts = [slice(first, first + exam.batch) for first in range(0, len(truth), exam.batch)]
    return torch.cat([system.continue_from(truth[at], exam.frames_per_chunk, said[at], keys[at]) for at in parts])
