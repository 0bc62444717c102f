"""Advantages of chunks: which rewards a chunk answers for, and against what they are held.

B streams in runs of G that share a prompt, n chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

ADVANTAGE_LIMIT = 5.0
Returns = Literal["episode", "reward_to_go"]
Baseline = Literal["none", "batch", "group", "critic"]
NormalizeStd = Literal["none", "batch", "group"]


def one_of(name: str, value: object, choices: Any) -> None:
    """ValueError unless value is one of a Literal's."""
    if value not in get_args(choices):
        raise ValueError(f"{name}={value!r}: choose from {', '.join(map(repr, get_args(choices)))}")


@dataclass(frozen=True)
class AdvantageEstimator:
    """Each part can be switched off."""

    returns: Returns = "reward_to_go"
    """Rewards that a chunk answers for: the clip's, as one score for all its chunks, or its own and later ones; under a
    forked prefix that ends with the chunk, "local", there are no later ones."""
    baseline: Baseline = "group"
    """What is subtracted, per chunk: nothing, the mean over the batch or over the group, or the critic's value of what
    was seen before the chunk."""
    normalize_std: NormalizeStd = "batch"
    """Whose standard deviation divides what is left: a group's, per chunk, or that of the batch, all chunks together,
    so that groups and chunks which differ more weigh more. With a critic, whose mean is taken off first, since a critic
    that lags would give all advantages one sign. Over one clip alone it leaves nothing but the sign."""
    bootstrap: bool = False
    """Let the critic's value stand for what comes after a chunk: for all of it where a forked prefix ends with the
    chunk, else for as much as `gae_lambda` says."""
    gae_lambda: float = 0.95
    """With bootstrap: that of generalised advantage estimation (1506.02438); 1 is the return itself."""
    perplexity: bool = False
    """Weigh elements by the reward's perplexity: an advantage that depends on the sampled action, so it is biased."""
    shuffle_advantages: bool = False
    """Give every advantage to a clip of another prompt (of one prompt: to the next clip), a control that cannot learn
    what the reward rewards."""

    def __post_init__(self) -> None:
        one_of("returns", self.returns, Returns)
        one_of("baseline", self.baseline, Baseline)
        one_of("normalize_std", self.normalize_std, NormalizeStd)
        if self.returns == "episode" and (self.bootstrap or self.baseline == "critic"):
            raise ValueError(
                "one score for the whole clip leaves a critic nothing to predict: use returns='reward_to_go'"
            )
        if not 0 <= self.gae_lambda <= 1:
            raise ValueError(f"gae_lambda must lie in [0, 1], not {self.gae_lambda}")

    def check(self, prompts: int, group: int) -> None:
        """ValueError where groups of so many clips leave nothing to hold a clip against."""
        if group == 1 and "group" in (self.baseline, self.normalize_std):
            wanted = "baseline='batch' or 'critic' with normalize_std='batch'"
            raise ValueError(f"a group of one has nobody to be held against: use {wanted}, or a larger group")
        if prompts * group == 1 and self.baseline == "batch":
            raise ValueError("one clip an update is its own batch: use baseline='critic', or more clips")

    @property
    def critic(self) -> bool:
        """Whether a critic is needed."""
        return self.bootstrap or self.baseline == "critic"


def lambda_returns(rewards: Tensor, after: Tensor, decay: float) -> Tensor:
    """Lambda-returns [B, n]: R_k = r_k + (1 - decay) V_k + decay R_{k+1}, with V_k the value of what follows chunk k.

    rewards [B, n]; after [B, n], whose last column stands for what follows the last chunk: 0 where the clip ends.
    With decay 1 and no value after the last chunk that is the return to go: what the chunk and later ones earn. R less
    the value before the chunk is generalised advantage estimation (1506.02438) at discount 1.
    """
    last, found = after[:, -1], []
    for reward, value in zip(rewards.flip(1).unbind(1), after.flip(1).unbind(1), strict=True):
        last = reward + (1 - decay) * value + decay * last
        found.append(last)
    return torch.stack(found[::-1], 1)


def advantages(returns: Tensor, estimator: AdvantageEstimator, group: int, before: Tensor | None = None) -> Tensor:
    """Advantage [B, n] of chunks from the returns that they answer for, clamped to +-5.

    returns, before [B, n]: what followed, and the critic's value before the chunk where it is the baseline. Spread is
    divided by with 1e-4 added; a group of one, or of equal returns, gets 0 from its group's baseline.
    """
    if returns.shape[0] % group:
        raise ValueError(f"{returns.shape[0]} clips are not whole groups of {group}")
    returns = returns.float()
    over = {"group": _by_group(returns, group), "batch": returns[None]}
    if estimator.baseline == "critic":
        if before is None:
            raise ValueError("baseline='critic' needs the critic's values")
        left = returns - before
    elif estimator.baseline == "none":
        left = returns
    else:
        left = returns - over[estimator.baseline].mean(1, keepdim=True).expand_as(over[estimator.baseline]).flatten(
            0, 1
        )
    if estimator.normalize_std != "none":
        runs = _by_group(left, group) if estimator.normalize_std == "group" else left.flatten()[None, :, None]
        if estimator.baseline == "critic":
            left = left - runs.mean(1, keepdim=True).expand_as(runs).reshape(left.shape)
        left = left / (runs.std(1, correction=0, keepdim=True) + 1e-4).expand_as(runs).reshape(left.shape)
    return left.clamp(-ADVANTAGE_LIMIT, ADVANTAGE_LIMIT)


def _by_group(values: Tensor, group: int) -> Tensor:
    return values.unflatten(0, (-1, group))
