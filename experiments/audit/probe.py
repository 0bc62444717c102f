"""`reelgym audit probe`: damage clips in a known place, more from frame to frame, and see whether saliency finds it.

Stream-R1 (2605.03849) shows one such probe: blur that grows over four frames in the lower half gives saliency inside
that half and temporal weights that rise. Here it is every half and quadrant, four kinds of damage, many clips, and the
same clips undamaged as a control: an object draws saliency to its own half without any damage.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...envs.draw import enlarge, overlay
from ...envs.worlds.camera import blurred
from ...envs.worlds.clips import WorldClips, make_clips
from ...envs.worlds.exploits import ground
from ...envs.worlds.scene import SIDE
from ...models.codec import Grid
from ...models.prompts import PromptBatch
from ...models.tiny import FRAMES_PER_CHUNK
from ...rewards.perplexity import temporal_weight
from ...rewards.stream_reward import RewardSettings, StreamReward
from ..console import publish
from ..jobs import one_thread
from ..options import StackOptions
from ..plots import film_strip, png
from ..pretrain.reward_measure import LEAST_CHANGE, visibly_changed
from ..tables import Column, Row, markdown_table, number

PICTURES = ("probe.png",)
_HALF = SIDE // 2
FIRST, SECOND, BOTH = slice(0, _HALF), slice(_HALF, SIDE), slice(0, SIDE)
REGIONS: dict[str, tuple[slice, slice]] = {
    "lower half": (SECOND, BOTH),
    "upper half": (FIRST, BOTH),
    "left half": (BOTH, FIRST),
    "right half": (BOTH, SECOND),
    "upper left": (FIRST, FIRST),
    "upper right": (FIRST, SECOND),
    "lower left": (SECOND, FIRST),
    "lower right": (SECOND, SECOND),
}
"""Rows and columns of a picture."""
Damage = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Config(StackOptions):
    """What is probed."""

    clips: int = 256
    """Clips that are tried; a region takes those whose object it touches in every frame."""
    frames: int = 4
    """Frames over which the damage grows."""
    split: Literal["train", "validation", "test"] = "test"
    """Prompts that the clips are of."""
    seed: int = 0
    """Of clips and noise."""
    out: Path = Path("runs/audit-probe")
    """Folder for results.json and probe.png."""


def blur(video: Tensor, amount: Tensor, noise: Tensor) -> Tensor:
    """Gaussian blur with a standard deviation of up to 2.5 pixels."""
    return blurred(video, (2.5 * amount)[None].expand(video.shape[:2]))


def grain(video: Tensor, amount: Tensor, noise: Tensor) -> Tensor:
    """Pixel noise with a standard deviation of up to .2."""
    return (video + 0.2 * amount[:, None, None, None] * noise).clamp(0, 1)


def freeze(video: Tensor, amount: Tensor, noise: Tensor) -> Tensor:
    """The first frame stays."""
    return video[:, :1].expand_as(video)


def colour_shift(video: Tensor, amount: Tensor, noise: Tensor) -> Tensor:
    """Red turns to green, green to blue, blue to red, in part."""
    return torch.lerp(video, video.roll(1, dims=2), amount[:, None, None, None].expand_as(video[0]))


DAMAGES: dict[str, Damage] = {"blur": blur, "noise": grain, "freeze": freeze, "colour shift": colour_shift}

COLUMNS = (
    Column("saliency of", "all axes fused, or one alone", lambda row: row["axes"]),
    Column("damage", "what grows from frame to frame", lambda row: row["damage"]),
    Column("region", "all: a clip counts once in every region that it qualifies for", lambda row: row["region"]),
    Column("clips", "object touched in every frame, damage to be seen in the last", number("clips", "d")),
    Column("inside", "share of clips with more saliency inside than the region's area", number("inside", ".2f")),
    Column("drawn", "share of clips whose damage moves saliency into the region", number("drawn", ".2f")),
    Column("rising", "share of clips whose mean saliency rises with every frame", number("rising", ".2f")),
    Column("rising, undamaged", "the same of the undamaged clips", number("control", ".2f")),
    Column("chance", "of frames in random order to rise", number("chance", ".2f")),
    Column("holds", "share of clips inside and rising: the published probe", number("holds", ".2f")),
    Column("weights", "temporal weight of each frame (floored), mean over clips", lambda row: row["weights"]),
)


Found = dict[str, Tensor]
"""What N probed clips showed: "inside", "drawn", "rising", "control", "holds" bool [N]; "weights" of frames [N, F]."""


def row_of(found: Found, **labels: str) -> Row:
    """Shares and mean weights, for results.json."""
    weights = found["weights"]
    shares = {name: float(mark.float().mean()) if len(mark) else None for name, mark in found.items() if mark.ndim == 1}
    shown = " ".join(f"{weight:.2f}" for weight in (weights.mean(dim=0).tolist() if len(weights) else []))
    chance = 1 / math.factorial(weights.shape[1])
    return {"kind": "probe", **labels, "clips": len(weights), **shares, "chance": chance, "weights": shown}


def run(config: Config) -> None:
    """Probe every damage in every region, print the table, write results.json and probe.png."""
    if not 3 <= config.frames <= 2 * FRAMES_PER_CHUNK:
        raise ValueError(f"frames must be 3 to {2 * FRAMES_PER_CHUNK}, which one prompt holds for, not {config.frames}")
    stack = config.spec.load()
    clips = real_clips(config.clips, config.split, config.seed, stack.grammar)
    video = clips.frames(torch.arange(config.clips))[:, : config.frames].to(stack.device)
    texts = [str(row[0]) for row in clips.clauses]
    prompts = PromptBatch(tuple(texts), stack.encoder.encode(texts).to(stack.device))
    vq = StreamReward(stack.reward.model, RewardSettings(axes=("VQ",)))
    with one_thread():
        rows = probe(stack.reward, video, prompts, config.seed, "all") + probe(vq, video, prompts, config.seed, "VQ")
        picture = png(figure(stack.reward, video, prompts))
    publish(["reelgym", "audit", "probe"], config, [config.seed], rows, report(rows), stack.device)
    (config.out / PICTURES[0]).write_bytes(picture)
    print(f"figure: {config.out / PICTURES[0]}")


def real_clips(count: int, split: str, seed: int, grammar: str = "plain") -> WorldClips:
    """True clips of a split's prompts. ValueError for fewer than one."""
    if count < 1:
        raise ValueError(f"clips must be at least 1, not {count}")
    return make_clips(count, split=split, seed=seed + 31, grammar=grammar)


def probe(reward: StreamReward, video: Tensor, prompts: PromptBatch, seed: int, axes: str) -> list[Row]:
    """One row for every damage and region, and one for every damage over all regions; axes: what the rows are of."""
    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(seed)).to(video.device)
    clean = look(reward, video, prompts)
    rows = []
    for name, damage in DAMAGES.items():
        found: list[Found] = []
        for region in REGIONS:
            hurt = damaged(video, damage, region, noise)
            chosen = (touched(video, region) & visibly_changed(video[:, -1:], hurt[:, -1:])).nonzero().flatten()
            saliency = look(reward, hurt[chosen], prompts.take(chosen)) if len(chosen) else clean[:0]
            found.append(compared(saliency, clean[chosen], region))
            rows.append(row_of(found[-1], axes=axes, damage=name, region=region))
        joined = {key: torch.cat([part[key] for part in found]) for key in found[0]}
        rows.append(row_of(joined, axes=axes, damage=name, region="all"))
    return rows


def compared(saliency: Tensor, clean: Tensor, region: str) -> Found:
    """Saliency [N, F, H, W] of clips damaged in a region, beside that of the same clips undamaged."""
    rows, columns = REGIONS[region]
    area = torch.zeros(SIDE, SIDE)
    area[rows, columns] = 1
    share, before = share_inside(saliency, region), share_inside(clean, region)
    rising, control = (s.mean(dim=(-1, -2)).diff(dim=1).gt(0).all(dim=1) for s in (saliency, clean))
    inside = share > area.mean().to(share)
    found = {"inside": inside, "drawn": share > before, "rising": rising, "control": control, "holds": inside & rising}
    return found | {"weights": temporal_weight(saliency)}


def look(reward: StreamReward, video: Tensor, prompts: PromptBatch) -> Tensor:
    """Saliency [B, F, H, W] of the reward, so many clips at a time."""
    grid, parts = Grid(torch.arange(video.shape[1]), *video.shape[-2:]), torch.arange(len(video)).split(64)
    return torch.cat([reward.weights(video[rows], prompts.take(rows), grid).saliency for rows in parts])


def damaged(video: Tensor, damage: Damage, region: str, noise: Tensor) -> Tensor:
    """video [B, F, 3, 32, 32] with a damage that grows to its worst in the last frame, inside a region only."""
    rows, columns = REGIONS[region]
    amount = torch.arange(1, video.shape[1] + 1, device=video.device) / video.shape[1]
    hurt = video.clone()
    hurt[..., rows, columns] = damage(video, amount, noise)[..., rows, columns]
    return hurt


def touched(video: Tensor, region: str) -> Tensor:
    """[B]: whether the object of video is in the region, by at least part, in every frame."""
    rows, columns = REGIONS[region]
    seen = (video - ground(video)).abs().amax(dim=2) > 4 * LEAST_CHANGE
    return seen[..., rows, columns].flatten(2).any(dim=-1).all(dim=-1)


def share_inside(saliency: Tensor, region: str) -> Tensor:
    """[B]: share of the saliency [B, F, H, W] of a whole clip that lies in a region."""
    rows, columns = REGIONS[region]
    return saliency[..., rows, columns].flatten(1).sum(1) / saliency.flatten(1).sum(1).clamp_min(1e-12)


def report(rows: list[Row]) -> str:
    """The published region and all of them as Markdown, every other region folded away."""
    short = [row for row in rows if row["region"] in ("lower half", "all")]
    rest = [row for row in rows if row["region"] not in ("lower half", "all")]
    folded = f"<details><summary>Every other region</summary>\n\n{markdown_table(COLUMNS, rest)}\n\n</details>"
    return f"{markdown_table(COLUMNS, short)}\n\n{folded}"


def figure(reward: StreamReward, video: Tensor, prompts: PromptBatch, scale: int = 5) -> np.ndarray:
    """The published probe on the first clip whose object reaches into the lower half: frames, damaged frames, saliency
    over them, and the temporal weight under each. uint8 [H, W, 3]."""
    chosen = touched(video, "lower half").nonzero().flatten()[:1]
    if not len(chosen):
        raise ValueError(f"none of {len(video)} clips has its object in the lower half: probe more clips")
    clean, prompts = video[chosen], prompts.take(chosen)
    hurt = damaged(clean, blur, "lower half", torch.zeros_like(clean))
    saliency = look(reward, hurt, prompts)
    frames = [(clip[0].movedim(1, -1) * 255).round().byte().cpu().numpy() for clip in (clean, hurt)]
    strips = [film_strip(part) for part in (*frames, overlay(frames[1], saliency[0].cpu().numpy()))]
    picture = enlarge(np.concatenate([np.pad(strip, ((0, 1), (0, 0), (0, 0))) for strip in strips]), scale)
    return _labelled(picture, temporal_weight(saliency)[0].tolist(), prompts.text[0], (video.shape[-1] + 1) * scale)


def _labelled(picture: np.ndarray, weights: list[float], prompt: str, step: int) -> np.ndarray:
    """The prompt above, what the rows are at the left, the frames' weights below."""
    head, left = 22, 84
    canvas = Image.new("RGB", (picture.shape[1] + left, picture.shape[0] + 2 * head), "white")
    canvas.paste(Image.fromarray(picture), (left, head))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    pen.text((4, 3), f'"{prompt}", blur growing in the lower half', fill="black", font=font)
    for row, name in enumerate(("as it was", "damaged", "saliency")):
        pen.text((4, head + row * step + step // 2 - 8), name, fill="black", font=font)
    pen.text((4, picture.shape[0] + head + 2), "weight", fill="black", font=font)
    for place, weight in enumerate(weights):
        under = (left + place * step + step // 2, picture.shape[0] + head + 2)
        pen.text(under, f"{weight:.2f}", fill="black", font=font)
    return np.asarray(canvas)
