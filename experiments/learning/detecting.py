"""StreamDetect's exam: every clip of a dataset is shown once, and what an agent says of it is counted.

M clips, N streams, n chunks a clip.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...envs.stream_detect import FAKE, REAL, WAIT, StreamDetectVectorEnv

Act = Callable[[Tensor], Tensor]
"""Observations [N, K] to actions: int64 [N], or in StreamSteer [N, A]."""


def evaluated(env: StreamDetectVectorEnv, act: Act) -> dict[str, list[float]]:
    """Per clip of env's dataset: reward (of an episode), right (1 for a right verdict), called_fake, chunks (shown),
    and its family, a place in dataset.names.

    env: of DISABLED autoreset and without `check`, so that rows that have ended stay while others go on; its number of
    rows divides the dataset's clips. Row i of a round shows clip i of that part.
    """
    parts = torch.arange(len(env.dataset)).split(env.num_envs)
    if len(parts[-1]) != env.num_envs:
        raise ValueError(f"{env.num_envs} rows do not divide a dataset of {len(env.dataset)} clips")
    found = [_round(env, act, clips) for clips in parts]
    return {name: torch.cat([part[name] for part in found]).tolist() for name in found[0]}


def _round(env: StreamDetectVectorEnv, act: Act, clips: Tensor) -> dict[str, Tensor]:
    observation, _ = env.reset(options={"clips": clips})
    total, verdict = torch.zeros(len(clips)), torch.full((len(clips),), WAIT)
    open_ = torch.ones(len(clips), dtype=torch.bool)
    for _ in range(env.chunks):
        actions = act(observation)
        verdict = torch.where(open_, actions.cpu(), verdict)
        observation, reward, ended, *_ = env.step(actions)
        total += torch.where(open_, reward.cpu(), 0.0)
        open_ &= ~ended.cpu()
        if not open_.any():
            break
    family = env.dataset.family[clips.to(env.device)].cpu()
    fake = env.dataset.label[clips.to(env.device)].cpu()
    right = (verdict == FAKE) & fake | (verdict == REAL) & ~fake
    shown = env.state.seen.cpu().float()
    found = {"reward": total, "right": right, "called_fake": verdict == FAKE, "chunks": shown, "family": family}
    return {name: column.float() for name, column in found.items()}


def rule(env: StreamDetectVectorEnv, moment: int, verdict: int) -> Act:
    """Wait until `moment` chunks beyond the first were shown, then always say the same."""
    position = env.columns["position"]
    return lambda seen: torch.where(seen[:, position].argmax(1) >= moment, verdict, WAIT)
