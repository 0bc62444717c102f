"""The streaming generator: the one denoising loop that streaming, training rollouts and policies share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..noise import normal
from .cache import KVCache
from .causal_attention import Recall
from .sampler import SAMPLER_SHIFT, Kernel, KernelOf, consistency, denoise, step_sigmas
from .wan import CausalWan


@dataclass(frozen=True)
class Generator:
    """A few-step causal generator.

    sigmas: levels at which a chunk is denoised, falling from 1.
    latent_shape: (C, h, w) of a latent frame.
    kernel: the step from a level to the next; the last one, to 0, has no noise.
    """

    model: CausalWan
    sigmas: tuple[float, ...]
    latent_shape: tuple[int, int, int]
    frames_per_chunk: int
    kernel: KernelOf = consistency

    def evicted_in(self, chunks: int) -> int:
        """Latent frames that the cache has evicted when the last of so many chunks is made; 0: a rollout of that length
        never meets eviction, nor does a training on such rollouts."""
        size = self.frames_per_chunk
        return self.model.cache_config.evicts(chunks * size, size)

    def with_steps(self, steps: int, shift: float = SAMPLER_SHIFT) -> Generator:
        """The same weights under a sampler of so many steps; ValueError below 1."""
        if steps < 1:
            raise ValueError(f"a sampler has at least 1 step, not {steps}")
        return replace(self, sigmas=step_sigmas(steps, shift))

    def denoise(
        self, x: Tensor, sigma: float | Tensor, embeds: Tensor, cache: KVCache | Recall | None = None
    ) -> Tensor:
        """The clean prediction x0 at x [B, f, C, h, w] of level sigma (a number or [B]), after what the cache holds."""
        return denoise(self.model, x, sigma, embeds, cache=cache)


@dataclass(frozen=True)
class DenoisingStep:
    """One denoising step of a chunk; latents are [B, f, C, h, w].

    x at level sigma; x0: the clean prediction there; x_next: drawn from kernel, at level next_sigma.
    The last step has next_sigma 0 and x_next = x0. context: the cache that the step read, detached (None at the start).
    """

    x: Tensor
    sigma: float
    next_sigma: float
    x_next: Tensor
    x0: Tensor
    kernel: Kernel
    context: KVCache | None

    def take(self, rows: Tensor, context: KVCache | None) -> DenoisingStep:
        """Of the streams at rows [M] (int64), whose context is at hand."""
        x, x_next, x0 = (value[rows] for value in (self.x, self.x_next, self.x0))
        return replace(self, x=x, x_next=x_next, x0=x0, context=context)


@dataclass(frozen=True)
class StreamState:
    """Where B streams stand: cache of the past, number of the next chunk, keys int64 [B] of the noise, and the prompts
    [B, L, D] of the last chunk (None before the first)."""

    cache: KVCache | None
    chunk: int
    keys: Tensor
    prompt: Tensor | None = None

    @classmethod
    def start(cls, keys: Tensor) -> StreamState:
        """Streams [B] before their first chunk."""
        return cls(None, 0, keys)

    def take(self, rows: Tensor) -> StreamState:
        """The streams at rows [M] (int64); a fork is a repeated row, told apart by folding a branch into its key."""
        cache = None if self.cache is None else self.cache.take(rows)
        prompt = None if self.prompt is None else self.prompt.index_select(0, rows)
        return StreamState(cache, self.chunk, self.keys.index_select(0, rows), prompt)


@dataclass(frozen=True)
class Fork:
    """Streams that branch inside a chunk: from denoising step `step` on there is one for each of rows [M] (int64), with
    noise from keys int64 [M]; what came before, the past included, they share with the stream at their row."""

    step: int
    rows: Tensor
    keys: Tensor


def generate_chunk(
    generator: Generator,
    state: StreamState,
    embeds: Tensor,
    *,
    noise: Tensor | None = None,
    exit_step: int | None = None,
    grad: bool = False,
) -> tuple[Tensor, tuple[DenoisingStep, ...], StreamState]:
    """The next chunk of every stream.

    Args:
        embeds: the chunk's prompts [B, L, D].
        noise: [B, steps, f, C, h, w], initial noise and then that of each re-noising; drawn from the keys by default.
        exit_step: the step (0 is the first) at which denoising stops; its prediction is the chunk.
        grad: let the exit step carry gradient to the model; all else is without.

    Returns:
        the clean chunk x0 [B, f, C, h, w], its denoising_steps, and the state after it, with the chunk in its cache.
    """
    state = at_prompt(generator, state, embeds)
    past = generator.model.recall(state.cache)
    x0, denoising_steps = denoise_chunk(
        generator, state, embeds, noise=noise, exit_step=exit_step, grad=grad, past=past
    )
    return x0, denoising_steps, update_cache(generator, state, x0.detach(), embeds, past=past)


@torch.no_grad()
def at_prompt(generator: Generator, state: StreamState, embeds: Tensor) -> StreamState:
    """The state from which streams go on under prompts [B, L, D]: the same, unless the cache is to be read anew after a
    switch (`CacheConfig.on_prompt_switch`); then it is for those rows whose prompt is not the last chunk's."""
    cache, before = state.cache, state.prompt
    if generator.model.cache_config.on_prompt_switch == "keep" or cache is None or before is None:
        return state
    changed = (embeds != before).flatten(1).any(1)
    if not bool(changed.any()):
        return state
    return replace(state, cache=generator.model.recache(cache, embeds).where(changed, cache), prompt=embeds)


def denoise_chunk(
    generator: Generator,
    state: StreamState,
    embeds: Tensor,
    *,
    noise: Tensor | None = None,
    exit_step: int | None = None,
    grad: bool = False,
    fork: Fork | None = None,
    past: Recall | None = None,
) -> tuple[Tensor, tuple[DenoisingStep, ...]]:
    """`generate_chunk` before the chunk is read: x0 and its denoising_steps, B streams each, or M where they fork.

    noise belongs to streams that do not fork. state comes from `at_prompt`; past is its cache, recalled, where the
    caller has it.
    """
    sigmas = generator.sigmas
    last = len(sigmas) - 1 if exit_step is None else exit_step
    if not 0 <= last < len(sigmas):
        raise ValueError(f"exit_step must lie in 0 .. {len(sigmas) - 1}, not {exit_step}")
    if fork is not None and (noise is not None or not 0 <= fork.step <= last):
        raise ValueError(f"a fork lies at step 0 .. {last}, not {fork.step}, and draws its noise from keys")
    shape = (generator.frames_per_chunk, *generator.latent_shape)
    past = generator.model.recall(state.cache) if past is None else past
    denoising_steps: list[DenoisingStep] = []
    x = x0 = state.keys.new_empty(0)
    for step in range(last + 1):
        if fork is not None and step == fork.step:
            state, embeds = replace(state.take(fork.rows), keys=fork.keys), embeds[fork.rows]
            denoising_steps = [before.take(fork.rows, state.cache) for before in denoising_steps]
            past = generator.model.recall(state.cache)
        eps = normal(state.keys, state.chunk, step, shape) if noise is None else noise[:, step]
        if denoising_steps:
            before = denoising_steps[-1]
            x = before.kernel.draw(before.x, before.x0, eps)
            denoising_steps[-1] = replace(before, x_next=x)
        else:
            x = eps
        with torch.set_grad_enabled(grad and step == last):
            x0 = generator.denoise(x, sigmas[step], embeds, past)
        next_sigma = 0.0 if step == last else sigmas[step + 1]
        kernel = generator.kernel(sigmas[step], next_sigma)
        denoising_steps.append(DenoisingStep(x, sigmas[step], next_sigma, x0.detach(), x0, kernel, state.cache))
    return x0, tuple(denoising_steps)


def update_cache(
    generator: Generator, state: StreamState, x0: Tensor, embeds: Tensor, *, past: Recall | None = None
) -> StreamState:
    """The state after a clean chunk x0 [B, f, C, h, w] of these prompts [B, L, D], whoever made it; past as above."""
    state = at_prompt(generator, state, embeds)
    cache = generator.model.write(x0, embeds, state.cache if past is None else past)
    return replace(state, cache=cache, chunk=state.chunk + 1, prompt=embeds)


def prefill(generator: Generator, state: StreamState, latents: Tensor, embeds: Tensor) -> StreamState:
    """The state after clean latents [B, m * f, C, h, w], chunk after chunk; embeds [B, n, L, D], n >= m."""
    parts = latents.split(generator.frames_per_chunk, 1) if latents.shape[1] else ()
    for chunk, prompts in zip(parts, embeds.unbind(1), strict=False):
        state = update_cache(generator, state, chunk, prompts)
    return state


def chunks(
    generator: Generator,
    embeds: Tensor,
    keys: Tensor,
    *,
    given: Sequence[Tensor] = (),
    exit_step: int | None = None,
    grad: bool = False,
) -> Iterator[tuple[Tensor, tuple[DenoisingStep, ...], StreamState]]:
    """B new streams with noise from keys int64 [B], chunk after chunk: the one loop over chunks of all rollouts.

    embeds [B, n, L, D] holds the prompt of each chunk. Yields what `generate_chunk` returns: the chunk
    [B, f, C, h, w], its denoising_steps and the state after it. given: chunks to begin with in place of generated ones;
    they are read, and have no denoising_steps. exit_step, grad: see `generate_chunk`.
    """
    state, denoising_steps = StreamState.start(keys), tuple[DenoisingStep, ...]()
    for number, prompts in enumerate(embeds.unbind(1)):
        if number < len(given):
            x0, denoising_steps = given[number], ()
            state = update_cache(generator, state, x0, prompts)
        else:
            x0, denoising_steps, state = generate_chunk(generator, state, prompts, exit_step=exit_step, grad=grad)
        yield x0, denoising_steps, state


@torch.no_grad()
def stream(generator: Generator, embeds: Tensor, keys: Tensor, opening: Tensor | None = None) -> Tensor:
    """Latents [B, n * f, C, h, w] of B new streams; embeds [B, n, L, D] holds the prompt of each chunk.

    opening: latents [B, m * f, C, h, w] that the streams begin with; the generator reads them and goes on.
    """
    given = () if opening is None else opening.split(generator.frames_per_chunk, 1)
    return torch.cat([x0 for x0, _, _ in chunks(generator, embeds, keys, given=given)], 1)


@torch.no_grad()
def prediction(generator: Generator, state: StreamState, x: Tensor, sigma: Tensor, embeds: Tensor) -> Tensor:
    """What a generator predicts at x [B, f, C, h, w] of level sigma [B] for the chunk to come, of prompts [B, L, D].

    state: what this generator has read (`prefill`); another model's cache would not be its own.
    """
    return generator.denoise(x, sigma, embeds, at_prompt(generator, state, embeds).cache)
