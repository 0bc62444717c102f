"""One match: what a generator shows in the game, and what a detector says of it.

What is shown does not depend on the detector, so one recording serves every detector that looks at it.
N streams, n chunks a clip, f frames a chunk, H x W pixels as a detector sees them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...envs.game_rules import GameRules, Outcome, ThresholdPolicy, checked
from ...envs.rows import Rows
from ...envs.self_play import DETECTOR, GENERATOR, SelfPlayGame, stored
from ...envs.stream_detect import WAIT
from ...envs.worlds.camera import CAMERAS, shoot
from ...models.detector import Detector, DetectorState
from ...models.generator import Generator
from ..rollout import GeneratorPolicy


@dataclass(frozen=True)
class RecordedClips(Rows):
    """What detectors are shown.

    film: uint8 [N, n, f, 3, H, W].   real: bool [N].   quality: [N, n], mean reward of the generator's windows so far.
    """

    film: Tensor
    real: Tensor
    quality: Tensor


@torch.no_grad()
def record(game: SelfPlayGame, generator: Generator, seed: int) -> RecordedClips:
    """Play all streams of the game to the end of their clips while nobody decides; everything follows from the seed."""
    seen = game.reset(seed)
    policy = GeneratorPolicy(generator)
    policy.reset(game.state.keys)
    waits = torch.full((game.num_envs,), WAIT, device=game.device)
    film, quality = [], []
    for chunk in range(1, game.clock.chunks + 1):
        seen, _, _ = game.step({GENERATOR: policy.act(seen[GENERATOR]), DETECTOR: waits})
        film.append((game.newest() * 255).round().to(torch.uint8))
        quality.append(game.state.quality / chunk)
    return RecordedClips(torch.stack(film, 1), game.state.real, torch.stack(quality, 1))


@torch.no_grad()
def apply_camera(video: Tensor, rules: GameRules, frames: int, seed: int, *, real: bool) -> RecordedClips:
    """Clips [N, F, 3, H, W] in [0, 1] that nobody makes in the game, true or scripted, through its camera, `frames` a
    chunk; their quality counts as 0."""
    random = torch.Generator().manual_seed(seed)
    parts = [stored(shoot(part, CAMERAS[rules.camera], random), rules.pool) for part in video.split(64)]
    shown = torch.cat(parts).to(torch.uint8).unflatten(1, (-1, frames))
    return RecordedClips(shown, torch.full((len(video),), real), torch.zeros(shown.shape[:2]))


@torch.no_grad()
def detector_logits(detector: Detector, clips: RecordedClips, batch: int = 256) -> Tensor:
    """Logits [N, n] after every chunk; ValueError where the detector returns anything but one finite logit a stream."""
    logits = []
    for part in clips.film.split(batch):
        memory: DetectorState = detector.open(len(part), part.device)
        columns = []
        for chunk in part.unbind(1):
            logit, memory = detector.watch(chunk / 255, memory)
            columns.append(checked(logit, len(part)))
        logits.append(torch.stack(columns, 1))
    return torch.cat(logits)


def resolve_match(clips: RecordedClips, player: ThresholdPolicy, rules: GameRules) -> Outcome:
    """What comes of it when this detector looks: the game's own verdicts and rewards."""
    logits = detector_logits(player.detector, clips)
    chunks = logits.shape[1]
    actions = torch.stack([player.act(logit, place == chunks) for place, logit in enumerate(logits.unbind(1), 1)], 1)
    at = (actions != WAIT).int().argmax(1, keepdim=True)
    verdict, quality = actions.gather(1, at)[:, 0], clips.quality.gather(1, at)[:, 0]
    return rules.outcome(clips.real, verdict, at[:, 0] + 1, quality, chunks)
