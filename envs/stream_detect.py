"""`reelgym/StreamDetect-v0`: real or fake? A stream shows chunk after chunk, and waiting for more of it costs.

N streams, M clips in the dataset, n chunks a clip, f frames a chunk, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from ..noise import fold, uniform
from .clip_dataset import ClipDataset, build_dataset
from .draw import View
from .making import Source, opened, single
from .rows import Rows
from .stack import Stack
from .vector import TensorVectorEnv

WAIT, REAL, FAKE = range(3)
WORDS = ("", ": real", ": fake")
UNTOLD = -1
"""`info["label"]` and `info["family"]` while the verdict is out."""


@dataclass(frozen=True)
class DetectSettings:
    """What an agent sees, and what it pays."""

    wait_cost: float = 0.02
    """Of one more chunk; a verdict is worth 1 or -1."""
    window: int = 2
    """Chunks in an observation, the newest last."""
    pool: int = 2
    """Side of the squares of pixels that an observation averages, rounded to 8 bit like what the camera stores."""

    def __post_init__(self) -> None:
        if self.wait_cost < 0 or min(self.window, self.pool) < 1:
            raise ValueError(f"wait_cost is at least 0, window and pool are at least 1, not {self}")


@dataclass(frozen=True)
class DetectState(Rows):
    """clip: int64 [N], of the dataset.   seen: int64 [N], chunks shown, 1 to n.   verdict: int64 [N], the newest
    action.   over: bool [N], whether the episode has ended.   keys: int64 [N], what the next clips are drawn with."""

    clip: Tensor
    seen: Tensor
    verdict: Tensor
    over: Tensor
    keys: Tensor


class StreamDetectVectorEnv(TensorVectorEnv[DetectState]):
    """N streams of a dataset of clips, each of which ends when its agent has decided.

    State: the clip, the chunks shown so far, and the key that draws the next clip.
    Observation [N, K]: one flat Box of the last chunks' pixels and how many were shown; see `columns`. Whether the clip
        is real shows in its pixels alone: the process is partially observed, and each chunk tells more.
    Action [N]: 0 wait, 1 it is real, 2 it is fake.
    Transition: waiting shows the next chunk. A reset draws one clip of the dataset at random and shows its first chunk.
    Reward [N]: 1 for a right verdict, -1 for a wrong one, less `wait_cost` for waiting; -1 for waiting when no chunk is
        left, which is a wrong verdict.
    End: a verdict, or waiting when no chunk is left; terminated, row by row. Nothing is truncated.

    All randomness follows from each row's key. A new episode of the same row (SAME_STEP) follows from its key too, so
    that a row goes on alike in any batch. Under DISABLED, `reset_mask` begins the rows that it names; where nobody
    looks (`check`), a row that has ended stays as it is and earns 0.

    `reset(options=...)`: `clips` int64 [N], those of the dataset to show first; `keys` int64 [N]; `reset_mask`.
    `info`: `label` (1 fake, 0 real) and `family` (of `dataset.names`), int64 [N], once the verdict is given (under
    SAME_STEP in `final_info`), and -1 before.

    Args:
        num_envs: N.
        dataset: the clips; moved to `device`.
        settings: what an agent sees and pays.
        others: autoreset_mode, render_mode, device and check, see TensorVectorEnv.

    Attributes:
        columns: which columns of an observation are what. `clip`: the pixels; `position`: one-hot, chunks shown.
        clip_shape: (window * f, C, H / pool, W / pool), what the columns of `clip` unflatten to, oldest frame first,
            zeros before the first chunk.
    """

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"clips", "keys", "reset_mask"})

    def __init__(
        self,
        num_envs: int,
        dataset: ClipDataset,
        *,
        settings: DetectSettings | None = None,
        device: torch.device | str = "cpu",
        **others: Any,
    ) -> None:
        self.dataset, self.settings = dataset.to(device), settings or DetectSettings()
        _, self.chunks, frames, channels, height, width = dataset.video.shape
        if height % self.settings.pool or width % self.settings.pool:
            raise ValueError(f"pool {self.settings.pool} does not divide frames of {height} x {width}")
        pooled = (height // self.settings.pool, width // self.settings.pool)
        self.clip_shape = (self.settings.window * frames, channels, *pooled)
        small = avg_pool2d(self.dataset.video.flatten(0, 2).float(), self.settings.pool).round().to(torch.uint8)
        # in front, the chunks before the first: black
        self.pixels = pad(small.view(len(dataset), self.chunks, -1), (0, 0, self.settings.window - 1, 0))
        size = int(np.prod(self.clip_shape))
        self.columns = {"clip": slice(0, size), "position": slice(size, size + self.chunks)}
        observed = Box(0.0, 1.0, (size + self.chunks,), np.float32)
        super().__init__(num_envs, observed, Discrete(3), device=device, **others)

    def _terminal(self, state: DetectState) -> Tensor:
        return state.over

    def _drawn(self, keys: Tensor) -> DetectState:
        """New episodes of keys [N]."""
        clip = (uniform(keys, 0, 0, (1,))[:, 0] * len(self.dataset)).long()
        zeros = torch.zeros_like(clip)
        return DetectState(clip, zeros + 1, zeros, zeros.bool(), keys)

    def _initial(self, options: dict[str, Any]) -> DetectState:
        state = self._drawn(self._keys(options))
        if options.get("clips") is None:
            return state
        clip = self._one_a_row("clips", options["clips"])
        if bool(((clip < 0) | (clip >= len(self.dataset))).any()):
            raise ValueError(f"clips lie in 0 .. {len(self.dataset) - 1}, not {clip.tolist()}")
        return replace(state, clip=clip)

    def _initial_some(self, mask: Tensor, options: dict[str, Any]) -> DetectState:
        if self._state is None and not bool(mask.all()):
            raise gymnasium.error.ResetNeeded("the first reset begins every row: leave out reset_mask")
        begun = self._initial(options)
        return begun if self._state is None else self._state.where(mask, begun)

    def _autoreset(self, state: DetectState, ended: Tensor) -> DetectState:
        return state.where(ended, self._drawn(fold(state.keys, 1)))

    def _transition(self, state: DetectState, actions: Tensor) -> tuple[DetectState, Tensor, Tensor]:
        waits, last = actions == WAIT, state.seen == self.chunks
        right = (actions == FAKE) == self.dataset.label[state.clip]
        verdict = torch.where(right & ~waits, 1.0, -1.0)
        reward = torch.where(waits & ~last, -self.settings.wait_cost, verdict)
        over = ~waits | last
        after = replace(state, seen=state.seen + (~over).long(), verdict=actions, over=over)
        return after.where(state.over, state), reward.masked_fill(state.over, 0.0), over | state.over

    def _observation(self, state: DetectState) -> Tensor:
        shown = state.seen[:, None] - 1 + torch.arange(self.settings.window, device=self.device)
        pixels = self.pixels[state.clip[:, None], shown].flatten(1) / 255
        position = torch.arange(1, self.chunks + 1, device=self.device) == state.seen[:, None]
        return torch.cat((pixels, position.float()), 1)

    def _view(self, state: DetectState) -> View:
        pixels = self.dataset.video[state.clip, state.seen - 1].movedim(-3, -1).cpu().numpy()
        columns = (state.clip, state.seen, state.verdict, state.over, self.dataset.family[state.clip])
        rows = list(zip(*(column.tolist() for column in columns), strict=True))
        said = [f"chunk {seen} of {self.chunks}{WORDS[verdict]}" for _, seen, verdict, _, _ in rows]
        told = [f"it is {self.dataset.names[family]}" if over else "" for *_, over, family in rows]
        prompts = [self.dataset.texts[clip][seen - 1] for clip, seen, *_ in rows]
        return View({"newest chunk": pixels}, notes=(said, told), prompts=prompts)

    def _state_info(self, state: DetectState) -> dict[str, Any]:
        label = torch.where(state.over, self.dataset.label[state.clip].long(), UNTOLD)
        family = torch.where(state.over, self.dataset.family[state.clip], UNTOLD)
        return {"label": label, "_label": state.over.clone(), "family": family, "_family": state.over.clone()}


def make(
    stack: Source = "tiny",
    num_envs: int = 1,
    *,
    dataset: ClipDataset | None = None,
    max_episode_steps: int | None = None,
    **options: Any,
) -> StreamDetectVectorEnv:
    """N streams over a dataset, by default one whose generated clips are of the stack's student. max_episode_steps:
    chunks of a clip. options: those of `build_dataset`, settings, autoreset_mode, render_mode, check and device.

    Asked for again in the same process, a dataset is not built again.
    """
    loaded, asked, others = opened(stack, options, build_dataset, StreamDetectVectorEnv)
    if dataset is not None and asked:
        raise ValueError(f"{', '.join(sorted(asked))}: of a dataset to be built, where one is given")
    if dataset is None:
        chunks = {"chunks": max_episode_steps} if max_episode_steps else {}
        frozen = {name: tuple(value) if isinstance(value, list) else value for name, value in asked.items()}
        dataset = _dataset(_Keyed(_key(stack, loaded), loaded), **chunks | frozen)
    return StreamDetectVectorEnv(num_envs, dataset, device=loaded.device, **others)


make_single = single(make)


@dataclass(frozen=True)
class _Keyed:
    """A stack that is told from others by a key."""

    key: Hashable
    stack: Stack = field(compare=False)


def _key(source: Source, stack: Stack) -> Hashable:
    """Manifests tell one loaded stack from another; one with parts of its own is itself alone."""
    if isinstance(source, Stack) or ":" in str(source):
        return stack
    manifests = (place / "checkpoint.json" for place in stack.places.values())
    return stack.folder, stack.device, *(manifest.read_text() for manifest in manifests)


@lru_cache(maxsize=4)
def _dataset(keyed: _Keyed, **asked: Any) -> ClipDataset:
    source = None if asked.get("generated") == 0 else keyed.stack
    return build_dataset(**{"source": source, "device": keyed.stack.device, **asked})
