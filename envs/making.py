"""What the `make` functions of the environments share: a stack, its clips, and options that somebody takes."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from ..models.codec import Codec
from ..rewards.windows import ChunkLayout
from .clips import Reward
from .prompt_source import PromptSampler, slice_prompts
from .single import SingleEnv
from .stack import Stack
from .vector import TensorVectorEnv
from .worlds.slices import slice_named

Source = str | Path | Stack
"""What `Stack.load` takes."""


def opened(source: Source, options: dict[str, Any], *takers: Callable[..., Any]) -> tuple[Any, ...]:
    """The stack, and of the options those that each of takers may be given; the first that has one takes it.

    Two more options are known: `preset`, another word for the stack, and `device`, where it is loaded. TypeError for an
    option that nobody takes.
    """
    rest = dict(options)
    source, device = rest.pop("preset", source), rest.pop("device", None)
    known = [_keywords(taker) for taker in takers]
    if unknown := [name for name in rest if not any(name in names for names in known)]:
        there = sorted({"stack", "device"}.union(*known))
        near = difflib.get_close_matches(unknown[0], there, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise TypeError(f"unknown option {unknown[0]!r}{hint} There are {', '.join(there)}")
    stack = Stack.load(source, device or "cpu")
    if device is not None and torch.device(device) != stack.device:
        raise ValueError(f"the stack is on {stack.device}, not on {device}: load it there, or leave out device")
    shares = [{name: rest.pop(name) for name in list(rest) if name in names} for names in known]
    return stack, *shares


def clip_parts(
    stack: Stack,
    *,
    codec: Codec | None = None,
    reward: Reward | None = None,
    prompts: PromptSampler | None = None,
    layout: ChunkLayout | None = None,
    grammar: str | None = None,
    slice: str | None = None,
    split: str = "train",
    chunks: int | None = None,
    max_episode_steps: int | None = None,
) -> dict[str, Any]:
    """Codec, reward, prompts, layout and device of an environment whose clips are a stack's.

    grammar, split: of the prompts; by default the grammar that the stack knows. slice: an edge slice in its stead,
    whose first chunk the world gives. chunks, or max_episode_steps: length of a clip. What is given as codec, reward,
    prompts or layout is taken as it is. ValueError for an unknown slice or grammar, and for prompts or lengths of two
    kinds.
    """
    if layout is not None and (chunks is not None or max_episode_steps is not None):
        raise ValueError("layout says how long a clip is: leave out chunks and max_episode_steps, or layout")
    if grammar is not None and prompts is not None:
        raise ValueError("prompts are drawn by what is given as prompts: leave out grammar, or prompts")
    if slice is not None and (grammar is not None or prompts is not None):
        raise ValueError(f"slice={slice!r} brings its own prompts: leave out grammar and prompts, or slice")
    if layout is None:
        longer = slice_named(slice).length if slice else 1
        length = next(n for n in (chunks, max_episode_steps, longer * stack.layout.chunks) if n is not None)
        layout = replace(stack.layout, chunks=length)
    if slice is not None:
        words = {"grammar": stack.grammar, "split": split}
        prompts = slice_prompts(stack.encoder, layout.chunks, layout.frames_per_chunk, slice, **words)
    return {
        "codec": stack.codec if codec is None else codec,
        "reward": stack.reward if reward is None else reward,
        "prompts": stack.prompts(split, grammar=grammar, layout=layout) if prompts is None else prompts,
        "layout": layout,
        "device": stack.device,
    }


def single(make: Callable[..., TensorVectorEnv[Any]]) -> Callable[..., SingleEnv]:
    """`make` for one environment with numpy in and out: what `gymnasium.make` calls."""

    @wraps(make)
    def make_single(stack: Source = "tiny", **options: Any) -> SingleEnv:
        return SingleEnv(make(stack, 1, autoreset_mode="Disabled", **options))

    return make_single


def _keywords(taker: Callable[..., Any]) -> set[str]:
    """What may be left out of a call of a function, or of a class and its bases."""
    kinds = taker.__mro__ if isinstance(taker, type) else ()
    functions = [vars(kind)["__init__"] for kind in kinds if "__init__" in vars(kind)] or [taker]
    parameters = [p for function in functions for p in inspect.signature(function).parameters.values()]
    return {p.name for p in parameters if p.default is not p.empty} - {"device"}
