"""`reelgym finetune RECIPE`: RL fine-tuning of the shipped student, watched by a guard, resumable at any update."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tqdm import tqdm

from ..agents.finetune import FineTune, FineTuneConfig
from ..agents.finetune_recipes import FINETUNE
from ..checkpoint import CheckpointError, has_checkpoint, load_checkpoint, sha256_file, write_json
from ..models.generator import Generator
from ..models.tiny import WEIGHTS, load_manifest, save_tiny
from ..training.guard import Guard, GuardConfig
from ..training.loop import fit
from .evaluate import Exam, examine
from .jobs import one_thread
from .methods import Stack
from .results import command_line, pick_device, write_results
from .runs import VALIDATION_NOISE
from .stream_options import cache_of


@dataclass(frozen=True)
class Config:
    """How to fine-tune; a run that was killed goes on from its last update."""

    recipe: Annotated[Literal["reward", "forward", "policy", "raven", "flow-grpo", "ddpo"], tyro.conf.Positional]
    """reward: by the gradient of the reward. forward, policy: by its value alone, with credit by chunk. The others are
    published baselines (agents/finetune_recipes.py)."""
    updates: int = 20
    """Updates of the generator, all in all."""
    learning_rate: float | None = None
    """If not the recipe's own."""
    prompts: int | None = None
    """Prompts an update, if not the recipe's own."""
    group: int | None = None
    """Clips of each prompt, if not the recipe's own."""
    guard: bool = True
    """Stop, and put the best weights back, where a held-out reward falls or a bound breaks (docs/guard.md)."""
    guard_kl: float = GuardConfig.kl
    """Most KL from the start that the guard puts up with, per latent element; 0 asks for none."""
    sink_frames: int | None = None
    """Cache that the student trains and streams with, its own by default: first latent frames, which stay for good."""
    window_frames: int | None = None
    """Cache: latent frames that a chunk sees in all, itself included. Below 12, a clip's length, training evicts."""
    eviction: Literal["drop", "ema"] | None = None
    """Cache: forget the oldest frames, or blend them into the sink."""
    every: int = 4
    """Updates between looks of guard and oracle."""
    validation: int = 24
    """Validation prompts that the oracle judges."""
    seed: int = 0
    """Of prompts and noise."""
    device: str = "auto"
    """auto, cpu or cuda."""
    weights: Path | None = None
    """Folder with codec, student, reward and, for the guard, heldout; by default the one shipped with the package."""
    out: Path | None = None
    """Folder for the checkpoint, the fine-tuned student, TensorBoard events and results.json; by default
    runs/finetune-RECIPE."""


def run(config: Config) -> None:
    """Train, watch, save; print what the oracle found before and after."""
    from torch.utils.tensorboard import SummaryWriter

    if config.updates < 1 or config.every < 1:
        raise ValueError("--updates and --every must be at least 1")
    out = config.out or Path("runs") / f"finetune-{config.recipe}"
    stack = Stack.load(config.weights or WEIGHTS, pick_device(config.device))
    stack = stack.with_cache(cache_of(config, stack.start.model.cache_config))
    student, recipe = stack.student(), recipe_of(config)
    trainer = FineTune(recipe, student, stack.env(recipe.prompts * recipe.group), stack.prompts())
    watched = GuardConfig(every=config.every, kl=config.guard_kl, seed=config.seed)
    guard = stack.guard(watched, student) if config.guard else None
    settle_start(out, stack)
    done = updates_in(out / "checkpoint")
    if done:
        print(f"going on from {out / 'checkpoint'}", file=sys.stderr)
    with one_thread(), SummaryWriter(str(out / "tensorboard"), purge_step=done + 1 if done else None) as writer:
        before = judged(stack, stack.start, config)
        with tqdm(total=config.updates, desc=f"finetune {config.recipe}", unit="update", file=sys.stderr) as bar:

            def note(measured: Mapping[str, float], update: int) -> None:
                spent = {"spent/chunks": trainer.counts.chunks, "spent/seconds": trainer.counts.seconds}
                for key, value in {**measured, **spent}.items():
                    writer.add_scalar(key, value, update)
                bar.update(update - bar.n)

            if not done:
                note(before, 0)
            fit(
                trainer,
                config.updates,
                log=note,
                evaluate=lambda: judged(stack, student, config),
                evaluate_every=config.every,
                checkpoint=out / "checkpoint",
                checkpoint_every=1,
                guard=guard,
            )
        after = judged(stack, student, config)
        rows = [{"kind": "end", "weights": name, **row} for name, row in (("start", before), ("fine-tuned", after))]
        told = {"kept": kept_updates(trainer, guard), "guard": None if guard is None else guard.why}
        rows.append({"kind": "spent", **asdict(trainer.counts), **told})
        command = command_line(["reelgym", "finetune", config.recipe], config)
        settings = asdict(config) | {"recipe": asdict(recipe)}
        write_results(out, command, [config.seed], settings, rows, stack.device)
    save_student(out / "student", stack, trainer, after, guard)
    print(f"oracle on validation prompts: {before['oracle']:.4f} before, {after['oracle']:.4f} after", end="")
    print(f" {trainer.counts.updates} updates and {trainer.counts.chunks:,} chunks")
    if guard is not None and guard.why:
        print(f"the guard: {guard.why}")
    print(f"student: {out / 'student'}")


def recipe_of(config: Config) -> FineTuneConfig:
    """The named recipe with what the config changes."""
    recipe = FINETUNE[config.recipe]
    if config.learning_rate is not None:
        recipe = replace(recipe, learner=replace(recipe.learner, learning_rate=config.learning_rate))
    sizes = {name: value for name in ("prompts", "group") if (value := getattr(config, name)) is not None}
    return replace(recipe, seed=config.seed, **sizes)


def judged(stack: Stack, student: Generator, config: Config) -> dict[str, float]:
    """Means of the oracle over validation prompts, which trains nothing and stops nothing."""
    exam = Exam(config.validation, clips=1, long_prompts=0, split="validation", grammar=stack.grammar)
    scores = examine(stack.as_system(student), exam, VALIDATION_NOISE, device=stack.device, long=False).scores
    return {"oracle": float(scores["total"].mean())} | {
        f"oracle/{axis}": float(scores[axis].mean()) for axis in ("VQ", "MQ", "TA")
    }


def updates_in(checkpoint: Path) -> int:
    """Updates that a checkpoint of `fit` holds; 0 where there is none."""
    return int(load_checkpoint(checkpoint)[1]["counts"]["updates"]) if has_checkpoint(checkpoint) else 0


def settle_start(out: Path, stack: Stack) -> None:
    """Note down which weights and cache a run starts from, or hold them against the note; CheckpointError where they
    differ."""
    note = out / "start.json"
    made: dict[str, Any] = {
        file.parent.name: sha256_file(file) for file in sorted(stack.folder.glob("*/weights.safetensors"))
    }
    made["cache"] = asdict(stack.start.model.cache_config)
    if has_checkpoint(out / "checkpoint") and note.exists() and json.loads(note.read_text()) != made:
        raise CheckpointError(
            f"{out} holds a run from other weights than those of {stack.folder}, or another cache: give another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_json(note, made)


def kept_updates(trainer: FineTune, guard: Guard | None) -> int:
    """Updates behind the weights that the trainer ended with: fewer than were made where the guard put some back."""
    if guard is None or guard.best is None or not guard.why:
        return trainer.counts.updates
    return guard.best.update


def save_student(
    folder: Path,
    stack: Stack,
    trainer: FineTune,
    quality: Mapping[str, float] | None = None,
    guard: Guard | None = None,
) -> None:
    """Write the trainer's generator, once a student of the stack, to a folder that `reelgym generate --student` reads.

    quality: what was measured of it. guard: who watched; after a roll-back the manifest's "steps" are those of the
    weights that were put back. The words that the student reads are the start's.
    """
    parent = stack.folder / "student"
    start = load_manifest("student", parent)
    kept: dict[str, Any] = {key: start[key] for key in ("vocab", "text_len") if key in start}
    told: dict[str, Any] = {"part": "student", "recipe": {**asdict(trainer.config), "grammar": stack.grammar}}
    told |= {"seed": trainer.config.seed, "steps": kept_updates(trainer, guard)}
    told |= {"made_from": sha256_file(parent / "weights.safetensors"), "quality": dict(quality or {})}
    save_tiny(folder, trainer.generator.model, kept | told | {"guard": None if guard is None else guard.why})
