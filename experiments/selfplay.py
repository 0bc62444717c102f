"""`reelgym selfplay`: a generator and a detector play each other and both learn, beside baselines that play otherwise;
both sides are then measured against opponents that nobody trained against."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..agents.league.league import LeagueConfig
from ..agents.league.match import RecordedClips
from ..checkpoint import sha256_file
from ..envs.game_rules import ThresholdPolicy
from ..envs.stack import Stack
from ..models.tiny import WEIGHTS, load_manifest, save_tiny
from .evaluate import Exam
from .jobs import Job, Result, one_thread, run_jobs
from .league.measure import across, detector_of
from .league.pictures import auc_svg, clips_webp, payoffs_svg
from .league.runs import ARMS, PANEL_SEES, RULES, SEEN, UNSEEN, Common, LeagueTask, PanelTask, ScorersTask, Size, work
from .league.tables import COLUMNS, all_rows, report
from .pretrain.footage import footage, job_names
from .results import command_line, write_results
from .runs import fingerprint
from .tables import Row

__all__ = ["COLUMNS", "Config", "report", "run"]
PICTURES = ("selfplay-payoffs.svg", "selfplay-auc.svg", "selfplay-clips.webp")
SHOWN = 4
"""Prompts of the picture of clips."""


@dataclass(frozen=True)
class Preset:
    """A size, arms and seeds."""

    size: Size
    arms: tuple[str, ...]
    seeds: int


PRESETS = {
    "quick": Preset(
        Size(
            rounds=2,
            generator_updates=3,
            detector_updates=20,
            clips=16,
            streams=24,
            reals=128,
            fakes=48,
            heldout_reals=192,
            heldout_fakes=24,
            panel=1,
            panel_updates=40,
            response=2,
            prompts=8,
        ),
        ("league", "newest"),
        1,
    ),
    "standard": Preset(Size(), tuple(ARMS), 5),
}


@dataclass(frozen=True)
class Config:
    """What is played; a run that was killed goes on where it stopped, in the middle of a league too."""

    preset: Literal["quick", "standard"] = "quick"
    """quick: a look at how things work, it settles nothing. standard: the evidence."""
    arms: tuple[Literal["league", "newest", "frozen-detector", "frozen-generator"], ...] | None = None
    """Ways to play; by default the preset's."""
    seeds: int | None = None
    """Leagues of each arm; by default the preset's."""
    rounds: int | None = None
    """Of a league; by default the preset's."""
    seed: int = 0
    """The first of the seeds."""
    device: Literal["cpu"] = "cpu"
    """Leagues share the cores of the CPU."""
    workers: int | None = None
    """Processes of one thread each; by default 2, or as many as there are cores."""
    weights: Path | None = None
    """Folder with codec, teacher, student, reward and rival; by default the one shipped with the package."""
    out: Path | None = None
    """Folder for results.json, the pictures, the jobs and every seed's newest detector; runs/selfplay-PRESET by
    default."""


def run(config: Config) -> None:
    """Make the clips, train the held-out detectors, play every league, report."""
    preset, out = chosen(config), config.out or Path("runs") / f"selfplay-{config.preset}"
    folder = config.weights or WEIGHTS
    load_manifest("rival", folder / "rival")
    seeds = list(range(config.seed, config.seed + preset.seeds))
    workers = config.workers or min(2, os.cpu_count() or 1)
    wanted = _clips(preset.size)
    shots = tuple(str(out / "footage" / name) for split in wanted for name in job_names(wanted[split], split))
    common = Common(preset.size, shots, str(config.weights or ""), _made_from(folder))
    leagues = _leagues(preset, seeds, common, out)
    with tqdm(total=preset.size.panel + 1 + len(leagues), desc="selfplay", unit="job", file=sys.stderr) as bar:
        how: dict[str, Any] = {"workers": workers, "done": lambda name: bar.update(), "tick": bar.refresh}
        for split, families in wanted.items():
            footage(families, split, 0, folder, out / "footage", workers=workers)
        panel = [Job(f"panel-{seed}", PanelTask(seed, common), 9.0) for seed in range(preset.size.panel)]
        run_jobs(panel, work, out / "jobs", **how)
        scored = run_jobs([Job("scorers", ScorersTask(common))], work, out / "jobs", **how)["scorers"][1]
        results = run_jobs(leagues, work, out / "jobs", **how)
    shutil.rmtree(out / "leagues", ignore_errors=True)
    start = {"start": scored.pop("start")}
    told = {name: result | {"detectors": start | result["detectors"]} for name, (_, result) in results.items()}
    found = {arm: [told[f"{arm}-{seed}"] for seed in seeds] for arm in preset.arms}
    with one_thread():
        rows = all_rows(found, seeds, _across(results, preset.arms, seeds), scored)
        command = command_line(["reelgym", "selfplay"], replace(config, out=None))
        written = write_results(
            out, command, seeds, asdict(preset) | {"workers": workers, "rules": asdict(RULES)}, rows
        )
    _keep(results, preset.arms, seeds, out)
    pictures = payoffs_svg(rows), auc_svg(rows)
    for name, text in zip(PICTURES, pictures, strict=False):
        (out / name).write_text(text + "\n")
    groups = {arm: results[f"{arm}-{seeds[0]}"][0]["media"] for arm in preset.arms}
    (out / PICTURES[-1]).write_bytes(clips_webp(groups))
    print(f"{report(rows)}\n\nresults: {written}\npictures: {', '.join(str(out / name) for name in PICTURES)}")


def chosen(config: Config) -> Preset:
    """The preset with what the config changes; ValueError for numbers that make no game."""
    preset = PRESETS[config.preset]
    seeds, rounds = (
        known if given is None else given
        for given, known in ((config.seeds, preset.seeds), (config.rounds, preset.size.rounds))
    )
    if min(seeds, rounds) < 1:
        raise ValueError(f"seeds and rounds are at least 1, not {seeds} and {rounds}")
    return replace(preset, size=replace(preset.size, rounds=rounds), seeds=seeds, arms=config.arms or preset.arms)


def _clips(size: Size) -> dict[str, dict[str, int]]:
    """Clips of every family, by split, that all jobs share."""
    fakes = {family: size.fakes // (1 if family in SEEN else 4) for family in PANEL_SEES}
    return {
        "train": {"real": size.reals, **fakes},
        "validation": {"scripted": size.streams},
        "test": {"real": size.heldout_reals, **dict.fromkeys((*SEEN, *UNSEEN), size.heldout_fakes)},
    }


def _leagues(preset: Preset, seeds: Sequence[int], common: Common, out: Path) -> list[Job]:
    exam = Exam(preset.size.prompts, 2, long_prompts=0, grammar=Stack.load(common.weights or "tiny").grammar)
    panel = tuple(str(out / "jobs" / f"panel-{number}") for number in range(preset.size.panel))
    return [
        Job(
            f"{arm}-{seed}",
            LeagueTask(arm, seed, exam, str(out / "leagues" / f"{arm}-{seed}"), common, panel, SHOWN),
            1.0 + len(LeagueConfig(**ARMS[arm].changes).learns) + (arm == "league"),
        )
        for seed in seeds
        for arm in preset.arms
    ]


def _across(results: Mapping[str, Result], arms: Sequence[str], seeds: Sequence[int]) -> list[Row]:
    """Every arm's newest generator against every arm's newest detector of the same seed, mean over seeds."""
    tables = []
    for seed in seeds:
        groups = [results[f"{arm}-{seed}"][0] for arm in arms]
        showings = [_showing(one["showing"]) for one in groups]
        judges = [ThresholdPolicy(detector_of(one["detector"]), LeagueConfig.confidence) for one in groups]
        tables.append(across(showings, judges, RULES))
    mean = np.mean(tables, axis=0)
    return [
        {"kind": "across", "generator_of": row, "detector_of": column, "payoff": float(mean[place, at])}
        for place, row in enumerate(arms)
        for at, column in enumerate(arms)
    ]


def _showing(group: dict[str, Tensor]) -> RecordedClips:
    return RecordedClips(group["film"], torch.zeros(len(group["film"]), dtype=torch.bool), group["quality"])


def _keep(results: Mapping[str, Result], arms: Sequence[str], seeds: Sequence[int], out: Path) -> None:
    """Every newest detector as a part that `load_tiny` reads: OUT/detectors/ARM-SEED."""
    for arm in arms:
        for seed in seeds:
            told = {"part": "rival", "recipe": {"selfplay": arm}, "seed": seed, "camera": RULES.camera}
            weights = results[f"{arm}-{seed}"][0]["detector"]
            save_tiny(out / "detectors" / f"{arm}-{seed}", detector_of(weights), told)


def _made_from(weights: Path) -> str:
    """Hash of the code and the weights that a result depends on."""
    digest = hashlib.sha256(fingerprint(weights).encode())
    for name in ("runs", "measure"):
        digest.update((Path(__file__).parent / "league" / f"{name}.py").read_bytes())
    for part in ("rival", "student", "codec"):
        digest.update(sha256_file(weights / part / "weights.safetensors").encode())
    return digest.hexdigest()
