"""Chunks a second of the tiny stack through StreamGen: the environment alone, with inference, with training.

And what the environment adds to its generator: the bare denoising loop against the same loop through an environment
whose codec and reward do nothing. Same prompts, same noise, and the latents of both must be equal.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...agents.finetune_recipes import FINETUNE
from ...agents.rollout import GeneratorPolicy, rollout
from ...envs.stack import Stack
from ...envs.stream_gen import StreamGenVectorEnv
from ...models.codec import Codec
from ...models.generator import stream
from ...models.prompts import PromptBatch
from ...noise import stream_keys
from ...rewards.stream_reward import Scores
from .timing import interleaved_timings

GROUP = 8
"""Clips of one prompt at most in a training's group."""
TARGET = 0.95


class NoCodec:
    """The codec's shapes and all that it has besides, and video that costs nothing."""

    def __init__(self, inner: Codec, device: torch.device) -> None:
        self.inner = inner
        grid = inner.grid(1)
        with torch.no_grad():
            self.frame = inner.decode(torch.zeros(1, 1, inner.channels, grid.h, grid.w, device=device))[0, :1].clone()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def decode(self, latents: Tensor, clamp: bool | None = None) -> Tensor:
        """One frame, again and again, in one place of the memory."""
        frames = len(self.grid(latents.shape[1]).latent_of_frame)
        return self.frame.expand(len(latents), frames, -1, -1, -1)

    def decode_stream(self, latents: Tensor, state: Any, clamp: bool | None = None) -> tuple[Tensor, Any]:
        """The frame."""
        return self.decode(latents), state


class NoReward:
    """A reward of 0 for everything."""

    min_frames = 1

    def __call__(self, video: Tensor, prompts: PromptBatch, *, need: Collection[str]) -> Scores:
        zeros = video.new_zeros(len(video))
        return Scores(zeros[:, None], zeros)


def chunk_row(stack: Stack, envs: int, rounds: int, seed: int, train: bool) -> dict[str, Any]:
    """Chunks a second with `envs` streams: the fastest of `rounds` clips of each kind, all in turns, and of twice as
    many of the two that are compared. training is left out with one stream, whose clip has no group to be above."""
    device, latents = stack.device, dict[str, Tensor]()
    works = _works(stack, envs, seed, latents)
    if train and envs > 1:
        group = next(size for size in range(min(GROUP, envs), 0, -1) if envs % size == 0)
        recipe = replace(FINETUNE["policy"], prompts=envs // group, group=group, seed=seed)
        works["training"] = recipe.trainer(stack, stack.student()).update
    if rounds > 1 or device.type == "cuda":  # else a clip takes so long that what happens once does not matter
        interleaved_timings(list(works.values()), 1, device)
    seconds = interleaved_timings([works["bare"], works["generator"]], 2 * rounds, device)
    seconds += interleaved_timings(list(works.values())[2:], rounds, device)
    chunks = envs * stack.layout.chunks
    speed = {name: chunks / min(one) for name, one in zip(works, seconds, strict=True)}
    row: dict[str, Any] = {"kind": "chunks", "envs": envs, "rounds": rounds, "training": None, **speed}
    row |= {"ratio": speed["generator"] / speed["bare"], "target_ratio": TARGET}
    return row | {"difference": float((latents["generator"] - latents["bare"]).abs().max())}


def _works(stack: Stack, envs: int, seed: int, latents: dict[str, Tensor]) -> dict[str, Callable[[], object]]:
    """What is timed, one clip of every stream each; `latents` keeps what the generator made, twice."""
    device, policy = stack.device, GeneratorPolicy(stack.generator)
    embeds, texts = stack.prompts()(envs, seed)
    embeds, keys = embeds.to(device), stream_keys(seed, envs, device)
    pairs: list[tuple[Any, Any]] = [(stack.codec, stack.reward), (NoCodec(stack.codec, device), NoReward())]
    settings: dict[str, Any] = {"layout": stack.layout, "device": device, "autoreset_mode": "Disabled"}
    full, hollow = (StreamGenVectorEnv(envs, *pair, stack.prompts(), **settings) for pair in pairs)

    def bare() -> None:
        latents["bare"] = stream(stack.generator, embeds, keys)

    def generator() -> None:
        latents["generator"] = rollout(hollow, policy, keys, texts).latents

    def step() -> None:
        full.reset(options={"scripts": texts})
        for chunk in latents["bare"].split(full.layout.frames_per_chunk, 1):
            full.step(chunk)

    def inference() -> None:
        rollout(full, policy, keys, texts)

    return {"bare": bare, "generator": generator, "step": step, "inference": inference}
