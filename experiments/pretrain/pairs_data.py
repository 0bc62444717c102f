"""A table of preference pairs and the videos it names: read, checked, and split so that no video is on both sides."""

import csv
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from ...models.prompts import WordEncoder, split_words
from ...models.reward_net import REWARD_AXES, TinyReward
from ...models.tiny import TEXT_LEN
from ...video import VideoError, read_video

PATHS = ("path_A", "path_B")
COLUMNS = (*PATHS, "prompt", *REWARD_AXES)
_LABELS = {"A": 1, "B": -1, "same": 0}
UNJUDGED = ("", "invalid")
PAIR_GROUPS = 5
"""Fewer groups of pairs than this, and the split is one of pairs."""


@dataclass(frozen=True)
class _Row:
    """One line of the table. labels: per axis 1 (A is better), -1 (B is), 0 (same) or None (not judged)."""

    number: int
    paths: tuple[Path, Path]
    prompt: str
    labels: tuple[int | None, ...]


@dataclass(frozen=True)
class Pairs:
    """N pairs of V videos.

    videos: V of uint8 [F, 3, S, S], F their own   places: int64 [N, 2], which videos a pair is of   prompts: N
    labels: int64 [N, A], 1 where the first is better, -1 the second, 0 a tie (or not judged)   judged: bool [N, A]
    """

    videos: tuple[Tensor, ...]
    places: Tensor
    prompts: tuple[str, ...]
    labels: Tensor
    judged: Tensor


@dataclass(frozen=True)
class Split:
    """Rows of the pairs on either side, and what the sides do not share: "videos", or only "pairs"."""

    train: list[int]
    validation: list[int]
    kind: str


def read_table(path: Path) -> list[_Row]:
    """The rows with a judgement on any axis; video paths count from the table's folder.

    ValueError, naming row (the header is row 1) and column, for whatever is not as it should be.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = list(csv.reader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    header = [name.strip() for name in table[0]] if table else []
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise ValueError(f"{path}: no column {missing[0]}; the first row has to name {', '.join(COLUMNS)}")
    rows = [_row(path, number, header, cells) for number, cells in enumerate(table[1:], 2) if any(cells)]
    usable = [row for row in rows if any(label is not None for label in row.labels)]
    if not usable:
        raise ValueError(
            f"{path}: no usable pair; a row needs A, B or same under at least one of {', '.join(REWARD_AXES)}"
        )
    return usable


def _row(path: Path, number: int, header: Sequence[str], cells: Sequence[str]) -> _Row:
    where = f"{path} row {number}"
    if len(cells) > len(header):
        raise ValueError(f"{where}: {len(cells)} cells under {len(header)} columns; put a prompt with commas in quotes")
    values = dict(zip(header, (cell.strip() for cell in cells), strict=False))
    for name in PATHS:
        if not values.get(name):
            raise ValueError(f"{where}: no file under {name}")
    first, second = ((path.parent / values[name]).resolve() for name in PATHS)
    if first == second:
        raise ValueError(f"{where}: path_A and path_B are the same video, {values['path_A']}")
    for name in REWARD_AXES:
        if values.get(name, "") not in (*_LABELS, *UNJUDGED):
            raise ValueError(f"{where}: {values[name]!r} under {name}; use A, B, same, invalid or nothing")
    labels = tuple(_LABELS.get(values.get(name, "")) for name in REWARD_AXES)
    return _Row(number, (first, second), values.get("prompt", ""), labels)


def load_frames(path: Path, fps: float, size: int) -> Tensor:
    """A video file as uint8 [F, 3, size, size] at `fps`, by the mean over each pixel's area."""

    def shrink(frame: Tensor) -> Tensor:
        small = interpolate(frame.movedim(-1, 0)[None].float(), (size, size), mode="area")[0]
        return small.round().to(torch.uint8)

    return read_video(path, fps, each=shrink)[0]


def load_pairs(path: Path, rows: Sequence[_Row], fps: float, size: int) -> Pairs:
    """The pairs of a table's rows with their videos, each file read once.

    ValueError naming row, column and file for a video that cannot be read or is too short for the reward.
    """
    index: dict[Path, int] = {}
    videos: list[Tensor] = []
    files = [(row.number, name, file) for row in rows for name, file in zip(PATHS, row.paths, strict=True)]
    for number, name, file in tqdm(files, desc="read videos", file=sys.stderr, mininterval=5, leave=False):
        if file in index:
            continue
        try:
            frames = load_frames(file, fps, size)
        except VideoError as error:
            raise ValueError(f"{path} row {number}, {name}: {error}") from error
        if len(frames) < TinyReward.min_frames:
            raise ValueError(
                f"{path} row {number}, {name}: {file}: {len(frames)} frames at {fps:g} fps are too few, the reward "
                f"needs {TinyReward.min_frames}: give a longer video or a higher --fps"
            )
        index[file] = len(videos)
        videos.append(frames)
    return Pairs(
        videos=tuple(videos),
        places=torch.tensor([[index[file] for file in row.paths] for row in rows]),
        prompts=tuple(row.prompt for row in rows),
        labels=torch.tensor([[label or 0 for label in row.labels] for row in rows]),
        judged=torch.tensor([[label is not None for label in row.labels] for row in rows]),
    )


def encoder_of_prompts(prompts: Sequence[str]) -> WordEncoder:
    """An encoder of the words of these prompts, as long as the longest of them (at least TEXT_LEN words)."""
    split = [split_words(prompt) for prompt in prompts]
    vocab = sorted({word for words in split for word in words})
    return WordEncoder(vocab, max([TEXT_LEN, *(len(words) for words in split)]))


def groups(places: Tensor) -> list[list[int]]:
    """Rows of places [N, 2] by connected component: pairs that share a video, directly or through others."""
    parent = list(range(int(places.max()) + 1))

    def root(video: int) -> int:
        while parent[video] != video:
            parent[video] = parent[parent[video]]
            video = parent[video]
        return video

    for first, second in places.tolist():
        parent[root(first)] = root(second)
    found: dict[int, list[int]] = {}
    for row, (first, _) in enumerate(places.tolist()):
        found.setdefault(root(first), []).append(row)
    return list(found.values())


def split_pairs(places: Tensor, share: float, seed: int) -> Split:
    """Put about `share` of the pairs [N, 2] aside for validation, whole components at a time.

    With fewer than GROUPS components single pairs are put aside instead. A component that is larger than the share is
    trained on; where all are, the smallest one validates. A single pair is trained on.
    """
    count = len(places)
    parts = groups(places)
    kind = "videos" if len(parts) >= PAIR_GROUPS else "pairs"
    parts = parts if kind == "videos" else [[row] for row in range(count)]
    wanted = min(count - 1, max(1, round(share * count)))
    random.Random(seed).shuffle(parts)
    validation: list[int] = []
    for part in parts:
        if len(validation) + len(part) <= wanted:
            validation += part
    if not validation and count > 1:
        validation = min(parts, key=len)
    aside = set(validation)
    return Split([row for row in range(count) if row not in aside], sorted(validation), kind)
