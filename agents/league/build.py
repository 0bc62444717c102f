"""A league of a stack: its student against its rival, in the game that they play.

M clips uint8 [M, F, 3, H, W].
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ...envs.clip_dataset import generate, made_clips
from ...envs.game_rules import GameRules, ThresholdPolicy
from ...envs.self_play import SelfPlayGame
from ...envs.stack import Stack
from ...envs.worlds.grammar import GRAMMARS, sample_scripts
from ...models.classifiers import NetworkDetector
from ...models.detector import ClipDetector
from ...models.generator import Generator
from ...models.scorers import D3
from ...rewards.stream_reward import StreamReward
from ...rewards.windows import chunk_frames, even_chunks
from ...training.learner import LearnerConfig
from ..detection import Detection, DetectionConfig, ReplayBuffer, uniform_sampler
from ..finetune_recipes import FINETUNE
from .config import LeagueConfig
from .league import League, MakeClips
from .match import apply_camera
from .reward import OpponentReward

DETECTION = DetectionConfig(learner=LearnerConfig(learning_rate=2e-3))
"""How a league's detectors learn; their camera is that of the rules."""
D3_ALARMS = 0.2
"""Real clips that the scripted detector takes for made."""
PATIENT = float("inf")
"""Confidence of who decides at the end."""


def league_of(
    stack: Stack,
    config: LeagueConfig,
    real: Tensor,
    fakes: Mapping[str, Tensor],
    scripted: Tensor,
    *,
    streams: int = 64,
    rules: GameRules | None = None,
) -> League:
    """The league of a stack's student and rival before its first round.

    real, fakes: what detectors learn from, fakes by family, those of the student as "generator-0". scripted: made
    clips, a generator that is met and never trained; such a detector is D3 on the rival's features, fitted on as many
    real clips as the largest family has. streams: of a match. rules: by default the game's; in a match all are made.
    """
    rules, rival, frames = rules or GameRules(), rival_of(stack), chunk_frames(stack.codec, stack.layout)
    reward = OpponentReward(stack.reward.model, rules)
    recipe = replace(FINETUNE["reward"], seed=config.seed)
    trainer = recipe.trainer(stack.with_parts(reward=StreamReward(reward)), stack.student())
    learns = replace(DETECTION, camera=rules.camera, pool=rules.pool, seed=config.seed)
    first = copy.deepcopy(rival).requires_grad_(True).train()
    detector = Detection(learns, first, uniform_sampler(real), ReplayBuffer(dict(fakes)), frames)
    game = SelfPlayGame(
        streams,
        stack.codec,
        stack.reward,
        stack.prompts("validation"),
        rules=replace(rules, share=0.0),
        layout=stack.layout,
        device=stack.device,
    )
    some = apply_camera(real[: max(map(len, fakes.values()))].float() / 255, rules, frames, 1, real=True)
    d3 = D3.fit(rival.features, some.film.flatten(1, 2) / 255, D3_ALARMS)
    whole = NetworkDetector(d3, stack.layout.chunks * frames, rival.size)
    shown = apply_camera(scripted.float() / 255, rules, frames, 0, real=False)
    policies, recordings = {"d3": ThresholdPolicy(whole, PATIENT)}, {"scripted": shown}
    return League(config, trainer, detector, reward, game, clip_maker(stack), policies, recordings)


def rival_of(stack: Stack) -> ClipDetector:
    """The detector that a league begins with; ValueError for one that `Detection` does not train."""
    if not isinstance(rival := stack.rival, ClipDetector):
        raise ValueError(f"a league trains a ClipDetector, the stack's rival is a {type(rival).__name__}")
    return rival


def clip_maker(stack: Stack) -> MakeClips:
    """Clips [M, F, 3, H, W] in [0, 1] of a generator, of training prompts that a seed draws."""

    def make(generator: Generator, count: int, seed: int) -> Tensor:
        if not stack.has("grammar"):
            embeds, _ = stack.prompts()(count, seed)
            made = made_clips(stack.with_parts(generator=generator), embeds, seed)
            return even_chunks(made, stack.codec, stack.layout)
        scripts = sample_scripts(count, split="train", seed=seed, grammar=GRAMMARS[stack.grammar])
        return generate(stack.with_parts(generator=generator), scripts, stack.layout.chunks, seed)

    return make
