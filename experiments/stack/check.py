"""`reelgym stack check FILE`: load a stack's parts, see whether they fit, make a chunk, a score, an update."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from ...agents.finetune_recipes import FINETUNE
from ...distill.recipes import DISTILL
from ...envs.stack import Stack
from ...envs.stack_fit import clip_words, misfits, part_size
from ...envs.stack_kinds import PART_KINDS
from ...models.generator import chunks
from ...models.prompts import PromptBatch
from ...noise import stream_keys
from ...training.recipe import Recipe
from ..console import publish
from ..results import pick_device
from ..tables import Row


@dataclass(frozen=True)
class Config:
    """What to check."""

    file: Annotated[str, tyro.conf.Positional]
    """A stack.toml, or whatever else --stack takes: a folder, a name, an import path."""
    prompt: str = "a cat walks over the grass"
    """What to show, where the stack has no prompts of its own."""
    update: bool = True
    """Make an update too, which takes the most memory."""
    seed: int = 0
    """Of prompt and noise."""
    device: str = "auto"
    """auto, cpu or cuda."""
    out: Path = Path("runs/stack-check")
    """Folder for results.json."""


def run(config: Config) -> None:
    """Print a line for each part and each trial; ValueError with all that is wrong."""
    device = pick_device(config.device)
    stack = Stack.load(config.file, device)
    rows, parts, faults = list[Row](), dict[str, Any](), list[str]()
    for name in (name for name in PART_KINDS if stack.has(name)):
        try:
            parts[name] = stack.parts[name]()
        except Exception as error:  # what the others have to say is of use too
            faults.append(f"{name}: {_one_line(error)}")
            continue
        size = part_size(name, parts[name])
        rows.append(
            {"kind": "part", "name": name, "what": size.what, "parameters": size.parameters, "bytes": size.bytes}
        )
        print(f"{name:<9} {amount(size.parameters):>8} {amount(size.bytes)}B".ljust(30), size.what, flush=True)
    if faults := faults + misfits(stack, parts):
        raise ValueError(f"{config.file}: {'; '.join(faults)}")
    print("clip".ljust(30), clip_words(stack), flush=True)
    for name, trial in _trials(stack, config).items():
        began = time.perf_counter()
        try:
            told = trial()
        except Exception as error:
            raise ValueError(f"{config.file}: {name}: {_one_line(error)}") from error
        seconds, peak = time.perf_counter() - began, _peak_bytes(device)
        rows.append({"kind": "trial", "name": name, "what": told, "seconds": seconds, "peak_bytes": peak})
        print(f"{name:<9} {seconds:>6.2f} s {amount(peak)}B".ljust(30), told, flush=True)
    total = sum(part_size(name, part).bytes for name, part in parts.items())
    text = f"{config.file} fits: {len(parts)} parts, {amount(total)}B; beside each trial the most memory until then"
    publish(["reelgym", "stack", "check", config.file], config, [config.seed], rows, text, device)


def amount(count: float) -> str:
    """A count with three figures: 1.42 G."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:g} "


@dataclass(frozen=True)
class OnePrompt:
    """A world of one prompt, for a stack without prompts of its own."""

    text: str

    def prompts(self, count: int, *, chunks: int, split: str, seed: int) -> list[tuple[str, ...]]:
        return [(self.text,) * chunks] * count


def _trials(stack: Stack, config: Config) -> Mapping[str, Callable[[], str]]:
    """What the stack can do, by name; each does it and says what came of it."""
    if not stack.has("generator") or not stack.has("encoder"):
        return {}
    if not ("prompts" in stack.data or stack.has("world") or stack.has("grammar")):
        stack = stack.with_parts(world=OnePrompt(config.prompt))
    found = {"chunk": partial(_chunk, stack, config.seed)}
    if stack.has("reward"):
        found["score"] = partial(_score, stack, config.seed)
    recipes: dict[str, Recipe] = {"reward gradient": FINETUNE["reward"], "continued": DISTILL["continued"]}
    name = "reward gradient" if stack.has("reward") else "continued"
    if config.update and (stack.has("reward") or "clips" in stack.data):
        found["update"] = partial(_update, stack, recipes[name].with_batch(1).with_seed(config.seed), name)
    return found


@torch.no_grad()
def _window(stack: Stack, seed: int, length: int) -> tuple[Tensor, PromptBatch]:
    """The video of the first chunks of a clip [1, F, 3, H, W], and the prompt of the last of them."""
    embeds, texts = stack.prompts()(1, seed)
    embeds = embeds[:, :length].to(stack.device)
    made = [x0 for x0, _, _ in chunks(stack.generator, embeds, stream_keys(seed, 1, stack.device))]
    video = stack.codec.decode(torch.cat(made, 1))
    if not bool(video.isfinite().all()):
        raise ValueError("the video is not finite")
    return video, PromptBatch((texts[0][length - 1],), embeds[:, -1])


def _chunk(stack: Stack, seed: int) -> str:
    video, prompt = _window(stack, seed, 1)
    return f"{video.shape[1]} frames of {video.shape[-1]}x{video.shape[-2]} pixels: {prompt.text[0]}"


def _score(stack: Stack, seed: int) -> str:
    video, prompt = _window(stack, seed, min(stack.layout.window_chunks, stack.layout.chunks))
    scores = zip(stack.reward.axes, stack.reward.score(video, prompt).scores[0].tolist(), strict=True)
    told = ", ".join(f"{axis} {score:+.2f}" for axis, score in scores)
    return f"{told}, in standard deviations, of {video.shape[1]} frames"


def _update(stack: Stack, recipe: Recipe, name: str) -> str:
    measured = recipe.trainer(stack, stack.student()).update()
    return f"{name}, one clip: gradient norm {measured['grad_norm']:.3g}"


def _peak_bytes(device: torch.device) -> int:
    """The most memory that this process has held on the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
