"""`reelgym audit probe`: damage clips in a known place, more from frame to frame, and see whether saliency finds it.

Stream-R1 (2605.03849) shows one such probe: blur that grows over four frames in the lower half gives saliency inside
that half and temporal weights that rise. Here it is every half and quadrant, four kinds of damage, many clips, and the
same clips undamaged as a control: an object draws saliency to its own half without any damage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...envs.worlds.camera import blurred
from ...envs.worlds.grammar import Clause
from ...models.prompts import PromptBatch
from ...rewards.perplexity import temporal_weight
from ...rewards.stream_reward import StreamReward
from ..jobs import one_thread
from ..plots import enlarge, film_strip, overlay, png
from ..results import pick_device, write_results
from ..tables import Column, markdown_table, number
from .clips import VISIBLE, Audited, real_clips

REGIONS: dict[str, tuple[slice, slice]] = {
    "lower half": (slice(16, 32), slice(0, 32)),
    "upper half": (slice(0, 16), slice(0, 32)),
    "left half": (slice(0, 32), slice(0, 16)),
    "right half": (slice(0, 32), slice(16, 32)),
    "upper left": (slice(0, 16), slice(0, 16)),
    "upper right": (slice(0, 16), slice(16, 32)),
    "lower left": (slice(16, 32), slice(0, 16)),
    "lower right": (slice(16, 32), slice(16, 32)),
}
"""Rows and columns of a 32x32 picture."""
Damage = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Config:
    """What is probed."""

    clips: int = 256
    """Clips that are tried; a region takes those whose object it touches in every frame."""
    frames: int = 4
    """Frames over which the damage grows."""
    split: Literal["train", "validation", "test"] = "test"
    """Prompts that the clips are of."""
    seed: int = 0
    """Of clips and noise."""
    device: str = "auto"
    """auto, cpu or cuda."""
    weights: Path | None = None
    """Folder with codec and reward; by default the one shipped with the package."""
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
    Column("damage", "what grows from frame to frame", lambda row: row["damage"]),
    Column("regions", "where", lambda row: row["region"]),
    Column("clips", "those whose object the region touches in every frame", number("clips", "d")),
    Column("inside", "share of clips with more saliency inside than the region's area", number("inside", ".2f")),
    Column("drawn", "share of clips whose damage moves saliency into the region", number("drawn", ".2f")),
    Column("rising", "share of clips whose temporal weights rise with every frame", number("rising", ".2f")),
    Column("rising, undamaged", "the same of the undamaged clips; chance is 1/24", number("control", ".2f")),
    Column("all of it", "share of clips inside and rising: the published probe", number("holds", ".2f")),
    Column("weights", "temporal weight of each frame, mean over clips", lambda row: row["weights"]),
)


def run(config: Config) -> None:
    """Probe every damage in every region, print the table, write results.json and probe.png."""
    device = pick_device(config.device)
    audited = Audited.load(config.weights, device)
    clips = real_clips(config.clips, config.split, config.seed)
    video = clips.frames(torch.arange(config.clips))[:, : config.frames].to(device)
    told = [row[0] for row in clips.clauses]
    with one_thread():
        rows = probe(audited, video, told, config.seed)
        config.out.mkdir(parents=True, exist_ok=True)
        (config.out / "probe.png").write_bytes(png(figure(audited, video, told, config.seed)))
    print(report(rows))
    print(f"figure: {config.out / 'probe.png'}")
    print(f"results: {write_results(config.out, 'reelgym audit probe', [config.seed], config, rows, device)}")


def probe(audited: Audited, video: Tensor, told: list[Clause], seed: int) -> list[dict[str, Any]]:
    """One row for every damage and region, and one for every damage over all regions."""
    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(seed)).to(video.device)
    whole = audited.prompts(told, video.device)
    clean = look(audited.reward, video, whole)
    rows = []
    for name, damage in DAMAGES.items():
        found = [_region(audited, name, damage, region, video, noise, whole, clean) for region in REGIONS]
        rows += [_row(name, region, part) for region, part in zip(REGIONS, found, strict=True)]
        rows.append(_row(name, "all", torch.cat(found)))
    return rows


def look(reward: StreamReward, video: Tensor, prompts: PromptBatch) -> Tensor:
    """Saliency [B, F, H, W] of the reward, so many clips at a time."""
    parts = []
    for rows in torch.arange(len(video)).split(64):
        saliency = reward(video[rows], prompts.take(rows), need={"saliency"}).saliency
        assert saliency is not None
        parts.append(saliency)
    return torch.cat(parts)


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
    ground = video.movedim(2, 1).flatten(2).median(dim=-1).values[:, None, :, None, None]
    seen = (video - ground).abs().amax(dim=2) > 4 * VISIBLE
    return seen[..., rows, columns].flatten(2).any(dim=-1).all(dim=-1)


def _region(
    audited: Audited,
    name: str,
    damage: Damage,
    region: str,
    video: Tensor,
    noise: Tensor,
    prompts: PromptBatch,
    clean: Tensor,
) -> Tensor:
    """What was found in each clip that the damage shows in, [N, 5 + F]: whether the share inside exceeds the area's and
    the undamaged clip's, whether weights rise, whether the undamaged clip's do, inside and rising, and the weights."""
    hurt = damaged(video, damage, region, noise)
    shown = touched(video, region) & ((hurt - video)[:, -1].abs().flatten(1).amax(1) > VISIBLE)
    chosen = shown.nonzero().flatten()
    saliency = look(audited.reward, hurt[chosen], prompts.take(chosen)) if len(chosen) else clean[:0]
    inside, before = (share_inside(s, region) for s in (saliency, clean[chosen]))
    rows, columns = REGIONS[region]
    area = saliency[:1, :1, rows, columns].numel() / max(1, saliency[:1, :1].numel())
    weights = temporal_weight(saliency)
    rises, control = (w.diff(dim=1).gt(0).all(dim=1) for w in (weights, temporal_weight(clean[chosen])))
    marks = [inside > area, inside > before, rises, control, rises & (inside > area)]
    return torch.cat([torch.stack(marks, dim=1).float(), weights], dim=1)


def share_inside(saliency: Tensor, region: str) -> Tensor:
    """[B]: share of the saliency [B, F, H, W] of a whole clip that lies in a region."""
    rows, columns = REGIONS[region]
    return saliency[..., rows, columns].flatten(1).sum(1) / saliency.flatten(1).sum(1).clamp_min(1e-12)


def _row(damage: str, region: str, found: Tensor) -> dict[str, Any]:
    means = found.mean(dim=0).tolist() if len(found) else [None] * found.shape[1]
    marks = dict(zip(("inside", "drawn", "rising", "control", "holds"), means, strict=False))
    weights = " ".join("-" if weight is None else f"{weight:.2f}" for weight in means[5:])
    return {"kind": "probe", "damage": damage, "region": region, "clips": len(found), **marks, "weights": weights}


def report(rows: list[dict[str, Any]]) -> str:
    """All regions together, and the published one, as Markdown."""
    shown = [row for row in rows if row["region"] in ("all", "lower half")]
    return markdown_table(COLUMNS, shown)


def figure(audited: Audited, video: Tensor, told: list[Clause], seed: int, scale: int = 5) -> np.ndarray:
    """The published probe on the first clip whose object stays in the lower half: frames, damaged frames, saliency over
    them, and the temporal weight under each. uint8 [H, W, 3]."""
    chosen = touched(video, "lower half").nonzero().flatten()[:1]
    if not len(chosen):
        raise ValueError(f"none of {len(video)} clips has its object in the lower half: probe more clips")
    prompts = audited.prompts(told, video.device).take(chosen)
    clean = video[chosen]
    hurt = damaged(clean, blur, "lower half", torch.zeros_like(clean))
    saliency = look(audited.reward, hurt, prompts)
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
