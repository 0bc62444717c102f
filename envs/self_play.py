"""`reelgym/SelfPlay-v0`: a generator makes what a detector is to find out, chunk after chunk; both move at once.

N streams, n chunks a clip, f frames a chunk of video, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ..models.codec import Codec
from ..models.generator import Generator, stream
from ..noise import GameDomain, normal, stream_keys, uniform
from ..rewards.windows import TINY_LAYOUT, ChunkLayout, chunk_frames, even_chunks, held_back
from .clips import Clips, ClipState, Reward
from .game_rules import GameRules
from .making import Source, clip_parts, opened
from .prompt_source import ScriptPrompts
from .rows import Rows
from .stack import Stack
from .stream_detect import FAKE, REAL, WAIT
from .worlds.camera import CAMERAS, Lens, lens_of, shoot_through
from .worlds.grammar import chunk_clauses, parse
from .worlds.render import render
from .worlds.scene import roll

GENERATOR, DETECTOR = PLAYERS = ("generator", "detector")
Truth = Callable[[Sequence[str], int], Tensor]
"""`truth(scripts, seed)`: real clips [B, F, 3, H, W] in [0, 1] of scripts, a pure function."""
_AT_ONCE = 64
"""Clips that go through a codec together."""


@dataclass(frozen=True)
class GameState(Rows):
    """Where N streams stand; nothing in it is ever written in place.

    clips: what the generator made.   real: bool [N], nature's choice.   truth: [N, n, f, 3, H, W], the true clips.
    lens: of the camera, a row a stream.   film: what the detector has been shown, [N, k * f, 3, H, W].   step: moves
    made, 0 to n + 1.   verdict: int64 [N], WAIT while it is out.   quality: [N], the generator's windows so far.
    keys: int64 [N].
    """

    clips: ClipState
    real: Tensor
    truth: Tensor
    lens: Lens
    film: Tensor
    step: int
    verdict: Tensor
    quality: Tensor
    keys: Tensor

    @property
    def over(self) -> Tensor:
        """Which streams were judged, bool [N]."""
        return self.verdict != WAIT


class SelfPlayGame:
    """The game over tensors that stay on the device, N streams at once; `SelfPlayEnv` is its N = 1 view.

    Nature decides for every stream whether it is real, and hides it. Move by move the generator hands in the next chunk
    of latents [N, f', C, h, w], and the detector says WAIT, REAL or FAKE of what it has been shown: nothing at the
    first move, one chunk more at every other, all n at the last, move n + 1, when the generator's action counts no
    more. On a real stream the generator's chunks are ignored and the true clip of the same prompt is shown.

    Reward of the detector: 1 for a right verdict, -1 for a wrong one, less `wait_cost` for every chunk waited for; no
    verdict by the end counts as REAL. Of the generator: on a made stream 1 when it is taken for real, -1 when it is
    caught, and never above 0 when the mean reward of its windows lies under `floor`; on a real one 0. The game is not
    zero-sum. A stream is over with its verdict; whatever is handed in for it later counts for nothing.

    Observation of the generator: StreamGen's. Of the detector: `video` uint8 [N, window * f, 3, H / pool, W / pool],
    zeros before the first chunk, and `position` int64 [N], chunks shown.

    Nature's coin, lens and grain follow from each stream's key; scripts and true clips of all streams from the seed.
    """

    def __init__(
        self,
        num_envs: int,
        codec: Codec,
        reward: Reward,
        prompts: ScriptPrompts,
        *,
        truth: Truth | None = None,
        rules: GameRules | None = None,
        layout: ChunkLayout = TINY_LAYOUT,
        device: torch.device | str = "cpu",
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, not {num_envs}")
        self.num_envs, self.rules, self.layout, self.device = (
            num_envs,
            rules or GameRules(),
            layout,
            torch.device(device),
        )
        self.clips = Clips(codec, reward, prompts, layout, self.device)
        self.prompts = prompts
        self.truth = truth or (WorldTruth(layout, codec, device) if self.rules.share else self._unseen)
        height, width = self.clips.image
        pool = self.rules.pool
        if height % pool or width % pool:
            raise ValueError(f"pool {pool} does not divide frames of {height} x {width}")
        self.frames = chunk_frames(codec, layout)
        seen = (self.rules.window * self.frames, 3, height // pool, width // pool)
        self.spaces = {
            GENERATOR: Dict(self.clips.spaces),
            DETECTOR: Dict({"video": Box(0, 255, seen, np.uint8), "position": Discrete(layout.chunks + 1)}),
        }
        self.actions: dict[str, Any] = {GENERATOR: self.clips.chunk, DETECTOR: Discrete(3)}
        self._state: GameState | None = None

    @property
    def state(self) -> GameState:
        """Where the streams stand; assign what `state.take(rows)` gave to branch."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset() before step() or state")
        return self._state

    @state.setter
    def state(self, state: GameState) -> None:
        self._state, self.num_envs = state, len(state.keys)

    def reset(self, seed: int, scripts: list[str] | None = None, num_envs: int | None = None) -> dict[str, Any]:
        """Begin N streams, of `scripts` or of scripts drawn; everything follows from the seed. Returns observations.

        num_envs: N where it is another than before.
        """
        self.num_envs = num_envs or self.num_envs
        keys = stream_keys(seed, self.num_envs, self.device)
        drawn = scripts or list(self.prompts.sample(self.num_envs, seed))
        clips = self.clips.begin(self.num_envs, np.random.default_rng(seed), drawn)
        real = uniform(keys, GameDomain.COIN, 0, ()) < self.rules.share
        lens = lens_of(CAMERAS[self.rules.camera], uniform(keys, GameDomain.LENS, 0, (6,)))
        film = torch.zeros(self.num_envs, 0, 3, *self.clips.image, device=self.device)
        none = torch.zeros(self.num_envs, device=self.device)
        truth = even_chunks(self.truth(drawn, seed).to(self.device, non_blocking=True), self.clips.codec, self.layout)
        wanted = (self.num_envs, self.layout.chunks * self.frames, 3, *self.clips.image)
        if truth.shape != wanted:
            raise ValueError(f"true clips are {list(truth.shape)}, the generator's {list(wanted)}")
        truth = truth.unflatten(1, (self.layout.chunks, self.frames))
        self._state = GameState(clips, real, truth, lens, film, 0, none.long(), none, keys)
        return self.observe()

    def step(self, actions: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor], Tensor]:
        """One move of both. Returns observations, rewards [N] of each player, and which streams are over, bool [N]."""
        state, rules = self.state, self.rules
        if state.step > self.layout.chunks:
            raise gymnasium.error.ResetNeeded("the game has ended: call reset()")
        chunk, said = self._checked(actions)
        last = state.step == self.layout.chunks
        shown = torch.full_like(said, state.step)
        came = rules.outcome(state.real, said, shown, state.quality / max(state.step, 1), self.layout.chunks)
        rewards = {GENERATOR: came.generator, DETECTOR: came.detector}
        rewards = {player: reward.masked_fill(state.over, 0.0) for player, reward in rewards.items()}
        verdict = torch.where(state.over, state.verdict, came.verdict)
        state = replace(state, verdict=verdict, step=state.step + 1)
        if not last:
            state = self._shown(state, chunk)
        self._state = state
        return self.observe(), rewards, state.over

    def _checked(self, actions: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The actions of both on the device; InvalidAction where they do not fit. Values: looked at on a CPU only."""
        chunk, said = (actions[player].to(self.device) for player in PLAYERS)
        wanted = (self.num_envs, *(self.clips.chunk.shape or ()))
        if chunk.shape != wanted or said.shape != wanted[:1]:
            found = f"{tuple(chunk.shape)} and {tuple(said.shape)}"
            raise gymnasium.error.InvalidAction(f"actions have shapes {found}, expected {wanted} and {wanted[:1]}")
        if self.device.type == "cpu" and not bool(chunk.isfinite().all()):
            raise gymnasium.error.InvalidAction("the generator's chunk is not finite: a policy has diverged")
        if self.device.type == "cpu" and bool(((said < WAIT) | (said > FAKE)).any()):
            raise gymnasium.error.InvalidAction(f"the detector says {WAIT}, {REAL} or {FAKE}, not {said.tolist()}")
        return chunk, said

    def observe(self) -> dict[str, Any]:
        """What each player sees."""
        state, want = self.state, self.rules.window * self.frames
        film = state.film[:, -want:]
        video = torch.zeros(
            len(film), *(self.spaces[DETECTOR]["video"].shape or ()), dtype=torch.uint8, device=self.device
        )
        if film.shape[1]:
            video[:, want - film.shape[1] :] = pooled_film(film, self.rules.pool).to(torch.uint8)
        position = torch.full((len(film),), state.film.shape[1] // self.frames, device=self.device)
        return {
            GENERATOR: self.clips.observe(state.clips),
            DETECTOR: {"video": video, "position": position},
        }

    def newest(self) -> Tensor:
        """The newest chunk as the detector sees it, averaged over pools and in 8 bit: [N, f, 3, H / pool, W / pool] in
        [0, 1]; ValueError before the first."""
        film = self.state.film[:, -self.frames :]
        if not film.shape[1]:
            raise ValueError("nothing has been shown yet")
        return pooled_film(film, self.rules.pool) / 255

    def _unseen(self, scripts: Sequence[str], seed: int) -> Tensor:
        """True clips of a game that shows none."""
        frames = self.layout.chunks * self.frames
        return torch.zeros(len(scripts), frames, 3, *self.clips.image, device=self.device)

    def _shown(self, state: GameState, chunk: Tensor) -> GameState:
        """The state after the generator's chunk; on a real stream the true one is filmed."""
        number = state.clips.position
        clips, reward = self.clips.score(self.clips.append(state.clips, chunk))
        made = held_back(clips.video[-1], self.frames)
        seen = torch.where(state.real[:, None, None, None, None], state.truth[:, number], made)
        grain = normal(state.keys, GameDomain.GRAIN, number, tuple(seen.shape[1:]))
        film = torch.cat((state.film, shoot_through(seen, CAMERAS[self.rules.camera], state.lens, grain)), 1)
        return replace(state, clips=clips, film=film, quality=state.quality + reward * self.layout.chunks)


@dataclass(frozen=True)
class RecordedClips(Rows):
    """What detectors are shown.

    film: uint8 [N, n, f, 3, H, W].   real: bool [N].   quality: [N, n], mean reward of the generator's windows so far.
    """

    film: Tensor
    real: Tensor
    quality: Tensor


@torch.no_grad()
def record(
    game: SelfPlayGame, generator: Generator, seed: int, scripts: list[str] | None = None, num_envs: int | None = None
) -> RecordedClips:
    """Play streams of the game to the end of their clips while nobody decides; everything follows from the seed.

    What a generator shows does not depend on the detector, so one recording serves all that look at it.
    """
    game.reset(seed, scripts, num_envs)
    embeds = torch.stack([batch.embeds for batch in game.state.clips.prompts], 1)
    waits, film, quality = torch.full((game.num_envs,), WAIT, device=game.device), [], []
    chunks = stream(generator, embeds, game.state.keys).split(game.layout.frames_per_chunk, 1)
    for number, chunk in enumerate(chunks, 1):
        game.step({GENERATOR: chunk, DETECTOR: waits})
        film.append((game.newest() * 255).round().to(torch.uint8))
        quality.append(game.state.quality / number)
    return RecordedClips(torch.stack(film, 1), game.state.real, torch.stack(quality, 1))


def pooled_film(film: Tensor, pool: int) -> Tensor:
    """Film [B, F, C, H, W] in [0, 1] as a detector sees it: means over squares of pixels, 0 to 255 in whole numbers,
    [B, F, C, H / pool, W / pool]."""
    return avg_pool2d(film.flatten(0, 1) * 255, pool).round().unflatten(0, film.shape[:2])


@dataclass(frozen=True)
class WorldTruth:
    """True clips of ShapeStream's scripts; with a codec they went through it and back, so that what a codec leaves
    behind tells nothing apart."""

    layout: ChunkLayout = TINY_LAYOUT
    codec: Codec | None = None
    device: torch.device | str = "cpu"
    """Where the codec is."""

    def __call__(self, scripts: Sequence[str], seed: int) -> Tensor:
        clauses = [chunk_clauses(parse(script), self.layout.chunks) for script in scripts]
        video = render(roll(clauses, self.layout.frames_per_chunk, torch.Generator().manual_seed(seed)))
        return video if self.codec is None else coded(video.to(self.device, non_blocking=True), self.codec)


@torch.no_grad()
def coded(video: Tensor, codec: Codec) -> Tensor:
    """Clips [B, F, 3, H, W] in [0, 1] through the codec and back."""
    return torch.cat([codec.decode(codec.encode(part)) for part in video.split(_AT_ONCE)])


def make(stack: Source = "tiny", num_envs: int = 1, **options: Any) -> SelfPlayGame:
    """The game of N streams over a stack. options: those of `clip_parts` but slice, truth, rules and device."""
    loaded, clip, others = opened(stack, options, clip_parts, SelfPlayGame)
    return SelfPlayGame(num_envs, **game_parts(loaded, clip), **others)


def game_parts(stack: Stack, options: Mapping[str, Any]) -> dict[str, Any]:
    """`clip_parts` of a game, which has no slice."""
    if options.get("slice") is not None:
        raise ValueError("slice: both players begin at a clip's first chunk, which a slice would give; use grammar")
    return clip_parts(stack, **options)
