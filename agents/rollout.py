"""Rollouts of a streaming generator through the environment.

B streams, n chunks, f latent frames a chunk, S denoising steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..envs.prompt_source import Texts
from ..envs.stream_gen import StreamGenVectorEnv
from ..models.generator import Generator, StreamState, Transition, generate_chunk, read_chunk
from ..models.sampler import x0_from_v
from ..models.wan import CausalWan


class GeneratorPolicy:
    """A generator as a policy: observations in, chunks out; it owns the cache of its streams (contract 4).

    generator: what acts. grad: whether the exit step of each chunk carries a gradient. exit_step: the denoising step
    whose prediction is the chunk; None for the last. transitions: S of them, of the newest chunk.
    """

    def __init__(self, generator: Generator, *, grad: bool = False, exit_step: int | None = None) -> None:
        self.generator, self.grad, self.exit_step = generator, grad, exit_step
        self.state: StreamState | None = None
        self.transitions: tuple[Transition, ...] = ()

    def reset(self, keys: Tensor) -> None:
        """Begin streams whose noise is a function of keys int64 [B]."""
        self.state, self.transitions = StreamState.start(keys), ()

    def act(self, observation: dict[str, Tensor]) -> Tensor:
        """The next chunk [B, f, C, h, w] for the prompts of StreamGen's observation.

        At the first call, chunks that the clips have already are read, as far back as the window shows them; the
        prompt at hand stands for theirs.
        """
        if self.state is None:
            raise ValueError("call reset(keys) before act")
        if self.state.chunk == 0:
            self.state = self._opened(self.state, observation)
        chunk, self.transitions, self.state = generate_chunk(
            self.generator, self.state, observation["prompt"], exit_step=self.exit_step, grad=self.grad
        )
        return chunk

    def _opened(self, state: StreamState, observation: dict[str, Tensor]) -> StreamState:
        done, frames = int(observation["position"][0]), self.generator.frames_per_chunk
        latents = observation["latents"]
        seen = min(done, latents.shape[1] // frames)
        state = replace(state, chunk=done - seen)
        for chunk in latents[:, latents.shape[1] - seen * frames :].split(frames, 1) if seen else ():
            state = read_chunk(self.generator, state, chunk, observation["prompt"])
        return state

    def take(self, rows: Tensor) -> GeneratorPolicy:
        """A policy whose streams continue this one's at rows [M] (int64)."""
        branch = GeneratorPolicy(self.generator, grad=self.grad, exit_step=self.exit_step)
        branch.state = None if self.state is None else self.state.take(rows)
        return branch


@dataclass(frozen=True)
class Rollout:
    """One clip of every stream.

    latents: [B, n * f, C, h, w], with the policy's gradient if it keeps one.   rewards: [B, n].
    embeds: prompts [B, n, L, D].   texts: B rows of n.   transitions: per chunk, S of them, detached.
    """

    latents: Tensor
    rewards: Tensor
    embeds: Tensor
    texts: Texts
    transitions: tuple[tuple[Transition, ...], ...]


def rollout(env: StreamGenVectorEnv, policy: GeneratorPolicy, keys: Tensor, texts: Sequence[Sequence[str]]) -> Rollout:
    """Play one clip per row of texts (n prompts each); keys int64 [B] decide the noise."""
    observation, _ = env.reset(options={"scripts": texts})
    policy.reset(keys)
    state = env.state
    chunks, rewards, transitions = [], [], []
    for _ in range(env.clock.chunks):
        chunk = policy.act(observation)
        observation, reward, _, _, _ = env.step(chunk.detach())
        chunks.append(chunk)
        rewards.append(reward)
        transitions.append(policy.transitions)
    embeds = torch.stack([batch.embeds for batch in state.prompts], 1)
    return Rollout(torch.cat(chunks, 1), torch.stack(rewards, 1), embeds, state.texts, tuple(transitions))


@dataclass(frozen=True)
class Choice:
    """One denoising step of a chunk per stream: x, x_next, x0 [B, f, C, h, w] at levels sigma, next_sigma [B]."""

    x: Tensor
    sigma: Tensor
    x_next: Tensor
    next_sigma: Tensor
    x0: Tensor

    def take(self, rows: Tensor) -> Choice:
        """The streams at rows [M] (int64)."""
        return Choice(*(value[rows] for value in (self.x, self.sigma, self.x_next, self.next_sigma, self.x0)))


def chosen(transitions: Sequence[Transition], pick: Tensor) -> Choice:
    """The transition that pick [B] names for each stream."""
    rows = torch.arange(len(pick), device=pick.device)
    x, x_next, x0 = (torch.stack([getattr(t, name) for t in transitions])[pick, rows] for name in ("x", "x_next", "x0"))
    sigma, next_sigma = (pick.new_tensor([getattr(t, name) for t in transitions], dtype=torch.float32)[pick]
                         for name in ("sigma", "next_sigma"))  # fmt: skip
    return Choice(x, sigma, x_next, next_sigma, x0)


@torch.no_grad()
def predictions(model: CausalWan, choices: Sequence[Choice], latents: Tensor, embeds: Tensor) -> list[Tensor]:
    """What `model` predicts at each chunk's chosen step, given the clean chunks [B, n * f, C, h, w] before it."""
    cache, found = None, []
    for choice, chunk, prompt in zip(choices, latents.chunk(len(choices), 1), embeds.unbind(1), strict=True):
        found.append(x0_from_v(choice.x, model(choice.x, choice.sigma, prompt, cache=cache), choice.sigma))
        cache = model.write(chunk, prompt, cache) if len(found) < len(choices) else None
    return found
