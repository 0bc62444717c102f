"""What the oracle sees: an object's colour, place, area and outline, measured from the pixels of every frame alone."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .oracle_fit import centre_of, complete, places_of
from .render import BAR_GREY, DISTANCES, cover
from .scene import BACKGROUND, SIDE

_FRAMES_AT_ONCE = 256
_BAR = slice(SIDE // 2 - 2, SIDE // 2 + 2)
CORE_PIXELS = 6


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
    parts = [_measure(part) for part in frames.split(_FRAMES_AT_ONCE)]
    columns = [torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Measures)]
    return Measures(*(column.reshape(*video.shape[:2], *column.shape[1:]) for column in columns))


def _measure(frames: Tensor) -> Measures:
    back, bar_rgb, bar = _surroundings(frames)
    barred = bar[:, None, None, None] > 0.5
    shown = torch.ones_like(frames[:, :1])
    shown[..., _BAR] = 1 - barred.float()
    front, alpha = _segment(frames, back, shown)
    contrast = (front - back).norm(dim=1)
    centre, area = _moments(alpha)
    places, radii = places_of(centre, area)
    hidden = barred.flatten() & (alpha[..., [_BAR.start - 1, _BAR.stop]].amax((1, 2)) > 0.02)
    if hidden.any():
        places[hidden], radii[hidden] = complete(alpha[hidden], shown[hidden], places[hidden], radii[hidden])
    fit, best, full = _compare(alpha, shown, places, radii)
    row = torch.arange(len(best), device=best.device)
    found = centre_of(places[row, best], radii[row, best], best)
    outline = full[:, None] * shown
    scenery = torch.where(barred & (shown < 0.5), bar_rgb[:, :, None, None], back[:, :, None, None])
    stray, grain = _leftovers(frames, scenery, front, outline)
    whole = full.sum((1, 2))
    return Measures(
        back=back,
        front=front,
        contrast=contrast,
        centre=torch.where(hidden[:, None], found, centre),
        area=torch.where(hidden, whole, area),
        fit=fit,
        visible=torch.where(hidden, outline.sum((1, 2, 3)) / whole.clamp_min(1e-6), 1.0),
        stray=stray / contrast.clamp_min(0.1),
        grain=grain / contrast.clamp_min(0.1),
        bar=bar,
    )


def _compare(alpha: Tensor, shown: Tensor, places: Tensor, radii: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Overlap [N, 4] of each shape with what is shown, the best shape [N] and its mask [N, SIDE, SIDE], bar removed."""
    whole = torch.stack([cover(kind, places[:, kind], radii[:, kind]) for kind in range(len(DISTANCES))], 1)
    seen, mask = whole * shown, alpha[:, None]
    fit = torch.minimum(seen, mask).sum((2, 3)) / torch.maximum(seen, mask).sum((2, 3)).clamp_min(1e-6)
    best = fit.argmax(1)
    return fit, best, whole[torch.arange(len(best), device=best.device), best]


def _leftovers(frames: Tensor, scenery: Tensor, front: Tensor, outline: Tensor) -> tuple[Tensor, Tensor]:
    """What stands [N] outside the object's outline (per root area), and how uneven [N] its inside is."""
    outside = ~_grown(outline > 0.02)
    off = ((frames - scenery).square().mean(1, keepdim=True).sqrt() - 0.05).clamp_min(0)
    stray = ((off.square() * outside).sum((1, 2, 3)) / outline.sum((1, 2, 3)).clamp_min(12)).sqrt()
    inside = outline > 0.95
    rough = (frames - front[:, :, None, None]).square().mean(1, keepdim=True) * inside
    return stray, (rough.sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp_min(1)).sqrt()


def _surroundings(frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Colours [N, 3] of the background (the border's median) and of the bar's columns, and how much of a bar [N]."""
    sides = (frames[:, :, 0], frames[:, :, -1], frames[:, :, 1:-1, 0], frames[:, :, 1:-1, -1])
    back = torch.cat(sides, 2).median(2).values
    bar_rgb = frames[..., _BAR].flatten(2).median(2).values
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
    return front + back, alpha * _grown(alpha > 0.25)


def _grown(mask: Tensor) -> Tensor:
    """A mask [..., H, W] bool and its neighbours, the diagonal ones too."""
    tall = mask.clone()
    tall[..., 1:, :] |= mask[..., :-1, :]
    tall[..., :-1, :] |= mask[..., 1:, :]
    wide = tall.clone()
    wide[..., 1:] |= tall[..., :-1]
    wide[..., :-1] |= tall[..., 1:]
    return wide


def _moments(alpha: Tensor) -> tuple[Tensor, Tensor]:
    area = alpha.sum((1, 2))
    axis = torch.arange(SIDE, device=alpha.device) + 0.5
    centre = torch.stack([(alpha.sum(1) * axis).sum(1), (alpha.sum(2) * axis).sum(1)], 1)
    empty = area[:, None] < 1
    return torch.where(empty, SIDE / 2, centre / area.clamp_min(1e-6)[:, None]), area
