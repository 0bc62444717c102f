"""`reelgym/SelfPlayDetector-v0`: the game from the detector's side, against a generator that is handed in.

N streams, M streams played ahead, n chunks a clip, f frames a chunk, H x W pixels, w chunks in an observation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from ..models.codec import Codec
from ..models.generator import Generator
from ..models.tiny import build_generator
from ..noise import fold, uniform
from ..rewards.windows import TINY_LAYOUT, ChunkLayout
from .clips import Reward
from .draw import View, to_pixels
from .game_rules import GameRules
from .making import Source, clip_parts, opened, single
from .prompt_source import ScriptPrompts
from .rows import Rows
from .self_play import DETECTOR, RecordedClips, SelfPlayGame, Truth, game_parts, record
from .stream_detect import UNTOLD, WAIT, WORDS
from .vector import TensorVectorEnv


class Unscored:
    """A reward that no clip is long enough for: what the generator earns is not asked here."""

    min_frames = 2**31

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Never called."""
        raise NotImplementedError


@dataclass(frozen=True)
class EpisodeBufferState(Rows):
    """Where N streams stand; nothing in it is ever written in place.

    episodes: N streams, those at play.   seen: int64 [N], chunks shown, 0 to n.   verdict: int64 [N], WAIT while it is
    out.   keys: int64 [N], what the next streams are drawn with.   buffer: M streams played ahead, None before the
    first are needed.   age: steps since.   seed, played: which buffers are played, and how many were.
    """

    SHARED: ClassVar[frozenset[str]] = frozenset({"buffer"})

    episodes: RecordedClips
    seen: Tensor
    verdict: Tensor
    keys: Tensor
    seed: int
    buffer: RecordedClips | None = None
    age: int = 0
    played: int = 0

    @property
    def over(self) -> Tensor:
        """Which streams were judged, bool [N]."""
        return self.verdict != WAIT


class SelfPlayDetectorVectorEnv(TensorVectorEnv[EpisodeBufferState]):
    """N streams of SelfPlayGame, each of which ends when its agent, the detector, has decided.

    What the generator makes does not depend on the detector. So `opponent` plays whole clips ahead, many at once, and
    the streams are dealt out: a reset plays N; where rows are to go on one by one, a buffer of M clips is played, from
    which each row draws by its own key, and after `refresh_every` steps another buffer in its place.

    Observation [N, K]: one flat Box of the last w chunks as the detector sees them, and how many were shown; see
    `columns`. Action [N]: 0 wait, 1 it is real, 2 it is made. Reward [N]: the game's, to the detector: 1 for a right
    verdict, -1 for a wrong one, less `rules.wait_cost` for waiting once a chunk was seen; the first wait is free, and
    waiting when no chunk is left counts as "real". End: a verdict, or waiting when no chunk is left; terminated, row
    by row. At most n + 1 steps. Nothing is truncated.

    `reset(options=...)`: `scripts`, N of them; `reset_mask`, the rows to begin under DISABLED. `info`: `label` (1 made,
    0 real) int64 [N], once the verdict is given (under SAME_STEP in `final_info`), and -1 before.

    Args:
        num_envs: N.
        codec, prompts, truth, rules, layout: see SelfPlayGame.
        opponent: what makes the clips that are not real.
        clips: M.
        refresh_every: steps that a buffer serves; None: (n + 1) * M / N, as long as M episodes of full length take.
            Agents that decide earlier meet some clips again; from M / N down they meet none twice but by chance.
        others: autoreset_mode, render_mode, device and check, see TensorVectorEnv.

    Attributes:
        columns: which columns of an observation are what. `clip`: the pixels; `position`: one-hot, chunks shown.
        clip_shape: (w * f, 3, H / pool, W / pool), what the columns of `clip` unflatten to, oldest frame first, zeros
            before the first chunk.
    """

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"scripts", "reset_mask"})

    def __init__(
        self,
        num_envs: int,
        codec: Codec,
        prompts: ScriptPrompts,
        opponent: Generator,
        *,
        truth: Truth | None = None,
        rules: GameRules | None = None,
        layout: ChunkLayout = TINY_LAYOUT,
        clips: int = 64,
        refresh_every: int | None = None,
        device: torch.device | str = "cpu",
        **others: Any,
    ) -> None:
        if clips < 1 or (refresh_every is not None and refresh_every < 1):
            raise ValueError(f"clips and refresh_every are at least 1, not {clips} and {refresh_every}")
        unscored: Reward = Unscored()
        self.game = SelfPlayGame(
            num_envs, codec, unscored, prompts, truth=truth, rules=rules, layout=layout, device=torch.device(device)
        )
        shape = (opponent.frames_per_chunk, *opponent.latent_shape)
        if shape != self.game.clips.chunk.shape:
            raise ValueError(f"the opponent makes chunks {list(shape)}, the game's are {self.game.clips.chunk.shape}")
        self.opponent, self.rules, self.layout, self.prompts = opponent, self.game.rules, layout, prompts
        self.clips, self.refresh_every = clips, refresh_every
        self.clip_shape = tuple(self.game.spaces[DETECTOR]["video"].shape or ())
        size = int(np.prod(self.clip_shape))
        self.columns = {"clip": slice(0, size), "position": slice(size, size + layout.chunks + 1)}
        observed = Box(0.0, 1.0, (size + layout.chunks + 1,), np.float32)
        super().__init__(num_envs, observed, Discrete(3), device=device, **others)

    def play(self, count: int, seed: int, scripts: list[str] | None = None) -> RecordedClips:
        """So many streams of the game to their end."""
        return record(self.game, self.opponent, seed, scripts, count)

    def _terminal(self, state: EpisodeBufferState) -> Tensor:
        return state.over

    def _opened(self, episodes: RecordedClips, keys: Tensor, seed: int) -> EpisodeBufferState:
        zeros = torch.zeros_like(keys)
        return EpisodeBufferState(episodes, zeros, zeros, keys, seed)

    def _initial(self, options: dict[str, Any]) -> EpisodeBufferState:
        seed = int(self.np_random.integers(2**31))
        return self._opened(self.play(self.num_envs, seed, options.get("scripts")), self._keys({}), seed)

    def _initial_some(self, mask: Tensor, options: dict[str, Any]) -> EpisodeBufferState:
        if self._state is None and not bool(mask.all()):
            raise gymnasium.error.ResetNeeded("the first reset begins every row: leave out reset_mask")
        if self._state is None or bool(mask.all()):
            return self._initial(options)
        if options.get("scripts") is None:
            return self._dealt(self._state, mask, self._keys({}))
        return self._state.where(mask, self._initial(options))

    def _autoreset(self, state: EpisodeBufferState, ended: Tensor) -> EpisodeBufferState:
        return self._dealt(state, ended, fold(state.keys, 1))

    def _dealt(self, state: EpisodeBufferState, begun: Tensor, keys: Tensor) -> EpisodeBufferState:
        """The state with streams of the buffer where begun [N], drawn with keys [N]."""
        state = self._refilled(state)
        assert state.buffer is not None
        drawn = (uniform(keys, 0, 0, (1,))[:, 0] * len(state.buffer.real)).long()
        return state.where(begun, self._opened(state.buffer.take(drawn), keys, state.seed))

    def _refilled(self, state: EpisodeBufferState) -> EpisodeBufferState:
        """The state with a buffer that is not used up."""
        moves = self.layout.chunks + 1
        refresh_every = self.refresh_every or max(1, moves * self.clips // self.num_envs)
        if state.buffer is not None and state.age < refresh_every:
            return state
        seed = int(fold(torch.tensor([state.seed]), state.played + 1)) % 2**31
        return replace(state, buffer=self.play(self.clips, seed), age=0, played=state.played + 1)

    def _transition(self, state: EpisodeBufferState, actions: Tensor) -> tuple[EpisodeBufferState, Tensor, Tensor]:
        unscored = state.episodes.quality[:, 0]
        came = self.rules.outcome(state.episodes.real, actions, state.seen, unscored, self.layout.chunks)
        after = replace(state, verdict=torch.where(state.over, state.verdict, came.verdict), age=state.age + 1)
        after = replace(after, seen=state.seen + (~after.over).long())
        return after, came.detector.masked_fill(state.over, 0.0), after.over

    def _observation(self, state: EpisodeBufferState) -> Tensor:
        chunks = state.seen[:, None] - torch.arange(self.rules.window, 0, -1, device=self.device)
        rows = torch.arange(len(chunks), device=self.device)[:, None]
        shown = state.episodes.film.flatten(2)[rows, chunks.clamp_min(0)]
        pixels = (shown * (chunks >= 0)[..., None]).flatten(1) / 255
        position = torch.arange(self.layout.chunks + 1, device=self.device) == state.seen[:, None]
        return torch.cat((pixels, position.float()), 1)

    def _view(self, state: EpisodeBufferState) -> View:
        clip = self._observation(state)[:, self.columns["clip"]].unflatten(1, self.clip_shape)
        columns = (state.seen, state.verdict, state.over, state.episodes.real)
        rows = list(zip(*(column.tolist() for column in columns), strict=True))
        said = [f"chunk {seen} of {self.layout.chunks}{WORDS[verdict]}" for seen, verdict, *_ in rows]
        told = [("it is real" if real else "it is made") if over else "" for *_, over, real in rows]
        return View({"newest chunk": to_pixels(clip[:, -self.game.frames :])}, notes=(said, told))

    def _state_info(self, state: EpisodeBufferState) -> dict[str, Any]:
        label = torch.where(state.over, (~state.episodes.real).long(), UNTOLD)
        return {"label": label, "_label": state.over.clone()}


def make(
    stack: Source = "tiny",
    num_envs: int = 1,
    *,
    opponent: Generator | None = None,
    max_episode_steps: int | None = None,
    **options: Any,
) -> SelfPlayDetectorVectorEnv:
    """N streams over a stack. opponent: by default the stack's student. max_episode_steps: moves of a clip, one more
    than chunks. options: those of `clip_parts` but slice and reward, truth, rules, clips, refresh_every,
    autoreset_mode, render_mode, check and device."""
    if max_episode_steps is not None:
        if max_episode_steps < 2:
            raise ValueError(f"a clip of one chunk takes 2 moves, not max_episode_steps={max_episode_steps}")
        options["chunks"] = max_episode_steps - 1
    loaded, clip, others = opened(stack, options, clip_parts, SelfPlayDetectorVectorEnv)
    parts = game_parts(loaded, clip | {"reward": Unscored()})
    del parts["reward"]
    maker = build_generator(loaded.generator.model, parts["codec"]) if opponent is None else opponent
    return SelfPlayDetectorVectorEnv(num_envs, **parts, opponent=maker, **others)


make_single = single(make)
