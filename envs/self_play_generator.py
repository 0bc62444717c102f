"""`reelgym/SelfPlayGenerator-v0`: the game from the generator's side, against a detector that is handed in.

N streams, n chunks a clip, f frames a chunk, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..models.codec import Codec
from ..models.detector import DetectorState
from ..rewards.windows import TINY_LAYOUT, ChunkLayout
from .clips import Reward
from .draw import View
from .game_rules import GameRules, ThresholdPolicy, checked
from .making import Source, clip_parts, opened, single
from .prompt_source import ScriptPrompts
from .rows import Rows
from .self_play import DETECTOR, GENERATOR, GameState, SelfPlayGame, Truth, game_parts
from .stream_detect import WAIT, WORDS
from .vector import TensorVectorEnv


@dataclass(frozen=True)
class PlayState(Rows):
    """game: where the streams stand.   memory: the detector's.   said: int64 [N], what it says at the next move."""

    game: GameState
    memory: DetectorState
    said: Tensor


class SelfPlayGeneratorVectorEnv(TensorVectorEnv[PlayState]):
    """N streams of SelfPlayGame in lockstep; the agent is the generator, and `opponent` says what the detector says.

    Action, observation: StreamGen's. Reward [N]: the game's, to the generator: 1 when a made stream is taken for real,
    -1 when it is caught, never above 0 when its windows score below `rules.floor`; 0 before the verdict, after it, and
    on real streams. A verdict that is given on k chunks is paid with the step that hands in chunk k + 1, as both move
    at once; one given on all n with the last step. All streams end together after n chunks, terminated. A stream that
    has been judged goes on unseen; its further chunks count for nothing.

    `reset(options=...)`: `scripts`, N of them; `reset_mask`. `info`: `text`, the prompts of the chunk to come;
    `verdict` int64 [N], WAIT while it is out.

    Args:
        num_envs: N.
        codec, reward, prompts, truth, layout: see SelfPlayGame.
        opponent: a detector and when it decides.
        rules: see SelfPlayGame; by default no stream is real, since a generator earns nothing there.
        others: autoreset_mode, render_mode, device and check, see TensorVectorEnv.
    """

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"scripts", "reset_mask"})
    BOUNDED: ClassVar[bool] = False

    def __init__(
        self,
        num_envs: int,
        codec: Codec,
        reward: Reward,
        prompts: ScriptPrompts,
        opponent: ThresholdPolicy,
        *,
        truth: Truth | None = None,
        rules: GameRules | None = None,
        layout: ChunkLayout = TINY_LAYOUT,
        device: torch.device | str = "cpu",
        **others: Any,
    ) -> None:
        rules = rules or GameRules(share=0.0)
        self.game = SelfPlayGame(
            num_envs, codec, reward, prompts, truth=truth, rules=rules, layout=layout, device=torch.device(device)
        )
        self.opponent, self.layout, self.prompts = opponent, layout, prompts
        super().__init__(num_envs, self.game.spaces[GENERATOR], self.game.actions[GENERATOR], device=device, **others)
        self._try(self.game.spaces[DETECTOR]["video"].shape or ())

    def _initial(self, options: dict[str, Any]) -> PlayState:
        self.game.reset(int(self.np_random.integers(2**31)), options.get("scripts"), self.num_envs)
        waits = torch.full((self.num_envs,), WAIT, device=self.device)
        return PlayState(self.game.state, self.opponent.detector.open(self.num_envs, self.device), waits)

    def _terminal(self, state: PlayState) -> bool:
        return state.game.step > self.layout.chunks

    def _transition(self, state: PlayState, actions: Tensor) -> tuple[PlayState, Tensor, bool]:
        game, last = self.game, state.game.step + 1 == self.layout.chunks
        game.state = state.game
        _, rewards, _ = game.step({GENERATOR: actions, DETECTOR: state.said})
        logit, memory = self.opponent.detector.watch(game.newest(), state.memory)
        logit = checked(logit, self.num_envs, self.check)
        said, reward = self.opponent.act(logit, last), rewards[GENERATOR]
        if last:
            _, rewards, _ = game.step({GENERATOR: torch.zeros_like(actions), DETECTOR: said})
            reward = reward + rewards[GENERATOR]
        return PlayState(game.state, memory, said), reward, last

    def _observation(self, state: PlayState) -> dict[str, Tensor]:
        return self.game.clips.observe(state.game.clips)

    def _view(self, state: PlayState) -> View:
        said = [f"the detector{WORDS[verdict] or ' waits'}" for verdict in state.game.verdict.tolist()]
        return replace(self.game.clips.view(state.game.clips), notes=(said,))

    def _state_info(self, state: PlayState) -> dict[str, Any]:
        known = torch.ones_like(state.game.over)
        return {**self.game.clips.info(state.game.clips), "verdict": state.game.verdict, "_verdict": known}

    @torch.no_grad()
    def _try(self, seen: Sequence[int]) -> None:
        """ValueError where the opponent cannot judge a chunk of the size that the game shows."""
        chunk = torch.zeros(1, self.game.frames, *seen[1:], device=self.device)
        try:
            checked(self.opponent.detector.watch(chunk, self.opponent.detector.open(1, self.device))[0], 1, self.check)
        except RuntimeError as error:
            raise ValueError(f"the opponent cannot judge chunks of {list(chunk.shape[1:])}: {error}") from error


def make(
    stack: Source = "tiny", num_envs: int = 1, *, opponent: ThresholdPolicy | None = None, **options: Any
) -> SelfPlayGeneratorVectorEnv:
    """N streams over a stack. opponent: by default the stack's rival. options: those of `clip_parts` but slice, truth,
    rules, autoreset_mode, render_mode, check and device."""
    loaded, clip, others = opened(stack, options, clip_parts, SelfPlayGeneratorVectorEnv)
    parts, judge = game_parts(loaded, clip), ThresholdPolicy(loaded.rival) if opponent is None else opponent
    return SelfPlayGeneratorVectorEnv(num_envs, **parts, opponent=judge, **others)


make_single = single(make)
