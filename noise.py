"""Random numbers as a pure function of (key, chunk, step): splitmix64 counters and the Box-Muller transform.

A stream is its int64 key. Row i of every result depends on key i alone, so that a stream is the same in any batch;
to resume a stream is to store integers.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
NORMAL, UNIFORM, FOLD = 0xD1B54A32D192ED03, 0x8CB92BA72F3D8DD7, 0xABC98388FB8FAC03
_BLOCK = 16


class Domain(IntEnum):
    """What random numbers are for, where one key serves several ends: folded into the key, or in place of a chunk's
    number, beyond any that a clip or a training reaches."""

    UPDATE = 1
    """An update's own draws (noise of levels, and the like) beside its rollout's: this one, and those up to FORK."""
    FORK = 2**20
    """Where a rollout forks, and which branch it goes on with; in place of a chunk's number."""
    GUARD = 2**40
    """Prompts and clips that a guard measures a training with."""
    EXAM = GUARD
    """Clips of an evaluation, folded once more with the number of each: so none is a guard's."""
    SLICE_EXAM = 2**41
    """Clips of an evaluation's slices."""
    GAN = 2**42
    """An update's levels and noise of what a discriminator sees."""


class GameDomain(IntEnum):
    """Of a game's own keys, in place of a chunk's number: these keys make no other clip."""

    COIN = 2**20
    """Is the clip real?"""
    LENS = 2**20 + 1
    """Of the camera, by clip."""
    GRAIN = 2**20 + 2
    """Of the camera, by chunk."""


class SeedDomain(IntEnum):
    """Where the seeds of a study's parts begin, far from seeds that a user gives (0, 1, 2, ...); the run's seed, or a
    small number, is added, unless it says that it is alone."""

    PANEL = 5_000
    """Detectors that measure a league from outside."""
    FILM = 9_000
    """Recordings that they are measured on."""
    SEARCH = 10_000
    """A search for a learning rate, whose runs are none of those that count."""
    RESPONSES = SEARCH
    """A league's detectors, so many on with every round: no league searches."""
    GOES_ON = SEARCH
    """A detector that goes on with new clips: none of its studies searches."""
    ARRIVALS = 20_000
    """The order in which new clips arrive."""
    TESTS = 77_000
    """Clips that agents are tested on; one less, alone: those that they are chosen by."""
    BEST_RESPONSES = 500_000
    """Generators that exploit a league's detectors."""
    VALIDATION = 1_000_003
    """Noise of evaluations while a method trains; alone."""
    POINTS = 1_000_004
    """Noise of evaluations along a learning curve; alone."""
    POINT_FILMS = 1_000_005
    """Recordings of evaluations along a detector's learning curve; alone."""
    FRESH_CLIPS = 4_000_000
    """Clips that a causal start regresses on."""
    FAMILY_CLIPS = 7_000_000
    """Test clips of every family of generators, 10,000 apart."""
    REAL_DRAW = 2**30
    """Which real clips a detector's update sees."""


def update_seed(seed: int, update: int) -> int:
    """A seed for update 0 <= update < 1,000,003 of a training with this seed: no other training's update has it."""
    return seed * 1_000_003 + update


def stream_keys(seed: int, n: int, device: torch.device | str = "cpu") -> Tensor:
    """Keys [n] (int64) of n streams; the first m of them do not depend on n."""
    return fold(torch.full((n,), _signed(seed), device=device), torch.arange(n, device=device))


def fold(key: Tensor, value: int | Tensor) -> Tensor:
    """Keys [B] of new streams, one for each key [B] and value (a number or int64 [B])."""
    step = _signed(value * GOLDEN) if isinstance(value, int) else value * _signed(GOLDEN)
    return _mixed(_mixed(_checked(key) + _signed(FOLD)) + step)


def normal(key: Tensor, chunk: int, step: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers, float32 [B, *shape], for key [B] at this chunk and denoising step."""
    count = math.prod(shape)
    high, low = _bits(key, chunk, step, NORMAL, count)
    radius = high.add_(0.5).mul_(2.0**-24).log_().mul_(-2).sqrt_()
    angle = low.mul_(2 * math.pi * 2.0**-24)
    return torch.cat((radius * angle.cos(), radius * angle.sin()), 1)[:, :count].reshape(-1, *shape)


def uniform(key: Tensor, chunk: int, step: int, shape: tuple[int, ...]) -> Tensor:
    """Numbers in [0, 1), float32 [B, *shape], for key [B] at this chunk and step; independent of `normal`."""
    count = math.prod(shape)
    return torch.cat(_bits(key, chunk, step, UNIFORM, count), 1).mul_(2.0**-24)[:, :count].reshape(-1, *shape)


def _bits(key: Tensor, chunk: int, step: int, domain: int, count: int) -> tuple[Tensor, Tensor]:
    """Two float32 tensors [B, m] of 24 random bits each, 2 m >= count.

    Rows are whole blocks, so that vectorised kernels treat an element alike wherever its row lies in the batch.
    """
    base = _mixed(_mixed(_checked(key) + _signed(domain + chunk * GOLDEN)) + _signed(step * GOLDEN))
    counters = torch.arange(1, 1 + -(-count // (2 * _BLOCK)) * _BLOCK, device=key.device) * _signed(GOLDEN)
    words = _mixed(base[:, None] + counters)
    return ((words >> 40) & 0xFFFFFF).float(), ((words >> 8) & 0xFFFFFF).float()


def _mixed(z: Tensor) -> Tensor:
    """splitmix64's output function (Steele, Lea and Flood, 2014)."""
    for shift, factor in zip((30, 27), MIX, strict=True):
        z = (z ^ _shifted_right(z, shift)).mul_(_signed(factor))
    return z.bitwise_xor_(_shifted_right(z, 31))


def _shifted_right(z: Tensor, bits: int) -> Tensor:
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """The int64 with the same lowest 64 bits."""
    return (value + 2**63) % 2**64 - 2**63


def _checked(key: Tensor) -> Tensor:
    if key.dtype != torch.int64 or key.ndim != 1:
        raise ValueError(f"stream keys are int64 [B], not {key.dtype} {list(key.shape)}: make them with stream_keys")
    return key
