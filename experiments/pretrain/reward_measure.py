"""How good a reward model is: does it see flaws of families that it never met, and does it rank as the oracle ranks?"""

import torch
from torch import Tensor

from ...envs.stack import Stack
from ...envs.worlds.clips import make_clips, word_encoder
from ...envs.worlds.fakes import FAKES
from ...envs.worlds.oracle import score_clips
from ...models.generator import stream
from ...models.prompts import WordEncoder
from ...models.reward_net import TinyReward
from ...models.tiny import CHUNKS, FRAMES_PER_CHUNK
from ...noise import stream_keys
from ...rewards.reward_model import WindowedModel
from ...rewards.windows import ChunkLayout, clip_prompts

UNSEEN_FLAWS = {"VQ": "ghosting", "MQ": "energy_gain", "TA": "swap"}
"""Families of fakes, one for each axis, that are left out of the reward's training."""
LEAST_CHANGE = 0.05
"""Least change of some pixel by which an edit counts as one."""


def visibly_changed(before: Tensor, after: Tensor) -> Tensor:
    """[B]: whether the edit of videos [B, F, 3, H, W] is to be seen."""
    return (after - before).abs().flatten(1).amax(1) > LEAST_CHANGE


@torch.no_grad()
def unseen_accuracy(reward: TinyReward, encoder: WordEncoder, grammar: str, count: int = 96) -> dict[str, float]:
    """Share of held-out clips that the axis ranks above their own fake of an unseen family, over three strengths; a
    fake that changes nothing (what rests gains no speed) is no pair."""
    clips = make_clips(count, split="validation", seed=11, grammar=grammar)
    embeds = encoder.encode([str(row[-1]) for row in clips.clauses])
    video = clips.frames(torch.arange(count))
    real = reward(video, embeds)
    figures = {}
    for place, (axis, name) in enumerate(UNSEEN_FLAWS.items()):
        hits = []
        for strength in (0.4, 0.7, 1.0):
            fake = FAKES[name](clips.scene, torch.full((count,), strength), torch.Generator().manual_seed(3))
            differs = visibly_changed(video, fake)
            hits.append((real[:, place] > reward(fake, embeds)[:, place])[differs].float())
        figures[f"accuracy_{axis}"] = float(torch.cat(hits).mean())
    return figures


@torch.no_grad()
def oracle_agreement(
    reward: TinyReward, stack: Stack, grammar: str, prompts: int = 32, group: int = 16
) -> dict[str, float]:
    """Spearman correlation of the environment's return with the oracle total among the student's clips of one prompt:
    mean over held-out prompts, and the lower end of its 95% bootstrap interval over prompts."""
    clips = make_clips(prompts, split="validation", seed=13, grammar=grammar)
    clauses, encoder = [row for row in clips.clauses for _ in range(group)], word_encoder(grammar)
    texts = [[str(clause) for clause in row] for row in clauses]
    embeds = torch.stack([encoder.encode(row) for row in texts])
    model = WindowedModel(reward, stack.codec, ChunkLayout(CHUNKS, FRAMES_PER_CHUNK))
    keys = stream_keys(17, len(clauses))
    returns, totals = [], []
    for rows in torch.arange(len(clauses)).split(64):
        video = stack.codec.decode(stream(stack.generator, embeds[rows], keys[rows]))
        scores = model.score(video, clip_prompts(embeds[rows], [texts[row] for row in rows.tolist()]))
        returns.append(((scores - reward.mean) / reward.std).mean(1))
        totals.append(score_clips(video, [clauses[row] for row in rows.tolist()], FRAMES_PER_CHUNK).total)
    ranks = [
        torch.cat(values).unflatten(0, (prompts, group)).argsort(1).argsort(1).double() for values in (returns, totals)
    ]
    a, b = (rank - rank.mean(1, keepdim=True) for rank in ranks)
    each = (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()
    resampled = each[torch.randint(prompts, (2000, prompts), generator=torch.Generator().manual_seed(0))].mean(1)
    return {"spearman": float(each.mean()), "spearman_low": float(resampled.quantile(0.025))}
