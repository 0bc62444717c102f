"""`reelgym/StreamGen-v0`: a streaming generator acts, chunk after chunk, with the latents of a clip.

N streams, n chunks a clip, f latent frames a chunk, W latent frames a window, L words, D width of an embedding.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from gymnasium.spaces import Dict
from torch import Tensor

from ..models.codec import Codec
from ..rewards.windows import TINY_LAYOUT, ChunkLayout
from .clips import Clips, ClipState, Reward
from .draw import View
from .making import Source, clip_parts, opened, single
from .prompt_source import PromptSampler
from .vector import TensorVectorEnv


class StreamGenVectorEnv(TensorVectorEnv[ClipState]):
    """N streams in lockstep over torch tensors that stay on the device.

    Action: the next chunk's latents [N, f, C, h, w], never clipped. Observation: `latents` [N, W, C, h, w], the window
    that ends with the newest chunk; `prompt` [N, L, D], of the chunk to come (of the last chunk when none comes);
    `position` int64 [N], chunks done. Reward [N]: that of the window which ends with the chunk, judged against the
    prompt of that chunk, over n. All streams end together, terminated. `info["text"]`: the prompts of
    the chunk to come, N strings.

    Args:
        num_envs: N.
        codec: see models.codec.Codec.
        reward: StreamReward, or what has its call and its `min_frames`; shorter windows earn 0.
        prompts: draws embeddings and texts; its `encode`, where it has one, serves `reset(options={"scripts": ...})`.
            `reset(options={"need": ...})` says what an episode's steps ask of the reward: {"scores"} by default;
            nothing, and all earn 0; {"scores", "perplexity"}, and `info["perplexity"]` [N, f, h, w] is what the
            elements of the newest chunk weigh in its window, of mean 1, where the window is long enough.
        layout: of a clip in chunks.
        others: autoreset_mode, render_mode, device and check, see TensorVectorEnv.
    """

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"scripts", "need", "reset_mask"})
    BOUNDED: ClassVar[bool] = False

    def __init__(
        self,
        num_envs: int,
        codec: Codec,
        reward: Reward,
        prompts: PromptSampler,
        *,
        layout: ChunkLayout = TINY_LAYOUT,
        device: torch.device | str = "cpu",
        **others: Any,
    ) -> None:
        self.clips = Clips(codec, reward, prompts, layout, torch.device(device), others.get("check"))
        self.codec, self.reward, self.prompts, self.layout = codec, reward, prompts, layout
        super().__init__(num_envs, Dict(self.clips.spaces), self.clips.chunk, device=device, **others)

    def _initial(self, options: dict[str, Any]) -> ClipState:
        return self.clips.begin(self.num_envs, self.np_random, options.get("scripts"), options.get("need"))

    def _terminal(self, state: ClipState) -> bool:
        return self.clips.over(state)

    def _transition(self, state: ClipState, actions: Tensor) -> tuple[ClipState, Tensor, bool]:
        state, reward = self.clips.score(self.clips.append(state, actions))
        return state, reward, self.clips.over(state)

    def _observation(self, state: ClipState) -> dict[str, Tensor]:
        return self.clips.observe(state)

    def _view(self, state: ClipState) -> View:
        return self.clips.view(state)

    def _state_info(self, state: ClipState) -> dict[str, Any]:
        return self.clips.info(state)


def make(stack: Source = "tiny", num_envs: int = 1, **options: Any) -> StreamGenVectorEnv:
    """N streams over a stack. options: those of `clip_parts`, autoreset_mode, render_mode, check and device."""
    loaded, clip, others = opened(stack, options, clip_parts, StreamGenVectorEnv)
    return StreamGenVectorEnv(num_envs, **clip_parts(loaded, **clip), **others)


make_single = single(make)
