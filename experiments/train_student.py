"""What `reelgym finetune` and `reelgym distill` share: a student trained by a recipe, watched by a guard, resumable at
any update."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import CheckpointError, has_checkpoint, open_checkpoint, write_json
from ..envs.stack import Stack
from ..models.generator import Generator, stream
from ..models.lora import adapter_of, plain_model
from ..models.lora_files import save_lora
from ..models.shards import shard, whole
from ..models.stream_files import save_transformer
from ..models.tiny import STEPS, load_manifest, save_tiny
from ..noise import stream_keys
from ..rewards.stream_reward import StreamReward
from ..rewards.windows import clip_prompts
from ..training.guard import Guard, GuardConfig, guard_of
from ..training.loop import Trainer, fit
from ..training.microbatches import microbatches
from ..training.ranks import Ranks, join, together
from ..training.recipe import Recipe
from ..training.state import plain
from .console import progress
from .evaluate import EvalConfig, evaluate
from .evaluation.judges import judge_reward, open_judge, refuse_trained
from .jobs import one_thread
from .options import AdapterOptions, CacheOptions, StackOptions, installed_name
from .results import command_line, pick_device, write_results
from .runs import VALIDATION_NOISE
from .systems import as_system


@dataclass(frozen=True, kw_only=True)
class TrainOptions(AdapterOptions, CacheOptions, StackOptions):
    """How to train a student; a run that was killed goes on from its last update."""

    updates: int = 20
    """Updates of the generator, all in all."""
    learning_rate: float | None = None
    """If not the recipe's own."""
    guard: bool = True
    """Stop, and put the best weights back, where a held-out reward falls or a bound breaks (docs/guard.md)."""
    guard_kl: float | None = None
    """Most KL from the start that the guard puts up with, per latent element; 0 asks for none. By default .004, and 0
    for a student of fewer than four steps: its start is to be left."""
    judge: str = ""
    """Whom the guard watches in place of the held-out reward: measures, or a function of yours (docs/judges.md)."""
    every: int = 4
    """Updates between looks of guard and oracle."""
    validation: int = 24
    """Validation prompts that the oracle judges."""
    shard: bool = False
    """With several processes (docs/scale.md): weights lie in shards, and are gathered block by block where they are
    used."""
    microbatch: int | None = None
    """Clips at a time whose gradient is in memory; it costs a pass more. By default all of the batch."""
    recompute: bool = False
    """Make activations again for the gradient, in place of keeping them (activation checkpointing)."""
    seed: int = 0
    """Of prompts and noise."""
    out: Path | None = None
    """Folder for the checkpoint, the trained student, TensorBoard events and results.json; by default
    runs/COMMAND-RECIPE."""


def changed(recipe: Recipe, options: TrainOptions, **sizes: int | None) -> Recipe:
    """The recipe with the seed, rate and sizes (fields of it, such as prompts) that the options ask for."""
    recipe = recipe.with_seed(options.seed)
    if options.learning_rate is not None:
        recipe = recipe.with_learning_rate(options.learning_rate)
    asked = {name: value for name, value in sizes.items() if value is not None}
    config: Any = recipe
    there = [field.name for field in fields(config)] if is_dataclass(config) else []
    if missing := sorted(set(asked) - set(there)):
        raise ValueError(f"the recipe {type(recipe).__name__} has no {', '.join(missing)} to change")
    return replace(config, **asked) if asked else recipe


def train_student(command: str, name: str, recipe: Recipe, options: TrainOptions) -> None:
    """Train, watch, save; print what the oracle found before and after. name: what the recipe is called.

    Where torchrun or accelerate started several processes they share every batch out, and the first looks and writes.
    """
    if options.updates < 1 or options.every < 1:
        raise ValueError("--updates and --every must be at least 1")
    with together(), microbatches(options.microbatch):
        _train_student(command, name, recipe, options, join(pick_device(options.device), options.shard))


def _train_student(command: str, name: str, recipe: Recipe, options: TrainOptions, ranks: Ranks) -> None:
    from torch.utils.tensorboard import SummaryWriter

    out = options.out or Path("runs") / f"{command}-{name.replace(':', '.')}"
    stack = options.spec.load()
    if options.judge:
        asked = installed_name("judges", options.judge)
        stack = stack.with_parts(heldout=judge_reward(open_judge(asked, stack)))
    if options.guard and not stack.has("heldout"):
        raise ValueError(
            f"{options.stack}: the guard watches a held-out reward, and the stack has none: name one as "
            "[parts] heldout, another judge (--judge), or train without (--no-guard)"
        )
    if options.guard and not options.judge:
        refuse_trained("heldout", lambda: stack.heldout, stack)
    stack = stack.with_cache(options.cache(stack.generator.model.cache_config))
    student = stack.student(options.adapter, options.seed)
    if options.recompute:
        student.model.transformer.enable_gradient_checkpointing()
    trainer = recipe.trainer(stack, student)
    if ranks.sharded:
        shard(student.model)  # says where nothing would be
    few = len(stack.generator.sigmas) < STEPS
    kl = (0.0 if few else GuardConfig.kl) if options.guard_kl is None else options.guard_kl
    watched = GuardConfig(every=options.every, kl=kl, seed=options.seed)
    guard = guard_of(stack, watched, student) if options.guard else None
    ranks.told(lambda: settle_start(out, stack, options))
    done = updates_in(out / "checkpoint")
    if done and ranks.first:
        print(f"going on from {out / 'checkpoint'}", file=sys.stderr)
    small = max(stack.pipeline.size) <= 64
    with (
        one_thread() if small else nullcontext(),
        SummaryWriter(str(out / "tensorboard"), purge_step=done + 1 if done else None)
        if ranks.first
        else nullcontext() as writer,
    ):
        before = ranks.told(lambda: _judged(stack, stack.generator, options))
        with progress(options.updates, f"{command} {name}", "update") if ranks.first else nullcontext() as bar:

            def note(measured: Mapping[str, float], update: int) -> None:
                assert writer is not None, "the first process alone logs"
                spent = {"spent/chunks": trainer.counts.chunks, "spent/seconds": trainer.counts.seconds}
                for key, value in {**measured, **spent}.items():
                    writer.add_scalar(key, value, update)

            if not done and ranks.first:
                note(before, 0)
            fit(
                trainer,
                options.updates,
                log=note,
                evaluate=lambda: _judged(stack, student, options),
                evaluate_every=options.every,
                checkpoint=out / "checkpoint",
                checkpoint_every=1,
                guard=guard,
                bar=bar,
            )
        after = ranks.told(lambda: _judged(stack, student, options))
        student = replace(student, model=whole(student.model, ranks.first))
        if not ranks.first:
            return ranks.wait()
        ends = (("start", before), ("fine-tuned" if command == "finetune" else "distilled", after))
        rows: list[dict[str, Any]] = [{"kind": "end", "weights": which, **row} for which, row in ends]
        told = {"kept": kept_updates(trainer, guard), "guard": None if guard is None else guard.stop_reason}
        rows.append({"kind": "spent", **asdict(trainer.counts), **told})
        settings = asdict(options) | {"recipe": as_config(recipe)}
        line = command_line(["reelgym", command, name], options)
        write_results(out, line, [options.seed], settings, rows, stack.device)
    save_student(out / "student", stack, student, recipe, kept_updates(trainer, guard), after, guard)
    judge = next(iter(before), None)
    judged = f"{judge} on validation prompts: {before[judge]:.4f} before, {after[judge]:.4f}" if judge else "not judged"
    print(f"{judged} after {trainer.counts.updates} updates and {trainer.counts.chunks:,} chunks")
    if guard is not None and guard.stop_reason:
        print(f"the guard: {guard.stop_reason}")
    print(f"student: {out / 'student'}")
    ranks.wait()


def as_config(recipe: Any) -> dict[str, Any]:
    """A recipe's settings as JSON holds them; one that is no dataclass tells its name alone."""
    return asdict(recipe) if hasattr(recipe, "__dataclass_fields__") else {"recipe": repr(recipe)}


def _judged(stack: Stack, student: Generator, options: TrainOptions) -> dict[str, float]:
    """Means over validation prompts of what trains nothing and stops nothing: the oracle, or where there is none, as
    for a stack without a world, the held-out reward, or else the reward."""
    if not (options.world or stack.has("grammar")):
        name = next((name for name in ("heldout", "reward") if stack.has(name)), None)
        return {} if name is None else _rewarded(stack, student, name, options.validation)
    exam = EvalConfig(
        options.validation, clips=1, long_prompts=0, split="validation", grammar=stack.grammar, world=options.world
    )
    scores = evaluate(as_system(stack, student), exam, VALIDATION_NOISE, device=stack.device, long=False).scores
    return {"oracle": float(scores["total"].mean())} | {
        f"oracle/{axis}": float(scores[axis].mean()) for axis in ("VQ", "MQ", "TA")
    }


@torch.no_grad()
def _rewarded(stack: Stack, student: Generator, name: str, count: int) -> dict[str, float]:
    """Means of a reward and its axes over clips of so many validation prompts, one after the other."""
    reward: StreamReward = getattr(stack, name)
    scorer, keys = reward.windowed(stack.layout, stack.codec), stream_keys(VALIDATION_NOISE, count, stack.device)
    embeds, texts = stack.prompts("validation")(count, VALIDATION_NOISE)
    found = []
    for row in range(count):
        said = embeds[row : row + 1].to(stack.device)
        video = stack.codec.decode(stream(student, said, keys[row : row + 1]))
        found.append(scorer.score(video, clip_prompts(said, texts[row : row + 1])).scores)
    means = dict(zip(reward.axes, torch.cat(found).mean(0).tolist(), strict=True))
    return {name: sum(means.values()) / len(means)} | {f"{name}/{axis}": mean for axis, mean in means.items()}


def updates_in(checkpoint: Path) -> int:
    """Updates that a checkpoint of `fit` holds; 0 where there is none."""
    return int(open_checkpoint(checkpoint)[2]["counts"]["updates"]) if has_checkpoint(checkpoint) else 0


def settle_start(out: Path, stack: Stack, options: TrainOptions) -> None:
    """Note down which weights, cache and reward a run starts from, or hold them against the note; CheckpointError where
    they differ."""
    note = out / "start.json"
    made: dict[str, Any] = {**stack.weights(), "cache": asdict(stack.generator.model.cache_config)}
    made |= {"sampler_steps": len(stack.generator.sigmas)}
    if options.adapter is not None:
        made["lora"] = plain(asdict(options.adapter))
    made |= {name: path for name in ("reward", "world") if (path := getattr(options, name))}
    if has_checkpoint(out / "checkpoint") and note.exists() and json.loads(note.read_text()) != made:
        raise CheckpointError(
            f"{out} holds a run from other weights than those of {stack.folder}, or another cache, number of steps, "
            "LoRA, reward or world: give another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_json(note, made)


def kept_updates(trainer: Trainer, guard: Guard | None) -> int:
    """Updates behind the weights that the trainer ended with: fewer than were made where the guard put some back."""
    if guard is None or guard.best is None or not guard.stop_reason:
        return trainer.counts.updates
    return guard.best.update


def save_student(
    folder: Path,
    stack: Stack,
    student: Generator,
    recipe: Recipe,
    steps: int,
    quality: Mapping[str, float] | None = None,
    guard: Guard | None = None,
) -> None:
    """Write a generator, once a student of the stack, to a folder that `reelgym generate --student` reads.

    steps: updates behind its weights. quality: what was measured of it. guard: who watched. The words that a tiny
    student reads are the start's; another one is written in diffusers' layout, or its LoRA alone.
    """
    told: dict[str, Any] = {"part": "student", "recipe": as_config(recipe)}
    told |= {"seed": recipe.seed, "steps": steps, "sampler_steps": len(stack.generator.sigmas)}
    told |= {"made_from": stack.weights().get("student")}
    told |= {"quality": dict(quality or {}), "guard": None if guard is None else guard.stop_reason}
    if not stack.said.parts["student"].is_tiny:
        save_transformer(folder, student.model, told)
        return
    start = load_manifest("student", stack.places["student"])
    kept: dict[str, Any] = {key: start[key] for key in ("vocab", "text_len") if key in start}
    told["recipe"]["grammar"] = stack.grammar
    save_tiny(folder, plain_model(student.model), kept | told)
    if adapter_of(student.model):
        save_lora(folder, student.model)
