"""Who judges clips where no world's oracle can: a held-out reward, measures without a model, a function of one's own.

N clips, video [N, F, 3, H, W] in [0, 1]; rows are N rows of one prompt per chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from ...envs.data_files import DataFileError
from ...envs.encoded import ClipLatents, data_of
from ...envs.stack import Stack
from ...envs.worlds.world import PromptRows
from ...models.prompts import PromptBatch
from ...plugins import find
from ...rewards.compose import CallableReward, as_reward
from ...rewards.measures import MEASURES, MeasureReward, drift, similarities
from ...rewards.stream_reward import StreamReward
from ...rewards.windows import clip_prompts
from ..systems import encode_clauses

Score = Callable[[Tensor, PromptRows], Mapping[str, Tensor]]
ORACLE = "oracle"
REFERENCE_CLIPS = 16
"""Clips of the stack, at most, that measures are held against."""


@dataclass(frozen=True)
class Judge:
    """Scores clips. name: as it was asked for.   words: who judges, and what its total is, for a page.   score: gives
    [N] by axis."""

    name: str
    words: str
    score: Score

    def __call__(self, video: Tensor, rows: PromptRows) -> dict[str, Tensor]:
        """Scores [N] by axis on the CPU, "total" the last: its own, or the mean of all axes. ValueError for others."""
        with torch.no_grad():
            found = self.score(video, rows)
        if not isinstance(found, Mapping) or not found:
            raise ValueError(f"the judge {self.name} returned a {type(found).__name__}: expected scores by axis")
        scores = {axis: torch.as_tensor(score).detach().float().cpu() for axis, score in found.items()}
        for axis, score in scores.items():
            if score.shape != (len(video),) or not bool(score.isfinite().all()):
                shape = list(score.shape)
                raise ValueError(f"the judge {self.name}, {axis}: {shape}, expected [{len(video)}], finite numbers")
        total = scores.pop("total", None)
        return scores | {"total": torch.stack([*scores.values()]).mean(0) if total is None else total}


def open_judge(name: str, stack: Stack) -> Judge:
    """The judge of this name over a stack: one of JUDGES, an import path module:name, or what a package installs as
    `reelgym.judges`.

    One's own is `judge(video, prompts) -> {axis: [N]}` with N prompts as one writes them ("... ; then ..."), a reward,
    or a function without arguments that gives either. ValueError for one that is not there, for what it needs and the
    stack lacks, and for one that the stack also maximises.
    """
    if name == ORACLE:
        raise ValueError("the oracle judges a comparison in its world, and nothing else: name another judge")
    found = find("judges", name, JUDGES)
    if name in JUDGES:
        return Judge(name, *found(stack))
    if callable(found) and not hasattr(found, "score") and not signature(found).parameters:
        found = found()
    if hasattr(found, "score") and hasattr(found, "axes"):
        reward = as_reward(found)
        refuse_trained(name, lambda: reward, stack)
        return Judge(name, f"the reward {name}, its total the mean of its axes", _rewarding(lambda: reward, stack))
    if stack.has("reward") and getattr(stack.reward.model, "function", None) is found:
        raise ValueError(f"the judge {name} is the reward that is maximised: who trains does not judge")
    score: Score = lambda video, rows: found(video, [text_of(row) for row in rows])  # noqa: E731
    return Judge(name, f"{name}, its total its own or the mean of its axes", score)


def judge_for(stack: Stack, asked: str = "") -> str:
    """The name of who judges a stack if nobody else is asked for: its world's oracle, or else the held-out reward, or
    else measures beside its own clips; ValueError where there is none of them."""
    if asked:
        return asked
    if stack.has("grammar") or stack.has("world"):
        return ORACLE
    if stack.has("heldout"):
        return "heldout"
    if "clips" in stack.data:
        return "measures"
    raise ValueError(
        f"{stack.folder}: nobody can judge this stack: name a held-out reward ([parts] heldout) or clips in its toml, "
        "or a function of yours (--judge module:name)"
    )


def refuse_trained(name: str, judge: Callable[[], StreamReward], stack: Stack) -> None:
    """ValueError where a reward that is to judge is the one that the stack maximises: the same object, or the same
    weights."""
    if not stack.has("reward"):
        return
    weights = stack.weights()
    if name == "heldout" and {"heldout", "reward"} <= set(weights):
        same = weights["heldout"] == weights["reward"]
    else:
        same = _same(judge().model, stack.reward.model)
    if same:
        raise ValueError(f"the judge {name} has the weights of the reward that is maximised: who trains does not judge")


def _same(one: Any, other: Any) -> bool:
    if one is other or (isinstance(one, CallableReward) and getattr(other, "function", None) is one.function):
        return True
    if not (isinstance(one, torch.nn.Module) and isinstance(other, torch.nn.Module) and type(one) is type(other)):
        return False
    mine, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    return bool(mine) and mine.keys() == theirs.keys() and all(_equal(mine[name], theirs[name]) for name in mine)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _rewarding(reward: Callable[[], StreamReward], stack: Stack) -> Score:
    """A reward of whole clips, loaded when the first come."""
    made = cache(lambda: reward().windowed(stack.layout, stack.codec))

    def score(video: Tensor, rows: PromptRows) -> dict[str, Tensor]:
        scorer = made()
        embeds = encode_clauses(stack.encoder, rows).to(video.device)  # type: ignore[arg-type]
        found = scorer.score(video, clip_prompts(embeds, rows))
        return dict(zip(scorer.axes, found.scores.unbind(1), strict=True)) | {"total": found.reward}

    return score


def _heldout(stack: Stack) -> tuple[str, Score]:
    if not stack.has("heldout"):
        raise ValueError(f"{stack.folder}: no held-out reward to judge by; name one in the toml under [parts]")
    refuse_trained("heldout", lambda: stack.heldout, stack)
    words = "the held-out reward, its total the mean of its axes, in standard deviations"
    return words, _rewarding(lambda: stack.heldout, stack)


def _measures(stack: Stack) -> tuple[str, Score]:
    """How near the measures of a clip are to those of the stack's own clips, each from 0 to 1."""
    if "clips" not in stack.data:
        raise ValueError(
            f'{stack.folder}: measures are held against clips of the stack; say clips = "FOLDER" in its toml'
        )
    if "reward" not in stack.places and stack.has("reward") and isinstance(stack.reward.model, MeasureReward):
        raise ValueError("the judge measures measures what the reward maximises: who trains does not judge")
    real: dict[str, Tensor] = {}

    def score(video: Tensor, rows: PromptRows) -> dict[str, Tensor]:
        if not real:
            seen = [clip_measures(clip) for clip, _ in own_clips(stack, REFERENCE_CLIPS)]
            real.update({axis: torch.cat([one[axis] for one in seen]).mean() for axis in seen[0]})
        found = clip_measures(video)
        return found | {"total": torch.stack([_near(axis, found[axis], real[axis]) for axis in found]).mean(0)}

    words = "measures that need no model, its total how near they are to those of the stack's own clips, 1 at best"
    return words, score


def clip_measures(video: Tensor) -> dict[str, Tensor]:
    """[N] by name: the measures of pictures and their change, and similarity against distance in frames."""
    return {
        **{name: measure(video) for name, measure in MEASURES.items()},
        "drift": drift(video),
        **similarities(video),
    }


def _near(axis: str, found: Tensor, real: Tensor) -> Tensor:
    """From 0 to 1: similarities by their difference, amounts by the share of the smaller in the larger."""
    real = real.to(found.device)
    if axis.startswith("similarity"):
        return 1 - (found - real).abs() / 2
    return torch.minimum(found, real) / torch.maximum(found, real).clamp_min(1e-6)


@torch.no_grad()
def own_clips(stack: Stack, most: int) -> list[tuple[Tensor, tuple[str, ...]]]:
    """Clips of the stack, as its codec gives them back, [1, F, 3, H, W], and their prompts by chunk: of the test split,
    or else of validation, or else of training."""
    found: ClipLatents | None = None
    for split in ("test", "validation", "train"):
        try:
            found = data_of(stack).clips(split)
            break
        except DataFileError:
            if split == "train":
                raise
    assert found is not None, "raised above"
    pairs = list(zip(found.keys, found.texts, strict=True))[:most]
    return [(stack.codec.decode(found.store.get(key)[None].to(stack.device)), texts) for key, texts in pairs]


def judge_reward(judge: Judge) -> StreamReward:
    """A judge as the held-out reward that a guard watches: its total of windows of a clip."""

    def total(video: Tensor, prompts: PromptBatch) -> Tensor:
        return judge(video, [(text,) for text in prompts.text])["total"].to(video.device)

    return StreamReward(CallableReward(total, (judge.name,), min_frames=2))


def text_of(row: Sequence[str]) -> str:
    """A row of prompts as one writes it."""
    return " ; then ".join(dict.fromkeys(map(str, row)))


JUDGES: dict[str, Any] = {"heldout": _heldout, "measures": _measures, ORACLE: None}
"""Judges by name: what makes one of a stack. The oracle's exam is another one: evaluate.py."""
