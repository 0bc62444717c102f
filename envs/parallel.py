"""PettingZoo's parallel view of the self-play game: one stream, numpy in and out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.error import ResetNeeded
from pettingzoo import ParallelEnv
from torch import Tensor

from . import self_play
from .draw import View, all_canvases, newest_canvases, to_pixels
from .making import Source
from .registration import register_parallel
from .self_play import DETECTOR, GENERATOR, PLAYERS, SelfPlayGame
from .single import to_numpy
from .stream_detect import WORDS
from .vector import METADATA, RENDER_FPS


class SelfPlayEnv(ParallelEnv[str, Any, Any]):
    """`reelgym/SelfPlay-v0`: agents "generator" and "detector"; see SelfPlayGame for the rules and what each sees.

    The episode ends with the detector's verdict, or after the last chunk; both agents terminate, none is truncated.
    `infos`: `text`, the prompt of the chunk to come, for the generator; at the end, for both, `real` and `verdict`.
    `reset(options=)` may hold `script`; other options are none of ours and are left alone.
    """

    metadata = {**METADATA, "name": "reelgym/SelfPlay-v0", "is_parallelizable": True}

    def __init__(self, game: SelfPlayGame, render_mode: str | None = None) -> None:
        if game.num_envs != 1:
            raise ValueError(f"the parallel view is of one stream, not of {game.num_envs}")
        if render_mode not in (None, *METADATA["render_modes"]):
            raise ValueError(f"unknown render_mode {render_mode!r}; use one of {METADATA['render_modes']}")
        self.game, self.render_mode = game, render_mode
        self.metadata = {
            **self.metadata,
            "render_fps": METADATA["render_fps"] if render_mode is None else RENDER_FPS[render_mode],
        }
        self.possible_agents: list[str] = list(PLAYERS)
        self.agents: list[str] = []
        self._random = np.random.default_rng()

    def observation_space(self, agent: str) -> Any:
        """The same object at every call."""
        return self.game.spaces[agent]

    def action_space(self, agent: str) -> Any:
        """The same object at every call."""
        return self.game.actions[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin a stream."""
        if seed is not None:
            self._random = np.random.default_rng(seed)
        script = (options or {}).get("script")
        seen = self.game.reset(int(self._random.integers(2**31)), None if script is None else [script])
        self.agents = list(PLAYERS)
        return self._numpy(seen), self._infos(False)

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, Any]]:
        """One move of both; ValueError where one's is missing, ResetNeeded where the stream is over."""
        if not self.agents:
            raise ResetNeeded("the game has ended, or has not begun: call reset()")
        missing = [agent for agent in self.agents if agent not in actions]
        if missing:
            raise ValueError(f"both move at once: no action of {', '.join(missing)}")
        moved = {agent: torch.from_numpy(np.asarray(actions[agent])[None].copy()) for agent in self.agents}
        seen, rewards, over = self.game.step(moved)
        ended = bool(over[0])
        agents, self.agents = self.agents, [] if ended else self.agents
        told = {agent: float(rewards[agent][0]) for agent in agents}
        return self._numpy(seen), told, dict.fromkeys(agents, ended), dict.fromkeys(agents, False), self._infos(ended)

    def state(self) -> np.ndarray[Any, Any]:
        """What a critic that sees everything may see: the generator's window, and whether the stream is real."""
        state = self.game.state
        return np.append(state.clips.latents[0].flatten().cpu().numpy(), np.float32(state.real[0].cpu()))

    def render(self) -> Any:
        """A canvas uint8 [H, W, 3] of what the detector was shown last, or a list of them: see TensorVectorEnv."""
        if self.render_mode is None:
            return None
        state, frames = self.game.state, self.game.frames
        newest = state.film[:, -frames:] if state.film.shape[1] else state.film
        shown = state.film.shape[1] // frames
        said = f"chunk {shown} of {self.game.layout.chunks}{WORDS[int(state.verdict[0])]}"
        told = f"it is {'real' if state.real[0] else 'made'}" if state.over[0] else ""
        view = View(
            {"newest chunk": to_pixels(newest)},
            notes=([said], [told]),
            prompts=[state.clips.texts[0][max(0, shown - 1)]],
        )
        return (newest_canvases(view) if self.render_mode == "rgb_array" else all_canvases(view))[0]

    def close(self) -> None:
        """Nothing is held open."""

    def _numpy(self, seen: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
        return {agent: to_numpy(seen[agent], self.game.spaces[agent]) for agent in PLAYERS}

    def _infos(self, ended: bool) -> dict[str, dict[str, Any]]:
        state = self.game.state
        told = {"real": bool(state.real[0]), "verdict": int(state.verdict[0])} if ended else {}
        return {GENERATOR: {"text": state.clips.prompt.text[0], **told}, DETECTOR: dict(told)}


def make(stack: Source = "tiny", *, render_mode: str | None = None, **options: Any) -> SelfPlayEnv:
    """The game of one stream over a stack, for `pettingzoo.make("parallel", ...)`; options: of `self_play.make`."""
    return SelfPlayEnv(self_play.make(stack, 1, **options), render_mode)


register_parallel()
