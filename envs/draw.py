"""What `render` shows: pictures enlarged side by side, and below them bars and words.

N rows, F frames each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Frames = NDArray[np.uint8]

_SIDE, LEAST_WIDTH, MARGIN, LINE = 160, 240, 8, 15
PROMPT_LINES = 2
REACH = 3.0
"""Standard deviations at which a bar is full."""
BACK, INK, FAINT, LOW, HIGH = (24, 24, 27), (235, 235, 235), (70, 70, 76), (214, 93, 74), (88, 170, 120)


@dataclass(frozen=True)
class View:
    """What is to be seen of N rows; everything but the pixels' and the words' content is the same in every step.

    panels: pictures by their titles, uint8 [N, F, H, W, 3] each; F is 0 where there is none, and the last frame stays
        where another panel has more.
    bars: numbers [N] by their names, in standard deviations.   notes: lines of N texts each.   prompts: N texts.
    """

    panels: Mapping[str, Frames]
    bars: Mapping[str, Tensor] = field(default_factory=dict)
    notes: Sequence[Sequence[str]] = ()
    prompts: Sequence[str] | None = None


def to_pixels(video: Tensor) -> Frames:
    """video [..., 3, H, W] in [0, 1] as uint8 [..., H, W, 3]."""
    return (video * 255).round().clamp(0, 255).to(torch.uint8).movedim(-3, -1).cpu().numpy()


def enlarge(frames: Frames, scale: int) -> Frames:
    """Nearest-neighbour enlargement of [..., H, W, 3]."""
    return frames.repeat(scale, axis=-3).repeat(scale, axis=-2)


def overlay(frames: Frames, weights: NDArray[Any]) -> Frames:
    """Lay weights [F, h, w] over uint8 frames [F, H, W, 3]: grey where the weight is low, orange where it is high."""
    rows, columns = (np.arange(frames.shape[at]) * weights.shape[at] // frames.shape[at] for at in (1, 2))
    heat = np.clip(weights / max(float(weights.max()), 1e-6), 0, 1)[:, rows][:, :, columns][..., None]
    grey = frames.mean(axis=-1, keepdims=True) * 0.6
    mixed = (1 - heat) * grey + heat * (0.35 * grey + 0.65 * np.array([255.0, 122.0, 26.0]))
    return mixed.clip(0, 255).astype(np.uint8)


def newest_canvases(view: View) -> tuple[Frames, ...]:
    """Of each row, the canvas uint8 [H', W', 3] of its last frame, black where there is none; both sides are even."""
    return tuple(_with_pictures(page, view, row, -1) for row, page in enumerate(_pages(view)))


def all_canvases(view: View) -> tuple[list[Frames], ...]:
    """Of each row, the canvases of all its frames; an empty list where there is none."""
    frames = range(max(panel.shape[1] for panel in view.panels.values()))
    return tuple([_with_pictures(page, view, row, frame) for frame in frames] for row, page in enumerate(_pages(view)))


def _pages(view: View) -> list[Frames]:
    """The canvas of each row without its pictures."""
    bars = {name: values.tolist() for name, values in view.bars.items()}
    return [
        _page(
            view,
            {name: values[row] for name, values in bars.items()},
            [line[row] for line in view.notes],
            None if view.prompts is None else view.prompts[row],
        )
        for row in range(len(next(iter(view.panels.values()))))
    ]


def _page(view: View, bars: Mapping[str, float], notes: Sequence[str], prompt: str | None) -> Frames:
    height, width, across = _sizes(view)
    prompt_lines = 0 if prompt is None else PROMPT_LINES
    lines = prompt_lines + len(bars) + len(notes)
    total = 2 * MARGIN + LINE + height + (MARGIN if lines else 0) + lines * LINE
    canvas = Image.new("RGB", (across, total + total % 2), BACK)
    pen = ImageDraw.Draw(canvas)
    for place, title in enumerate(view.panels):
        pen.text((MARGIN + place * (width + MARGIN), MARGIN - 2), title, INK, font())
    y, room = 2 * MARGIN + LINE + height, across - 2 * MARGIN
    for number, line in enumerate([] if prompt is None else wrapped(prompt, room, prompt_lines)):
        pen.text((MARGIN, y + number * LINE), line, INK, font())
    y += prompt_lines * LINE
    for number, (name, value) in enumerate(bars.items()):
        _bar(pen, (MARGIN, y + number * LINE), room, name, value)
    y += len(bars) * LINE
    for number, note in enumerate(notes):
        pen.text((MARGIN, y + number * LINE), wrapped(note, room, 1)[0], INK, font())
    return np.array(canvas)


def _bar(pen: ImageDraw.ImageDraw, corner: tuple[int, int], room: int, name: str, value: float) -> None:
    """A name, a bar from the middle to the left (below 0) or to the right, and the number."""
    (x, y), label, number = corner, 56, 48
    first, last = x + label, x + room - number
    middle, half = (first + last) / 2, (last - first) / 2
    end = middle + half * max(-1.0, min(1.0, value / REACH))
    pen.text((x, y), wrapped(name, label - 4, 1)[0], INK, font())
    pen.rectangle((first, y + 3, last, y + LINE - 4), FAINT)
    pen.rectangle((min(middle, end), y + 3, max(middle, end), y + LINE - 4), HIGH if value >= 0 else LOW)
    pen.text((x + room, y), f"{value:+.2f}", INK, font(), anchor="ra")


def _with_pictures(page: Frames, view: View, row: int, frame: int) -> Frames:
    canvas, (height, width, _) = page.copy(), _sizes(view)
    for place, panel in enumerate(view.panels.values()):
        x, y, frames = MARGIN + place * (width + MARGIN), MARGIN + LINE, panel.shape[1]
        large = enlarge(panel[row, min(frame, frames - 1)], height // panel.shape[2]) if frames else 0
        canvas[y : y + height, x : x + width] = large
    return canvas


def _sizes(view: View) -> tuple[int, int, int]:
    """Height and width of an enlarged picture, and the canvas's width."""
    height, width = next(iter(view.panels.values())).shape[2:4]
    scale = max(1, _SIDE // max(height, width))
    across = max(LEAST_WIDTH, MARGIN + len(view.panels) * (scale * width + MARGIN))
    return scale * height, scale * width, across + across % 2


def wrapped(text: str, room: int, lines: int) -> list[str]:
    """At most so many lines, at least one, of text that fit into `room` pixels; "..." ends what had to be cut."""
    found = [""]
    for word in text.split():
        longer = f"{found[-1]} {word}".strip()
        if font().getlength(longer) <= room or not found[-1]:
            found[-1] = longer
        else:
            found.append(word)
    cut, found = len(found) > lines, found[:lines]
    if cut or font().getlength(found[-1]) > room:
        while found[-1] and font().getlength(f"{found[-1]}...") > room:
            found[-1] = found[-1][:-1]
        found[-1] += "..."
    return found


@cache
def font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font."""
    return ImageFont.load_default(12)
