"""Texts encoded once: a text encoder behind a cache on disk, and prompts of one's own that are read through it.

L tokens, D width of an embedding, n chunks a clip.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..models.prompts import TextEncoder
from .data_files import spread
from .prompt_source import ScriptPrompts
from .tensor_cache import TensorCache, cache_key

_AT_ONCE = 8


class CachedEncoder:
    """A text encoder whose embeddings are read from a cache; it is loaded for texts that are not there alone.

    make: loads it.   digest: what tells it from others.   store: where embeddings are, without their padding.
    """

    def __init__(self, make: Callable[[], TextEncoder], digest: str, store: TensorCache) -> None:
        self.make, self.digest, self.store = make, digest, store

    @property
    def text_len(self) -> int:
        """L."""
        return self._shape[0]

    @property
    def dim(self) -> int:
        """D."""
        return self._shape[1]

    def encode(self, texts: Sequence[str]) -> Tensor:
        """texts: M prompts. Returns float [M, L, D] on the CPU; ValueError for one that the encoder refuses."""
        if isinstance(texts, str):
            raise TypeError("encode takes a list of prompts: wrap the one prompt in a list")
        for fault in self.fill(texts).values():
            raise ValueError(fault)
        embeds = torch.zeros(len(texts), *self._shape)
        for row, text in enumerate(texts):
            tokens = self.store.get(self._key(text))
            embeds[row, : len(tokens)] = tokens
        return embeds

    def fill(self, texts: Iterable[str], seed: int | None = None) -> dict[str, str]:
        """Encode the texts that the cache lacks, in an order of this seed; those that the encoder refuses, and why."""
        if not all(self._known(text) for text in texts):
            self.store.refresh()
            self._add([text for text in dict.fromkeys(("", *texts)) if not self._known(text)], seed)
        refused = [text for text in dict.fromkeys(texts) if self._key(text) not in self.store]
        return {text: self.store.note(self._fault(text)) for text in refused}

    def _add(self, wanted: list[str], seed: int | None) -> None:
        encoding_order(seed).shuffle(wanted)
        with self.store, encoding_bar(len(wanted), "prompts") as bar:
            for start in range(0, len(wanted), _AT_ONCE):
                some = wanted[start : start + _AT_ONCE]
                self.store.refresh()
                self._encode([text for text in some if not self._known(text)])
                bar.update(len(some))

    def _encode(self, texts: list[str]) -> None:
        """One by one, where they cannot be taken together."""
        if not texts:
            return
        try:
            found = self._encoder.encode(texts).cpu()
        except ValueError as error:
            if len(texts) == 1:
                self.store.put_note(self._fault(texts[0]), str(error))
            for text in texts if len(texts) > 1 else ():
                self._encode([text])
            return
        for text, embed in zip(texts, found, strict=True):
            used = int(embed.any(1).nonzero().max()) + 1 if embed.any() else 0
            self.store.put(self._key(text), embed[:used])
        if self._key(None) not in self.store:
            self.store.put(self._key(None), torch.tensor(found.shape[1:]))

    def release(self) -> None:
        """Let go of the encoder, until it is needed again."""
        self.__dict__.pop("_encoder", None)

    def __getattr__(self, name: str) -> Any:
        """Whatever else the encoder has."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._encoder, name)

    @cached_property
    def _encoder(self) -> TextEncoder:
        return self.make()

    @cached_property
    def _shape(self) -> tuple[int, int]:
        if self._key(None) not in self.store:
            self.fill([""])
        length, width = self.store.get(self._key(None)).tolist()
        return length, width

    def _known(self, text: str) -> bool:
        return self._key(text) in self.store or self._fault(text) in self.store

    def _fault(self, text: str) -> str:
        return cache_key("refused text", self.digest, text)

    def _key(self, text: str | None) -> str:
        return cache_key("text", self.digest, text)


@dataclass(frozen=True)
class FilePrompts(ScriptPrompts):
    """Prompts of a file; any text is a script."""

    def spread(self, script: str) -> tuple[str, ...]:
        """One prompt for each chunk."""
        return spread(script, self.chunks)

    def _embed(self, text: str) -> Tensor:
        return self.encoder.encode([text])[0]


@lru_cache(maxsize=1024)
def tell(line: str) -> None:
    """On stderr, once a process."""
    print(line, file=sys.stderr)


def encoding_order(seed: int | None) -> random.Random:
    """What shuffles the things that are to be encoded; None: another order in every process."""
    return random.Random(os.urandom(8) if seed is None else seed)


def encoding_bar(total: int, what: str) -> tqdm:
    """A bar on stderr, which is a line every five seconds where nobody watches."""
    watched = sys.stderr.isatty()
    pause = 0.1 if watched else 5.0
    return tqdm(
        total=total, desc=f"encoding {what}", unit=what[:-1], file=sys.stderr, mininterval=pause, disable=not total
    )
