"""What the oracle sees: an object's colour, place, area and outline, measured from the pixels of every frame alone."""

from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from .render import BAR_GREY, DISTANCES, cover
from .scene import BACKGROUND, RADIUS, SIDE

FRAMES_AT_ONCE = 256
BAR = slice(SIDE // 2 - 2, SIDE // 2 + 2)
CORE_PIXELS = 6
FIT_STEPS = 6
PATCH = 20


@dataclass(frozen=True)
class Measures:
    """Measurements of every frame; [...] is [B, F].

    back, front: [..., 3]   colours of background and object, as seen (light included)
    contrast: [...]   distance of the two colours
    centre: [..., 2]   centroid of the object in pixels
    area: [...]   pixels that the object covers, the part behind the bar included
    fit: [..., 4]   overlap (IoU of soft masks) with each shape of that place and area
    visible: [...]   share of the object that no bar hides
    stray: [...]   what is neither background nor object, relative to the object
    grain: [...]   unevenness of the object's inside
    bar: [...]   0 without an occluding bar, 1 with the world's own
    """

    back: Tensor
    front: Tensor
    contrast: Tensor
    centre: Tensor
    area: Tensor
    fit: Tensor
    visible: Tensor
    stray: Tensor
    grain: Tensor
    bar: Tensor

    @property
    def presence(self) -> Tensor:
        """[...] 1 where there clearly is an object, 0 where there is none."""
        return ((self.contrast - 0.08) / 0.12).clamp(0, 1) * (self.area / 12).clamp(0, 1)


def measure(video: Tensor) -> Measures:
    """Measure video [B, F, 3, SIDE, SIDE] in [0, 1], frame by frame."""
    if video.dim() != 5 or video.shape[2:] != (3, SIDE, SIDE):
        raise ValueError(f"the oracle judges videos [B, F, 3, {SIDE}, {SIDE}], got {tuple(video.shape)}")
    frames = video.detach().float().clamp(0, 1).flatten(0, 1)
    parts = [_measure(part) for part in frames.split(FRAMES_AT_ONCE)]
    columns = [torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Measures)]
    return Measures(*(column.reshape(*video.shape[:2], *column.shape[1:]) for column in columns))


@lru_cache(maxsize=4)
def calibration(device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Per shape [4]: slope and offset of sqrt(area) over radius, and how far the centroid lies below, per radius."""
    radius = torch.linspace(2.5, 7.0, 10).repeat_interleave(16)
    place = SIDE / 2 + torch.rand(len(radius), 2, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(SIDE) + 0.5
    slopes, offsets, drops = [], [], []
    for kind in range(len(DISTANCES)):
        mask = cover(kind, place, radius)
        area = mask.sum((1, 2))
        design = torch.stack([radius, torch.ones_like(radius)], 1)
        line = torch.linalg.lstsq(design, area.sqrt()[:, None]).solution[:, 0]
        drop = (mask.sum(2) * rows).sum(1) / area - place[:, 1]
        slopes.append(line[0])
        offsets.append(line[1])
        drops.append((drop / radius).mean())
    return torch.stack(slopes).to(device), torch.stack(offsets).to(device), torch.stack(drops).to(device)


def radius_of(area: Tensor) -> Tensor:
    """The radius [..., 4] at which each shape covers `area` [...]."""
    slope, offset, _ = calibration(str(area.device))
    return ((area.sqrt()[..., None] - offset) / slope).clamp(0.5, SIDE / 2)


def area_of(radius: Tensor, shape: Tensor) -> Tensor:
    """Pixels that a shape [...] of `radius` [...] covers."""
    slope, offset, _ = calibration(str(radius.device))
    return (slope[shape] * radius + offset[shape]) ** 2


def anchor_of(centre: Tensor, radius: Tensor, shape: Tensor) -> Tensor:
    """The scene position [..., 2] of a shape [...] whose centroid is `centre` [..., 2]."""
    drop = calibration(str(radius.device))[2][shape] * radius
    return torch.stack([centre[..., 0], centre[..., 1] - drop], -1)


def _measure(frames: Tensor) -> Measures:
    back, bar_rgb, bar = _surroundings(frames)
    shown = torch.ones_like(frames[:, :1])
    shown[..., BAR] = torch.where(bar[:, None, None, None] > 0.5, 0.0, 1.0)
    front, alpha = _segment(frames, back, shown)
    contrast = (front - back).norm(dim=1)
    centre, area = _moments(alpha)
    places, radii = _places(centre, area)
    touches = alpha[..., [BAR.start - 1, BAR.stop]].amax((1, 2)) > 0.02
    hidden = (bar > 0.5) & touches
    if hidden.any():
        places, radii = places.clone(), radii.clone()
        places[hidden], radii[hidden] = _complete(alpha[hidden], shown[hidden], places[hidden], radii[hidden])
    whole = torch.stack([cover(kind, places[:, kind], radii[:, kind]) for kind in range(len(DISTANCES))], 1)
    seen = whole * shown
    mask = alpha[:, None]
    fit = torch.minimum(seen, mask).sum((2, 3)) / torch.maximum(seen, mask).sum((2, 3)).clamp_min(1e-6)
    best = fit.argmax(1)
    row = torch.arange(len(best), device=best.device)
    outline, full = seen[row, best][:, None], whole[row, best]
    area = torch.where(hidden, full.sum((1, 2)), area)
    drop = calibration(str(area.device))[2][best] * radii[row, best]
    found = places[row, best] + torch.stack([torch.zeros_like(drop), drop], 1)
    behind = bar[:, None, None, None] > 0.5
    scenery = torch.where(behind & (shown < 0.5), bar_rgb[:, :, None, None], back[:, :, None, None])
    outside = (F.max_pool2d(outline, 3, 1, 1) < 0.02).float()
    off = ((frames - scenery).square().mean(1, keepdim=True).sqrt() - 0.05).clamp_min(0)
    stray = ((off.square() * outside).sum((1, 2, 3)) / area.clamp_min(12)).sqrt() / contrast.clamp_min(0.1)
    inside = (outline > 0.95).float()
    rough = (frames - front[:, :, None, None]).square().mean(1, keepdim=True) * inside
    grain = (rough.sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp_min(1)).sqrt() / contrast.clamp_min(0.1)
    visible = outline.sum((1, 2, 3)) / full.sum((1, 2)).clamp_min(1e-6)
    return Measures(
        back, front, contrast, torch.where(hidden[:, None], found, centre), area, fit, visible, stray, grain, bar
    )


def _surroundings(frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Background colour [N, 3] (median of the border), colour [N, 3] of the bar's columns, and whether that is a bar."""
    sides = (frames[:, :, 0], frames[:, :, -1], frames[:, :, 1:-1, 0], frames[:, :, 1:-1, -1])
    back = torch.cat(sides, 2).median(2).values
    bar_rgb = frames[..., BAR].flatten(2).median(2).values
    scale = (BAR_GREY / BACKGROUND - 1) * back.mean(1).clamp_min(0.02)
    return back, bar_rgb, (bar_rgb - back).mean(1) / scale


def _segment(frames: Tensor, back: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
    """The object's colour [N, 3] and its soft mask [N, SIDE, SIDE], zero where the bar hides."""
    away = frames - back[:, :, None, None]
    core = (away.square().sum(1) * shown[:, 0]).flatten(1).topk(CORE_PIXELS).indices
    front = away.flatten(2).gather(2, core[:, None].expand(-1, 3, -1)).mean(2)
    for _ in range(2):
        alpha = torch.einsum("nchw,nc->nhw", away, front) / front.square().sum(1).clamp_min(1e-4)[:, None, None]
        weight = ((alpha - 0.8) / 0.1).clamp(0, 1) * (alpha < 1.3) * shown[:, 0]
        total = weight.sum((1, 2))[:, None]
        mean = torch.einsum("nchw,nhw->nc", away, weight) / total.clamp_min(1e-6)
        front = torch.where(total > 1, mean, front)
    alpha = alpha.clamp(0, 1) * shown[:, 0]
    near = F.max_pool2d((alpha > 0.25).float()[:, None], 3, 1, 1)[:, 0]
    return front + back, alpha * near


def _moments(alpha: Tensor) -> tuple[Tensor, Tensor]:
    area = alpha.sum((1, 2))
    axis = torch.arange(SIDE, device=alpha.device) + 0.5
    centre = torch.stack([(alpha.sum(1) * axis).sum(1), (alpha.sum(2) * axis).sum(1)], 1)
    empty = area[:, None] < 1
    return torch.where(empty, SIDE / 2, centre / area.clamp_min(1e-6)[:, None]), area


def _places(centre: Tensor, area: Tensor) -> tuple[Tensor, Tensor]:
    """Where each shape [N, 4, 2] would stand, and with which radius [N, 4], to have this centroid and area."""
    radii = radius_of(area)
    kinds = torch.arange(len(DISTANCES), device=area.device).expand_as(radii)
    return anchor_of(centre[:, None].expand(-1, len(DISTANCES), 2), radii, kinds), radii


def _complete(alpha: Tensor, shown: Tensor, places: Tensor, radii: Tensor) -> tuple[Tensor, Tensor]:
    """What best explains the part of alpha [N, SIDE, SIDE] that the bar leaves visible: places [N, 4, 2], radii [N, 4].

    Starts from the best of the world's radii and some shifts along x, then Gauss-Newton on place and radius.
    """
    middle = (alpha.sum(2) * torch.arange(SIDE, device=alpha.device)).sum(1) / alpha.sum((1, 2)).clamp_min(1e-6)
    top = (middle.round().long() - PATCH // 2).clamp(0, SIDE - PATCH)
    lines = (top[:, None] + torch.arange(PATCH, device=top.device))[:, :, None].expand(-1, -1, SIDE)
    patch, mask = alpha.gather(1, lines), shown[:, 0].gather(1, lines)
    fitted = []
    for kind in range(len(DISTANCES)):
        start = torch.cat([places[:, kind], radii[:, kind, None]], 1)
        start[:, 1] -= top
        row = _coarse(kind, start, patch, mask)
        for _ in range(FIT_STEPS):
            row = _newton(kind, row, patch, mask)
        row[:, 1] += top
        fitted.append(row)
    best = torch.stack(fitted, 1)
    return best[..., :2], best[..., 2]


def _cover_patch(kind: int, rows: Tensor) -> Tensor:
    """Masks [N, K, PATCH * SIDE] of one shape at rows [N, K, 3] of x, y and radius."""
    x = torch.arange(SIDE, device=rows.device) + 0.5 - rows[..., 0, None, None]
    y = (torch.arange(PATCH, device=rows.device) + 0.5)[:, None] - rows[..., 1, None, None]
    return DISTANCES[kind](x, y, rows[..., 2, None, None]).neg_().add_(0.5).clamp_(0, 1).flatten(2)


def _coarse(kind: int, start: Tensor, patch: Tensor, mask: Tensor) -> Tensor:
    """The best of a few places and the world's radii as rows [N, 3]; a bar that hides an apex makes it look lower."""
    inward = (SIDE / 2 - start[:, 0]).clamp(-3, 3)
    drop = calibration(str(start.device))[2][kind]
    lifts = (0.0, 0.3, 0.6) if drop > 0.1 else (0.0,)
    tries = []
    for radius in RADIUS:
        y = start[:, 1] + drop * (start[:, 2] - radius)
        for share in (0.0, 0.5, 1.0):
            x = start[:, 0] + share * inward
            tries += [torch.stack([x, y - lift * drop * radius, torch.full_like(x, radius)], 1) for lift in lifts]
    rows = torch.stack(tries, 1)
    off = (_cover_patch(kind, rows) - patch.flatten(1)[:, None]) * mask.flatten(1)[:, None]
    best = off.square().sum(2).argmin(1)
    return rows[torch.arange(len(best), device=best.device), best]


def _newton(kind: int, row: Tensor, patch: Tensor, mask: Tensor) -> Tensor:
    step = 0.25
    probes = row[:, None] + step * torch.cat([torch.zeros_like(row[:1]), torch.eye(3, device=row.device)])[None]
    masks = _cover_patch(kind, probes) * mask.flatten(1)[:, None]
    slopes = (masks[:, 1:] - masks[:, :1]) / step
    error = patch.flatten(1) - masks[:, 0]
    normal = slopes @ slopes.mT + 0.1 * torch.eye(3, device=row.device)
    move = torch.linalg.solve(normal, slopes @ error[:, :, None])[..., 0]
    row = row + move.clamp(-1.0, 1.0)
    return torch.cat([row[:, :2].clamp(0, SIDE), row[:, 2:].clamp(2.0, 8.0)], 1)
