"""Rollouts of a streaming generator through the environment, with prefixes of their own or shared by a group.

B streams in runs of G that share a prompt (a group), n chunks a clip, f latent frames a chunk, S denoising steps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..envs.clips import SCORES, ClipState
from ..envs.prompt_source import Texts
from ..envs.streaming import StreamingEnv
from ..models.generator import DenoisingStep, Fork, Generator, StreamState, at_prompt, denoise_chunk, update_cache
from ..models.sampler import Kernel
from ..noise import Domain, uniform

_Observation = Mapping[str, Tensor]
"""An observation of StreamGen."""
Prefix = Literal["own", "local", "full"]
"""Where draws about forks lie among the noise of a stream: no clip has so many chunks."""


class GeneratorPolicy:
    """A generator as a policy: observations in, chunks out; it owns the cache of its streams.

    generator: what acts. grad: whether the last step of each chunk carries a gradient. denoising_steps: S of them, of
    the newest chunk.
    """

    def __init__(self, generator: Generator, *, grad: bool = False) -> None:
        self.generator, self.grad = generator, grad
        self.state: StreamState | None = None
        self.denoising_steps: tuple[DenoisingStep, ...] = ()

    def reset(self, keys: Tensor) -> None:
        """Begin streams whose noise is a function of keys int64 [B]."""
        self.state, self.denoising_steps = StreamState.start(keys), ()

    def act(self, observation: _Observation) -> Tensor:
        """The next chunk [B, f, C, h, w] for the prompts of StreamGen's observation."""
        chunk = self.propose(observation)
        self.update_cache(chunk, observation)
        return chunk

    def propose(self, observation: _Observation, fork: Fork | None = None) -> Tensor:
        """A next chunk that the streams do not go on from yet: `update_cache` does that. With a fork, M chunks.

        Before the first, chunks that the clips have already are read, as far back as the window shows them; the prompt
        at hand stands for theirs.
        """
        state = self._state()
        if state.chunk == 0:
            state = self._opened(state, observation)
        self.state = state = at_prompt(self.generator, state, observation["prompt"])
        chunk, self.denoising_steps = denoise_chunk(
            self.generator, state, observation["prompt"], grad=self.grad, fork=fork
        )
        return chunk

    def update_cache(self, chunk: Tensor, observation: _Observation) -> None:
        """Go on from this chunk [B, f, C, h, w]."""
        self.state = update_cache(self.generator, self._state(), chunk.detach(), observation["prompt"])

    def _state(self) -> StreamState:
        if self.state is None:
            raise ValueError("call reset(keys) before act")
        return self.state

    def _opened(self, state: StreamState, observation: _Observation) -> StreamState:
        done, frames = int(observation["position"][0]), self.generator.frames_per_chunk
        latents = observation["latents"]
        seen = min(done, latents.shape[1] // frames)
        state = replace(state, chunk=done - seen)
        for chunk in latents[:, latents.shape[1] - seen * frames :].split(frames, 1) if seen else ():
            state = update_cache(self.generator, state, chunk, observation["prompt"])
        return state

    def take(self, rows: Tensor) -> GeneratorPolicy:
        """A policy whose streams continue this one's at rows [M] (int64), with the same noise to come."""
        branch = GeneratorPolicy(self.generator, grad=self.grad)
        branch.state = None if self.state is None else self.state.take(rows)
        return branch


@dataclass(frozen=True)
class RolloutStep:
    """One chunk of every stream, and what it followed.

    number: of the chunk, from 0.   observation, next_observation: what the policy saw before it and after it.
    past: the clean chunks before it [B, number * f, C, h, w].   chunk: [B, f, C, h, w], with the policy's gradient if
    it keeps one.   denoising_steps: S of them, detached.   reward: [B], of the window that ends with it, and weight:
    what the chunk's elements weigh in that window, perplexity [B, f, 1, h, w], where they were asked for.
    """

    number: int
    observation: _Observation
    next_observation: _Observation
    past: Tensor
    chunk: Tensor
    denoising_steps: tuple[DenoisingStep, ...]
    reward: Tensor
    weight: Tensor | float = 1.0


@dataclass(frozen=True)
class Rollout:
    """The chunks that a policy made and is to be credited with, in order; they end with the clip.

    steps: n of them, fewer where a shared opening earns no credit.   embeds: prompts [B, n, L, D], texts: B rows of n.
    prefix: "own": row i of a step goes on where row i of the step before ended. "local": it goes on where some row of
    its group did. "full": as "own", after an opening that its group shares.   chunks: that were generated.   calls: of
    the generator for them, a call being one chunk of one stream through the network.   scored: windows, by the reward.
    """

    steps: tuple[RolloutStep, ...]
    embeds: Tensor
    texts: Texts
    prefix: Prefix
    chunks: int
    calls: int
    scored: int
    group: int = 1
    shared_steps: int = 0

    @property
    def rewards(self) -> Tensor:
        """[B, steps]."""
        return torch.stack([step.reward for step in self.steps], 1)

    @property
    def latents(self) -> Tensor:
        """The clips that the streams ended as [B, n * f, C, h, w], with gradient where the chunks carry one and no
        prefix was shared."""
        chunks = [step.chunk for step in self.steps]
        return torch.cat(chunks if self.prefix == "own" else (self.steps[-1].past, chunks[-1]), 1)


def share(played: Rollout, place: int) -> float:
    """What the rollout's step at that place weighs; all chunks of a clip the same, on the average over rollouts.

    Behind a shared opening, of 0 to n - 1 chunks alike often, chunk k is there in (k + 1) of n rollouts.
    """
    return 1 / (played.steps[place].number + 1) if played.prefix == "full" else 1 / len(played.steps)


@dataclass(frozen=True)
class RolloutState:
    """Where R streams stand: in the environment; their clean chunks past [R, k * f, C, h, w]; what is seen of them."""

    env: ClipState
    past: Tensor
    observation: _Observation

    def take(self, rows: Tensor) -> RolloutState:
        """The streams at rows [M] (int64), in that order; a row may occur several times (a fork)."""
        seen = {name: value[rows] for name, value in self.observation.items()}
        return RolloutState(self.env.take(rows), self.past[rows], seen)


def rollout(
    env: StreamingEnv,
    policy: GeneratorPolicy,
    keys: Tensor,
    texts: Sequence[Sequence[str]],
    group: int = 1,
    prefix: Prefix = "own",
    shared_steps: int = 0,
    need: Collection[str] = SCORES,
    first_key: Tensor | None = None,
) -> Rollout:
    """Play one clip per row of texts (n prompts each); keys int64 [B] decide the noise, and where prefixes are shared.

    prefix "local": after each chunk one stream of every group is drawn at random, evenly, and the whole group goes on
    from there. Every stream alone is then still a draw from the policy, and the continuations of a group differ in
    nothing but the noise of one chunk; of its first `shared_steps` denoising steps they share that too, which are then
    computed once. "full": the first chunks of a clip, 0 to n - 1 of them as one draw decides, are made once for a
    group, and its continuations go on to the end each by itself; first_key [1] decides, the first of keys by default.
    need: what is asked of the reward, see ClipState.
    """
    if len(keys) % group:
        raise ValueError(f"{len(keys)} streams are not whole groups of {group}")
    observation, _ = env.reset(options={"scripts": texts, "need": need})
    begun, chunks = env.state, env.layout.chunks
    first = (
        int(uniform(keys[:1] if first_key is None else first_key, Domain.FORK, 0, ()) * chunks)
        if prefix == "full"
        else 0
    )
    worker = _RolloutWorker(env, policy, keys, group, shared_steps if prefix == "local" else None)
    state = worker.begin(RolloutState(begun, begun.latents[:, :0], observation), first)
    steps = []
    for number in range(first, chunks):
        step, after = worker.step(state, number)
        steps.append(step)
        if number + 1 < chunks:
            state = worker.read(step, state, after)
    embeds = torch.stack([batch.embeds for batch in begun.prompts], 1)
    spent = (worker.chunks, worker.calls, worker.chunks if need else 0)
    return Rollout(tuple(steps), embeds, begun.texts, prefix, *spent, group, shared_steps)


class _RolloutWorker:
    """Environment and policy together, with what they have made; a group is led by its first row.

    shared_steps: where the continuations of a group fork, which then has one state; None: every row has its own.
    """

    def __init__(
        self, env: StreamingEnv, policy: GeneratorPolicy, keys: Tensor, group: int, shared_steps: int | None
    ) -> None:
        self.env, self.policy, self.keys, self.group = env, policy, keys, group
        rows = torch.arange(len(keys), device=keys.device)
        self.leaders, self.leader_of = rows[::group], rows // group
        self.fork = None if shared_steps is None else Fork(shared_steps, self.leader_of, keys)
        self.chunks = self.calls = 0

    def begin(self, state: RolloutState, opening: int) -> RolloutState:
        """Streams before their first chunk; or after so many, made once per group, with noise of their own to come."""
        if self.fork is None and not opening:
            self.policy.reset(self.keys)
            return state
        self.policy.reset(self.keys[self.leaders])
        state = state.take(self.leaders)
        if self.fork is not None:
            return state
        env, self.env = self.env, self.env.fork(self.leaders)
        for number in range(opening):
            step, after = self.step(state, number)
            state = self.read(step, state, after)
        self.env, streams = env, self.policy.take(self.leader_of).state
        assert streams is not None
        self.policy.state = replace(streams, keys=self.keys)
        return state.take(self.leader_of)

    def step(self, state: RolloutState, number: int) -> tuple[RolloutStep, RolloutState]:
        """The next chunk of every stream, or of all continuations, and where these are with it."""
        steps, shared, streams = len(self.policy.generator.sigmas), 0, len(state.past)
        chunk = self.policy.propose(state.observation, self.fork)
        if self.fork is not None:
            state, shared = state.take(self.fork.rows), self.fork.step
        self.env.state = state.env
        seen, reward, _, _, info = self.env.step(chunk.detach())
        seen, info = info.get("final_obs", seen), info.get("final_info", info)
        weight = info["perplexity"][:, :, None] if "perplexity" in info else 1.0
        self.chunks += len(chunk)
        self.calls += streams * shared + len(chunk) * (steps - shared)
        denoising_steps = self.policy.denoising_steps
        step = RolloutStep(number, state.observation, seen, state.past, chunk, denoising_steps, reward, weight)
        return step, RolloutState(self.env.state, torch.cat((state.past, chunk.detach()), 1), seen)

    def read(self, step: RolloutStep, before: RolloutState, after: RolloutState) -> RolloutState:
        """The policy goes on: from every chunk, or from that of one continuation, drawn from each group."""
        chunk = step.chunk
        if self.fork is not None:
            draws = uniform(self.keys[self.leaders], Domain.FORK, step.number, ())
            rows = self.leaders + (draws * self.group).long().clamp_max(self.group - 1)
            chunk, after = chunk[rows], after.take(rows)
        self.policy.update_cache(chunk, before.observation)
        self.calls += len(chunk)
        return after


@dataclass(frozen=True)
class GatheredStep:
    """One denoising step of a chunk per stream: x, x_next, x0 [B, f, C, h, w], from sigma [B] by a kernel."""

    x: Tensor
    sigma: Tensor
    x_next: Tensor
    x0: Tensor
    kernel: Kernel


def gather_steps(denoising_steps: Sequence[DenoisingStep], pick: Tensor) -> GatheredStep:
    """The denoising step that pick [B] names for each stream."""
    rows = torch.arange(len(pick), device=pick.device)
    x, x_next, x0 = (
        torch.stack([getattr(t, name).detach() for t in denoising_steps])[pick, rows] for name in ("x", "x_next", "x0")
    )

    def column(values: list[float | Tensor]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=pick.device)[pick]

    kernels = [t.kernel for t in denoising_steps]
    kernel = Kernel(*(column([getattr(k, name) for k in kernels]) for name in ("keep", "pull", "std")))
    return GatheredStep(x, column([t.sigma for t in denoising_steps]), x_next, x0, kernel)
