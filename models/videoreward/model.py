"""VideoReward (2501.13918), the published video reward model, as a torch module that reads clips and prompts.

Shape letters: B clips, T frames of a clip, K prompts for a clip, N patches of all clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..prompts import PromptBatch
from .load import empty_backbone, fill, read_chat, read_config, read_weights
from .net import TokenReward, padded, video_tokens
from .pixels import MIN_FRAMES, PixelConfig, sample_frames, to_patches
from .prompt import HINT, ChatPrompt
from .weights import EMBEDDING, VIDEOREWARD_AXES, read_settings

if TYPE_CHECKING:
    from transformers import Qwen2VLModel

TOLERANCE = 1e-3
"""How far pixels may lie outside [0, 1]: less than one level of 8 bits."""


class VideoReward(TokenReward):
    """Logits of visual quality, motion quality and text alignment; make one with `from_pretrained`.

    Buffers mean, std [3]: statistics of the logits, for z-scores.

    Attributes:
        source_fps: frames per second of the clips that it is handed; must be set before clips are scored.
        pixels: how clips become patches.
        chat: how a prompt becomes tokens; None where no template was given.
    """

    axes = VIDEOREWARD_AXES
    min_frames = MIN_FRAMES
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Qwen2VLModel,
        special_token_ids: Sequence[int],
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        *,
        pixels: PixelConfig | None = None,
        chat: ChatPrompt | None = None,
        source_fps: float | None = None,
    ) -> None:
        super().__init__(backbone, special_token_ids)
        self.pixels, self.chat, self.source_fps = pixels or PixelConfig(), chat, source_fps
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        backbone: str | Path | None = None,
        template: str | Path | None = None,
        source_fps: float | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        step: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        rounding: bool = True,
    ) -> VideoReward:
        """The model in a folder of the published layout, LoRA merged, frozen and in evaluation mode.

        Args:
            folder: model_config.json and checkpoint-<step>/, as downloaded from KlingTeam/VideoReward.
            backbone: folder or hub id of Qwen2-VL-2B-Instruct: its tokenizer, and its sizes unless `folder` has a
                backbone.json. Its weights are read only where the checkpoint leaves out frozen ones.
            template: a checkout of VideoAlign or a text file, see `read_template`. Needed to score clips.
            source_fps: frames per second of the clips that will be scored.
            dtype: what the backbone computes in. bfloat16 rounds the rotary frequencies too, as in the published code.
            step: the checkpoint to load, by default the last.
            min_pixels, max_pixels: bounds on a resized frame, by default model_config.json's, see `read_settings`.
            rounding: see PixelConfig.

        Raises:
            CheckpointError: a file is missing or damaged, the settings are not supported, or tensors are missing,
                unexpected or misshapen (all are listed, and nothing is loaded). The message is one line.
        """
        folder = Path(folder)
        settings = read_settings(folder)
        config = read_config(folder, backbone)
        chat, ids = read_chat(settings, config, backbone, template)
        weights = read_weights(folder, step, backbone, settings, max(ids) + 1)
        if EMBEDDING in weights.dense:
            config.text_config.vocab_size = len(weights.dense[EMBEDDING])
        bounds = (min_pixels or settings.min_pixels, max_pixels or settings.max_pixels)
        pixels = PixelConfig(settings.fps, *bounds, rounding)
        empty = empty_backbone(config)
        model = cls(empty, ids, settings.mean, settings.std, pixels=pixels, chat=chat, source_fps=source_fps)
        fill(model, weights, dtype)
        model.backbone.to(dtype)
        return model.to(device).requires_grad_(False).eval()

    def forward(self, clips: Sequence[Tensor], texts: Sequence[str]) -> Tensor:
        """The same as `score_clips`."""
        return self.score_clips(clips, texts)

    def score(self, video: Tensor, prompts: PromptBatch) -> Tensor:
        """video [B, T, 3, H, W] in [0, 1] at `source_fps`, prompts of B rows, whose text is read. Logits [B, 3]."""
        return self.score_clips(_rows(video), prompts.text)

    def score_clips(self, clips: Sequence[Tensor], texts: Sequence[str]) -> Tensor:
        """Logits [B, 3] of clips that may differ in length and size; gradients reach their pixels.

        clips: B of float [T, 3, H, W] in [0, 1] at `source_fps`, of 4 frames or more. texts: B prompts. ValueError for
        other shapes or values, another number of prompts, and where source_fps, template or backbone were not given.
        """
        chat = self._chat(clips, texts)
        patches, grid = self._patches(clips)
        ids = [chat(text, count) for text, count in zip(texts, video_tokens(grid), strict=True)]
        return self.logits(patches, grid, *padded(ids, grid.device))

    def read(self, video: Tensor | Sequence[Tensor], texts: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """Look at clips once and read K prompts for each.

        video: [B, T, 3, H, W], or B clips as for `score_clips`. texts: B times K prompts. The vision tower and the
        conversation up to MQ's token run once per clip, what follows once per prompt. Returns the logits VQ and MQ
        [B, 2], which cannot depend on the prompt, and TA [B, K]. ValueError as for `score_clips`.
        """
        clips = _rows(video) if isinstance(video, Tensor) else video
        chat = self._chat(clips, texts)
        counts = sorted({0 if isinstance(row, str) else len(row) for row in texts})
        if len(counts) != 1 or counts == [0]:
            raise ValueError(f"texts: every clip needs its own list of as many prompts as the others, not of {counts}")
        patches, grid = self._patches(clips)
        prefixes, suffixes = [], []
        for row, count in zip(texts, video_tokens(grid), strict=True):
            chats = [chat(text, count) for text in row]
            cut = chats[0].index(self.special_token_ids[1]) + 1
            prefixes.append(chats[0][:cut])
            suffixes += [ids[cut:] for ids in chats]
        quality, cache, mask = self.read_prefix(patches, grid, prefixes)
        return quality, self.read_suffixes(cache, mask, suffixes)

    def _patches(self, clips: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Patches [N, 1176] and grids [B, 3] of the clips, once they are checked, on their device."""
        if self.source_fps is None:
            raise ValueError("source_fps: not given; set it to the frames per second of the clips (stack.toml: fps)")
        patches, grids = [], []
        for index, clip in enumerate(clips):
            _check(clip, index)
            chosen = sample_frames(len(clip), self.source_fps, self.pixels.fps)
            found, grid = to_patches(clip[chosen.to(clip.device)], self.pixels)
            patches.append(found)
            grids.append(grid)
        return torch.cat(patches), torch.tensor(grids, device=clips[0].device)

    def _chat(self, clips: Sequence[Tensor], texts: Sequence[Any]) -> ChatPrompt:
        if isinstance(texts, str) or len(texts) != len(clips) or not texts:
            count = "one string" if isinstance(texts, str) else str(len(texts))
            raise ValueError(f"texts: {count} for {len(clips)} clips; pass one entry per clip, in a list")
        if self.chat is None:
            raise ValueError(f"template: not given; {HINT}")
        return self.chat


def _rows(video: Tensor) -> list[Tensor]:
    if video.ndim != 5:
        raise ValueError(f"video must be [B, T, 3, H, W] in [0, 1], not {list(video.shape)}")
    return list(video.unbind())


def _check(clip: Tensor, index: int) -> None:
    wanted = f"clips[{index}] must be float [T, 3, H, W] in [0, 1] with at least {MIN_FRAMES} frames"
    shaped = clip.ndim == 4 and clip.shape[1] == 3 and len(clip) >= MIN_FRAMES and clip.numel() > 0
    if not (shaped and clip.is_floating_point()):
        raise ValueError(f"{wanted}, not {str(clip.dtype).removeprefix('torch.')} {list(clip.shape)}")
    if clip.is_cuda:
        return  # looking at values would wait for the device
    low, high = (float(bound) for bound in clip.detach().aminmax())
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
        raise ValueError(f"{wanted}; the values of {list(clip.shape)} go from {low:g} to {high:g}")
