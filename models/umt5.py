"""UMT5, the text encoder of Wan2.1, as diffusers' pipeline reads prompts."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, UMT5EncoderModel


class UMT5TextEncoder:
    """Prompts to the hidden states of their tokens, zeros beyond them.

    encoder, tokenizer: of transformers.   text_len: L, the most tokens that a prompt may have.
    """

    def __init__(self, encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerBase, text_len: int = 512) -> None:
        self.encoder, self.tokenizer, self.text_len = encoder, tokenizer, text_len

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        text_len: int = 512,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> UMT5TextEncoder:
        """From text_encoder/ and tokenizer/ of a pipeline's folder; ValueError where one is missing or does not fit."""
        AutoTokenizer, UMT5EncoderModel = _transformers()
        for part in ("text_encoder", "tokenizer"):
            if not (Path(folder) / part).is_dir():
                raise ValueError(
                    f"{folder}: has no {part}/; a Wan2.1 folder has transformer, vae, text_encoder, tokenizer"
                )
        try:
            tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "tokenizer")
            encoder = UMT5EncoderModel.from_pretrained(Path(folder) / "text_encoder", dtype=dtype)
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{folder}: text encoder cannot be read ({' '.join(str(error).split())[:200]})") from error
        return cls(encoder.eval().to(device), tokenizer, text_len)

    @property
    def dim(self) -> int:
        """D."""
        return int(self.encoder.config.d_model)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """texts: M prompts, "" among them is the null prompt. Returns float32 [M, L, D]; ValueError for one that is too
        long."""
        if isinstance(texts, str):
            raise TypeError("encode takes a list of prompts: wrap the one prompt in a list")
        if not texts:
            return torch.zeros(0, self.text_len, self.dim, device=self.encoder.device)
        cleaned = [" ".join(html.unescape(html.unescape(text)).split()) for text in texts]
        for text, tokens in zip(cleaned, self.tokenizer(cleaned)["input_ids"], strict=True):
            if len(tokens) > self.text_len:
                raise ValueError(
                    f"prompt of {len(tokens)} tokens is longer than {self.text_len}: shorten {text[:60]!r}..."
                )
        given = self.tokenizer(cleaned, padding="max_length", max_length=self.text_len, return_tensors="pt")
        ids, mask = (given[name].to(self.encoder.device) for name in ("input_ids", "attention_mask"))
        hidden = self.encoder(ids, mask).last_hidden_state.float()
        return hidden.masked_fill(mask[..., None] == 0, 0)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write text_encoder/ and tokenizer/ into the folder."""
        self.encoder.save_pretrained(Path(folder) / "text_encoder")
        self.tokenizer.save_pretrained(Path(folder) / "tokenizer")


def _transformers() -> tuple[Any, Any]:
    try:
        from transformers import AutoTokenizer, UMT5EncoderModel
    except ImportError as error:
        raise ValueError("Wan2.1's text encoder needs transformers: pip install 'reelgym[wan]'") from error
    return AutoTokenizer, UMT5EncoderModel
