"""`reelgym/StreamDenoise-v0`: StreamGen, one denoising step at a time, for policy gradients on the sampler.

N streams, n chunks a clip, S denoising steps a chunk, f latent frames a chunk, W latent frames a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete
from torch import Tensor

from ..models.codec import Codec
from ..models.sampler import SAMPLER_SHIFT, step_sigmas
from ..models.tiny import STEPS
from ..noise import normal
from ..rewards.windows import TINY_LAYOUT, ChunkLayout
from .clips import Clips, ClipState, Reward
from .draw import View, to_pixels
from .making import Source, clip_parts, opened, single
from .prompt_source import PromptSampler
from .rows import Rows
from .vector import TensorVectorEnv

SIGMAS = step_sigmas(STEPS, SAMPLER_SHIFT)
"""Levels of the tiny tier's sampler."""


@dataclass(frozen=True)
class DenoiseState(Rows):
    """clip: the clean chunks so far.   noisy: [N, f, C, h, w], the chunk to come, at the level of step `step`, 0 to
    S - 1.   keys: int64 [N], from which each chunk's first noise follows."""

    clip: ClipState
    noisy: Tensor
    step: int
    keys: Tensor


class StreamDenoiseVectorEnv(TensorVectorEnv[DenoiseState]):
    """N streams in lockstep; an agent takes each chunk from noise to clean latents in S steps.

    State: StreamGen's (the clip so far), the noisy chunk, the step, and the keys of the noise.
    Observation: StreamGen's `latents` [N, W, C, h, w], `prompt` [N, L, D] and `position` [N] (chunks done);
        `noisy` [N, f, C, h, w], the chunk x_s as it stands; `step` int64 [N], s from 0 to S - 1; `sigma` [N, 1],
        the level that x_s is at.
    Action [N, f, C, h, w], never clipped: x_{s+1}, the chunk at the next level; at step S - 1 the clean chunk. The
        sampler's policy is the Gaussian N((1 - s') x0, s'^2) at the next level s' (models.sampler.kernel_log_prob);
        that last step alone is deterministic.
    Transition: x_{s+1} becomes the noisy chunk. A clean chunk is appended, and the next one begins as fresh noise,
        normal(key, chunk, 0): random, but a function of the stream's key, and what generate_chunk starts from.
    Reward [N]: 0, and for the last step of a chunk what StreamGen gives; the return is StreamGen's.
    End: after n chunks, n S steps, all streams together, terminated.

    What the agent's cache holds of the chunks before the window is the agent's own. `reset(options=...)`:
    `scripts`; `keys` int64 [N]; `reset_mask`. `info["text"]`: the prompts of the chunk to come.

    Args:
        num_envs: N.
        codec, reward, prompts, layout: as in StreamGenVectorEnv.
        sigmas: levels of the S steps, falling from 1; by default those of the tiny tier's sampler.
        others: autoreset_mode, render_mode, device and check, see TensorVectorEnv.
    """

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"scripts", "keys", "reset_mask"})
    BOUNDED: ClassVar[bool] = False

    def __init__(
        self,
        num_envs: int,
        codec: Codec,
        reward: Reward,
        prompts: PromptSampler,
        *,
        layout: ChunkLayout = TINY_LAYOUT,
        sigmas: Sequence[float] = SIGMAS,
        device: torch.device | str = "cpu",
        **others: Any,
    ) -> None:
        if not sigmas or sigmas[0] != 1 or any(not 0 < low < high for high, low in pairwise(sigmas)):
            raise ValueError(f"sigmas fall from 1 and stay above 0, not {tuple(sigmas)}")
        self.clips = Clips(codec, reward, prompts, layout, torch.device(device), others.get("check"))
        self.prompts, self.layout, self.sigmas = prompts, layout, tuple(sigmas)
        observed = Dict(
            {
                **self.clips.spaces,
                "noisy": self.clips.chunk,
                "step": Discrete(len(sigmas)),
                "sigma": Box(0.0, 1.0, (1,), np.float32),
            }
        )
        super().__init__(num_envs, observed, self.clips.chunk, device=device, **others)

    def _terminal(self, state: DenoiseState) -> bool:
        return self.clips.over(state.clip)

    def _initial(self, options: dict[str, Any]) -> DenoiseState:
        clip = self.clips.begin(self.num_envs, self.np_random, options.get("scripts"))
        return self._noised(clip, self._keys(options))

    def _noised(self, clip: ClipState, keys: Tensor) -> DenoiseState:
        """Before the first step of the next chunk; after the last chunk its noise is of no consequence."""
        return DenoiseState(clip, normal(keys, clip.position, 0, self.clips.chunk.shape), 0, keys)

    def _transition(self, state: DenoiseState, actions: Tensor) -> tuple[DenoiseState, Tensor, bool]:
        if state.step + 1 < len(self.sigmas):
            moved = replace(state, noisy=actions.clone(), step=state.step + 1)
            return moved, torch.zeros(self.num_envs, device=self.device), False
        clip, reward = self.clips.score(self.clips.append(state.clip, actions))
        return self._noised(clip, state.keys), reward, self.clips.over(clip)

    def _observation(self, state: DenoiseState) -> dict[str, Tensor]:
        step = torch.full((self.num_envs,), state.step, dtype=torch.int64, device=self.device)
        sigma = torch.full((self.num_envs, 1), self.sigmas[state.step], device=self.device)
        return {**self.clips.observe(state.clip), "noisy": state.noisy.clone(), "step": step, "sigma": sigma}

    def _view(self, state: DenoiseState) -> View:
        """StreamGen's, and the noisy chunk as the codec shows it; the prompt is that of the noisy chunk."""
        clip, over = state.clip, self.clips.over(state.clip)
        with torch.no_grad():
            noisy = to_pixels(self.clips.codec.decode_stream(state.noisy, clip.decode)[0])
        view = self.clips.view(clip)
        note = "" if over else f"step {state.step} of {len(self.sigmas)}, sigma {self.sigmas[state.step]:.2f}"
        panels = {**view.panels, "chunk to come": noisy[:, :0] if over else noisy}
        return replace(view, panels=panels, notes=([note] * self.num_envs,), prompts=clip.prompt.text)

    def _state_info(self, state: DenoiseState) -> dict[str, Any]:
        return self.clips.info(state.clip)


def make(
    stack: Source = "tiny", num_envs: int = 1, *, max_episode_steps: int | None = None, **options: Any
) -> StreamDenoiseVectorEnv:
    """N streams over a stack. max_episode_steps: denoising steps of a clip. options: those of `clip_parts`, sigmas,
    autoreset_mode, render_mode, check and device."""
    if max_episode_steps is not None:
        steps = len(options.get("sigmas", SIGMAS))
        if max_episode_steps < steps or max_episode_steps % steps:
            raise ValueError(f"max_episode_steps={max_episode_steps} is no multiple of the {steps} steps of a chunk")
        options["chunks"] = max_episode_steps // steps
    loaded, clip, others = opened(stack, options, clip_parts, StreamDenoiseVectorEnv)
    return StreamDenoiseVectorEnv(num_envs, **clip_parts(loaded, **clip), **others)


make_single = single(make)
