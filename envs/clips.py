"""What the stream environments share: clips that grow chunk by chunk, and the reward of their windows.

N streams, n chunks a clip, f latent frames a chunk, W latent frames a window, L words, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, Space
from torch import Tensor

from ..models.codec import Codec, Grid
from ..models.fit import size_of
from ..models.prompts import PromptBatch
from ..rewards.reward_model import read_reward, require_finite, reward_name
from ..rewards.stream_reward import NoGradientError, RewardWeights, Scores, StreamReward
from ..rewards.windows import ChunkLayout, prompt_columns
from .draw import View, overlay, to_pixels
from .prompt_source import PromptSampler, Texts

LIMIT = 64.0
"""Bound of latents and prompts in the spaces; nothing is clipped to it."""
SCORES = frozenset({"scores"})
"""What a step asks of the reward, if nothing else is wanted."""


class Reward(Protocol):
    """What an environment asks of a reward; StreamReward is one."""

    @property
    def min_frames(self) -> int:
        """The shortest video, in frames, that it scores."""
        ...

    def __call__(self, video: Tensor, prompts: PromptBatch, *, need: Collection[str]) -> Scores:
        """video [N, F, 3, H, W] in [0, 1] and N prompts; `need` is {"scores"}; `.reward` [N] is read, and `.scores`
        [N, A] where the reward has `axes`, the A names of them."""
        ...


@dataclass(frozen=True)
class ClipState:
    """Where N clips stand; nothing in it is ever written in place.

    latents: [N, W, C, h, w], the last frames, zeros before the start.   position: chunks done, 0 to n.
    video: decoded chunks of the window, oldest first, each [N, F, 3, H, W] in [0, 1].
    prompts: n batches of N prompts.   texts: N rows of n prompts.   decode: the codec's state.
    scores: [N, A], what the newest window scored, zeros before the first.
    need: what a step asks of the reward: "scores", and "perplexity" too, or nothing, and no window is scored.
    perplexity: [N, f, h, w], where it was asked for and the window is long enough: what the newest chunk's elements
    weigh in its window, of mean 1.
    """

    latents: Tensor
    position: int
    video: tuple[Tensor, ...]
    prompts: tuple[PromptBatch, ...]
    texts: Texts
    decode: Any
    scores: Tensor
    need: frozenset[str] = SCORES
    perplexity: Tensor | None = None

    @property
    def prompt(self) -> PromptBatch:
        """The prompts of the chunk to come; of the last chunk when none comes."""
        return self.prompts[min(self.position, len(self.prompts) - 1)]

    def __len__(self) -> int:
        return len(self.latents)

    def take(self, rows: Tensor) -> ClipState:
        """The streams at rows [M] (int64), in that order; a row may occur several times (a fork)."""
        rows = rows.to(self.latents.device)
        return replace(
            self,
            latents=self.latents[rows],
            video=tuple(chunk[rows] for chunk in self.video),
            prompts=tuple(batch.take(rows) for batch in self.prompts),
            texts=tuple(self.texts[row] for row in rows.tolist()),
            decode=self.decode.take(rows),
            scores=self.scores[rows],
            perplexity=None if self.perplexity is None else self.perplexity[rows],
        )


class Clips:
    """How clips begin, grow and are judged; all of it pure.

    codec: see models.codec.Codec. reward: see Reward. prompts: draws embeddings and texts; its `encode`, where it has
    one, serves scripts that are given, and its `opening(batch, step)`, where it has one, is the video of the first
    chunks [batch, F, 3, H, W], which the world gives and the agent does not make. layout: of a clip in chunks.
    check: look at rewards for NaN and infinity; None: on the CPU only.
    """

    def __init__(
        self,
        codec: Codec,
        reward: Reward,
        prompts: PromptSampler,
        layout: ChunkLayout,
        device: torch.device,
        check: bool | None = None,
    ) -> None:
        self.codec, self.reward, self.prompts, self.layout, self.device = codec, reward, prompts, layout, device
        self.check = device.type == "cpu" if check is None else check
        self.axes: tuple[str, ...] = tuple(getattr(reward, "axes", ("reward",)))
        grid = codec.grid(1)
        self.latent = (codec.channels, grid.h, grid.w)
        embeds, _ = prompts(1, 0)
        self.prompt_shape = tuple(embeds.shape[2:])
        self.chunk = Box(-LIMIT, LIMIT, (layout.frames_per_chunk, *self.latent), np.float32)
        self.spaces: dict[str, Space[Any]] = {
            "latents": Box(-LIMIT, LIMIT, (layout.window_frames, *self.latent), np.float32),
            "prompt": Box(-LIMIT, LIMIT, self.prompt_shape, np.float32),
            "position": Discrete(layout.chunks + 1),
        }
        self.image = size_of(codec, device)

    @torch.no_grad()
    def begin(
        self,
        count: int,
        random: np.random.Generator,
        scripts: Sequence[Any] | None = None,
        need: Collection[str] | None = None,
    ) -> ClipState:
        """`count` new clips, of `scripts` (a script, or n prompts, each) or of scripts drawn; need: see ClipState."""
        if need and "perplexity" in need and not isinstance(self.reward, StreamReward):
            raise TypeError(f"perplexity needs a StreamReward, not {type(self.reward).__name__}")
        step = int(random.integers(2**31))
        embeds, texts = self.prompts(count, step) if scripts is None else self._encoded(scripts)
        if embeds.shape[:2] != (count, self.layout.chunks):
            came = f"prompts of shape {tuple(embeds.shape)} came"
            raise ValueError(f"{came} for {count} clips of {self.layout.chunks} chunks")
        embeds = embeds.to(self.device, non_blocking=True)
        state = ClipState(
            latents=torch.zeros(count, self.layout.window_frames, *self.latent, device=self.device),
            position=0,
            video=(),
            prompts=prompt_columns(embeds, texts),
            texts=texts,
            decode=self.codec.open(),
            scores=torch.zeros(count, len(self.axes), device=self.device),
            need=SCORES if need is None else frozenset(need),
        )
        opening = getattr(self.prompts, "opening", None)
        if opening is not None and scripts is None:
            given = self.codec.encode(opening(count, step).to(self.device, non_blocking=True))
            for chunk in given.split(self.layout.frames_per_chunk, 1):
                state = self.append(state, chunk)
        return state

    def append(self, state: ClipState, chunk: Tensor) -> ClipState:
        """The clips after the chunk's latents [N, f, C, h, w]."""
        video, decode = self.codec.decode_stream(chunk, state.decode)
        return replace(
            state,
            latents=torch.cat((state.latents[:, chunk.shape[1] :], chunk), 1),
            position=state.position + 1,
            video=(*state.video, video)[-self.layout.window_chunks :],
            decode=decode,
        )

    def score(self, state: ClipState) -> tuple[ClipState, Tensor]:
        """The state with what its newest window scored, and that window's reward over n: [N]; 0 where the state asks
        for no scores, or the window is too short for the reward."""
        video, prompts = torch.cat(state.video, 1), state.prompts[state.position - 1]
        if not state.need or video.shape[1] < self.reward.min_frames:
            return state, torch.zeros(len(video), device=self.device)
        found = self._weights(video, prompts, len(state.video)) if "perplexity" in state.need else None
        if found is None:
            signal: Scores = self.reward(video, prompts, need=SCORES)
        else:
            signal, newest = found[0], found[0].perplexity[:, -self.layout.frames_per_chunk :]
            state = replace(state, perplexity=newest / newest.mean(dim=(1, 2, 3), keepdim=True))
        name = reward_name(self.reward)
        reward = read_reward(signal.reward, video, None, name)
        if self.check:
            require_finite(reward, name)
        scores = read_reward(signal.scores, video, self.axes, name) if len(self.axes) > 1 else reward[:, None]
        return replace(state, scores=scores), reward / self.layout.chunks

    def over(self, state: ClipState) -> bool:
        """Whether the clips are complete."""
        return state.position == self.layout.chunks

    def observe(self, state: ClipState) -> dict[str, Tensor]:
        """What an agent that makes latents sees, as `spaces` say: window, prompt to come, chunks done."""
        position = torch.full((len(state.latents),), state.position, dtype=torch.int64, device=self.device)
        return {"latents": state.latents.clone(), "prompt": state.prompt.embeds.clone(), "position": position}

    def info(self, state: ClipState) -> dict[str, Any]:
        """`text`: the prompts of the chunk to come; `perplexity`: see ClipState, where it was asked for."""
        text = np.array(state.prompt.text, dtype=object)
        known = np.ones(len(text), dtype=bool)
        weight = {} if state.perplexity is None else {"perplexity": state.perplexity, "_perplexity": known}
        return {"text": text, "_text": known, **weight}

    def view(self, state: ClipState) -> View:
        """What `render` shows of the newest chunk; its perplexity map is computed here, and in no step."""
        count = len(state.latents)
        frames = to_pixels(state.video[-1] if state.video else torch.zeros(count, 0, 3, *self.image))
        panels = {f"chunk {state.position} of {self.layout.chunks}": frames}
        if isinstance(self.reward, StreamReward):
            weights = self.perplexity(state).cpu().numpy()
            pairs = zip(frames, weights, strict=True)
            panels["perplexity"] = np.stack([overlay(*pair) for pair in pairs]) if frames.size else frames
        bars = dict(zip(self.axes, state.scores.unbind(1), strict=True))
        return View(panels, bars, prompts=state.prompts[max(0, state.position - 1)].text)

    def perplexity(self, state: ClipState) -> Tensor:
        """The newest window's perplexity at each frame of the newest chunk, [N, F, h, w]; zeros while the reward has
        none to give: the window is too short, or no score depends on the pixels by a gradient."""
        newest = state.video[-1].shape[1] if state.video else 0
        if state.video and isinstance(self.reward, StreamReward):
            video, prompts = torch.cat(state.video, 1), state.prompts[state.position - 1]
            with suppress(NoGradientError):
                if found := self._weights(video, prompts, len(state.video)):
                    signal, grid = found
                    return signal.perplexity[:, grid.latent_of_frame[-newest:]]
        grid = self.codec.grid(1)
        return torch.zeros(len(state.latents), newest, grid.h, grid.w, device=self.device)

    def _weights(self, video: Tensor, prompts: PromptBatch, chunks: int) -> tuple[RewardWeights, Grid] | None:
        """What windows [N, F, 3, H, W] of so many chunks score, with their perplexity on a grid; None where a window is
        too short for the reward. A causal codec's first latent has fewer frames than others."""
        assert isinstance(self.reward, StreamReward)
        grid = self._window_grid(video.shape[1], chunks * self.layout.frames_per_chunk)
        if grid is None or video.shape[1] < self.reward.min_frames:
            return None
        return self.reward.weights(video, prompts, grid), grid

    def _window_grid(self, frames: int, latents: int) -> Grid | None:
        """Of a window at a stream's start, or later."""
        grids = (self.codec.grid(frames, start) for start in range(2))
        return next((grid for grid in grids if grid.latent_frames == latents), None)

    def _encoded(self, scripts: Sequence[Any]) -> tuple[Tensor, Texts]:
        encode = getattr(self.prompts, "encode", None)
        if encode is None:
            raise ValueError("options['scripts'] needs a prompt source with encode(scripts), such as ScriptPrompts")
        embeds, texts = encode(scripts)
        return embeds, texts
