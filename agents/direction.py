"""What a direction is, the extension point of `FineTune`: where predictions x0 are to go, and the formulas of ours.

A direction's loss has a given gradient on x0; all else is the trainer's. Latents are [B, f, C, h, w]; advantages,
levels and ratios [B].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..envs.streaming import StreamingEnv
from ..models.generator import Generator
from ..models.sampler import Kernel
from .rollout import Rollout


@dataclass(frozen=True)
class Needs:
    """What a direction needs of its trainer."""

    graph: bool = False
    """Chunks that carry the graph of their last denoising step, which samples hand on as their `x0`: one epoch."""
    whole_clips: bool = False
    """Clips that are played to the end, each by itself: prefix "own"."""
    advantages: bool = True
    """What chunks earned against others. Without, none are estimated and there is no critic."""
    reward_gradient: bool = False
    """A StreamReward. Where no advantages are needed, the environment then scores nothing: the direction does, and says
    what it found (`TrainingBatch.returns`)."""


@dataclass(frozen=True)
class TrainingSample:
    """Where a direction wants a chunk's prediction, to move it: x [B, f, C, h, w] at level sigma [B].

    target: what the direction keeps for `loss_gradient`.   old_x0: the prediction of the policy that acted; None:
    whatever the first pass over a rollout finds.   kl_weight: [B], of the pull towards a reference
    (`reference_direction`); None: 1.   x0: the prediction, where the rollout holds its graph already.
    """

    x: Tensor
    sigma: Tensor
    target: Any
    old_x0: Tensor | None = None
    kl_weight: Tensor | None = None
    x0: Tensor | None = None


@dataclass(frozen=True)
class TrainingBatch:
    """minibatches: with one sample for every step of the rollout each, in order.   returns: [B], what the clips earned,
    where the direction has scored all their windows itself."""

    minibatches: Sequence[Sequence[TrainingSample]]
    returns: Tensor | None = None


class Direction(Protocol):
    """A frozen dataclass of settings with these methods, in any module: `FineTuneConfig(MyDirection())` takes it."""

    @property
    def needs(self) -> Needs:
        """What it needs of the trainer."""
        ...

    def check(self, config: Any) -> None:
        """ValueError where other settings of the recipe, a FineTuneConfig, do not go with it; its needs are checked
        already."""
        ...

    def actor(self, generator: Generator, shared_steps: int = 0) -> Generator:
        """Who plays the rollouts, with the generator's weights; ValueError where the direction does not fit it."""
        ...

    def training_samples(self, played: Rollout, keys: Tensor, actor: Generator, env: StreamingEnv) -> TrainingBatch:
        """What is learned from a rollout; keys int64 [B] are for noise, folded first."""
        ...

    def loss_gradient(
        self, sample: TrainingSample, x0: Tensor, old_x0: Tensor, advantage: Tensor, weight: Tensor | float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss's gradient on the prediction x0, like x0, and what to log.

        old_x0: the prediction of the policy that acted.   advantage: [B].   weight: broadcasts to x0, perplexity or 1.
        """
        ...


def policy_direction(
    kernel: Kernel, x_next: Tensor, x: Tensor, x0: Tensor, advantage: Tensor, rescale: bool = True
) -> Tensor:
    """Minus advantage times grad_x0 log p(x_next | x): see `Kernel.score`.

    rescale: times std / pull, so that on-policy every step gives advantage times unit noise (unscaled, the steps'
    gradients differ several times over).
    """
    direction = -rows(advantage) * kernel.score(x_next, x, x0)
    return direction * _column(kernel.std / kernel.pull) if rescale else direction


def reference_direction(x0: Tensor, reference: Tensor, kl_weight: Tensor) -> Tensor:
    """d KL / d x0 of the kernels around x0 and around a reference's prediction: kl_weight (x0 - x0_ref).

    For Gaussian kernels KL = pull^2 |x0 - x0_ref|^2 / (2 std^2), so kl_weight is (pull / std)^2, or pull / std where
    the policy's direction is rescaled (`policy_direction`). 1 is the plain squared distance.
    """
    return rows(kl_weight) * (x0 - reference)


def log_ratio(
    kernel: Kernel, x_next: Tensor, x: Tensor, x0: Tensor, old_x0: Tensor, weight: Tensor | float = 1.0
) -> Tensor:
    """Log-probability of x_next under x0 less that under old_x0, the weighed mean over elements: float32 [B]."""
    new, old = ((x_next.float() - kernel.mean(x.float(), y.float())) / _column(kernel.std) for y in (x0, old_x0))
    return (-0.5 * weight * (new.square() - old.square())).flatten(1).mean(1)


def clipped_weight(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """What PPO's clipped objective puts before advantage * grad log pi: the ratio, or 0 where clipping cuts it off."""
    cut = torch.where(advantage > 0, ratio > 1 + clip, ratio < 1 - clip)
    return ratio.masked_fill(cut, 0.0)


def nft_direction(x0: Tensor, old_x0: Tensor, clean: Tensor, reward_weight: Tensor, beta: float) -> Tensor:
    """DiffusionNFT's gradient (2509.16117) at x0, predicted like old_x0 from the clean chunk noised afresh.

    Loss: r |x+ - clean|^2 / w+ + (1 - r) |x- - clean|^2 / w-, with x+ = b x0 + (1 - b) old, x- = (1 + b) old - b x0,
    w = mean|x - clean| per stream, held fixed, and reward_weight r [B] in [0, 1]: half way it teaches nothing
    on-policy. Divided by 2 b: on-policy (2 r - 1) (x0 - clean) / w, towards what was good and away from what was bad.
    """
    good = beta * x0 + (1 - beta) * old_x0 - clean
    bad = (1 + beta) * old_x0 - beta * x0 - clean
    r = rows(reward_weight)
    return r * good / _size(good) - (1 - r) * bad / _size(bad)


def rows(values: Tensor) -> Tensor:
    """[B] as [B, 1, 1, 1, 1]."""
    return values[:, None, None, None, None]


def _column(values: float | Tensor) -> float | Tensor:
    return rows(values) if isinstance(values, Tensor) else values


def _size(error: Tensor) -> Tensor:
    return error.abs().mean((1, 2, 3, 4), keepdim=True).clamp_min(1e-5)
