"""Prompts: a parameter-free word encoder, and a bank of prompts that are encoded once."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class UnknownWordError(ValueError):
    """A prompt has a word outside the vocabulary; the message names the nearest words."""


def split_words(text: str) -> list[str]:
    """Lower-case words; commas and semicolons stand alone."""
    return text.lower().replace(";", " ; ").replace(",", " , ").split()


class TextEncoder(Protocol):
    """Prompts to embeddings: `encode` takes M texts and gives [M, L, D], zero-padded, L at most text_len; that of "" is
    the null prompt."""

    @property
    def text_len(self) -> int: ...

    @property
    def dim(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> Tensor: ...


class WordEncoder:
    """One-hot word and one-hot position per token, of mean square 1; zero-padded, the empty prompt is zeros.

    vocab: the words in order; it belongs to a checkpoint's data. text_len: L, tokens per prompt.
    """

    def __init__(self, vocab: Sequence[str], text_len: int = 16) -> None:
        if len(set(vocab)) != len(vocab):
            raise ValueError("the vocabulary has a word twice: give each word once")
        self.vocab = tuple(vocab)
        self.text_len = text_len
        self._index = {word: i for i, word in enumerate(self.vocab)}

    @property
    def dim(self) -> int:
        """D = words + positions."""
        return len(self.vocab) + self.text_len

    def words(self, text: str) -> list[str]:
        """Lower-case words; commas and semicolons stand alone. Raises UnknownWordError, ValueError if too long."""
        words = split_words(text)
        for word in words:
            if word not in self._index:
                raise UnknownWordError(self._unknown(word))
        if len(words) > self.text_len:
            raise ValueError(f"prompt of {len(words)} words is longer than {self.text_len}: shorten {text!r}")
        return words

    def encode(self, texts: Sequence[str]) -> Tensor:
        """texts: M prompts. Returns float [M, L, D]."""
        if isinstance(texts, str):
            raise TypeError("encode takes a list of prompts: wrap the one prompt in a list")
        embeds, hot = torch.zeros(len(texts), self.text_len, self.dim), (self.dim / 2) ** 0.5
        for row, text in enumerate(texts):
            for place, word in enumerate(self.words(text)):
                embeds[row, place, self._index[word]] = hot
                embeds[row, place, len(self.vocab) + place] = hot
        return embeds

    def _unknown(self, word: str) -> str:
        near = difflib.get_close_matches(word, self.vocab, n=3, cutoff=0.5)
        hint = f"nearest words: {', '.join(near)}" if near else f"the words are: {', '.join(self.vocab)}"
        return f"unknown word {word!r}; {hint}"


@dataclass(frozen=True)
class PromptBatch:
    """The prompts of B rows. text: B strings (what rewards may read); embeds: [B, L, D], zero-padded."""

    text: tuple[str, ...]
    embeds: Tensor

    def take(self, rows: Tensor) -> PromptBatch:
        """Rows in the order of rows[B'] (repeats allowed)."""
        return PromptBatch(tuple(self.text[i] for i in rows.tolist()), self.embeds[rows.to(self.embeds.device)])


@dataclass(frozen=True)
class PromptBank:
    """M prompts encoded once. text: M strings, text[0] is the null prompt ""; embeds: [M, L, D]."""

    text: tuple[str, ...]
    embeds: Tensor

    @classmethod
    def build(cls, encoder: TextEncoder, texts: Sequence[str]) -> PromptBank:
        """The distinct texts, in order of first appearance, after the null prompt at index 0."""
        distinct = tuple(dict.fromkeys(["", *texts]))
        return cls(distinct, encoder.encode(distinct))

    def index(self, texts: Sequence[str]) -> Tensor:
        """int64 [B]: where each text stands in the bank; ValueError for one that is not in it."""
        places = {text: i for i, text in enumerate(self.text)}
        missing = [text for text in texts if text not in places]
        if missing:
            raise ValueError(f"prompt {missing[0]!r} is not in the bank: build the bank with it")
        return torch.tensor([places[text] for text in texts], dtype=torch.long, device=self.embeds.device)

    def batch(self, index: Tensor) -> PromptBatch:
        """index: int64 [B] into the bank. Returns the B prompts."""
        return PromptBatch(self.text, self.embeds).take(index)

    def to(self, device: torch.device | str) -> PromptBank:
        return PromptBank(self.text, self.embeds.to(device))
