"""What a generator in the league is trained on: a quality reward, and what its opponents make of its clips.

B clips, F frames, A axes of the quality reward, K films.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from ...envs.game_rules import GameRules
from ...envs.worlds.camera import CAMERAS, exposed, lens_of
from ...models.detector import ClipDetector
from ...models.prompts import PromptBatch
from ...rewards.reward_model import RewardModel


class OpponentReward(nn.Module):
    """A quality reward with one more axis, "realness": minus the mean logit of the opponents, bounded.

    quality: its axes, mean and std are kept. rules: the camera through which opponents look, and how small they see;
    what they see is not rounded to 8 bit, so that a gradient gets through. weight: of realness, each quality axis
    having 1. bound: logits beyond it earn nothing more, so that nobody is trained to be more than sure. films: K,
    lenses and grain that the rows take in turn; they and the opponents are set anew by `against`, and scores are a pure
    function in between.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        quality: RewardModel,
        rules: GameRules | None = None,
        weight: float = 3.0,
        bound: float = 4.0,
        films: int = 8,
    ) -> None:
        super().__init__()
        if min(weight, bound) <= 0 or films < 1:
            raise ValueError(f"weight and bound are above 0, films at least 1: {weight}, {bound}, {films}")
        self.quality, self.rules, self.weight = quality, rules or GameRules(), weight
        self.bound, self.films = bound, films
        self.axes: tuple[str, ...] = (*quality.axes, "realness")
        self.min_frames = quality.min_frames
        self.opponents: tuple[ClipDetector, ...] = ()
        self.seed = 0
        one = quality.mean.new_ones(1)
        self.register_buffer("mean", torch.cat((quality.mean, 0 * one)))
        self.register_buffer("std", torch.cat((quality.std, one / weight)))

    def against(self, opponents: Sequence[ClipDetector], seed: int, weight: float | None = None) -> None:
        """Whom the next clips are held against, the seed of their camera, and the weight of realness where it is not
        the usual one; ValueError for nobody."""
        if not opponents:
            raise ValueError("a generator is trained against one detector at least")
        self.opponents, self.seed = tuple(opponents), seed
        self.std[-1] = 1 / (weight or self.weight)

    def score(self, video: Tensor, prompts: PromptBatch) -> Tensor:
        """[B, A + 1]."""
        if not self.opponents:
            raise ValueError("no opponent: call against(...) first")
        film = self._film(video)
        small = avg_pool2d(film.flatten(0, 1), self.rules.pool).unflatten(0, film.shape[:2])
        logits = torch.stack([opponent(small)[:, -1] for opponent in self.opponents]).mean(0)
        realness = self.bound * torch.tanh(-logits / self.bound)
        return torch.cat((self.quality.score(video, prompts), realness[:, None]), 1)

    def _film(self, video: Tensor) -> Tensor:
        """Video as the camera shows it, with a gradient where it has one."""
        camera = CAMERAS[self.rules.camera]
        random = torch.Generator().manual_seed(self.seed)
        lens = lens_of(camera, torch.rand(self.films, 3 + video.shape[2], generator=random).to(video.device))
        grain = torch.randn(self.films, *video.shape[1:], generator=random).to(video.device)
        turn = torch.arange(len(video), device=video.device) % self.films
        return exposed(video, camera, lens.take(turn), grain[turn]).clamp(0, 1)
