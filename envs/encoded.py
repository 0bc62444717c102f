"""Prompts and clips of one's own, encoded once: what trainers draw, without a text encoder or a codec in memory.

L tokens, D width of an embedding, n chunks a clip, F latent frames a clip.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..models.codec import Codec
from ..models.fit import size_of
from ..models.prompts import TextEncoder
from ..noise import update_seed
from ..video import VideoError, read_video
from .cached_encoder import CachedEncoder, FilePrompts, encoding_bar, encoding_order, tell
from .data_files import SPLITS, ClipFile, DataFileError, listed, read_clip_folder, read_prompts, split_by_hash, spread
from .stack_parts import files_of_part
from .tensor_cache import FileDigests, TensorCache, cache_key, digest_of

CACHE_VARIABLE = "REELGYM_CACHE"
"""Environment variable: the folder of what is encoded, in place of `encoded` beside the stack's file."""


@dataclass(frozen=True)
class ClipLatents:
    """Encoded clips of a split; nothing of them is in memory.

    keys: in `store`, of latents [F, C, h, w].   texts: n prompts of each.   encoder: of prompts.
    """

    keys: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    store: TensorCache
    encoder: CachedEncoder
    device: torch.device
    seed: int = 0

    def __call__(self, batch: int, step: int) -> tuple[Tensor, Tensor]:
        """Latents [batch, F, C, h, w] and prompts [batch, n, L, D] of clips drawn at random, a pure function."""
        draw = torch.Generator().manual_seed(update_seed(self.seed, step))
        rows = torch.randint(len(self.keys), (batch,), generator=draw).tolist()
        latents = torch.stack([self.store.get(self.keys[row]) for row in rows])
        embeds = torch.stack([self.encoder.encode(self.texts[row]) for row in rows])
        return latents.to(self.device), embeds.to(self.device)


@dataclass(frozen=True, eq=False)
class EncodedData:
    """A stack's own prompts and clips, and the cache of what they are encoded to.

    data: "prompts", a file, and "clips", a folder.   folder: of the cache.   encoder, codec: load them.
    sources: what "encoder" and "codec" are read from, and how (numbers and strings), where it is files.
    chunks, frames_per_chunk: of a clip.   fps: frames a second of the video.
    seed: of the order in which this process encodes; None: one of its own, so that two seldom do the same at a time.
    """

    data: Mapping[str, Path]
    folder: Path
    encoder: Callable[[], TextEncoder]
    codec: Callable[[], Codec]
    sources: Mapping[str, tuple[Sequence[Path], Sequence[Any]]]
    chunks: int
    frames_per_chunk: int
    fps: float
    device: torch.device = torch.device("cpu")
    seed: int | None = None
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """What could not be used, found so far: kinds of faults, and the names."""

    def prompts(self, split: str) -> FilePrompts:
        """Prompts of a split; DataFileError where it has none."""
        rows = [row for row in self._prompts if row[1] == split]
        if not rows:
            raise DataFileError(
                f"{self.data['prompts']}: none of {len(self._prompts)} prompts is in the split {split!r}; give more, "
                "or a column split that says train, validation or test"
            )
        texts = [text for text, _ in rows]

        def sample(count: int, seed: int) -> list[tuple[str, ...]]:
            draw = torch.Generator().manual_seed(seed)
            order = [torch.randperm(len(texts), generator=draw) for _ in range(-(-count // len(texts)))]
            return [texts[row] for row in torch.cat([torch.empty(0, dtype=torch.long), *order]).tolist()[:count]]

        return FilePrompts(self.text_encoder, self.chunks, sample)

    def clips(self, split: str = "train", seed: int = 0) -> ClipLatents:
        """Encoded clips of a split; DataFileError where it has none."""
        rows = [(key, texts) for key, texts, where in self._clips if where == split]
        if not rows:
            raise DataFileError(
                f"{self.data['clips']}: none of {len(self._clips)} clips is in the split {split!r}; give more, or a "
                "column split that says train, validation or test"
            )
        keys, texts = zip(*rows, strict=True)
        return ClipLatents(keys, texts, self.store, self.text_encoder, self.device, seed)

    def fill(self) -> dict[str, dict[str, int]]:
        """Encode all that the cache lacks; how many prompts and clips there are of each split."""
        rows: dict[str, list[Any]] = {"prompts": self._prompts, "clips": self._clips}
        return {
            name: {split: sum(row[-1] == split for row in rows[name]) for split in SPLITS}
            for name in rows
            if name in self.data
        }

    @cached_property
    def store(self) -> TensorCache:
        """The cache."""
        return TensorCache(self.folder)

    @cached_property
    def text_encoder(self) -> CachedEncoder:
        """The stack's, behind the cache."""
        return CachedEncoder(self.encoder, self._digest("encoder", self.encoder), self.store)

    @cached_property
    def _digests(self) -> FileDigests:
        return FileDigests(self.folder)

    def _digest(self, name: str, make: Callable[[], Any]) -> str:
        if name not in self.sources:
            return digest_of(make())
        files, how = self.sources[name]
        found = self._digests.of_all(files)
        self._digests.save()
        return cache_key(found, *how)

    @cached_property
    def _prompts(self) -> list[tuple[tuple[str, ...], str]]:
        """Prompts by chunk, and their splits."""
        if "prompts" not in self.data:
            return []
        path = self.data["prompts"]
        found = [(row.where, row.split, row.text) for row in read_prompts(path)]
        kept, lost = self._spread(found)
        self._tell(path, "prompts", len(found), lost)
        return [(texts, split) for split, texts in kept]

    def _spread(self, rows: Sequence[tuple[str, Any, Any]]) -> tuple[list[tuple[Any, tuple[str, ...]]], list[str]]:
        """Rows of a name, anything and a text, with the text by chunk and encoded, and what was left out and why."""
        fitting, lost = [], []
        for name, kept, text in rows:
            try:
                fitting.append((name, kept, spread(text, self.chunks)))
            except ValueError as error:
                lost.append(f"{name}: {error}")
        faults = self.text_encoder.fill([text for *_, texts in fitting for text in texts], self.seed)
        self.text_encoder.release()
        lost += [f"{name}: {faults[t]}" for name, _, texts in fitting for t in texts[:1] if t in faults]
        return [(kept, texts) for _, kept, texts in fitting if not faults.keys() & set(texts)], lost

    @cached_property
    def _clips(self) -> list[tuple[str, tuple[str, ...], str]]:
        """Keys of latents, prompts by chunk, and splits, in an order that the clips' content decides."""
        if "clips" not in self.data:
            return []
        folder = self.data["clips"]
        there, notes = read_clip_folder(folder)
        self.left_out.update(notes)
        for what, names in notes.items():
            tell(f"{folder}: left out {what}: {listed(names)}")
        named, lost = self._spread([(clip.path.name, clip, clip.text) for clip in there])
        said = [self._digest("codec", self.codec), self.chunks * self.frames_per_chunk, self.fps]
        contents = {clip.path: self._digests.of(clip.path) for clip, _ in named}
        self._digests.save()
        keys = {path: cache_key("latents", content, *said) for path, content in contents.items()}
        faults = self._encode_clips({keys[clip.path]: clip for clip, _ in named})
        lost += [f"{clip.path.name}: {faults[keys[clip.path]]}" for clip, _ in named if keys[clip.path] in faults]
        self._tell(folder, "clips", len(there), lost)
        kept = {contents[clip.path]: (clip, texts) for clip, texts in named if keys[clip.path] not in faults}
        rows = [(content, *kept[content]) for content in sorted(kept)]
        return [(keys[clip.path], texts, clip.split or split_by_hash(content)) for content, clip, texts in rows]

    def _tell(self, path: Path, what: str, count: int, lost: list[str]) -> None:
        """Say what was left out; DataFileError where that is all."""
        if lost and len(lost) >= count:
            raise DataFileError(f"{path}: none of its {what} can be used: {listed(lost)}")
        if lost:
            self.left_out[f"{what} that cannot be used"] = sorted(lost)
            tell(f"{path}: left out of {count} {what} {listed(lost)}")

    def _encode_clips(self, wanted: Mapping[str, ClipFile]) -> dict[str, str]:
        """Encode the clips that the cache lacks, by their keys; what cannot be, and why."""
        todo, faults, changed = [key for key in wanted if key not in self.store], dict[str, str](), list[str]()
        encoding_order(self.seed).shuffle(todo)
        decoder = importlib.metadata.version("av")
        with self.store, encoding_bar(len(todo), "clips") as bar:
            for key in todo:
                self.store.refresh()
                fault = cache_key("fault", key, decoder)
                if key not in self.store and fault not in self.store:
                    try:
                        latents, resampled = self._latents(wanted[key].path)
                        self.store.put(key, latents)
                        changed += [f"{wanted[key].path.name}: {resampled}"] if resampled else []
                    except VideoError as error:
                        self.store.put_note(fault, str(error).removeprefix(f"{wanted[key].path}: "))
                if key not in self.store:
                    faults[key] = self.store.note(fault)
                bar.update()
        if changed:
            tell(f"{self.data['clips']}: resampled, and cut at the centre: {listed(sorted(changed))}")
        return faults

    @torch.no_grad()
    def _latents(self, path: Path) -> tuple[Tensor, str]:
        """Latents [F, C, h, w] of the beginning of a clip, and how it was resampled; VideoError for one that is too
        short."""
        codec = self.codec()
        size = size_of(codec, self.device)
        frames = codec.frames_of(self.chunks * self.frames_per_chunk)
        shapes: list[tuple[int, int]] = []

        def fitted(picture: Tensor) -> Tensor:
            shapes.append((picture.shape[0], picture.shape[1]))
            return covering(picture, size)

        video, rate = read_video(path, self.fps, frames, fitted)
        if len(video) < frames:
            raise VideoError(f"{len(video)} frames at {self.fps:g} a second, and a clip of this stack has {frames}")
        unit = video.permute(0, 3, 1, 2)[None].float() / 255
        changed = [f"{shapes[0][1]}x{shapes[0][0]} pixels"] if shapes[0] != size else []
        changed += [f"{rate:g} frames a second"] if abs(rate - self.fps) > 1e-3 * self.fps else []
        return codec.encode(unit.to(self.device))[0].cpu(), " and ".join(changed)


def covering(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture uint8 [H, W, 3] at another size (H, W): scaled until it covers that, and cut at the centre."""
    if tuple(picture.shape[:2]) == size:
        return picture
    h, w = picture.shape[:2]
    scale = max(size[0] / h, size[1] / w)
    whole = max(size[0], round(h * scale)), max(size[1], round(w * scale))
    drawn = functional.interpolate(
        picture.permute(2, 0, 1)[None].float(), whole, mode="bicubic", antialias=True, align_corners=False
    )[0]
    top, left = (whole[0] - size[0]) // 2, (whole[1] - size[1]) // 2
    cut = drawn[:, top : top + size[0], left : left + size[1]]
    return cut.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()


def encoder_of(stack: Any) -> TextEncoder:
    """A stack's text encoder; behind the cache where it has data of its own, and an encoder that takes long to load."""
    slow = "encoder" in stack.places and not stack.said.parts["encoder"].is_tiny
    encoder: TextEncoder = data_of(stack).text_encoder if slow and stack.data else stack.parts["encoder"]()
    return encoder


def data_of(stack: Any) -> EncodedData:
    """What a stack's `data` names, encoded by its own models; made once for a stack."""
    if "_encoded" not in vars(stack):
        vars(stack)["_encoded"] = _opened(stack)
    found: EncodedData = vars(stack)["_encoded"]
    return found


def _opened(stack: Any) -> EncodedData:
    layout, said = stack.layout, stack.said
    sources: dict[str, tuple[Sequence[Path], Sequence[Any]]] = {}
    for name in {"encoder", "codec"} & {*stack.places}:
        part, place = said.parts[name], stack.places[name]
        how = [getattr(part, "dtype", None) or said.dtype, getattr(part, "text_len", None)]
        how += [said.size] if name == "codec" else []
        sources[name] = (files_of_part(name, place), how)
    return EncodedData(
        stack.data,
        cache_folder(stack.folder),
        lambda: getattr(stack.parts.get("encoder"), "__wrapped__", partial(stack.part, "encoder"))(),  # not kept
        partial(stack.part, "codec"),
        sources,
        layout.chunks,
        layout.frames_per_chunk,
        stack.fps,
        stack.device,
    )


def cache_folder(beside: Path) -> Path:
    """Where a stack whose file lies in this folder keeps what it encoded."""
    return Path(os.environ.get(CACHE_VARIABLE) or beside / "encoded")
