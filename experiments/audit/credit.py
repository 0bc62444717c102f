"""`reelgym audit credit`: how straight does every direction and credit setting point to where the reward rises?

At the shipped student, whose weights stay as they are, the gradient of many updates is held against the reward's own,
taken through the codec over other clips: the truth, for a method that sees the reward's value alone. It is the gradient
on the last denoising step; a method that pushes earlier ones may point elsewhere and not be wrong, so two halves of its
own updates are compared as well. How far an average over so many chunks is off follows from the noise of single
updates: settings can be told apart without a training.
U updates in all seeds of a setting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...agents.advantage import AdvantageEstimator
from ...agents.finetune import FineTuneConfig
from ...agents.finetune_recipes import FINETUNE
from ...agents.forward_process import ForwardProcess
from ...agents.reward_gradient import RewardGradient
from ...checkpoint import load_checkpoint
from ...envs.stack import StackSpec
from ...models.wan import CausalWan
from ...training.learner import Learner
from ..jobs import Job, Result
from ..options import StudyOptions
from ..study import Results, Study, finished, job_folder, run_study, seeds_of
from ..tables import Column, Row, markdown_table, number

__all__ = ["COLUMNS", "Config", "report", "run"]
_OURS = FINETUNE["forward"]
CREDIT_SETTINGS: dict[str, tuple[str, FineTuneConfig]] = {
    "reward": ("reward gradient", FINETUNE["reward"]),
    "forward": ("forward process", _OURS),
    "unlike": ("- a group's chunks noised each by itself", replace(_OURS, direction=ForwardProcess(alike=False))),
    "passes": ("- noised three times", replace(_OURS, direction=ForwardProcess(minibatches=3))),
    "levels": ("- at all levels of the sampler", replace(_OURS, direction=ForwardProcess(train_timesteps=()))),
    "spread": ("- divided by each group's spread", replace(_OURS, advantage=AdvantageEstimator(normalize_std="group"))),
    "critic": ("- a critic for what follows", replace(_OURS, advantage=AdvantageEstimator(bootstrap=True))),
    "perplexity": ("- elements weighed by perplexity", replace(_OURS, advantage=AdvantageEstimator(perplexity=True))),
    "small": ("- groups of 4", replace(_OURS, prompts=4, group=4)),
    "large": ("- groups of 16", replace(_OURS, prompts=1, group=16)),
    "shared": ("- two denoising steps shared too", replace(_OURS, shared_steps=2)),
    "full": ("- a shared opening, then to the end", replace(_OURS, prefix="full")),
    "own": ("- nothing shared, returns to go", replace(_OURS, prefix="own")),
    "clip": (
        "- nothing shared, one score for the clip",
        replace(_OURS, prefix="own", advantage=AdvantageEstimator(returns="episode")),
    ),
    "placebo": (
        "- placebo: rewards of other prompts' clips",
        replace(_OURS, advantage=AdvantageEstimator(shuffle_advantages=True)),
    ),
    "policy": ("policy gradient", FINETUNE["policy"]),
    "policy-own": ("- nothing shared, returns to go", replace(FINETUNE["policy"], prefix="own")),
    "raven": ("whole-video groups (RAVEN)", FINETUNE["raven"]),
    "flow-grpo": ("Flow-GRPO SDE", FINETUNE["flow-grpo"]),
    "ddpo": ("DDPO", replace(FINETUNE["ddpo"], epochs=1)),
}
"""What is measured; a line with a dash changes the one above in one way. None is pulled to the start here."""
TRUTH = FineTuneConfig(RewardGradient(), prefix="own", prompts=16, group=1, seed=77)
_HALF = 0.5
"""The cosine that the chunks are counted for."""
_RESAMPLES = 2000


@dataclass(frozen=True)
class Config(StudyOptions):
    """What is measured; killed, it goes on with the jobs that are not finished."""

    settings: tuple[str, ...] = tuple(CREDIT_SETTINGS)
    """Which; see experiments/audit/credit.py."""
    seeds: int = 4
    """Of prompts and noise."""
    chunks: int = 512
    """Generated for each setting and seed."""
    truth: int = 2048
    """Chunks over which the reward's own gradient is taken."""
    out: Path = Path("runs/audit-credit")
    """Folder for results.json and the jobs."""


@dataclass(frozen=True)
class _Task:
    """Gather gradients of one setting. truth: folder of the finished job that holds the reward's; empty for that job
    itself."""

    recipe: FineTuneConfig
    chunks: int
    stack: StackSpec
    truth: str = ""


class GradientRecorder(Learner[CausalWan]):
    """A learner that hands every gradient over and moves nothing."""

    def __init__(self, learner: Learner[CausalWan]) -> None:
        super().__init__(learner.module, learner.config)
        self.found: list[Tensor] = []

    def optimizer_step(self) -> dict[str, float]:
        """The gradient gathered, as one vector, to `found`."""
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        self.found.append(torch.cat([part.flatten() for part in parts]))
        self.zero_grad()
        return {"skipped": 0.0}


def run(config: Config) -> None:
    """Take the truth, hold every setting against it, report."""
    run_study(STUDY, config)


def _jobs_of(config: Config, results: Results) -> list[Job]:
    """The truth, and then every setting with every seed; ValueError for a setting that is none."""
    unknown = sorted(set(config.settings) - set(CREDIT_SETTINGS))
    if unknown or not config.settings or min(config.seeds, config.chunks, config.truth) < 1:
        raise ValueError(f"unknown settings {unknown}, or nothing to measure; choose from {', '.join(CREDIT_SETTINGS)}")
    truth = Job("truth", _Task(TRUTH, config.truth, config.spec))
    shared = (config.chunks, config.spec, str(job_folder(config) / truth.name))
    settings = [
        Job(f"{name}-{seed}", _Task(replace(CREDIT_SETTINGS[name][1], kl_coef=0.0, seed=seed), *shared))
        for seed in seeds_of(config)
        for name in config.settings
    ]
    return settings if finished([truth], results) else [truth]


def _rows_of(config: Config, results: Results) -> list[Row]:
    """The truth's own ceiling, and a row for every setting."""
    rows: list[Row] = [{"kind": "truth", "halves": results["truth"][1]["halves"], "chunks": config.truth}]
    seeds = seeds_of(config)
    return rows + [setting_row(name, [results[f"{name}-{seed}"][1] for seed in seeds]) for name in config.settings]


def work(task: _Task) -> Result:
    """The truth's job keeps the gradient itself; the others, of every update, its length along the truth and in all."""
    stack = task.stack.load()
    trainer = task.recipe.trainer(stack, stack.student())
    trainer.learner = still = GradientRecorder(trainer.learner)
    while trainer.counts.chunks < task.chunks:
        trainer.update()
    found = torch.stack(still.found)
    ends = (found[::2].mean(0), found[1::2].mean(0)) if len(found) > 1 else (found[0], found[0])
    halves = float(torch.cosine_similarity(*ends, dim=0))
    if not task.truth:
        return {"truth": {"gradient": found.mean(0)}}, {"halves": halves}
    truth = load_checkpoint(task.truth)[0]["truth"]["gradient"]
    along = (found @ (truth / truth.norm())).tolist()
    spent = {"chunks": trainer.counts.chunks, "seconds": trainer.counts.seconds}
    return {}, {"along": along, "length": found.norm(dim=1).tolist(), "halves": halves, **spent}


def setting_row(name: str, results: Sequence[Mapping[str, Any]]) -> Row:
    """Over the updates of all seeds: the mean cosine of one, and the chunks until an average of them reaches HALF."""
    along, length = (np.concatenate([result[key] for result in results]) for key in ("along", "length"))
    chunks = sum(result["chunks"] for result in results) / len(along)
    draws = np.random.default_rng(0).integers(len(along), size=(_RESAMPLES, len(along)))
    signals = [signal(along[draw], length[draw]) for draw in draws]
    low, high = np.quantile(signals, [0.025, 0.975])
    row: Row = {"kind": "setting", "setting": name, "label": CREDIT_SETTINGS[name][0], "updates": len(along)}
    row |= {"chunks": chunks, "seconds": sum(result["seconds"] for result in results) / len(along)}
    row |= {"cosine": float((along / length.clip(1e-30)).mean())}
    row |= {"halves": float(np.mean([result["halves"] for result in results]))}
    found = {"needed": signal(along, length), "needed_low": float(high), "needed_high": float(low)}
    return row | {key: needed(value, chunks) for key, value in found.items()}


def signal(along: NDArray[np.float64], length: NDArray[np.float64]) -> float:
    """Of U single updates: (mean length along the truth) over the root of the mean square of the rest; below 0 where
    they point away."""
    mean = float(along.mean())
    return mean / math.sqrt(max(float((length**2).mean()) - mean**2, 1e-30))


def needed(ratio: float, chunks: float) -> float | None:
    """Chunks until the average of updates of so many chunks each has a cosine of HALF with the truth, where its noise
    averages out and what is not noise points along the truth: n r^2 = c^2 / (1 - c^2). None where it points away."""
    return None if ratio <= 0 else chunks * _HALF**2 / (1 - _HALF**2) / ratio**2


def _chunks(row: Row) -> str:
    def told(value: float | None) -> str:
        return "never" if value is None or value > 1e6 else f"{value:,.0f}"

    return f"{told(row['needed'])} [{told(row['needed_low'])}, {told(row['needed_high'])}]"


COLUMNS = (
    Column("setting", "a dash: the one above, changed in this way", lambda row: row["label"]),
    Column("cosine", "of one update's gradient with the truth, mean", number("cosine", "+.3f")),
    Column(
        "chunks to cosine .5 [95%]",
        "generated until an average of such gradients points half right, by the noise of single ones; bootstrap over "
        "updates; never: it points nowhere, or away",
        _chunks,
    ),
    Column(
        "halves", "cosine of two halves of a seed's updates, mean over seeds; about 0: noise", number("halves", "+.2f")
    ),
    Column("chunks", "of one update", number("chunks", ",.0f")),
    Column("sec.", "of one update on one of two busy cores", number("seconds", ".2f")),
    Column("updates", "measured", number("updates", "d")),
)


def report(rows: Sequence[Row]) -> str:
    """The table as Markdown, with the ceiling that the truth itself sets."""
    truth = next(row for row in rows if row["kind"] == "truth")
    said = f"The truth is taken over {truth['chunks']:,} chunks; its two halves have a cosine of {truth['halves']:.2f}."
    return f"{said}\n\n{markdown_table(COLUMNS, [row for row in rows if row['kind'] == 'setting'])}"


STUDY = Study("audit credit", work, _jobs_of, _rows_of, lambda found: report(found["rows"]))
