"""VideoReward on tokens: Qwen2-VL and a bias-free head that is read at three special tokens.

Shape letters: B clips, K prompts for a clip, N patches of all clips, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .pixels import MERGE, PAIR, PATCH, PATCH_WIDTH
from .weights import VIDEOREWARD_AXES

if TYPE_CHECKING:
    from transformers import Qwen2VLModel


class TokenReward(nn.Module):
    """Logits of patches and token ids.

    backbone: transformers' Qwen2VLModel: the language model's output matrix (lm_head) is dropped. special_token_ids: of
    the three reward tokens. Positions are plain 1-D ones, as VideoReward was trained with, not M-RoPE. `head` [1, D] is
    applied in its own dtype.
    """

    def __init__(self, backbone: Qwen2VLModel, special_token_ids: Sequence[int]) -> None:
        super().__init__()
        vision = backbone.config.vision_config
        if (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size) != (PATCH, MERGE, PAIR):
            raise ValueError(f"backbone: patches must be {PATCH} pixels, merged by {MERGE}, of {PAIR} frames")
        self.backbone = backbone
        self.head = nn.Linear(backbone.config.text_config.hidden_size, 1, bias=False)
        self.special_token_ids = tuple(special_token_ids)

    @property
    def dtype(self) -> torch.dtype:
        """What the backbone computes in."""
        weight: Tensor = self.backbone.language_model.embed_tokens.weight
        return weight.dtype

    def logits(self, pixel_values: Tensor, grid_thw: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits [B, 3] of what a Qwen2-VL processor hands over.

        pixel_values: [N, 1176], the patches of all clips. grid_thw: int64 [B, 3], patches in time, height and width.
        input_ids, attention_mask: int64 [B, L], padded on the right, with one video token per four patches.
        ValueError where they do not fit each other.
        """
        embeds = self._embeds(pixel_values, grid_thw, input_ids, attention_mask)
        places = self._places(input_ids, attention_mask, range(len(VIDEOREWARD_AXES)))
        return self._head(self._language(embeds, attention_mask, _count(input_ids)), places)

    def read_prefix(self, patches: Tensor, grid: Tensor, prefixes: list[list[int]]) -> tuple[Tensor, Any, Tensor]:
        """The conversations up to MQ's token: logits VQ and MQ [B, 2], their keys and values, their mask [B, L]."""
        from transformers import DynamicCache

        ids, mask = padded(prefixes, grid.device)
        cache = DynamicCache(config=self.backbone.config.text_config)
        hidden = self._language(self._embeds(patches, grid, ids, mask), mask, _count(ids), cache)
        return self._head(hidden, self._places(ids, mask, range(2))), cache, mask

    def read_suffixes(self, cache: Any, mask: Tensor, suffixes: list[list[int]]) -> Tensor:
        """What follows, K times for each of B cached conversations with mask [B, L]: logits TA [B, K]."""
        rows, count = len(mask), len(suffixes) // len(mask)
        cache.batch_repeat_interleave(count)
        mask = mask.repeat_interleave(count, dim=0)
        ids, own = padded(suffixes, mask.device)
        embeds = self.backbone.language_model.embed_tokens(ids)
        positions = mask.sum(dim=1, keepdim=True) + _count(ids)
        hidden = self._language(embeds, torch.cat([mask, own], dim=1), positions, cache)
        return self._head(hidden, self._places(ids, own, [2])).view(rows, count)

    def _language(self, embeds: Tensor, mask: Tensor, positions: Tensor, cache: Any = None) -> Tensor:
        """Hidden states [B, L, D]; positions [B or 1, L] stand for all three rotary axes."""
        out = self.backbone.language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions.expand(3, len(embeds), -1),
            past_key_values=cache,
            use_cache=cache is not None,
        )
        hidden: Tensor = out.last_hidden_state
        return hidden

    def _embeds(self, patches: Tensor, grid: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Token embeddings [B, L, D], the video's in their places."""
        wanted = [int(grid.prod(dim=-1).sum()), PATCH_WIDTH]
        if list(patches.shape) != wanted:
            raise ValueError(f"pixel_values must be {wanted} for grid_thw {grid.tolist()}, not {list(patches.shape)}")
        holes = (ids == self.backbone.config.video_token_id) & mask.bool()
        counts, needed = holes.sum(dim=1).tolist(), video_tokens(grid)
        if counts != needed:
            raise ValueError(f"input_ids hold {counts} video tokens, grid_thw {grid.tolist()} needs {needed}")
        seen = self.backbone.visual(patches.to(self.dtype), grid_thw=grid).pooler_output
        words = self.backbone.language_model.embed_tokens(ids)
        return words.masked_scatter(holes[..., None], seen.to(words.dtype))

    def _places(self, ids: Tensor, mask: Tensor, axes: Sequence[int]) -> Tensor:
        """Where each row of ids [B, L] has its tokens of A axes: [B, A]."""
        tokens = torch.tensor([self.special_token_ids[axis] for axis in axes], device=ids.device)
        found = (ids[:, None] == tokens[:, None]) & mask[:, None].bool()
        if not bool((found.sum(dim=-1) == 1).all()):
            raise ValueError(f"input_ids: every row needs each of the reward tokens {tokens.tolist()} once")
        return found.int().argmax(dim=-1)

    def _head(self, hidden: Tensor, places: Tensor) -> Tensor:
        """Logits [B, A] at places [B, A] of hidden [B, L, D]."""
        chosen = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
        logits: Tensor = self.head(chosen.to(self.head.weight.dtype)).squeeze(-1)
        return logits


def video_tokens(grid: Tensor) -> list[int]:
    """How many tokens stand for each video of grids [B, 3]."""
    counts: list[int] = (grid.prod(dim=-1) // MERGE**2).tolist()
    return counts


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, int64 [B, L], padded on the right."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    return ids.to(device), mask.to(device)


def _count(ids: Tensor) -> Tensor:
    """Positions [1, L] of ids [B, L]."""
    return torch.arange(ids.shape[1], device=ids.device)[None]
