"""Steered denoising: each stream of a batch has its own noise, guidance, number of steps and reach into the past.

B streams, S levels of the generator, K directions of a noise basis, f latent frames a chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .generator import Generator, StreamState, at_prompt, update_cache
from .sampler import guided, renoise, x0_from_v


@dataclass(frozen=True)
class Steering:
    """How the next chunk of B streams is made.

    steps: int64 [B], 1 to S, predictions that a chunk takes.   past: int64 [B], cached latent frames that it reads, the
    newest ones.   guidance: [B], weight of classifier-free guidance; 1 is none, and costs no second prediction.
    """

    steps: Tensor
    past: Tensor
    guidance: Tensor

    @property
    def evaluations(self) -> Tensor:
        """int64 [B]: passes through the network that the chunk costs, the one that writes the cache included."""
        return self.steps * (1 + (self.guidance != 1).long()) + 1

    def take(self, rows: Tensor) -> Steering:
        """The streams at rows [M] (int64)."""
        return Steering(self.steps[rows], self.past[rows], self.guidance[rows])


def noise_basis(directions: int, shape: tuple[int, int, int, int]) -> Tensor:
    """The K smoothest directions of a chunk's noise, orthonormal [K, f, C, h, w].

    Products of cosines (DCT-II) along time, height and width in each channel, in the order of their summed frequency
    (then of frequency along time, height, width and of the channel).
    """
    f, c, h, w = shape
    if not 0 <= directions <= math.prod(shape):
        raise ValueError(f"a chunk's noise has 0 to {math.prod(shape)} directions, not {directions}")
    places = [(t, y, x, k) for t in range(f) for y in range(h) for x in range(w) for k in range(c)]
    places.sort(key=lambda place: (sum(place[:3]), *place))
    waves = [_cosines(size) for size in (f, h, w)]
    basis = torch.zeros(directions, f, c, h, w)
    for number, (t, y, x, channel) in enumerate(places[:directions]):
        basis[number, :, channel] = torch.einsum("t,y,x->tyx", waves[0][t], waves[1][y], waves[2][x])
    return basis


def led_noise(noise: Tensor, basis: Tensor, lead: Tensor, reach: float) -> Tensor:
    """noise [B, S, f, C, h, w] led along the basis [K, f, C, h, w] by lead [B, K] in [-1, 1], at every level alike.

    A component z becomes sqrt(1 - lead^2) z + reach lead: at lead 0 it is left to chance, at +-1 it is set to +-reach.
    """
    axes = basis.flatten(1)
    z = noise.flatten(2) @ axes.T
    lead = lead[:, None]
    moved = ((1 - lead.square()).clamp_min(0).sqrt() - 1) * z + reach * lead
    return noise + (moved @ axes).view_as(noise)


def schedules(sigmas: tuple[float, ...]) -> Tensor:
    """Levels [S, S + 1]: row k - 1 has those of k steps, then zeros; the generator's own levels, read at k even
    distances with straight lines between them."""
    count, ends = len(sigmas), torch.tensor((*sigmas, 0.0), dtype=torch.float64)
    table = torch.zeros(count, count + 1)
    for steps in range(1, count + 1):
        place = torch.arange(steps, dtype=torch.float64) * count / steps
        low = place.floor().long()
        table[steps - 1, :steps] = torch.lerp(ends[low], ends[low + 1], place - low).float()
    return table


@torch.no_grad()
def steered_chunk(
    generator: Generator, state: StreamState, embeds: Tensor, noise: Tensor, steering: Steering
) -> tuple[Tensor, StreamState]:
    """The next chunk x0 [B, f, C, h, w] of every stream, and the state after it.

    embeds [B, L, D]; noise [B, S, f, C, h, w], initial noise and then that of each re-noising. A row's result depends
    on nothing but that row. At S steps, guidance 1 and the whole past it equals `generate_chunk`. On the CPU only
    streams that still need a prediction take part in one; on a GPU all do: to look who does would wait for the device.
    """
    state = at_prompt(generator, state, embeds)
    levels = schedules(generator.sigmas).to(noise, non_blocking=True)[steering.steps - 1]
    x = noise[:, 0]
    for step in range(len(generator.sigmas)):
        here = _Rows.of(steering.steps > step)
        if here.none:
            break
        seen, sigma = here.pick(x), here.pick(levels[:, step])
        x0 = _predict(generator, here.of_state(state), here.pick(embeds), seen, sigma, here.of_steering(steering))
        lower = here.pick(levels[:, step + 1])
        following = renoise(x0, here.pick(noise[:, step + 1]), lower) if step + 1 < noise.shape[1] else x0
        x = here.put(x, torch.where(_wide(lower) > 0, following, x0))
    return x, update_cache(generator, state, x, embeds)


def _predict(
    generator: Generator, state: StreamState, embeds: Tensor, x: Tensor, sigma: Tensor, steering: Steering
) -> Tensor:
    past = None if state.cache is None else steering.past
    v = generator.model(x, sigma, embeds, cache=state.cache, past=past)
    free = _Rows.of(steering.guidance != 1)
    if not free.none:
        seen = free.of_state(state)
        plain = generator.model(
            free.pick(x), free.pick(sigma), torch.zeros_like(free.pick(embeds)), cache=seen.cache,
            past=None if past is None else free.pick(past),
        )  # fmt: skip
        v = free.put(v, guided(plain, free.pick(v), _wide(free.pick(steering.guidance))))
    return x0_from_v(x, v, sigma)


@dataclass(frozen=True)
class _Rows:
    """Some rows of a batch. mask: bool [B]. index: where they stand, or None where nobody may wait for the answer: all
    rows are computed then, and what is not wanted is thrown away."""

    mask: Tensor
    index: Tensor | None

    @classmethod
    def of(cls, mask: Tensor) -> _Rows:
        return cls(mask, mask.nonzero()[:, 0] if mask.device.type == "cpu" else None)

    @property
    def none(self) -> bool:
        return self.index is not None and not len(self.index)

    @property
    def _whole(self) -> bool:
        return self.index is None or len(self.index) == len(self.mask)

    def pick(self, values: Tensor) -> Tensor:
        return values if self._whole else values[self.index]

    def put(self, values: Tensor, new: Tensor) -> Tensor:
        """`values` with its rows replaced by `new`."""
        if self.index is None:
            return torch.where(_wide(self.mask, new), new, values)
        return new if self._whole else values.index_copy(0, self.index, new)

    def of_state(self, state: StreamState) -> StreamState:
        return state if self._whole or self.index is None else state.take(self.index)

    def of_steering(self, steering: Steering) -> Steering:
        return steering if self._whole or self.index is None else steering.take(self.index)


def _wide(values: Tensor, like: Tensor | None = None) -> Tensor:
    return values.view(-1, *(1,) * (4 if like is None else like.ndim - 1))


def _cosines(size: int) -> Tensor:
    """Orthonormal DCT-II of `size` samples, a frequency a row."""
    place = (torch.arange(size, dtype=torch.float64) + 0.5) * math.pi / size
    waves = torch.cos(torch.arange(size, dtype=torch.float64)[:, None] * place) * (2 / size) ** 0.5
    waves[0] /= 2**0.5
    return waves.float()
