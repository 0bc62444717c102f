"""Rewards made of other things: any callable, a detector's verdict, an ensemble, several rewards side by side.

All keep to the RewardModel protocol, so StreamReward gives them z-scores, gradients and perplexity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ..models.prompts import PromptBatch
from .reward_model import RewardModel, read_reward, reward_name
from .stream_reward import RewardSettings, StreamReward


class CallableReward(nn.Module):
    """Any `function(video [B, F, 3, H, W], prompts) -> [B] or [B, A]` as a reward model.

    axes: names of its scores. mean, std [A]: for z-scores, 0 and 1 by default. A module given as the function is moved,
    frozen and saved with this one. A function that cuts the gradient still scores; it has no gradient, saliency or
    perplexity, and adds none beside other axes.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        function: Callable[[Tensor, PromptBatch], Tensor],
        axes: Sequence[str],
        min_frames: int = 1,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.function, self.axes, self.min_frames = function, tuple(axes), min_frames
        self.register_buffer("mean", torch.tensor(mean or [0.0] * len(self.axes)))
        self.register_buffer("std", torch.tensor(std or [1.0] * len(self.axes)))
        if self.mean.shape != (len(self.axes),) or self.std.shape != (len(self.axes),) or (self.std <= 0).any():
            raise ValueError(f"mean and std need one number per axis of {self.axes}, std above 0: got {mean} and {std}")

    def score(self, video: Tensor, prompts: PromptBatch) -> Tensor:
        """[B, A]. RewardError, a ValueError, where the function returns something else."""
        return read_reward(self.function(video, prompts), video, self.axes, reward_name(self))


def as_reward(part: Any) -> StreamReward:
    """A StreamReward of what a user has: a StreamReward, a RewardModel, `function(video, prompts) -> [B]`, or a
    function without arguments that returns one of these. A model's own `tau` is taken over. TypeError for the rest."""
    if isinstance(part, StreamReward):
        return part
    if isinstance(part, type) or (callable(part) and not hasattr(part, "score") and not signature(part).parameters):
        return as_reward(part())
    if hasattr(part, "score") and hasattr(part, "axes"):
        return StreamReward(part, RewardSettings(tau=getattr(part, "tau", RewardSettings.tau)))
    if callable(part):
        return StreamReward(CallableReward(part, (getattr(part, "__name__", type(part).__name__),)))
    raise TypeError(
        f"a {type(part).__name__} is no reward: give a StreamReward, a RewardModel or function(video, prompts)"
    )


class DetectorScore(nn.Module):
    """A detector as a reward function: what it thinks of a video, whatever the prompt."""

    def __init__(self, detector: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, video: Tensor, prompts: PromptBatch) -> Tensor:
        return self.detector(video)


def detector_reward(
    detector: Callable[[Tensor], Tensor], min_frames: int = 1, mean: float = 0.0, std: float = 1.0
) -> CallableReward:
    """A detector's verdict as a reward: its logit that a clip is real, [B] or [B, 1] from video [B, F, 3, H, W]."""
    return (
        CallableReward(DetectorScore(detector), ("realness",), min_frames, [mean], [std]).requires_grad_(False).eval()
    )


class _Members(nn.Module):
    """Several reward models; those that are modules are moved, frozen and saved with this one."""

    mean: Tensor
    std: Tensor

    def __init__(self, members: Sequence[RewardModel], axes: Sequence[str]) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one reward model")
        self.members = tuple(members)
        for place, member in enumerate(members):
            if isinstance(member, nn.Module):
                self.add_module(str(place), member)
        self.axes = tuple(axes)
        self.min_frames = max(member.min_frames for member in members)
        self.register_buffer("mean", torch.zeros(len(self.axes)))
        self.register_buffer("std", torch.ones(len(self.axes)))

    def _scores(self, video: Tensor, prompts: PromptBatch) -> list[Tensor]:
        found = [(m, read_reward(m.score(video, prompts), video, m.axes, reward_name(m))) for m in self.members]
        return [(scores - member.mean) / member.std for member, scores in found]


class EnsembleReward(_Members):
    """Reward models of the same axes, as one: the mean of their z-scores less `pessimism` times their standard
    deviation, which pays little for what only one of them likes (after Coste et al. 2310.02743, who subtract the
    variance)."""

    def __init__(self, members: Sequence[RewardModel], pessimism: float = 0.0) -> None:
        super().__init__(members, members[0].axes if members else ())
        if any(member.axes != self.axes for member in members):
            raise ValueError(f"the members of an ensemble need the same axes: {[member.axes for member in members]}")
        self.pessimism = pessimism

    def score(self, video: Tensor, prompts: PromptBatch) -> Tensor:
        """[B, A], z-scored already."""
        scores = torch.stack(self._scores(video, prompts))
        if not self.pessimism:
            return scores.mean(dim=0)
        return scores.mean(dim=0) - self.pessimism * (scores.var(dim=0, correction=0) + 1e-12).sqrt()


class JoinedReward(_Members):
    """Reward models side by side: all axes of all members, so that `axes` of StreamReward's settings can choose."""

    def __init__(self, members: Sequence[RewardModel]) -> None:
        axes = [axis for member in members for axis in member.axes]
        twice = sorted({axis for axis in axes if axes.count(axis) > 1})
        if twice:
            raise ValueError(f"the axis {twice[0]!r} comes from two reward models: join models with other axes")
        super().__init__(members, axes)

    def score(self, video: Tensor, prompts: PromptBatch) -> Tensor:
        """[B, A], z-scored already."""
        return torch.cat(self._scores(video, prompts), dim=-1)
