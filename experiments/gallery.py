"""The moving pictures of docs/envs: `python -m reelgym.experiments.gallery` plays each environment and records it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
import tyro
from torch import Tensor

from ..agents.rollout import GeneratorPolicy
from ..envs import parallel
from ..envs.draw import Frames
from ..envs.self_play import DETECTOR, GENERATOR
from ..envs.stack import Stack
from ..envs.stream_detect import FAKE, WAIT
from ..envs.vector import RENDER_FPS
from ..noise import stream_keys
from .plots import animation

_ROOT = Path(__file__).resolve().parent.parent
SCRIPT = "a green square moves right fast ; then a magenta circle moves up fast"
WAITS = 2
QUALITY, NOISY = 80, 40
"""Of the pictures, and of the one that the camera of the night filmed."""
_MADE_BY = "the shipped student, real clips of the world apart"
HOLD = 6
"""Frames for which a list's last canvas stays."""


@dataclass(frozen=True)
class Config:
    """Without options the pictures of the docs are made again."""

    out: Path = _ROOT / "docs" / "images" / "envs"
    """Folder of the pictures, one an environment."""
    seed: int = 0
    """Of the generator's noise and of the clips to be judged."""


def main(args: Sequence[str] | None = None) -> int:
    """Exit status of `python -m reelgym.experiments.gallery`: 0, or 1 and one line."""
    try:
        run(tyro.cli(Config, prog="python -m reelgym.experiments.gallery", args=args))
    except (OSError, ValueError) as error:
        print(f"gallery: error: {error}", file=sys.stderr)
        return 1
    return 0


def run(config: Config) -> None:
    """Write OUT/NAME.webp of every environment; prints the paths."""
    config.out.mkdir(parents=True, exist_ok=True)
    for film in (stream_gen, stream_denoise, stream_steer, stream_detect, self_play):
        frames, fps = film(config.seed)
        path = config.out / f"{film.__name__}.webp"
        path.write_bytes(animation(frames, fps, quality=NOISY if film is self_play else QUALITY, made_by=_MADE_BY))
        print(path)


def stream_gen(seed: int) -> tuple[Frames, float]:
    """The shipped student makes a clip."""
    env, policy = _env("StreamGen"), _student(stream_keys(seed, 1))
    return _held(_played(env, policy.act, seed, {"scripts": [SCRIPT]}))


def stream_denoise(seed: int) -> tuple[Frames, float]:
    """The same clip, one denoising step at a time."""
    env, keys = _env("StreamDenoise", "rgb_array"), stream_keys(seed, 1)
    policy = _student(keys)
    steps: list[Tensor] = []

    def act(observation: dict[str, Tensor]) -> Tensor:
        if not steps:
            policy.act(observation)
            steps.extend(transition.x_next for transition in policy.denoising_steps)
        return steps.pop(0)

    return np.stack(list(_played(env, act, seed, {"scripts": [SCRIPT], "keys": keys}))), RENDER_FPS["rgb_array"]


def stream_steer(seed: int) -> tuple[Frames, float]:
    """Constant settings: the first component of the noise led half the way, half the guidance, all steps and past."""
    env = _env("StreamSteer")
    action = torch.zeros(env.action_space.shape)
    action[:, 0], action[:, -3], action[:, -2:] = 0.5, 0.5, 1.0
    options = {"scripts": [SCRIPT], "keys": stream_keys(seed, 1)}
    return _held(_played(env, lambda observation: action, seed, options))


def stream_detect(seed: int) -> tuple[Frames, float]:
    """Wait twice, then say that it is fake: once where it is, once where it is not."""
    env = _env("StreamDetect", clips=64)
    films = []
    for label in (True, False):
        clip = int((env.dataset.label == label).nonzero()[0])
        words = [FAKE] + [WAIT] * WAITS
        films.append(_held(_played(env, partial(_said, words), seed, {"clips": [clip]}))[0])
    return np.concatenate(films), RENDER_FPS["rgb_array_list"]


def self_play(seed: int) -> tuple[Frames, float]:
    """The shipped student against a detector that sees three chunks and says made: of a made and of a real stream."""
    env, films, wanted = parallel.make(render_mode="rgb_array_list", split="test"), [], [False, True]
    while wanted:
        seen, _ = env.reset(seed=seed, options={"script": SCRIPT})
        if bool(env.game.state.real[0]) is wanted[0]:
            wanted.pop(0)
            films.append(_held(_moves(env, seen, seed))[0])
        seed += 1
    return np.concatenate(films), RENDER_FPS["rgb_array_list"]


def _moves(env: Any, seen: Any, seed: int) -> Iterator[Frames]:
    """The canvases of one game for two, in order."""
    policy = _student(stream_keys(seed, 1))
    while env.agents:
        yield from env.render()
        chunk = policy.act(env.game.observe()[GENERATOR])[0].numpy()
        seen, *_ = env.step({GENERATOR: chunk, DETECTOR: FAKE if seen[DETECTOR]["position"] > WAITS else WAIT})
    yield from env.render()


def _said(words: list[int], observation: Tensor) -> Tensor:
    """The last word, which is taken away."""
    return torch.tensor([words.pop()])


def _student(keys: Tensor) -> GeneratorPolicy:
    """The shipped student, about to make its first chunk."""
    policy = GeneratorPolicy(Stack.load().generator)
    policy.reset(keys)
    return policy


def _env(name: str, mode: str = "rgb_array_list", **others: Any) -> Any:
    """One stream over tensors."""
    return gymnasium.make_vec(
        f"reelgym/{name}-v0", num_envs=1, render_mode=mode, autoreset_mode="Disabled", split="test", **others
    )


def _played(env: Any, act: Callable[[Any], Tensor], seed: int, options: dict[str, Any]) -> Iterator[Frames]:
    """The canvases of one episode, in order."""
    observation, _ = env.reset(seed=seed, options=options)
    yield from _shown(env)
    ended = False
    while not ended:
        observation, _, terminated, _, _ = env.step(act(observation))
        ended = bool(terminated.all())
        yield from _shown(env)


def _shown(env: Any) -> list[Frames]:
    (shown,) = env.render()
    return shown if isinstance(shown, list) else [shown]


def _held(canvases: Iterator[Frames]) -> tuple[Frames, float]:
    """All frames, the last one for longer, and their rate."""
    frames = list(canvases)
    return np.stack([*frames, *[frames[-1]] * HOLD]), RENDER_FPS["rgb_array_list"]


if __name__ == "__main__":
    sys.exit(main())
