"""The single view of `reelgym/StreamGen-v0`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from ..models.codec import Codec
from .prompt_source import Draw
from .stream_gen import METADATA, Reward, StreamGenVectorEnv


class StreamGenEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """One stream: StreamGenVectorEnv with N = 1, numpy in and out. Takes its arguments, less num_envs and autoreset."""

    metadata = METADATA

    def __init__(self, codec: Codec, reward: Reward, prompts: Draw, **kwargs: Any) -> None:
        self.vector = StreamGenVectorEnv(1, codec, reward, prompts, autoreset_mode=AutoresetMode.DISABLED, **kwargs)
        self.render_mode = self.vector.render_mode
        self.action_space = self.vector.single_action_space
        self.observation_space = self.vector.single_observation_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin a clip; options: `script`, one script or n prompts."""
        super().reset(seed=seed)
        if seed is not None or self.vector._np_random is None:
            self.vector.np_random = self.np_random
        script = (options or {}).get("script")
        observation, info = self.vector.reset(options=None if script is None else {"scripts": [script]})
        return _single(observation), {"text": info["text"][0]}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Append a chunk."""
        observation, reward, terminated, _, info = self.vector.step(torch.as_tensor(action)[None])
        return _single(observation), float(reward), bool(terminated), False, {"text": info["text"][0]}

    def render(self) -> Any:
        """uint8 [H, W, 3] (rgb_array) or a list of them (rgb_array_list)."""
        frames = self.vector.render()
        return None if frames is None else frames[0]


def _single(observation: dict[str, Tensor]) -> dict[str, Any]:
    numpy = {name: value[0].cpu().numpy() for name, value in observation.items()}
    return numpy | {"position": np.int64(numpy["position"])}
