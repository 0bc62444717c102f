"""Pictures for reports: line charts as inline SVG, clips as animated WebP, film strips."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10
from textwrap import wrap

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..envs.draw import Frames, enlarge
from ..video import mark

_WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, _TOP, BOTTOM = 52, 16, 30, 40
HEAD = 48
PALETTE = ("#0072b2", "#008561", "#a8488a", "#d55e00", "#b8860b", "#777777", "#56b4e9", "#000000")
"""Of the classes c0 to c7 in a picture that stands alone."""
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"'
    ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    ' Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia">'
    '<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{mark}</rdf:li></rdf:Alt></dc:description>'
    "</rdf:Description></rdf:RDF></x:xmpmeta>"
)
"""IPTC's word for what a model made, and the mark."""


@dataclass(frozen=True)
class Line:
    """points: (x, y) in order of x. colour: 0-7, an entry of the page's palette. faint: one run behind its mean."""

    name: str
    points: tuple[tuple[float, float], ...]
    colour: int
    faint: bool = False


def line_chart(lines: Sequence[Line], title: str, x_label: str, baseline: float | None = None) -> str:
    """An inline SVG whose colours are the page's (classes `c0`...`c7`, `axis`, `grid`), so it follows dark mode."""
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    x_ticks = ticks(min(x for x, _ in points), max(x for x, _ in points))
    heights = [y for _, y in points] + ([] if baseline is None else [baseline])
    y_ticks = ticks(min(heights), max(heights))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + across * (_WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - _TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    parts.append(f'<text class="title" x="{LEFT}" y="16">{escape(title)}</text>')
    for y in y_ticks:
        height = place(x_ticks[0], y)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{_WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{LEFT - 7}" y="{height + 4:.1f}">{y:g}</text>')
    for x in x_ticks:
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{place(x, 0)[0]:.1f}" y="{HEIGHT - BOTTOM + 17}">{x:g}</text>'
        )
    parts.append(f'<text class="tick" text-anchor="end" x="{_WIDTH - RIGHT}" y="{HEIGHT - 6}">{escape(x_label)}</text>')
    if baseline is not None:
        height = place(x_ticks[0], baseline)[1]
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{_WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
    for line in sorted(lines, key=lambda line: not line.faint):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line.points))
        kind = f"c{line.colour}" + (" faint" if line.faint else "")
        parts.append(f'<polyline class="{kind}" points="{path}"><title>{escape(line.name)}</title></polyline>')
    return "\n".join([*parts, "</svg>"])


def stacked_svg(charts: Sequence[str], names: Sequence[str], columns: int = 1) -> str:
    """Charts of `line_chart` in so many columns over their legend, as a picture that stands alone; the legend has names
    in the colours of their lines, two a row."""
    tall = ceil(len(charts) / columns) * HEIGHT
    height = tall + 16 * (len(names) + 1) // 2 + 16
    box = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {columns * _WIDTH} {height}" role="img">'
    corners = [(place % columns * _WIDTH, place // columns * HEIGHT) for place in range(len(charts))]
    placed = (f'<g transform="translate({x} {y})">{chart}</g>' for (x, y), chart in zip(corners, charts, strict=True))
    sized = [chart.replace("<svg ", f'<svg width="{_WIDTH}" height="{HEIGHT}" ', 1) for chart in placed]
    legend = ""
    for place, name in enumerate(names):
        x, y = LEFT + place % 2 * 250, 12 + place // 2 * 16
        legend += f'<text x="{x}" y="{y}" style="fill: {PALETTE[place]}; font-weight: 600">{escape(name)}</text>'
    return "\n".join([box, style_svg(), *sized, f'<g transform="translate(0 {tall})">{legend}</g>', "</svg>"])


def style_svg() -> str:
    """What a page's style sheet says for charts, for a picture that stands alone."""
    fixed = "text { font: 11px sans-serif; fill: #555; } .title { font-weight: 600; font-size: 12px; } "
    fixed += ".grid { stroke: #ddd; } .axis { stroke: #777; } polyline { fill: none; stroke-width: 2.5; } "
    fixed += ".faint { stroke-width: 1; opacity: .3; } "
    colours = " ".join(f".c{place} {{ stroke: {colour}; }}" for place, colour in enumerate(PALETTE))
    return f"<style>{fixed}{colours}</style>"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that enclose [low, high], about so many; at least two."""
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / about
    power = 10.0 ** floor(log10(raw))
    step = power * next(m for m in (1, 2, 2.5, 5, 10) if raw <= m * power * (1 + 1e-9))
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [round(k * step, 10) for k in range(first, last + 1)]


def side_by_side(clips: Sequence[Frames], gap: int = 2) -> tuple[Frames, NDArray[np.bool_]]:
    """clips: uint8 [F, H, W, 3] each, of one shape. Returns one clip [F, H, W', 3] and which of W' is no gap."""
    frames, height, width, _ = clips[0].shape
    spread = np.zeros((frames, height, len(clips) * (width + gap) - gap, 3), np.uint8)
    drawn = np.zeros(spread.shape[2], np.bool_)
    for place, clip in enumerate(clips):
        start = place * (width + gap)
        spread[:, :, start : start + width] = clip
        drawn[start : start + width] = True
    return spread, drawn


def animation(
    frames: Frames,
    fps: float,
    drawn: NDArray[np.bool_] | None = None,
    quality: int | None = None,
    *,
    made_by: str | None,
) -> bytes:
    """Endless WebP of uint8 [F, H, W, 3] at its own size; columns outside drawn[W] are transparent.

    quality: 0 to 100, of the lossy coding; None: lossless. made_by: who is named in its XMP, as `write_video` does it;
    None: no model made any of it.
    """
    alpha = np.full(frames.shape[:3], 255, np.uint8) if drawn is None else np.zeros(frames.shape[:3], np.uint8)
    if drawn is not None:
        alpha[:, :, drawn] = 255
    pictures = [Image.fromarray(np.dstack([frame, mask])) for frame, mask in zip(frames, alpha, strict=True)]
    buffer = io.BytesIO()
    coding = {"lossless": True} if quality is None else {"quality": quality}
    said = {} if made_by is None else {"xmp": XMP.format(mark=escape(mark(made_by))).encode()}
    pictures[0].save(
        buffer, "WEBP", save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0, **coding, **said
    )
    return buffer.getvalue()


def film_strip(frames: Frames, gap: int = 1) -> Frames:
    """The frames of uint8 [F, H, W, 3] in a row: [H, F * (W + gap) - gap, 3]."""
    return side_by_side(list(frames[:, None]), gap)[0][0]


def contact_sheet(rows: Sequence[Sequence[Frames]], heads: Sequence[str], scale: int = 3, gap: int = 6) -> Frames:
    """Clips [F, H, W, 3] in a grid under the names of its columns, enlarged: one clip [F, H', W', 3]."""
    width = rows[0][0].shape[2] * scale
    large = [[enlarge(clip, scale) for clip in row] for row in rows]
    strips = [side_by_side(row, gap)[0] for row in large]
    canvas = Image.new("RGB", (strips[0].shape[2], HEAD))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for place, name in enumerate(heads):
        text = "\n".join(wrap(name, max(6, width // 7)))
        centre = place * (width + gap) + width / 2
        pen.multiline_text((centre, HEAD - 4), text, fill="white", font=font, anchor="md", align="center", spacing=1)
    head = np.repeat(np.asarray(canvas)[None], len(strips[0]), axis=0)
    space = np.zeros_like(strips[0][:, :gap])
    sheet = np.concatenate([head, *(part for strip in strips for part in (strip, space))], axis=1)
    return np.pad(sheet, ((0, 0), (gap, 0), (gap, gap), (0, 0)))


def png(picture: Frames) -> bytes:
    """uint8 [H, W, 3] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    """kind: a MIME type such as image/webp."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
