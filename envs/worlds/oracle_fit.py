"""How the oracle fits shapes to a soft mask: radii from areas, places from centroids, what a bar hides completed."""

from functools import lru_cache

import torch
from torch import Tensor

from .render import DISTANCES, cover
from .scene import RADIUS, SIDE

FIT_STEPS = 6
_PATCH = 20


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
    return centre - _drop(radius, shape)


def centre_of(place: Tensor, radius: Tensor, shape: Tensor) -> Tensor:
    """The centroid [..., 2] of a shape [...] at scene position `place` [..., 2]."""
    return place + _drop(radius, shape)


def _drop(radius: Tensor, shape: Tensor) -> Tensor:
    down = calibration(str(radius.device))[2][shape] * radius
    return torch.stack([torch.zeros_like(down), down], -1)


def places_of(centre: Tensor, area: Tensor) -> tuple[Tensor, Tensor]:
    """Where each shape [N, 4, 2] would stand, and with which radius [N, 4], to have this centroid and area."""
    radii = radius_of(area)
    kinds = torch.arange(len(DISTANCES), device=area.device).expand_as(radii)
    return anchor_of(centre[:, None].expand(-1, len(DISTANCES), 2), radii, kinds), radii


def complete(alpha: Tensor, shown: Tensor, places: Tensor, radii: Tensor) -> tuple[Tensor, Tensor]:
    """What best explains the part of alpha [N, SIDE, SIDE] that the bar leaves visible: places [N, 4, 2], radii [N, 4].

    Starts from the best of the world's radii and some shifts along x, then Gauss-Newton on place and radius.
    """
    middle = (alpha.sum(2) * torch.arange(SIDE, device=alpha.device)).sum(1) / alpha.sum((1, 2)).clamp_min(1e-6)
    top = (middle.round().long() - _PATCH // 2).clamp(0, SIDE - _PATCH)
    lines = (top[:, None] + torch.arange(_PATCH, device=top.device))[:, :, None].expand(-1, -1, SIDE)
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
    y = (torch.arange(_PATCH, device=rows.device) + 0.5)[:, None] - rows[..., 1, None, None]
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
