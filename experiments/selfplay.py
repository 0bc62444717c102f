"""`reelgym selfplay`: a generator and a detector play each other and both learn, beside baselines that play otherwise;
both sides are then measured against opponents that nobody trained against."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..agents.league.build import rival_of
from ..agents.league.config import LeagueConfig
from ..envs.game_rules import GameRules, ThresholdPolicy
from ..envs.self_play import RecordedClips
from ..models.tiny import save_tiny
from .evaluation.judges import ORACLE, judge_for, open_judge
from .jobs import Job
from .league.dataset import Budget, dataset_jobs
from .league.measure import across, detector_of
from .league.pictures import auc_svg, clips_webp, payoffs_svg
from .league.rows import all_rows
from .league.runs import VARIANTS, SelfPlayTask, work
from .league.tables import COLUMNS, report
from .options import StudyOptions
from .pretrain.own_footage import OWN_HELD_OUT, game_rules
from .study import Results, Study, finished, job_folder, run_study
from .tables import Row

__all__ = ["COLUMNS", "Config", "report", "run"]
PICTURES = ("selfplay-payoffs.svg", "selfplay-auc.svg", "selfplay-clips.webp")
_PARTS = ("codec", "teacher", "student", "reward", "rival")
"""Of a stack that can play."""
QUICK = Budget(
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
)


@dataclass(frozen=True)
class _Preset:
    """A budget, arms and seeds."""

    size: Budget
    arms: tuple[str, ...]
    seeds: int


SELFPLAY_PRESETS = {"quick": _Preset(QUICK, ("league", "newest"), 1), "standard": _Preset(Budget(), tuple(VARIANTS), 5)}


@dataclass(frozen=True)
class Config(StudyOptions):
    """What is played; a run that was killed goes on where it stopped, in the middle of a league too."""

    preset: Literal["quick", "standard"] = "quick"
    """quick: a look at how things work, it settles nothing. standard: the evidence."""
    arms: tuple[Literal["league", "newest", "frozen-detector", "frozen-generator"], ...] | None = None
    """Ways to play; by default the preset's."""
    seeds: int | None = None
    """Leagues of each arm; by default the preset's."""
    rounds: int | None = None
    """Of a league; by default the preset's."""
    out: Path | None = None
    """Folder for results.json, the pictures, the jobs and every seed's newest detector; runs/selfplay-PRESET by
    default."""


def _chosen(config: Config) -> _Preset:
    """The preset with what the config changes; ValueError for numbers that make no game."""
    preset = SELFPLAY_PRESETS[config.preset]
    seeds = preset.seeds if config.seeds is None else config.seeds
    rounds = preset.size.rounds if config.rounds is None else config.rounds
    if min(seeds, rounds) < 1:
        raise ValueError(f"seeds and rounds are at least 1, not {seeds} and {rounds}")
    held_out = preset.size.held_out if config.spec.load().has("grammar") else OWN_HELD_OUT
    return _Preset(replace(preset.size, rounds=rounds, held_out=held_out), config.arms or preset.arms, seeds)


def _seeds_of(config: Config) -> list[int]:
    """Of every arm."""
    return list(range(config.seed, config.seed + _chosen(config).seeds))


def jobs(config: Config, results: Results) -> list[Job]:
    """The clips; then held-out detectors and scorers; then every league."""
    preset, spec = _chosen(config), config.spec
    if missing := [part for part in _PARTS if not spec.load().has(part)]:
        raise ValueError(f"{config.stack}: self-play needs {', '.join(missing)}; `reelgym train` makes them")
    clips = dataset_jobs(preset.size, spec)
    if not finished(clips, results):
        return clips

    def job(kind: str, seed: int, cost: float) -> Job:
        task = SelfPlayTask(kind, seed, spec, preset.size, str(job_folder(config)))
        return Job(task.name, task, cost)

    measured = [*(job("panel", seed, 9.0) for seed in range(preset.size.panel)), job("scorers", 0, 1.0)]
    if not finished(measured, results):
        return measured
    return [job(arm, seed, VARIANTS[arm].cost) for seed in _seeds_of(config) for arm in preset.arms]


def rows(config: Config, results: Results) -> list[Row]:
    """Of all kinds; see `all_rows`."""
    preset, seeds = _chosen(config), _seeds_of(config)
    scorers = dict(results["scorers-0"][1])
    start = {"start": scorers.pop("start")}
    found = {arm: [results[f"{arm}-{seed}"][1] for seed in seeds] for arm in preset.arms}
    runs = {arm: [run | {"detectors": start | run["detectors"]} for run in own] for arm, own in found.items()}
    found_rows = all_rows(runs, seeds, _across(config, results, preset.arms, seeds), scorers)
    stack = config.spec.load()
    judge = judge_for(stack)
    told = [] if judge == ORACLE else [{"kind": "judge", "words": open_judge(judge, stack).words}]
    return [*found_rows, *told]


def settings(config: Config, results: Results) -> dict[str, Any]:
    """Of results.json."""
    return asdict(_chosen(config)) | {
        "workers": config.workers,
        "stack": config.stack,
        "rules": asdict(_rules_of(config)),
    }


STUDY = Study("selfplay", work, jobs, rows, lambda found: report(found["rows"]), settings, _seeds_of)


def run(config: Config) -> None:
    """Make the clips, train the held-out detectors, play every league, report."""
    done = run_study(STUDY, config)
    shutil.rmtree(done.out / "leagues", ignore_errors=True)
    preset, seeds, rules = _chosen(done.config), _seeds_of(done.config), _rules_of(done.config)
    size = rival_of(done.config.spec.load()).size
    for arm in preset.arms:
        for seed in seeds:
            told = {"part": "rival", "recipe": {"selfplay": arm}, "seed": seed, "camera": rules.camera}
            detector = detector_of(done.results[f"{arm}-{seed}"][0]["detector"], size)
            save_tiny(done.out / "detectors" / f"{arm}-{seed}", detector, told)
    media = {arm: done.results[f"{arm}-{seeds[0]}"][0]["media"] for arm in preset.arms}
    charts = [f"{payoffs_svg(done.rows)}\n".encode(), f"{auc_svg(done.rows)}\n".encode(), clips_webp(media)]
    for name, data in zip(PICTURES, charts, strict=True):
        (done.out / name).write_bytes(data)
    print(f"pictures: {', '.join(str(done.out / name) for name in PICTURES)}")


def _rules_of(config: Config) -> GameRules:
    return game_rules(config.spec.load())


def _across(config: Config, results: Results, arms: Sequence[str], seeds: Sequence[int]) -> list[Row]:
    """Every arm's newest generator against every arm's newest detector of the same seed, mean over seeds."""

    def table(seed: int) -> Any:
        groups = [results[f"{arm}-{seed}"][0] for arm in arms]
        players = [ThresholdPolicy(detector_of(one["detector"], size), LeagueConfig.confidence) for one in groups]
        made = []
        for film, quality in ((one["showing"]["film"], one["showing"]["quality"]) for one in groups):
            made.append(RecordedClips(film, torch.zeros(len(film), dtype=torch.bool), quality))
        return across(made, players, rules)

    size, rules = rival_of(config.spec.load()).size, _rules_of(config)
    mean = np.mean([table(seed) for seed in seeds], axis=0)
    return [
        {"kind": "across", "generator_of": row, "detector_of": column, "payoff": float(mean[place, at])}
        for place, row in enumerate(arms)
        for at, column in enumerate(arms)
    ]
