"""`reelgym bench envs`: how fast the environments are, and what is left when they do nothing.

Three parts. chunks: the tiny stack through StreamGen, the environment alone, with inference and with training, and the
bare generator against the same generator through an environment that neither decodes nor scores. steps: every
registered id with random actions. overhead: one trivial transition on our base and on the vector environments that
people use (overhead.py).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium
import torch

from ...envs.registration import ENVS, register_envs
from ...envs.stack import Stack
from ..console import publish
from ..jobs import on_threads
from ..options import BenchOptions
from ..results import pick_device
from ..tables import Column, Row, number, rows_of, sections
from .chunks import chunk_row
from .overhead import overhead_rows
from .timing import timed

_BLOCK = 4
"""Steps that are timed together: as many as a tiny clip has chunks."""


@dataclass(frozen=True)
class Config(BenchOptions):
    """What is timed."""

    parts: tuple[Literal["chunks", "steps", "overhead"], ...] = ("chunks", "steps", "overhead")
    """chunks: the tiny stack; steps: every id with random actions; overhead: a trivial transition on every base."""
    envs: tuple[int, ...] = (1, 16, 64, 256)
    """Environments in one vector, for chunks and steps."""
    clips: int = 64
    """Streams that a measurement of chunks comes to over its rounds, where one clip of each stream is not more."""
    rounds: int = 10
    """Most rounds of a measurement; chunks take the fastest, overhead takes the median."""
    train_most: int = 256
    """No training beyond so many streams: an update takes too long there."""
    seconds: float = 1.5
    """Least duration of each measurement of steps."""
    many: int = 64
    """Environments beside 1 in the table of overheads."""
    steps: int = 2000
    """Steps a round in the table of overheads; slow rivals take fewer."""
    out: Path = Path("runs/bench-envs")
    """Folder for results.json."""


def _met(row: Row) -> str:
    checks = [(row["target_us"], row["us_many"]), (row["target_us_more"], row["us_more"])]
    met = [value <= target for target, value in checks if target is not None and value is not None]
    return "–" if not met else "yes" if all(met) else "no"


def _targets(row: Row) -> str:
    parts = [(row["target_us"], "{:g}"), (row["target_us_more"], "+{:g}")]
    return ", ".join(form.format(target) for target, form in parts if target is not None) or "–"


CHUNK_COLUMNS = (
    Column("streams", "clips that advance together", number("envs", "d")),
    Column("environment alone", "chunks a second: ready-made latents decoded and scored", number("step", ",.1f")),
    Column("+ inference", "the same with the generator inside, four denoising steps", number("inference", ",.1f")),
    Column("+ training", "the same with one policy-gradient update a rollout", number("training", ",.1f")),
)
BARE_COLUMNS = (
    Column("streams", "", number("envs", "d")),
    Column("bare generator", "chunks a second of the denoising loop alone, nothing decoded", number("bare", ",.1f")),
    Column("through StreamGen", "the same loop, codec and reward of no effect", number("generator", ",.1f")),
    Column("ratio", "through StreamGen over bare", number("ratio", ".3f")),
    Column("at least", "target, set beforehand", number("target_ratio", ".2f")),
    Column("latents differ by", "largest difference between the two", number("difference", ".0e")),
)
STEP_COLUMNS = (
    Column("id", "with random actions and the shipped weights", lambda row: row["id"]),
    Column("environments", "in one vector", number("envs", "d")),
    Column("steps a second", "vector steps times environments", number("steps_per_second", ",.0f")),
    Column("one step (ms)", "of the whole vector", number("ms", ",.2f")),
)
OVERHEAD_COLUMNS = (
    Column("vector environment", "a counter and its 3x32x32 frame, no model", lambda row: row["subject"]),
    Column("1 (us)", "microseconds a vector step with one environment", number("us_1", ",.1f")),
    Column("many (us)", "the same with as many as the sentence above the table says", number("us_many", ",.1f")),
    Column("times ours", "many, as a multiple of what our base takes in the same run", number("times", ".1f")),
    Column("more (us)", "what the further environments cost together", number("us_more", "+,.1f")),
    Column("at most (us)", "targets, set beforehand: for many, and for more", _targets),
    Column("met", "whether all targets of the row are", _met),
)
COLUMNS = (*CHUNK_COLUMNS, *BARE_COLUMNS, *STEP_COLUMNS, *OVERHEAD_COLUMNS)


def run(config: Config) -> None:
    """Time what is asked for, print the tables, write results.json."""
    device = pick_device(config.device)
    rows: list[Row] = []
    with on_threads(config.threads):
        if "chunks" in config.parts:
            stack = Stack.load(device=device)
            for envs in config.envs:
                rounds = max(1, min(config.rounds, config.clips // envs))
                rows.append(chunk_row(stack, envs, rounds, config.seed, envs <= config.train_most))
        if "steps" in config.parts:
            register_envs()
            rows += [step_row(name, envs, config, device) for name in ENVS for envs in config.envs]
        if "overhead" in config.parts:
            rows += overhead_rows(config.many, config.steps, config.rounds, device)
        publish(["reelgym", "bench", "envs"], config, [config.seed], rows, report(rows), device)


def report(rows: list[dict[str, Any]]) -> str:
    """The tables as Markdown."""
    chunks, steps, overhead = (rows_of({"rows": rows}, kind) for kind in ("chunks", "steps", "overhead"))
    many, ours = (overhead[0]["envs"], overhead[0]["us_many"]) if overhead else (0, None)
    compared = [{**row, "times": row["us_many"] / ours if row["us_many"] and ours else None} for row in overhead]
    return sections(
        ("End to end, chunks a second. Latents are decoded and every window is scored.", CHUNK_COLUMNS, chunks),
        ("The generator only, chunks a second. Nothing is decoded and nothing is scored.", BARE_COLUMNS, chunks),
        ("Every id with random actions.", STEP_COLUMNS, steps),
        (f"A transition that does nothing, with 1 and with {many} environments (many).", OVERHEAD_COLUMNS, compared),
    )


def step_row(name: str, envs: int, config: Config, device: torch.device) -> Row:
    """Steps a second of one id: blocks of BLOCK steps until `config.seconds` are over."""
    vector: Any = gymnasium.make_vec(name, num_envs=envs, device=device)
    vector.action_space.seed(config.seed)
    actions = [torch.as_tensor(vector.action_space.sample()).to(device) for _ in range(_BLOCK)]
    vector.reset(seed=config.seed)

    def block() -> None:
        for action in actions:
            vector.step(action)

    blocks, seconds = 0, 0.0
    while not blocks or seconds < config.seconds:
        seconds += timed(block, device)
        blocks += 1
    vector.close()
    a_step = seconds / (blocks * _BLOCK)
    return {"kind": "steps", "id": name, "envs": envs, "steps_per_second": envs / a_step, "ms": 1000 * a_step}
