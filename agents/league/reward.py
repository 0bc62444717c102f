"""What a generator in the league is trained on: a quality reward, and what its opponents make of its clips.

B clips, F frames, A axes of the quality reward.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from ...models.detector import ClipDetector
from ...models.prompts import PromptBatch
from ...rewards.stream_reward import RewardModel


class OpponentReward(nn.Module):
    """A quality reward with one more axis, "realness": minus the mean logit of the opponents, bounded.

    quality: its axes, mean and std are kept. pool: side of the squares that the detectors see averaged. bound: logits
    beyond it earn nothing more, so that nobody is trained to be more than sure. `opponents` are set anew every round.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, quality: RewardModel, pool: int = 2, bound: float = 4.0) -> None:
        super().__init__()
        self.quality, self.pool, self.bound = quality, pool, bound
        self.axes: tuple[str, ...] = (*quality.axes, "realness")
        self.min_frames = quality.min_frames
        self.opponents: tuple[ClipDetector, ...] = ()
        one = quality.mean.new_ones(1)
        self.register_buffer("mean", torch.cat((quality.mean, 0 * one)))
        self.register_buffer("std", torch.cat((quality.std, one)))

    def against(self, opponents: Sequence[ClipDetector]) -> None:
        """Whom the next clips are held against; ValueError for none."""
        if not opponents:
            raise ValueError("a generator is trained against one detector at least")
        self.opponents = tuple(opponents)

    def score(self, video: Tensor, prompts: PromptBatch) -> Tensor:
        """[B, A + 1]."""
        if not self.opponents:
            raise ValueError("no opponent: call against(...) first")
        small = avg_pool2d(video.flatten(0, 1), self.pool).unflatten(0, video.shape[:2])
        logits = torch.stack([opponent(small)[:, -1] for opponent in self.opponents]).mean(0)
        realness = self.bound * torch.tanh(-logits / self.bound)
        return torch.cat((self.quality.score(video, prompts), realness[:, None]), 1)
