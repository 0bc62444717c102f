"""A Stable-Baselines3 features extractor for flat observations that hold a clip.

B observations, F frames, C channels, h x w cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from gymnasium.spaces import Box
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn


class ClipFeatures(BaseFeaturesExtractor):
    """Features of an observation's clip by small convolutions, and its other columns as they are.

    Every frame is seen beside its difference from the frame before (the first beside zeros); a frame's features are the
    mean and the maximum over its cells. For `policy_kwargs`:

        {"features_extractor_class": ClipFeatures,
         "features_extractor_kwargs": {"columns": envs.columns, "clip_shape": envs.clip_shape}}

    Args:
        observation_space: a flat Box.
        columns: which columns are what.
        clip_shape: (F, C, h, w), what the columns of the clip unflatten to.
        part: the clip's name in `columns`.
        width: channels of the first convolution; the second has twice as many.
        clip_features: numbers that the clip becomes.
    """

    def __init__(
        self,
        observation_space: Box,
        columns: Mapping[str, slice],
        clip_shape: Sequence[int],
        part: str = "clip",
        width: int = 16,
        clip_features: int = 64,
    ) -> None:
        frames, channels, height, width_cells = clip_shape
        own, (size,) = columns[part], observation_space.shape
        held = own.stop - own.start
        if held != frames * channels * height * width_cells:
            raise ValueError(f"{held} columns of {part!r} do not unflatten to a clip of {tuple(clip_shape)}")
        super().__init__(observation_space, clip_features + size - held)
        self.columns, self.clip_shape = own, tuple(clip_shape)
        self.frame = nn.Sequential(
            nn.Conv2d(2 * channels, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Linear(frames * 4 * width, clip_features), nn.ReLU())

    def forward(self, observations: Tensor) -> Tensor:
        """[B, K] to [B, features_dim]."""
        clip = observations[:, self.columns].unflatten(1, self.clip_shape)
        change = torch.cat((torch.zeros_like(clip[:, :1]), clip[:, 1:] - clip[:, :-1]), 1)
        cells = self.frame(torch.cat((clip, change), 2).flatten(0, 1)).flatten(2)
        frames = torch.cat((cells.mean(2), cells.amax(2)), 1).view(len(observations), -1)
        rest = observations[:, : self.columns.start], observations[:, self.columns.stop :]
        return torch.cat((self.head(frames), *rest), 1)
