"""StreamReward: one object gives the environment its reward and distillation its weights."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..models.codec import Grid
from ..models.prompts import PromptBatch
from .microbatch import activation_bytes
from .perplexity import SPATIAL_FLOOR, TEMPORAL_FLOOR, fuse, intra_perplexity, to_latents

NEEDS = frozenset({"scores", "saliency", "perplexity", "gradient"})
ROUNDING = 1e-3
"""How far outside [0, 1] a pixel may lie by rounding alone."""
OVERSHOOT = 4.0
"""How far outside a decoder may carry a video that a gradient runs through, which it does not clamp; 8-bit values lie
farther still."""


class NoGradientError(ValueError):
    """A gradient is asked of a reward whose scores do not depend on the pixels by one."""


class PixelError(ValueError):
    """A video holds NaN, or pixels far outside [0, 1]."""


class RewardModel(Protocol):
    """What StreamReward asks of a video reward model. axes: names of its scores; mean, std [A]: for z-scores;
    min_frames: the shortest clip it scores."""

    axes: tuple[str, ...]
    min_frames: int

    @property
    def mean(self) -> Tensor: ...

    @property
    def std(self) -> Tensor: ...

    def score(self, video: Tensor, prompts: PromptBatch) -> Tensor:
        """video [B, F, 3, H, W] in [0, 1]. Returns raw scores [B, A]; rows do not interact."""


@dataclass(frozen=True)
class RewardSignal:
    """What a clip earned.

    scores: z-scored [B, A]. reward: their mean [B]. perplexity: [B, F', h, w] on latents, mean 1 per clip, or None.
    gradient: d reward / d video, [B, F, 3, H, W], or None; latents get theirs by the chain rule through the codec's
    decode: `torch.autograd.grad(video, latents, gradient)`. saliency: [B, F, H, W] on pixels, what perplexity is made
    of, or None.
    """

    scores: Tensor
    reward: Tensor
    perplexity: Tensor | None = None
    gradient: Tensor | None = None
    saliency: Tensor | None = None


@dataclass(frozen=True)
class RewardSettings:
    """How a reward model is read."""

    axes: tuple[str, ...] | None = None
    """The scores to use, in order; None for all of the model's."""
    tau: float = 1.0
    """Temperature at which the saliency of the axes is fused: small, the weakest axis alone; infinite, all alike."""
    temporal_floor: float = TEMPORAL_FLOOR
    """Least weight of a frame before weights are divided by their mean."""
    spatial_floor: float = SPATIAL_FLOOR
    """Least weight of a cell before weights are divided by their frame's mean."""
    memory: int | None = None
    """Bytes that the forward pass may keep for the backward passes: clips are then taken so many at a time as fit (one
    at least). What one backward pass needs besides, and the gradients themselves, come on top. Scores alone keep
    nothing and are not split; nor is a video that carries the caller's own gradient, whose graph has to stay whole."""
    autocast: torch.dtype | None = None
    """Run the model under torch.autocast in this type; None: as the caller has it. Scores come back in float32."""
    batched: bool | None = None
    """All axes in one vector-Jacobian product, or one after the other; None: batched on CUDA only, a CPU
    gains nothing by it."""
    check: bool | None = None
    """Look at pixel values for NaN and range; None: on the CPU only, since on a GPU it waits for the device."""

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise ValueError(f"tau must be above 0, not {self.tau}")
        for name in ("temporal_floor", "spatial_floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], not {getattr(self, name)}")
        if self.memory is not None and self.memory < 1:
            raise ValueError(f"memory must be a number of bytes above 0, not {self.memory}")


class StreamReward:
    """Scores clips by one forward pass; backward passes run on its graph, and only when asked.

    model: its parameters are frozen here. ValueError for an axis that it does not have.
    """

    def __init__(self, model: RewardModel, settings: RewardSettings | None = None) -> None:
        self.settings = settings or RewardSettings()
        unknown = [axis for axis in self.settings.axes or () if axis not in model.axes]
        if unknown:
            raise ValueError(f"the reward model has no axis {unknown[0]!r}: its axes are {', '.join(model.axes)}")
        if isinstance(model, torch.nn.Module):
            model.requires_grad_(False).eval()
        self.model = model
        self.axes = model.axes if self.settings.axes is None else self.settings.axes
        self._columns = [model.axes.index(axis) for axis in self.axes]
        self._row_bytes: dict[Hashable, int] = {}

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
        """video [B, F, 3, H, W] in [0, 1], prompts of B rows (or of n a clip, clip by clip, where the model takes so
        many); grid: the codec's for these frames, asked for perplexity.

        need: any of "scores", "saliency", "perplexity", "gradient". scores and reward carry a gradient exactly where
        the caller's video does; the others never do. A pixel outside [0, 1], which only a video with a gradient may
        have, is scored as it would be shown, clamped; its gradient passes. ValueError for an unknown need, a missing
        grid, and for a video or prompts that do not fit.
        """
        self._check(video, prompts, grid, need)
        if torch.is_grad_enabled() and video.requires_grad:
            return self._signal(video + (video.clamp(0, 1) - video).detach(), prompts, grid, need, attached=True)
        video = video.detach()
        rows = self._rows(video, prompts) if not {"scores"}.issuperset(need) else len(video)
        if rows >= len(video):
            return self._signal(video, prompts, grid, need)
        each = len(prompts.text) // len(video)
        parts = [
            self._signal(video[part], prompts.take((part[:, None] * each + torch.arange(each)).flatten()), grid, need)
            for part in torch.arange(len(video)).split(rows)
        ]
        return RewardSignal(
            torch.cat([part.scores for part in parts]),
            torch.cat([part.reward for part in parts]),
            _joined([part.perplexity for part in parts]),
            _joined([part.gradient for part in parts]),
            _joined([part.saliency for part in parts]),
        )

    def _signal(
        self, video: Tensor, prompts: PromptBatch, grid: Grid | None, need: Collection[str], attached: bool = False
    ) -> RewardSignal:
        backward = not {"scores"}.issuperset(need)
        with torch.set_grad_enabled(attached or backward):
            if backward and not attached:
                video = video.detach().requires_grad_()
            scores = self._scores(video, prompts)
            reward = scores.mean(dim=-1)
            found = self._backward(scores, video, grid, need) if backward else (None, None, None)
        if not attached:
            scores, reward = scores.detach(), reward.detach()
        return RewardSignal(scores, reward, *found)

    def _scores(self, video: Tensor, prompts: PromptBatch) -> Tensor:
        dtype = self.settings.autocast
        with nullcontext() if dtype is None else torch.autocast(video.device.type, dtype=dtype):
            raw = self.model.score(video, prompts)
        return ((raw.float() - self.model.mean) / self.model.std)[:, self._columns]

    def _backward(
        self, scores: Tensor, video: Tensor, grid: Grid | None, need: Collection[str]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Perplexity, gradient and saliency, those that are needed; one backward pass where only a gradient is."""
        if not scores.requires_grad:
            names = ", ".join(self.axes)
            raise NoGradientError(f"no score of {names} depends on the pixels by a gradient: ask for scores")
        if not {"saliency", "perplexity"}.intersection(need):
            (gradient,) = torch.autograd.grad(scores.mean(dim=-1).sum(), video, retain_graph=True)
            return None, gradient, None
        gradients = self._axis_gradients(scores, video)
        saliency = fuse(scores, gradients, self.settings.tau)
        perplexity = None
        if "perplexity" in need and grid is not None:
            floors = self.settings.temporal_floor, self.settings.spatial_floor
            perplexity = intra_perplexity(to_latents(saliency, grid), *floors)
        mean = gradients.mean(dim=0) if "gradient" in need else None
        return perplexity, mean, saliency if "saliency" in need else None

    def _axis_gradients(self, scores: Tensor, video: Tensor) -> Tensor:
        """d score_m / d video on the one retained graph, [A, B, F, 3, H, W]; exact, since rows do not interact."""
        totals = scores.sum(dim=0)
        batched = self.settings.batched
        if video.is_cuda if batched is None else batched:
            chosen = torch.eye(len(totals), device=totals.device)
            return torch.autograd.grad(totals, video, chosen, retain_graph=True, is_grads_batched=True)[0]
        return torch.stack([torch.autograd.grad(total, video, retain_graph=True)[0] for total in totals.unbind()])

    def _rows(self, video: Tensor, prompts: PromptBatch) -> int:
        """How many clips fit into the memory budget at once; measured on one clip of each shape."""
        if self.settings.memory is None or len(video) == 1:
            return len(video)
        first = prompts.take(torch.arange(len(prompts.text) // len(video)))
        kind = (video.shape[1:], video.dtype, first.embeds.shape)
        if kind not in self._row_bytes:
            one = video[:1].detach().clone().requires_grad_()
            self._row_bytes[kind] = activation_bytes(lambda: self._scores(one, first), self.model)
        return max(1, self.settings.memory // max(1, self._row_bytes[kind]))

    def _check(self, video: Tensor, prompts: PromptBatch, grid: Grid | None, need: Collection[str]) -> None:
        if not NEEDS.issuperset(need):
            raise ValueError(f"unknown need {sorted(set(need) - NEEDS)}: choose from {sorted(NEEDS)}")
        if "perplexity" in need and grid is None:
            raise ValueError("perplexity lies on the latent grid: pass grid=codec.grid(frames)")
        shape = list(video.shape)
        if video.ndim != 5 or shape[2] != 3 or not video.is_floating_point():
            raise ValueError(f"video is {video.dtype} {shape}: expected floating point [B, F, 3, H, W]")
        if not len(video):
            raise ValueError(f"video {shape} holds no clip")
        if shape[1] < self.min_frames:
            raise ValueError(f"video {shape} has {shape[1]} frames: the reward needs at least {self.min_frames}")
        if not prompts.text or len(prompts.text) % len(video) or len(prompts.text) != len(prompts.embeds):
            raise ValueError(
                f"prompts: {len(prompts.text)} texts and embeds {list(prompts.embeds.shape)} do not fit the "
                f"{len(video)} clips of video {shape}: one prompt per clip is expected"
            )
        if self.settings.check if self.settings.check is not None else video.device.type == "cpu":
            self._check_pixels(video)

    def _check_pixels(self, video: Tensor) -> None:
        slack = OVERSHOOT if torch.is_grad_enabled() and video.requires_grad else ROUNDING
        low, high = (float(end) for end in video.detach().aminmax())
        if not (low >= -slack and high <= 1 + slack):
            bad = "NaN" if low != low else f"pixels from {low:g} to {high:g}"
            raise PixelError(f"video {list(video.shape)} holds {bad}: expected values in [0, 1]")


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None
