"""StreamSteer's exam, and what agents are held against: the best fixed setting, and a planner that knows the noise.

N streams, P prompts of an exam, K clips of each, A numbers in an action.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...envs.stream_steer import StreamSteerVectorEnv
from ...envs.worlds.oracle import score_clips
from ...noise import Domain, fold, stream_keys
from ..evaluate import AXES, EvalConfig, texts_of
from .detecting import Act

HALVING = 4
"""Rounds of the search for a fixed setting; each keeps a quarter of its candidates."""


def evaluated_steering(env: StreamSteerVectorEnv, act: Act, exam: EvalConfig, seed: int) -> dict[str, list[float]]:
    """Per prompt of the exam the mean over its clips: reward (of a clip, price paid), quality (before), passes (network
    passes of a chunk), and the oracle's axes. env: of P * K rows, DISABLED autoreset. The noise follows from seed."""
    scripts = [text for text in texts_of(exam.scripts()) for _ in range(exam.clips)]
    observation, _ = env.reset(options={"scripts": scripts, "keys": exam_keys(seed, len(scripts))})
    reward, passes = torch.zeros(len(scripts)), torch.zeros(len(scripts))
    frames = []
    for _ in range(env.layout.chunks):
        observation, gained, *_ = env.step(act(observation))
        reward += gained.cpu()
        passes += env.state.evaluations.cpu() / env.layout.chunks
        frames.append(env.state.clip.video[-1].cpu())
    found = score_clips(torch.cat(frames, 1), exam.clauses(), exam.frames_per_chunk)
    columns = {"reward": reward, "quality": reward + env.settings.price * passes, "passes": passes}
    columns |= {axis: getattr(found, axis) for axis in AXES}
    return {name: column.unflatten(0, (exam.prompts, exam.clips)).mean(1).tolist() for name, column in columns.items()}


def exam_keys(seed: int, count: int) -> Tensor:
    """Keys of an exam's streams, which no training has met."""
    root = fold(stream_keys(seed, 1), Domain.EXAM)
    return fold(root.expand(count), torch.arange(count))


def setting(env: StreamSteerVectorEnv, steps: int, guidance: float = 0.0, past: int | None = None) -> Tensor:
    """The action [A] of so many denoising steps, guidance in [0, 1] (0: none), and chunks of the past (None: all), with
    the noise left alone."""
    levels, most = len(env.generator.sigmas), env.most_past
    action = torch.zeros(env.settings.directions + 3)
    action[-3] = guidance or -1.0
    action[-2] = 2 * (steps - 0.5) / levels - 1
    action[-1] = 2 * ((most if past is None else past) - 0.5) / most - 1
    return action


def by_hand(env: StreamSteerVectorEnv) -> Act:
    """All steps for the first chunk of a prompt, half as many for those that follow: a rule written after a look at
    validation prompts; it learns nothing and sees no more than an agent."""
    levels, age = len(env.generator.sigmas), env.columns["age"]
    new, old = setting(env, levels), setting(env, max(1, levels // 2))
    return lambda seen: torch.where(seen[:, age] == 0, new, old)


def settings_grid(env: StreamSteerVectorEnv) -> Tensor:
    """Sensible fixed settings [G, A]: every number of steps, with and without guidance, a short past and all of it."""
    levels = range(1, len(env.generator.sigmas) + 1)
    pasts = sorted({1, env.most_past})
    return torch.stack([setting(env, k, g, past) for k in levels for g in (0.0, 0.5) for past in pasts])


def best_fixed(env: StreamSteerVectorEnv, steps: int, seed: int) -> Tensor:
    """The action [A] that, always taken, earned most in `steps` steps of env: successive halving.

    Candidates are `settings_grid` and as many random actions as make one for each row. Every round gives all that are
    left the same number of clips; their means over all rounds decide. env: of SAME_STEP autoreset.
    """
    generator = torch.Generator().manual_seed(seed)
    grid = settings_grid(env)
    drawn = 2 * torch.rand(max(0, env.num_envs - len(grid)), grid.shape[1], generator=generator) - 1
    candidates = torch.cat((grid, drawn))[: env.num_envs]
    total, count = torch.zeros(len(candidates)), torch.zeros(len(candidates))
    alive = torch.arange(len(candidates))
    env.reset(seed=seed)
    for _ in range(HALVING):
        for _ in range(max(1, steps // (HALVING * env.num_envs * env.layout.chunks))):
            rows = alive[torch.arange(env.num_envs) % len(alive)]
            for _ in range(env.layout.chunks):
                _, reward, *_ = env.step(candidates[rows])
                total.index_add_(0, rows, reward.cpu())
            count.index_add_(0, rows, torch.ones(len(rows)))
        means = total[alive] / count[alive]
        alive = alive[means.topk(max(1, len(alive) // 4)).indices]
    return candidates[alive[0]]


def planned(env: StreamSteerVectorEnv, candidates: Tensor, after: Tensor) -> Act:
    """A planner that tries every candidate [G, A] for the next chunk in forks of `env`, plays each to the clip's end
    with the fixed action `after` [A], and takes the best. Forks carry the streams' keys: it knows the noise to come."""

    def act(observation: Tensor) -> Tensor:
        rows, tries = len(observation), len(candidates)
        branch = env.fork(torch.arange(rows).repeat_interleave(tries))
        total = torch.zeros(rows * tries)
        actions: Any = candidates.repeat(rows, 1)
        for _ in range(env.layout.chunks - env.state.clip.position):
            _, reward, *_ = branch.step(actions)
            total += reward.cpu()
            actions = after.expand(rows * tries, -1)
        return candidates[total.view(rows, tries).argmax(1)]

    return act
