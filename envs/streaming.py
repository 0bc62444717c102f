"""What a trainer of a streaming generator plays in."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ..models.codec import Codec
from ..rewards.windows import ChunkLayout
from .clips import ClipState, Reward


class StreamingEnv(Protocol):
    """Clips of N streams in lockstep, made chunk by chunk by whoever acts: StreamGenVectorEnv, or one of your own.

    layout: of a clip in chunks.   codec: of the latents that are the actions.   reward: of windows; a StreamReward
    where its gradient or its perplexity is wanted.   state: where the streams stand; a state of N rows may be assigned.
    """

    num_envs: int
    device: torch.device
    layout: ChunkLayout
    codec: Codec
    reward: Reward
    state: ClipState

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin clips of options["scripts"], N rows of n prompts; options["need"]: see ClipState.

        Returns the observation, `latents`, `prompt` and `position` as StreamGen's, and `info`.
        """
        ...

    def step(self, actions: Tensor) -> tuple[Any, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Append chunks [N, f, C, h, w]: observation, reward [N] of the windows that end with them, terminated,
        truncated, `info` with `perplexity` where it was asked for; `final_obs` and `final_info` if clips ended and new
        ones began."""
        ...

    def fork(self, rows: Tensor) -> StreamingEnv:
        """Another environment, whose rows continue this one's at rows [M] (int64)."""
        ...
