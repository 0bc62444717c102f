"""One match: what a detector says of what was recorded.

N streams, n chunks a clip, f frames a chunk, H x W pixels as a detector sees them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...envs.game_rules import GameRules, Outcome, ThresholdPolicy, checked
from ...envs.self_play import RecordedClips, pooled_film
from ...envs.stream_detect import WAIT
from ...envs.worlds.camera import CAMERAS, shoot
from ...models.detector import Detector, DetectorState


@torch.no_grad()
def apply_camera(video: Tensor, rules: GameRules, frames: int, seed: int, *, real: bool) -> RecordedClips:
    """Clips [N, F, 3, H, W] in [0, 1] that nobody makes in the game, true or scripted, through its camera, `frames` a
    chunk; their quality counts as 0."""
    random = torch.Generator().manual_seed(seed)
    parts = [pooled_film(shoot(part, CAMERAS[rules.camera], random), rules.pool) for part in video.split(64)]
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
