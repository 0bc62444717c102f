"""StreamReward: one object gives the environment its reward and distillation its weights."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.codec import Codec, Grid
from ..models.prompts import PromptBatch
from .microbatch import Microbatcher
from .perplexity import SPATIAL_FLOOR, TEMPORAL_FLOOR, fuse, intra_perplexity, to_latents
from .reward_model import RewardModel, WindowedModel, read_reward, require_finite, reward_name
from .windows import ChunkLayout

NEEDS = frozenset({"scores", "saliency", "perplexity", "gradient"})
_ROUNDING = 1e-3
"""How far outside [0, 1] a pixel may lie by rounding alone."""
OVERSHOOT = 4.0
"""How far outside a decoder may carry a video that a gradient runs through, which it does not clamp; 8-bit values lie
farther still."""


class NoGradientError(ValueError):
    """A gradient is asked of a reward whose scores do not depend on the pixels by one."""


class PixelError(ValueError):
    """A video holds NaN, or pixels far outside [0, 1]."""


@dataclass(frozen=True)
class Scores:
    """What clips earned: z-scored axes [B, A], and their mean [B], the reward."""

    scores: Tensor
    reward: Tensor


@dataclass(frozen=True)
class RewardWeights(Scores):
    """Scores, and where in the clips the reward is sensitive: saliency [B, F, H, W] on pixels, and perplexity
    [B, F', h, w] on latents, made of it, of mean 1 per clip."""

    saliency: Tensor
    perplexity: Tensor


@dataclass(frozen=True)
class PixelGradient(Scores):
    """Scores, and d reward / d video [B, F, 3, H, W]; latents get theirs by the chain rule through the codec's decode:
    `torch.autograd.grad(video, latents, gradient)`."""

    gradient: Tensor


@dataclass(frozen=True)
class RewardSignal(Scores):
    """Scores, and of the rest what was needed: see RewardWeights and PixelGradient."""

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
    """Look at pixel values for NaN and range, and at scores for NaN and infinity; None: on the CPU only, since on a GPU
    it waits for the device."""

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

    Everywhere video is [B, F, 3, H, W] in [0, 1] with prompts of B rows (or of n a clip, clip by clip, where the model
    takes so many). Scores and reward carry a gradient exactly where the caller's video does; the others never do. A
    pixel outside [0, 1], which only a video with a gradient may have, is scored as it would be shown, clamped; its
    gradient passes. ValueError for a video or prompts that do not fit.

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
        self._batches = Microbatcher(self.settings.memory, model)

    @property
    def min_frames(self) -> int:
        return self.model.min_frames

    def windowed(self, layout: ChunkLayout, codec: Codec, apart: bool = False) -> StreamReward:
        """This reward for whole clips and their `clip_prompts`; its `.reward` is the environment's return, or with
        windows `apart` (see WindowedModel) like it, for saliency that favours no frame."""
        return StreamReward(WindowedModel(self.model, codec, layout, apart), self.settings)

    def score(self, video: Tensor, prompts: PromptBatch) -> Scores:
        """Scores alone, without a backward pass."""
        return Scores(**self._read(video, prompts))

    def weights(self, video: Tensor, prompts: PromptBatch, grid: Grid) -> RewardWeights:
        """Scores, saliency and perplexity; grid: the codec's for these frames. A backward pass for each axis."""
        return RewardWeights(**self._read(video, prompts, {"saliency", "perplexity"}, grid))

    def gradient(self, video: Tensor, prompts: PromptBatch) -> PixelGradient:
        """Scores, and the reward's gradient with respect to the pixels. One backward pass."""
        return PixelGradient(**self._read(video, prompts, {"gradient"}))

    def __call__(
        self,
        video: Tensor,
        prompts: PromptBatch,
        grid: Grid | None = None,
        *,
        need: Collection[str] = frozenset({"scores"}),
    ) -> RewardSignal:
        """Several of these by one forward pass. need: any of "scores", "saliency", "perplexity" (on `grid`) and
        "gradient"; ValueError for another, and for a missing grid."""
        if not NEEDS.issuperset(need):
            raise ValueError(f"unknown need {sorted(set(need) - NEEDS)}: choose from {sorted(NEEDS)}")
        if "perplexity" in need and grid is None:
            raise ValueError("perplexity lies on the latent grid: pass grid=codec.grid(frames)")
        return RewardSignal(**self._read(video, prompts, set(need) - {"scores"}, grid))

    def _read(
        self, video: Tensor, prompts: PromptBatch, derived: Collection[str] = (), grid: Grid | None = None
    ) -> dict[str, Tensor]:
        """`scores`, `reward` and what is derived from their graph, by name."""
        self._check(video, prompts)
        if torch.is_grad_enabled() and video.requires_grad:
            shown = video + (video.clamp(0, 1) - video).detach()
            parts = [self._part(shown, prompts, derived, grid, attached=True)]
        else:
            video = video.detach()
            batches = self._batches.split(video, prompts, self._scores) if derived else [(video, prompts)]
            parts = [self._part(*batch, derived, grid) for batch in batches]
        found = parts[0] if len(parts) == 1 else {n: torch.cat([part[n] for part in parts]) for n in parts[0]}
        if self._looks(video):
            require_finite(found["scores"], reward_name(self.model))
        return found

    def _part(
        self,
        video: Tensor,
        prompts: PromptBatch,
        derived: Collection[str],
        grid: Grid | None,
        attached: bool = False,
    ) -> dict[str, Tensor]:
        with torch.set_grad_enabled(attached or bool(derived)):
            if derived and not attached:
                video = video.detach().requires_grad_()
            scores = self._scores(video, prompts)
            found = {"scores": scores, "reward": scores.mean(dim=-1)}
            rest = self._derived(scores, video, derived, grid) if derived else {}
        return (found if attached else {name: value.detach() for name, value in found.items()}) | rest

    def _scores(self, video: Tensor, prompts: PromptBatch) -> Tensor:
        dtype = self.settings.autocast
        with nullcontext() if dtype is None else torch.autocast(video.device.type, dtype=dtype):
            raw = self.model.score(video, prompts)
        raw = read_reward(raw, video, self.model.axes, reward_name(self.model))
        return ((raw.float() - self.model.mean) / self.model.std)[:, self._columns]

    def _derived(self, scores: Tensor, video: Tensor, names: Collection[str], grid: Grid | None) -> dict[str, Tensor]:
        """Saliency, perplexity and gradient, those that are named; one backward pass where only a gradient is."""
        if not scores.requires_grad:
            axes = ", ".join(self.axes)
            raise NoGradientError(f"no score of {axes} depends on the pixels by a gradient: ask for scores")
        if not {"saliency", "perplexity"}.intersection(names):
            return {"gradient": torch.autograd.grad(scores.mean(dim=-1).sum(), video, retain_graph=True)[0]}
        gradients = self._axis_gradients(scores, video)
        found = {"saliency": fuse(scores, gradients, self.settings.tau)}
        if "perplexity" in names and grid is not None:
            floors = self.settings.temporal_floor, self.settings.spatial_floor
            found["perplexity"] = intra_perplexity(to_latents(found["saliency"], grid), *floors)
        if "gradient" in names:
            found["gradient"] = gradients.mean(dim=0)
        return {name: found[name] for name in names}

    def _axis_gradients(self, scores: Tensor, video: Tensor) -> Tensor:
        """d score_m / d video on the one retained graph, [A, B, F, 3, H, W]; exact, since rows do not interact."""
        totals = scores.sum(dim=0)
        batched = self.settings.batched
        if video.is_cuda if batched is None else batched:
            chosen = torch.eye(len(totals), device=totals.device)
            return torch.autograd.grad(totals, video, chosen, retain_graph=True, is_grads_batched=True)[0]
        return torch.stack([torch.autograd.grad(total, video, retain_graph=True)[0] for total in totals.unbind()])

    def _check(self, video: Tensor, prompts: PromptBatch) -> None:
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
        if self._looks(video):
            self._check_pixels(video)

    def _looks(self, video: Tensor) -> bool:
        return video.device.type == "cpu" if self.settings.check is None else self.settings.check

    def _check_pixels(self, video: Tensor) -> None:
        slack = OVERSHOOT if torch.is_grad_enabled() and video.requires_grad else _ROUNDING
        low, high = (float(end) for end in video.detach().aminmax())
        if not (low >= -slack and high <= 1 + slack):
            bad = "NaN" if low != low else f"pixels from {low:g} to {high:g}"
            raise PixelError(f"video {list(video.shape)} holds {bad}: expected values in [0, 1]")
