"""How good a pretrained part is, on held-out prompts, as a fraction of what the world itself scores."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...envs.worlds.clips import WorldClips, clause_bank, make_clips, prompt_index
from ...envs.worlds.grammar import GRAMMARS
from ...envs.worlds.oracle import score_clips
from ...models.codec import Codec
from ...models.prompts import WordEncoder
from ...models.tiny import FRAMES_PER_CHUNK

_AXES = ("VQ", "MQ", "TA", "physics", "total")


@torch.no_grad()
def quality(
    sample: Callable[[Tensor, Tensor], Tensor], codec: Codec, encoder: WordEncoder, clips: WorldClips, seed: int = 0
) -> dict[str, float]:
    """Oracle means of sampled clips, and `fraction`: their total over the total of the clips themselves.

    `sample(noise, embeds)` maps noise [B, F, C, h, w] and prompts [B, chunks, L, D] to latents.
    """
    bank = clause_bank(encoder, clips.clauses)
    embeds = bank.embeds[prompt_index(bank, clips.clauses)]
    frames = clips.video.shape[1]
    generator = torch.Generator().manual_seed(seed)
    grid = codec.grid(frames)
    noise = torch.randn(len(embeds), frames, codec.channels, grid.h, grid.w, generator=generator)
    video = torch.cat([codec.decode(sample(n, e)) for n, e in zip(noise.split(32), embeds.split(32), strict=True)])
    return fraction(video, clips)


@torch.no_grad()
def fraction(video: Tensor, clips: WorldClips) -> dict[str, float]:
    """Oracle means of `video`, made for the prompts of `clips`, and its total as a fraction of theirs."""
    truth = score_clips(clips.frames(torch.arange(len(clips.clauses))), clips.clauses, FRAMES_PER_CHUNK)
    scores = score_clips(video, clips.clauses, FRAMES_PER_CHUNK)
    means = {axis: float(getattr(scores, axis).mean()) for axis in _AXES}
    return {**means, "truth": float(truth.total.mean()), "fraction": means["total"] / float(truth.total.mean())}


def held_out_clips(grammar: str, count: int = 96, seed: int = 7) -> WorldClips:
    """Validation clips, half of them with a (colour, shape, motion) that training never shows."""
    return make_clips(count, split="validation", seed=seed, grammar=grammar)


def words(grammar: str) -> dict[str, list[str]]:
    """What readers of a part that knows a grammar's prompts have to know."""
    return {"vocab": list(GRAMMARS[grammar].vocabulary())}
