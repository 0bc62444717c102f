"""`reelgym/StreamSteer-v0`: an agent steers a frozen generator, chunk after chunk, and pays for its network's passes.

N streams, n chunks a clip, f latent frames a chunk, S denoising steps, K directions of noise, A axes of the reward.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..models.codec import Codec
from ..models.generator import Generator, StreamState, prefill
from ..models.steering import Steering, led_noise, noise_basis, steered_chunk
from ..models.tiny import build_generator
from ..noise import normal
from ..rewards.windows import TINY_LAYOUT, ChunkLayout
from .clips import LIMIT, Clips, ClipState, Reward
from .draw import View
from .making import Source, clip_parts, opened, single
from .prompt_source import PromptSampler
from .vector import TensorVectorEnv


@dataclass(frozen=True)
class SteerSettings:
    """What an agent may do, and what it pays."""

    price: float = 0.08
    """Taken off a chunk's quality for every pass of a stream through the network, in units of the reward (standard
    deviations of the reward model's reference clips)."""
    directions: int = 4
    """K, directions of the noise that an action leads."""
    reach: float = 2.0
    """Standard deviations at which a fully led component is set."""
    guidance: float = 1.0
    """Weight of classifier-free guidance above 1 at the end of its range."""
    pool: int = 2
    """Side of the grid that latents are averaged to in the observation."""

    def __post_init__(self) -> None:
        if self.price < 0 or self.directions < 0 or self.pool < 1:
            raise ValueError(f"price and directions are at least 0 and pool at least 1, not {self}")


@dataclass(frozen=True)
class SteerState:
    """clip: where the clips stand.   stream: the generator's cache and keys.   age: [N], chunks since the prompt
    changed.   evaluations: [N], passes that the newest chunk cost.   action: [N, K + 3], the newest, zeros at first."""

    clip: ClipState
    stream: StreamState
    age: Tensor
    evaluations: Tensor
    action: Tensor

    def __len__(self) -> int:
        return len(self.age)

    def take(self, rows: Tensor) -> SteerState:
        """The streams at rows [M] (int64), in that order; a row may occur several times (a fork)."""
        rows = rows.to(self.age.device)
        return SteerState(
            self.clip.take(rows), self.stream.take(rows), self.age[rows], self.evaluations[rows], self.action[rows]
        )


class StreamSteerVectorEnv(TensorVectorEnv[SteerState]):
    """N streams in lockstep of one frozen generator; the environment owns its cache.

    Action [N, K + 3], each number in [-1, 1]:
        0 .. K - 1: leads of the next chunk's noise along the K smoothest directions (models.steering.led_noise); 0
            leaves a component to chance.
        K, guidance: up to 0 none; above, its weight rises from 1 to 1 + settings.guidance, and predictions cost twice.
        K + 1, steps: the range is cut into S equal parts, for 1 to S predictions.
        K + 2, past: cut into as many parts as there are chunks that the cache may hold, for 1 to all of them read.

    Observation [N, M], one flat Box: `columns` says which columns are what. Reward [N]: that of the window which ends
    with the chunk, less `settings.price` for each pass that the chunk took (the one that writes the cache included);
    both over n. All streams end together after n chunks, terminated. Randomness: which prompts are drawn, and each
    stream's key, from which all its noise follows. `info`: `text`, and `evaluations` [N] of the newest chunk.

    Args:
        num_envs: N.
        codec, reward, prompts, layout: as in StreamGenVectorEnv.
        generator: what is steered; its parameters are not changed.
        settings: what an agent may do and pays.
        others: autoreset_mode, render_mode and check, see TensorVectorEnv.
    """

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"scripts", "keys", "reset_mask"})

    def __init__(
        self,
        num_envs: int,
        codec: Codec,
        reward: Reward,
        prompts: PromptSampler,
        generator: Generator,
        *,
        layout: ChunkLayout = TINY_LAYOUT,
        settings: SteerSettings | None = None,
        device: torch.device | str = "cpu",
        **others: Any,
    ) -> None:
        self.settings = settings or SteerSettings()
        self.clips = Clips(codec, reward, prompts, layout, torch.device(device), others.get("check"))
        self.generator, self.layout = generator, layout
        shape = (generator.frames_per_chunk, *generator.latent_shape)
        if shape != (layout.frames_per_chunk, *self.clips.latent):
            found = (layout.frames_per_chunk, *self.clips.latent)
            raise ValueError(f"the generator makes chunks of {shape}, layout and codec of {found}")
        self.basis = noise_basis(self.settings.directions, shape).to(device)
        window = generator.model.cache_config.window_frames
        held = layout.clip_frames if window < 0 else min(window, layout.clip_frames)
        self.most_past = max(1, held // layout.frames_per_chunk - 1)
        size = self.settings.directions + 3
        self.columns = self._columns(size)
        observed = Box(-LIMIT, LIMIT, (max(part.stop for part in self.columns.values()),), np.float32)
        super().__init__(num_envs, observed, Box(-1.0, 1.0, (size,), np.float32), device=device, **others)

    def _columns(self, size: int) -> dict[str, slice]:
        """latents: the newest chunk's first and last frame, averaged to pool x pool cells. prompt: of the chunk to
        come, its embedding's mean over words. position: one-hot, chunks done. age: chunks since the prompt
        changed, over n; 0 where it has just changed. scores: of the newest window. action: the newest."""
        sizes = {
            "latents": 2 * self.clips.latent[0] * self.settings.pool**2,
            "prompt": self.clips.prompt_shape[-1],
            "position": self.layout.chunks + 1,
            "age": 1,
            "scores": len(self.clips.axes),
            "action": size,
        }
        ends = np.cumsum(list(sizes.values())).tolist()
        return {name: slice(end - width, end) for (name, width), end in zip(sizes.items(), ends, strict=True)}

    def steering(self, actions: Tensor) -> tuple[Tensor, Steering]:
        """What actions [N, K + 3] mean: leads of the noise [N, K], and the steering."""
        leads, (guidance, steps, past) = actions[:, :-3], actions[:, -3:].unbind(1)
        weight = 1 + self.settings.guidance * guidance.clamp(0, 1)
        chosen = Steering(
            1 + _part(steps, len(self.generator.sigmas)),
            (1 + _part(past, self.most_past)) * self.layout.frames_per_chunk,
            weight,
        )
        return leads.clamp(-1, 1), chosen

    def _terminal(self, state: SteerState) -> bool:
        return self.clips.over(state.clip)

    @torch.no_grad()
    def _initial(self, options: dict[str, Any]) -> SteerState:
        clip = self.clips.begin(self.num_envs, self.np_random, options.get("scripts"))
        stream = StreamState.start(self._keys(options))
        if clip.position:  # what the world gives, the generator has to have read
            embeds = torch.stack([prompts.embeds for prompts in clip.prompts], 1)
            given = clip.latents[:, -clip.position * self.layout.frames_per_chunk :]
            stream = prefill(self.generator, stream, given, embeds)
        zeros = age = torch.zeros(self.num_envs, device=self.device)
        for old, new in pairwise(clip.prompts[: clip.position + 1]):
            age = _older(age, old.embeds, new.embeds)
        action = torch.zeros(self.num_envs, self.settings.directions + 3, device=self.device)
        return SteerState(clip, stream, age, zeros, action)

    def _transition(self, state: SteerState, actions: Tensor) -> tuple[SteerState, Tensor, bool]:
        leads, steering = self.steering(actions)
        keys, chunk = state.stream.keys, state.stream.chunk
        shape = (self.layout.frames_per_chunk, *self.clips.latent)
        noise = torch.stack([normal(keys, chunk, step, shape) for step in range(len(self.generator.sigmas))], 1)
        noise = led_noise(noise, self.basis, leads, self.settings.reach)
        x0, stream = steered_chunk(self.generator, state.stream, state.clip.prompt.embeds, noise, steering)
        clip, quality = self.clips.score(self.clips.append(state.clip, x0))
        age = _older(state.age, state.clip.prompt.embeds, clip.prompt.embeds)
        evaluations = steering.evaluations.float()
        reward = quality - self.settings.price * evaluations / self.layout.chunks
        return SteerState(clip, stream, age, evaluations, actions.clone()), reward, self.clips.over(clip)

    def _observation(self, state: SteerState) -> Tensor:
        clip = state.clip
        newest = clip.latents[:, -self.layout.frames_per_chunk :]
        ends = torch.stack((newest[:, 0], newest[:, -1]), 1).flatten(1, 2)
        position = torch.zeros(self.num_envs, self.layout.chunks + 1, device=self.device)
        position[:, clip.position] = 1
        parts = (
            adaptive_avg_pool2d(ends, self.settings.pool).flatten(1),
            clip.prompt.embeds.mean(1),
            position,
            state.age[:, None] / self.layout.chunks,
            clip.scores,
            state.action,
        )
        return torch.cat(parts, 1)

    def _view(self, state: SteerState) -> View:
        leads, steering = self.steering(state.action)
        columns = (state.evaluations, steering.steps, steering.past, steering.guidance, leads)
        notes = [_note(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
        return replace(self.clips.view(state.clip), notes=tuple(zip(*notes, strict=True)))

    def _state_info(self, state: SteerState) -> dict[str, Any]:
        everyone = np.ones(self.num_envs, dtype=bool)
        return {**self.clips.info(state.clip), "evaluations": state.evaluations.clone(), "_evaluations": everyone}


def _older(age: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """age [N] a chunk later: 0 where the prompts, embeddings [N, L, D], have changed."""
    return torch.where((before == after).flatten(1).all(1), age + 1, 0)


def _part(values: Tensor, parts: int) -> Tensor:
    """The part, 0 to parts - 1, of [-1, 1] cut evenly, that each value lies in."""
    return ((values + 1) / 2 * parts).long().clamp(0, parts - 1)


def _note(evaluations: float, steps: int, past: int, guidance: float, leads: list[float]) -> tuple[str, str]:
    """Two lines on how a chunk was steered; empty before the first."""
    if not evaluations:
        return "", ""
    how = f"{evaluations:.0f} passes: {steps} steps, past {past}, guidance {guidance:.2f}"
    return how, " ".join(("noise led by", *(f"{lead:+.2f}" for lead in leads)))


def make(
    stack: Source = "tiny", num_envs: int = 1, *, generator: Generator | None = None, **options: Any
) -> StreamSteerVectorEnv:
    """N streams over a stack. generator: by default the stack's student, frozen. options: those of `clip_parts`,
    settings, autoreset_mode, render_mode, check and device."""
    loaded, clip, others = opened(stack, options, clip_parts, StreamSteerVectorEnv)
    parts = clip_parts(loaded, **clip)
    steered = build_generator(loaded.generator.model, parts["codec"]) if generator is None else generator
    return StreamSteerVectorEnv(num_envs, **parts, generator=steered, **others)


make_single = single(make)
