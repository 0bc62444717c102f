"""The clips of `reelgym selfplay`, by split and family: what detectors learn from, and what nobody learns from.

M clips uint8 [M, F, 3, H, W].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ...agents.league.match import apply_camera
from ...checkpoint import load_checkpoint
from ...envs.clip_dataset import HELD_OUT
from ...envs.game_rules import GameRules
from ...envs.self_play import RecordedClips
from ...envs.stack import StackSpec
from ...noise import SeedDomain
from ..jobs import Job
from ..pretrain.footage import clip_jobs, job_names

SEEN = ("student", "scripted")
"""Families of fakes that every league's detector begins with."""
MADE_UNSEEN = ("student-2", "student-1", "teacher")
UNSEEN = (*MADE_UNSEEN, *HELD_OUT)
"""Families that no league learns from; those of them that a study has."""
PANEL_SEES = (*SEEN, "student-2", "student-1")
"""What held-out detectors learn from."""
OTHER_CAMERA = "webcam"


@dataclass(frozen=True)
class Budget:
    """How much is played and measured."""

    rounds: int = 6
    generator_updates: int = 4
    detector_updates: int = 40
    clips: int = 48
    """Of the newest generator that join the pool in a round."""
    streams: int = 64
    """Of a match."""
    reals: int = 1024
    """Real clips that detectors learn from."""
    fakes: int = 512
    """Of each family that detectors begin with."""
    heldout_reals: int = 2048
    heldout_fakes: int = 128
    """Of each family."""
    panel: int = 4
    """Detectors trained apart, that nobody plays against."""
    panel_updates: int = 400
    response: int = 8
    """Updates of a generator's best response; a detector's takes ten times as many."""
    prompts: int = 24
    """Test prompts of the exam, two clips each."""
    held_out: tuple[str, ...] = HELD_OUT
    """Families of fakes that no training sees."""

    def families(self) -> dict[str, dict[str, int]]:
        """Clips of every family, by split."""
        fakes = {family: self.fakes // (1 if family in SEEN else 4) for family in PANEL_SEES}
        return {
            "train": {"real": self.reals, **fakes},
            "validation": {"scripted": self.streams},
            "test": {
                "real": self.heldout_reals,
                **dict.fromkeys((*SEEN, *MADE_UNSEEN, *self.held_out), self.heldout_fakes),
            },
        }


def dataset_jobs(budget: Budget, stack: StackSpec) -> list[Job]:
    """The jobs that make all clips."""
    made = (clip_jobs(wanted, split, 0, stack) for split, wanted in budget.families().items())
    return [job for families in made for jobs in families.values() for job in jobs]


@dataclass(frozen=True)
class FamilyClips:
    """clips: uint8 [M, F, 3, H, W] by split and family."""

    clips: Mapping[tuple[str, str], Tensor]

    @classmethod
    @lru_cache(maxsize=1)
    def load(cls, folder: str, budget: Budget) -> FamilyClips:
        """What `dataset_jobs` left in a folder of jobs; asked for again in the same process, it is not read again."""
        clips = {}
        for split, wanted in budget.families().items():
            for family, count in wanted.items():
                parts = (load_checkpoint(Path(folder) / name)[0] for name in job_names({family: count}, split))
                clips[split, family] = torch.cat([part["clips"]["video"] for part in parts])
        return cls(clips)

    def train(self, *families: str, most: int | None = None) -> dict[str, Tensor]:
        """What detectors learn from, so many of each family."""
        return {family: self.clips["train", family][:most] for family in families}

    def filmed(self, rules: GameRules, frames: int) -> dict[str, RecordedClips]:
        """What nobody learns from, through the game's camera: "real", every family of fakes, and a quarter of the real
        clips through another camera ("other camera"); filmed alike for every detector, so that differences are
        paired."""
        test = {family: clips.float() / 255 for (split, family), clips in sorted(self.clips.items()) if split == "test"}
        recordings = {
            family: apply_camera(video, rules, frames, SeedDomain.FILM + place, real=family == "real")
            for place, (family, video) in enumerate(test.items())
        }
        some, again = test["real"][: len(test["real"]) // 4], GameRules(camera=OTHER_CAMERA, pool=rules.pool)
        return recordings | {"other camera": apply_camera(some, again, frames, SeedDomain.FILM - 1, real=True)}
