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
from ..models.generator import Fork, Generator, StreamState, Transition, at_prompt, denoise_chunk, read_chunk
from ..models.sampler import Kernel
from ..noise import uniform

Seen = Mapping[str, Tensor]
"""An observation of StreamGen."""
Prefix = Literal["own", "local", "full"]
FORK_DRAWS = 2**20
"""Where draws about forks lie among the noise of a stream: no clip has so many chunks."""


class GeneratorPolicy:
    """A generator as a policy: observations in, chunks out; it owns the cache of its streams.

    generator: what acts. grad: whether the last step of each chunk carries a gradient. transitions: S of them, of the
    newest chunk.
    """

    def __init__(self, generator: Generator, *, grad: bool = False) -> None:
        self.generator, self.grad = generator, grad
        self.state: StreamState | None = None
        self.transitions: tuple[Transition, ...] = ()

    def reset(self, keys: Tensor) -> None:
        """Begin streams whose noise is a function of keys int64 [B]."""
        self.state, self.transitions = StreamState.start(keys), ()

    def act(self, observation: Seen) -> Tensor:
        """The next chunk [B, f, C, h, w] for the prompts of StreamGen's observation."""
        chunk = self.propose(observation)
        self.read(chunk, observation)
        return chunk

    def propose(self, observation: Seen, fork: Fork | None = None) -> Tensor:
        """A next chunk that the streams do not go on from yet: `read` does that. With a fork, M chunks.

        Before the first, chunks that the clips have already are read, as far back as the window shows them; the prompt
        at hand stands for theirs.
        """
        state = self._state()
        if state.chunk == 0:
            state = self._opened(state, observation)
        self.state = state = at_prompt(self.generator, state, observation["prompt"])
        chunk, self.transitions = denoise_chunk(self.generator, state, observation["prompt"], grad=self.grad, fork=fork)
        return chunk

    def read(self, chunk: Tensor, observation: Seen) -> None:
        """Go on from this chunk [B, f, C, h, w]."""
        self.state = read_chunk(self.generator, self._state(), chunk.detach(), observation["prompt"])

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
        branch = GeneratorPolicy(self.generator, grad=self.grad)
        branch.state = None if self.state is None else self.state.take(rows)
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
    its group did. "full": as "own", after an opening that its group shares.   chunks: that were generated.   calls: of
    the generator for them, a call being one chunk of one stream through the network.
    """

    turns: tuple[Turn, ...]
    embeds: Tensor
    texts: Texts
    prefix: Prefix
    chunks: int
    calls: int
    group: int = 1
    shared_steps: int = 0

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
    shared_steps: int = 0,
) -> Rollout:
    """Play one clip per row of texts (n prompts each); keys int64 [B] decide the noise, and where prefixes are shared.

    prefix "local": after each chunk one stream of every group is drawn at random, evenly, and the whole group goes on
    from there. Every stream alone is then still a draw from the policy, and the continuations of a group differ in
    nothing but the noise of one chunk; of its first `shared_steps` denoising steps they share that too, which are then
    computed once. "full": the first chunks of a clip, 0 to n - 1 of them as one draw decides, are made once for a
    group, and its continuations go on to the end each by itself.
    """
    if len(keys) % group:
        raise ValueError(f"{len(keys)} streams are not whole groups of {group}")
    seen: Seen = env.reset(options={"scripts": texts})[0]
    game = _Game(env, policy, keys, group, env.state.latents[:, :0], seen)
    state = env.state
    embeds = torch.stack([batch.embeds for batch in state.prompts], 1)
    first = int(uniform(keys[:1], FORK_DRAWS, 0, ()) * env.clock.chunks) if prefix == "full" else 0
    if prefix == "local":
        policy.reset(keys[::group])
        turns = [game.branch(number, shared_steps) for number in range(env.clock.chunks)]
    else:
        game.open(first)
        turns = [game.go(number) for number in range(first, env.clock.chunks)]
    return Rollout(tuple(turns), embeds, state.texts, prefix, game.chunks, game.calls, group, shared_steps)


class _Game:
    """Where a rollout stands: environment, policy, the clean chunks so far [B, k * f, C, h, w], what is seen."""

    def __init__(
        self, env: StreamGenVectorEnv, policy: GeneratorPolicy, keys: Tensor, group: int, past: Tensor, seen: Seen
    ) -> None:
        self.env, self.policy, self.keys, self.group, self.past, self.seen = env, policy, keys, group, past, seen
        self.steps = len(policy.generator.sigmas)
        rows = torch.arange(len(keys), device=keys.device)
        self.leaders, self.leader_of = rows[::group], rows // group
        self.chunks = self.calls = 0

    def open(self, chunks: int) -> None:
        """So many chunks, made once per group; then all rows go on from there, each with its own noise."""
        if not chunks:
            self.policy.reset(self.keys)
            return
        env, leaders = self.env.fork(self.leaders), self.leaders
        self.policy.reset(self.keys[leaders])
        seen, past = {name: value[leaders] for name, value in self.seen.items()}, self.past[leaders]
        for _ in range(chunks):
            chunk = self.policy.act(seen).detach()
            seen, *_ = env.step(chunk)
            past = torch.cat((past, chunk), 1)
        self._made(chunks * len(leaders), chunks * len(leaders) * (self.steps + 1))
        self.env.state = env.state.take(self.leader_of)
        self.policy.state = replace(self.policy._state().take(self.leader_of), keys=self.keys)
        self.seen, self.past = {name: value[self.leader_of] for name, value in seen.items()}, past[self.leader_of]

    def go(self, number: int) -> Turn:
        """The next chunk of every stream, from where it is."""
        seen, chunk = self.seen, self.policy.propose(self.seen)
        self._made(len(chunk), len(chunk) * self.steps)
        turn = self._step(number, chunk)
        if number + 1 < self.env.clock.chunks:
            self.policy.read(chunk, seen)
            self._made(0, len(chunk))
        return turn

    def branch(self, number: int, shared_steps: int) -> Turn:
        """Continuations of one chunk, from where one stream of each group is; then one of them is drawn."""
        leaders = self.leaders
        seen = {name: value[leaders] for name, value in self.seen.items()}
        chunk = self.policy.propose(seen, Fork(shared_steps, self.leader_of, self.keys))
        self._made(len(chunk), len(leaders) * shared_steps + len(chunk) * (self.steps - shared_steps))
        turn = self._step(number, chunk)
        if number + 1 < self.env.clock.chunks:
            drawn = (uniform(self.keys[leaders], FORK_DRAWS, number, ()) * self.group).long().clamp_max(self.group - 1)
            self.policy.read(chunk[leaders + drawn], seen)
            self._made(0, len(leaders))
            rows = (leaders + drawn)[self.leader_of]
            self.env.state, self.past = self.env.state.take(rows), self.past[rows]
            self.seen = {name: value[rows] for name, value in self.seen.items()}
        return turn

    def _step(self, number: int, chunk: Tensor) -> Turn:
        after, reward, _, _, info = self.env.step(chunk.detach())
        after = info["final_obs"] if "final_obs" in info else after
        turn = Turn(number, self.seen, after, self.past, chunk, self.policy.transitions, reward)
        self.seen, self.past = after, torch.cat((self.past, chunk.detach()), 1)
        return turn

    def _made(self, chunks: int, calls: int) -> None:
        self.chunks, self.calls = self.chunks + chunks, self.calls + calls


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
