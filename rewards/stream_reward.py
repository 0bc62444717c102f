"""StreamReward (contract 9): one object gives the environment its reward and distillation its weights."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..models.codec import Grid
from ..models.prompts import PromptBatch
from .perplexity import fuse, intra_perplexity, to_latents

NEEDS = frozenset({"scores", "perplexity", "gradient"})


class RewardModel(Protocol):
    """What StreamReward asks of a video reward model. axes: names of its scores; mean, std [A]: for z-scores;
    min_frames: the shortest clip it scores."""

    axes: tuple[str, ...]
    min_frames: int
    mean: Tensor
    std: Tensor

    def score(self, video: Tensor, prompts: PromptBatch) -> Tensor:
        """video [B, F, 3, H, W] in [0, 1]. Returns raw scores [B, A]."""


@dataclass(frozen=True)
class RewardSignal:
    """What a clip earned.

    scores: z-scored [B, A]. reward: their mean [B]. perplexity: [B, F', h, w] on latents, mean 1 per clip, or None.
    gradient: d reward / d video, [B, F, 3, H, W], or None; latents get theirs by the chain rule through the codec's
    decode: `torch.autograd.grad(video, latents, gradient)`.
    """

    scores: Tensor
    reward: Tensor
    perplexity: Tensor | None = None
    gradient: Tensor | None = None


class StreamReward:
    """Scores clips by one forward pass; backward passes run on its graph, and only when asked.

    model: its parameters are frozen here. axes: the scores to use, in order; None for all of the model's. tau:
    temperature with which the saliency of the axes is fused. batched: all axes in one vector-Jacobian product, or one
    after the other; None for batched on CUDA only (on a CPU it took twice as long).
    """

    def __init__(
        self,
        model: RewardModel,
        axes: tuple[str, ...] | None = None,
        tau: float = 1.0,
        batched: bool | None = None,
    ) -> None:
        unknown = [axis for axis in axes or () if axis not in model.axes]
        if unknown:
            raise ValueError(f"the reward model has no axis {unknown[0]!r}: its axes are {', '.join(model.axes)}")
        if isinstance(model, torch.nn.Module):
            model.requires_grad_(False).eval()
        self.model = model
        self.axes = model.axes if axes is None else axes
        self.tau = tau
        self.batched = batched
        self._columns = [model.axes.index(axis) for axis in self.axes]

    @property
    def min_frames(self) -> int:
        return self.model.min_frames

    def __call__(
        self,
        video: Tensor,
        prompts: PromptBatch,
        grid: Grid | None = None,
        *,
        need: Collection[str] = frozenset({"scores"}),
    ) -> RewardSignal:
        """video [B, F, 3, H, W] in [0, 1], prompts of B rows; grid: the codec's for these frames, asked for perplexity.

        need: any of "scores", "perplexity", "gradient". scores and reward carry a gradient exactly where the caller's
        video does; perplexity and gradient never do. ValueError for an unknown need or a missing grid.
        """
        if not NEEDS.issuperset(need):
            raise ValueError(f"unknown need {sorted(set(need) - NEEDS)}: choose from {sorted(NEEDS)}")
        if "perplexity" in need and grid is None:
            raise ValueError("perplexity lies on the latent grid: pass grid=codec.grid(frames)")
        attached = torch.is_grad_enabled() and video.requires_grad
        backward = "perplexity" in need or "gradient" in need
        with torch.set_grad_enabled(attached or backward):
            if backward and not attached:
                video = video.detach().requires_grad_()
            scores = self._scores(video, prompts)
            reward = scores.mean(dim=-1)
            perplexity, gradient = self._backward(scores, video, grid, need) if backward else (None, None)
        if not attached:
            scores, reward = scores.detach(), reward.detach()
        return RewardSignal(scores, reward, perplexity, gradient)

    def _scores(self, video: Tensor, prompts: PromptBatch) -> Tensor:
        z = (self.model.score(video, prompts) - self.model.mean) / self.model.std
        return z[:, self._columns].float()

    def _backward(
        self, scores: Tensor, video: Tensor, grid: Grid | None, need: Collection[str]
    ) -> tuple[Tensor | None, Tensor | None]:
        if "perplexity" not in need or grid is None:
            (gradient,) = torch.autograd.grad(scores.mean(dim=-1).sum(), video, retain_graph=True)
            return None, gradient
        gradients = self._axis_gradients(scores, video)
        perplexity = intra_perplexity(to_latents(fuse(scores, gradients, self.tau), grid))
        return perplexity, gradients.mean(dim=0) if "gradient" in need else None

    def _axis_gradients(self, scores: Tensor, video: Tensor) -> Tensor:
        """d score_m / d video on the one retained graph, [A, B, F, 3, H, W]; exact, since rows do not interact."""
        totals = scores.sum(dim=0)
        if video.is_cuda if self.batched is None else self.batched:
            chosen = torch.eye(len(totals), device=totals.device)
            return torch.autograd.grad(totals, video, chosen, retain_graph=True, is_grads_batched=True)[0]
        return torch.stack([torch.autograd.grad(total, video, retain_graph=True)[0] for total in totals.unbind()])
