"""Rollouts of a streaming generator through the environment, with prefixes of their own or shared by a group.

B streams in runs of G that share a prompt (a group), n chunks a clip, f latent frames a chunk, S denoising steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..envs.prompt_source import Texts
from ..envs.stream_gen import StreamGenVectorEnv
from ..models.generator import Generator, StreamState, Transition, generate_chunk, read_chunk
from ..models.sampler import Kernel, x0_from_v
from ..models.wan import CausalWan
from ..noise import fold, uniform

Seen = Mapping[str, Tensor]
"""An observation of StreamGen."""
Prefix = Literal["own", "local", "full"]
FORK = 2**20
"""Where draws about forks lie among the noise of a stream: no clip has so many chunks."""


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

    def act(self, observation: Seen) -> Tensor:
        """The next chunk [B, f, C, h, w] for the prompts of StreamGen's observation.

        At the first call, chunks that the clips have already are read, as far back as the window shows them; the
        prompt at hand stands for theirs.
        """
        state = self._state()
        if state.chunk == 0:
            state = self._opened(state, observation)
        chunk, self.transitions, self.state = generate_chunk(
            self.generator, state, observation["prompt"], exit_step=self.exit_step, grad=self.grad
        )
        return chunk

    def _state(self) -> StreamState:
        if self.state is None:
            raise ValueError("call reset(keys) before act")
        return self.state

    def _opened(self, state: StreamState, observation: Seen) -> StreamState:
        done, frames = int(observation["position"][0]), self.generator.frames_per_chunk
        latents = observation["latents"]
        seen = min(done, latents.shape[1] // frames)
        state = replace(state, chunk=done - seen)
        for chunk in latents[:, latents.shape[1] - seen * frames :].split(frames, 1) if seen else ():
            state = read_chunk(self.generator, state, chunk, observation["prompt"])
        return state

    def take(self, rows: Tensor) -> GeneratorPolicy:
        """A policy whose streams continue this one's at rows [M] (int64), with the same noise to come."""
        branch = GeneratorPolicy(self.generator, grad=self.grad, exit_step=self.exit_step)
        branch.state = None if self.state is None else self.state.take(rows)
        return branch

    def fork(self, rows: Tensor) -> GeneratorPolicy:
        """`take`, each stream with noise of its own from now on, so that a repeated row branches."""
        branch = self.take(rows)
        state = branch._state()
        branch.state = replace(state, keys=fold(state.keys, torch.arange(len(rows), device=rows.device)))
        return branch


@dataclass(frozen=True)
class Turn:
    """One chunk of every stream, and what it followed.

    number: of the chunk, from 0.   seen, after: what the policy saw before it and after it.
    past: the clean chunks before it [B, number * f, C, h, w].   chunk: [B, f, C, h, w], with the policy's gradient if
    it keeps one.   transitions: S of them, detached.   reward: [B], of the window that ends with it.
    """

    number: int
    seen: Seen
    after: Seen
    past: Tensor
    chunk: Tensor
    transitions: tuple[Transition, ...]
    reward: Tensor


@dataclass(frozen=True)
class Rollout:
    """The chunks that a policy made and is to be credited with, in order; they end with the clip.

    turns: n of them, fewer where a shared opening earns no credit.   embeds: prompts [B, n, L, D], texts: B rows of n.
    prefix: "own": row i of a turn goes on where row i of the turn before ended. "local": it goes on where some row of
    its group did. "full": as "own", after an opening that its group shares.   chunks: that were generated and scored.
    """

    turns: tuple[Turn, ...]
    embeds: Tensor
    texts: Texts
    prefix: Prefix
    chunks: int

    @property
    def rewards(self) -> Tensor:
        """[B, turns]."""
        return torch.stack([turn.reward for turn in self.turns], 1)

    @property
    def latents(self) -> Tensor:
        """The clips that the streams ended as [B, n * f, C, h, w], with gradient where the chunks carry one and no
        prefix was shared."""
        chunks = [turn.chunk for turn in self.turns]
        return torch.cat(chunks if self.prefix == "own" else (self.turns[-1].past, chunks[-1]), 1)


def rollout(
    env: StreamGenVectorEnv,
    policy: GeneratorPolicy,
    keys: Tensor,
    texts: Sequence[Sequence[str]],
    group: int = 1,
    prefix: Prefix = "own",
) -> Rollout:
    """Play one clip per row of texts (n prompts each); keys int64 [B] decide the noise, and where prefixes are shared.

    prefix "local": after each chunk one stream of every group is drawn at random, evenly, and the whole group goes on
    from there. Every stream alone is then still a draw from the policy, and the continuations of a group differ in
    nothing but the noise of one chunk. "full": the first chunks of a clip, 0 to n - 1 of them as one draw decides, are
    made once for a group, and its continuations go on to the end each by itself.
    """
    if len(keys) % group:
        raise ValueError(f"{len(keys)} streams are not whole groups of {group}")
    observation: Seen = env.reset(options={"scripts": texts})[0]
    state, count = env.state, env.clock.chunks
    embeds = torch.stack([batch.embeds for batch in state.prompts], 1)
    policy.reset(keys)
    past, made, first = state.latents[:, :0], 0, 0
    if prefix == "full":
        first = int(uniform(keys[:1], FORK, 0, ()) * count)
        observation, past = _opening(env, policy, observation, group, first)
        made = first * (len(keys) // group)
    turns: list[Turn] = []
    for number in range(first, count):
        if prefix == "local" and turns:
            rows = _survivors(keys, group, number)
            env.state, policy, past = env.state.take(rows), policy.fork(rows), past[rows]
            observation = {name: value[rows] for name, value in observation.items()}
        chunk = policy.act(observation)
        after, reward, _, _, info = env.step(chunk.detach())
        seen, observation = observation, info["final_obs"] if "final_obs" in info else after
        turns.append(Turn(number, seen, observation, past, chunk, policy.transitions, reward))
        past = torch.cat((past, chunk.detach()), 1)
    return Rollout(tuple(turns), embeds, state.texts, prefix, made + len(turns) * len(keys))


def _opening(
    env: StreamGenVectorEnv, policy: GeneratorPolicy, observation: Seen, group: int, chunks: int
) -> tuple[Seen, Tensor]:
    """Make so many chunks once per group; env and policy then stand after them, with all their rows."""
    rows = torch.arange(env.num_envs, device=env.device)
    leaders = rows[::group]
    one, lead = env.fork(leaders), policy.take(leaders)
    seen = {name: value[leaders] for name, value in observation.items()}
    past = env.state.latents[leaders, :0]
    for _ in range(chunks):
        chunk = lead.act(seen).detach()
        seen, *_ = one.step(chunk)
        past = torch.cat((past, chunk), 1)
    back = rows // group
    env.state, policy.state = one.state.take(back), lead.fork(back).state
    return {name: value[back] for name, value in seen.items()}, past[back]


def _survivors(keys: Tensor, group: int, number: int) -> Tensor:
    """For every row the row that its group goes on from, drawn evenly; int64 [B]."""
    rows = torch.arange(len(keys), device=keys.device)
    drawn = (uniform(keys[::group], FORK, number, ()) * group).long().clamp_max(group - 1)
    return rows - rows % group + drawn[rows // group]


@dataclass(frozen=True)
class Choice:
    """One denoising step of a chunk per stream: x, x_next, x0 [B, f, C, h, w], from sigma [B] by a kernel."""

    x: Tensor
    sigma: Tensor
    x_next: Tensor
    x0: Tensor
    kernel: Kernel


def chosen(transitions: Sequence[Transition], pick: Tensor) -> Choice:
    """The transition that pick [B] names for each stream."""
    rows = torch.arange(len(pick), device=pick.device)
    x, x_next, x0 = (
        torch.stack([getattr(t, name).detach() for t in transitions])[pick, rows] for name in ("x", "x_next", "x0")
    )

    def column(values: list[float | Tensor]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=pick.device)[pick]

    kernels = [t.kernel for t in transitions]
    kernel = Kernel(*(column([getattr(k, name) for k in kernels]) for name in ("keep", "pull", "std")))
    return Choice(x, column([t.sigma for t in transitions]), x_next, x0, kernel)


@torch.no_grad()
def prediction(model: CausalWan, x: Tensor, sigma: Tensor, past: Tensor, embeds: Tensor) -> Tensor:
    """What `model` predicts at x [B, f, C, h, w] of level sigma [B] after the clean chunks past [B, k * f, C, h, w].

    embeds [B, n, L, D], n > k. Its cache is made here: another model's would not be its own.
    """
    cache = None
    for number, chunk in enumerate(past.split(x.shape[1], 1) if past.shape[1] else ()):
        cache = model.write(chunk, embeds[:, number], cache)
    return x0_from_v(x, model(x, sigma, embeds[:, past.shape[1] // x.shape[1]], cache=cache), sigma)
