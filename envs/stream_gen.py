"""`reelgym/StreamGen-v0`: a streaming generator acts, chunk after chunk, with the latents of a clip.

N streams, n chunks a clip, f latent frames a chunk, W latent frames a window, L words, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from ..models.codec import Codec
from ..models.prompts import PromptBatch
from ..rewards.stream_reward import RewardSignal
from .prompt_source import Draw, Texts
from .windows import TINY, Clock, prompt_columns

LIMIT = 64.0
"""Bound of latents in the spaces; nothing is clipped to it."""
METADATA: dict[str, Any] = {"render_modes": ["rgb_array", "rgb_array_list"], "render_fps": 8}
MODES = (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)


class Reward(Protocol):
    """What the environment asks of a reward; StreamReward is one."""

    @property
    def min_frames(self) -> int:
        """The shortest video, in frames, that it scores."""
        ...

    def __call__(self, video: Tensor, prompts: PromptBatch, *, need: Collection[str]) -> RewardSignal:
        """video [N, F, 3, H, W] in [0, 1] and N prompts; `need` is {"scores"}; `.reward` [N] is read."""
        ...


@dataclass(frozen=True)
class StreamGenState:
    """Where N streams stand; nothing in it is ever written in place.

    latents: [N, W, C, h, w], the last frames, zeros before the start.   position: chunks done, 0 to n.
    video: decoded chunks of the window, oldest first, each [N, F, 3, H, W] in [0, 1].
    prompts: n batches of N prompts.   texts: N rows of n prompts.   decode: the codec's state.
    """

    latents: Tensor
    position: int
    video: tuple[Tensor, ...]
    prompts: tuple[PromptBatch, ...]
    texts: Texts
    decode: Any

    def take(self, rows: Tensor) -> StreamGenState:
        """The streams at rows [M] (int64), in that order; a row may occur several times (a fork)."""
        rows = rows.to(self.latents.device)
        return replace(
            self,
            latents=self.latents[rows],
            video=tuple(chunk[rows] for chunk in self.video),
            prompts=tuple(batch.take(rows) for batch in self.prompts),
            texts=tuple(self.texts[row] for row in rows.tolist()),
            decode=self.decode.take(rows),
        )


class StreamGenVectorEnv(VectorEnv[dict[str, Tensor], Tensor, Tensor]):
    """N streams in lockstep over torch tensors that stay on the device.

    Action: the next chunk's latents [N, f, C, h, w], never clipped. Observation: `latents` [N, W, C, h, w], the window
    that ends with the newest chunk; `prompt` [N, L, D], of the chunk to come (of the last chunk when none comes);
    `position` int64 [N], chunks done. Reward [N]: that of the window which ends with the chunk, judged against the
    prompt of that chunk, over n (contract 11). All streams end together, terminated. `info["text"]`: the prompts of
    the chunk to come, N strings.

    Args:
        num_envs: N.
        codec: see models.codec.Codec.
        reward: StreamReward, or what has its call and its `min_frames`; shorter windows earn 0.
        prompts: draws embeddings and texts; its `encode`, where it has one, serves `reset(options={"scripts": ...})`.
        clock: how a clip is cut.
        autoreset_mode: SAME_STEP or DISABLED.
        render_mode: "rgb_array" (the newest frame) or "rgb_array_list" (the frames of the newest chunk).
    """

    def __init__(
        self,
        num_envs: int,
        codec: Codec,
        reward: Reward,
        prompts: Draw,
        *,
        clock: Clock = TINY,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        mode = AutoresetMode(autoreset_mode)
        if mode not in MODES:
            raise ValueError(f"streams advance in lockstep: autoreset_mode is SAME_STEP or DISABLED, not {mode.name}")
        if render_mode not in (None, *METADATA["render_modes"]):
            raise ValueError(f"unknown render_mode {render_mode!r}; use one of {METADATA['render_modes']}")
        self.num_envs, self.codec, self.reward, self.prompts, self.clock = num_envs, codec, reward, prompts, clock
        self.mode, self.render_mode, self.device = mode, render_mode, torch.device(device)
        self.metadata = {**METADATA, "autoreset_mode": mode}
        self._state: StreamGenState | None = None
        embeds, _ = prompts(1, 0)
        grid = codec.grid(1)
        with torch.no_grad():
            blank = torch.zeros(1, 1, codec.channels, grid.h, grid.w, device=self.device)
            self._image = codec.decode(blank).shape[-2:]
        shape = self._latent = (codec.channels, grid.h, grid.w)
        self.single_action_space = Box(-LIMIT, LIMIT, (clock.frames_per_chunk, *shape), np.float32)
        self.single_observation_space = Dict(
            {
                "latents": Box(-LIMIT, LIMIT, (clock.window_frames, *shape), np.float32),
                "prompt": Box(-LIMIT, LIMIT, tuple(embeds.shape[2:]), np.float32),
                "position": Discrete(clock.chunks + 1),
            }
        )
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

    @property
    def state(self) -> StreamGenState:
        """Where the streams stand; assign what `state.take(rows)` gave, of num_envs rows, to branch."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset() before step() or state")
        return self._state

    @state.setter
    def state(self, state: StreamGenState) -> None:
        if len(state.latents) != self.num_envs:
            raise ValueError(f"a state of {len(state.latents)} streams does not fit num_envs={self.num_envs}")
        self._state = state

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Begin N clips. options: `scripts`, N scripts or rows of n prompts; `reset_mask`, which must be all True."""
        super().reset(seed=seed)
        options = options or {}
        mask = options.get("reset_mask")
        if mask is not None and not np.all(np.asarray(mask)):
            raise ValueError("streams advance in lockstep: reset_mask must be all True, or left out")
        self._state = self._begin(options.get("scripts"))
        return self._observe(self._state), self._info(self._state)

    @torch.no_grad()
    def step(self, actions: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Any]]:
        """Append a chunk to every stream."""
        state = self.state
        if state.position == self.clock.chunks:
            raise gymnasium.error.ResetNeeded("the clips have ended: call reset()")
        actions = torch.as_tensor(actions, device=self.device)
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions have shape {tuple(actions.shape)}, expected {self.action_space.shape}")
        state = self._state = self._append(state, actions)
        reward = self._judge(state) / self.clock.chunks
        ended = state.position == self.clock.chunks
        terminated = torch.full((self.num_envs,), ended, dtype=torch.bool, device=self.device)
        observation, info = self._observe(state), self._info(state)
        if ended and self.mode is AutoresetMode.SAME_STEP:
            final = {"final_obs": observation, "final_info": info}
            self._state = self._begin(None)
            everyone = np.ones(self.num_envs, dtype=bool)
            observation, info = self._observe(self._state), self._info(self._state)
            info |= final | {"_final_obs": everyone, "_final_info": everyone.copy()}
        return observation, reward, terminated, torch.zeros_like(terminated), info

    def fork(self, rows: Tensor) -> StreamGenVectorEnv:
        """Another environment whose streams continue this one's at rows [M] (int64), sharing codec and reward."""
        branch = StreamGenVectorEnv(
            len(rows), self.codec, self.reward, self.prompts, clock=self.clock, autoreset_mode=self.mode,
            render_mode=self.render_mode, device=self.device,
        )  # fmt: skip
        branch.state = self.state.take(rows)
        return branch

    def render(self) -> tuple[Any, ...] | None:
        """Per stream, uint8 [H, W, 3]: the newest frame, or the list of the newest chunk's; black before the first."""
        if self.render_mode is None:
            return None
        video = self.state.video[-1] if self.state.video else torch.zeros(self.num_envs, 1, 3, *self._image)
        pixels = (video * 255).round().clamp(0, 255).to(torch.uint8).movedim(2, -1).cpu().numpy()
        return tuple(clip[-1] if self.render_mode == "rgb_array" else list(clip) for clip in pixels)

    def _begin(self, scripts: Sequence[str | Sequence[str]] | None) -> StreamGenState:
        embeds, texts = self._draw(scripts)
        if embeds.shape[:2] != (self.num_envs, self.clock.chunks):
            raise ValueError(
                f"prompts of shape {tuple(embeds.shape)} came for {self.num_envs} clips of {self.clock.chunks} chunks"
            )
        embeds = embeds.to(self.device, non_blocking=True)
        window = (self.num_envs, self.clock.window_frames, *self._latent)
        return StreamGenState(
            latents=torch.zeros(window, device=self.device),
            position=0,
            video=(),
            prompts=prompt_columns(embeds, texts),
            texts=texts,
            decode=self.codec.open(),
        )

    def _draw(self, scripts: Sequence[str | Sequence[str]] | None) -> tuple[Tensor, Texts]:
        if scripts is None:
            return self.prompts(self.num_envs, int(self.np_random.integers(2**31)))
        encode = getattr(self.prompts, "encode", None)
        if encode is None:
            raise ValueError("options['scripts'] needs a prompt source with encode(scripts), such as ScriptPrompts")
        embeds, texts = encode(scripts)
        return embeds, texts

    def _append(self, state: StreamGenState, chunk: Tensor) -> StreamGenState:
        video, decode = self.codec.decode_stream(chunk, state.decode)
        return replace(
            state,
            latents=torch.cat((state.latents[:, chunk.shape[1] :], chunk), 1),
            position=state.position + 1,
            video=(*state.video, video)[-self.clock.window_chunks :],
            decode=decode,
        )

    def _judge(self, state: StreamGenState) -> Tensor:
        video = torch.cat(state.video, 1)
        if video.shape[1] < self.reward.min_frames:
            return torch.zeros(self.num_envs, device=self.device)
        return self.reward(video, state.prompts[state.position - 1], need={"scores"}).reward

    def _next(self, state: StreamGenState) -> PromptBatch:
        return state.prompts[min(state.position, self.clock.chunks - 1)]

    def _observe(self, state: StreamGenState) -> dict[str, Tensor]:
        position = torch.full((self.num_envs,), state.position, dtype=torch.int64, device=self.device)
        return {"latents": state.latents.clone(), "prompt": self._next(state).embeds.clone(), "position": position}

    def _info(self, state: StreamGenState) -> dict[str, Any]:
        return {"text": np.array(self._next(state).text, dtype=object), "_text": np.ones(self.num_envs, dtype=bool)}
