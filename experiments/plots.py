"""Pictures for reports: line charts as inline SVG, clips as animated WebP, film strips."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10, sqrt
from textwrap import wrap
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..envs.draw import Frames, enlarge
from ..video import mark

_WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, _TOP, BOTTOM = 52, 16, 30, 40
HEAD = 48
PALETTE = (
    *("#0072b2", "#008561", "#a8488a", "#d55e00", "#b8860b", "#777777", "#56b4e9", "#000000"),
    *("#6a3d9a", "#c2185b", "#66a61e", "#8d5524"),
)
"""Of the classes c0, c1, ... in a picture that stands alone."""
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
    """points: (x, y) in order of x. colour: an entry of the page's palette. style: "faint" is one run behind its mean,
    "band" the area that the points enclose; "dashed", "dotted"."""

    name: str
    points: tuple[tuple[float, float], ...]
    colour: int
    style: str = ""


def curve_lines(
    rows: Iterable[Mapping[str, Any]], of: str, labels: Mapping[str, str], x: str, y: str, band: bool = False
) -> list[Line]:
    """Learning curves of what `labels` names: rows that have its name under `of` hold a "seed", and under `x` and `y` a
    point of that run. Drawn is the mean of the runs; behind it a faint line for each, or a band of one standard error.

    A run goes straight from point to point and stays where it was when it has ended; the mean begins where all have.
    """
    points: dict[str, dict[int, list[tuple[float, float]]]] = {name: {} for name in labels}
    for row in rows:
        if row[of] in points and row.get(y) is not None:
            points[row[of]].setdefault(row["seed"], []).append((row[x], row[y]))
    lines: list[Line] = []
    for colour, (name, runs) in enumerate(points.items()):
        if not runs:
            continue
        begun = max(run[0][0] for run in runs.values())
        places = sorted({at for run in runs.values() for at, _ in run if at >= begun})
        found = np.array([np.interp(places, [at for at, _ in run], [up for _, up in run]) for run in runs.values()])
        mean, error = found.mean(0), found.std(0) / sqrt(max(1, len(runs) - 1))
        line, top, bottom = (
            tuple(zip(places, map(float, up), strict=True)) for up in (mean, mean + error, mean - error)
        )
        faint = [Line(f"{labels[name]}, seed {seed}", tuple(run), colour, "faint") for seed, run in runs.items()]
        lines += [Line(labels[name], top + bottom[::-1], colour, "band")] if band else faint
        lines.append(Line(labels[name], line, colour))
    return lines


def line_chart(
    lines: Sequence[Line], title: str, x_label: str, levels: Sequence[tuple[str, float]] = (), width: int = _WIDTH
) -> str:
    """An inline SVG whose colours are the page's (classes `c0`, ..., `axis`, `grid`), so it follows dark mode.

    levels: (name, height) of lines across the whole chart, behind all others."""
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    x_ticks = ticks(min(x for x, _ in points), max(x for x, _ in points))
    heights = [y for _, y in points] + [height for _, height in levels]
    y_ticks = ticks(min(heights), max(heights))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + across * (width - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - _TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    parts.append(f'<text class="title" x="{LEFT}" y="16">{escape(title)}</text>')
    for y in y_ticks:
        height = place(x_ticks[0], y)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{LEFT - 7}" y="{height + 4:.1f}">{y:g}</text>')
    for x in x_ticks:
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{place(x, 0)[0]:.1f}" y="{HEIGHT - BOTTOM + 17}">{x:g}</text>'
        )
    parts.append(f'<text class="tick" text-anchor="end" x="{width - RIGHT}" y="{HEIGHT - 6}">{escape(x_label)}</text>')
    for name, level in levels:
        height = place(x_ticks[0], level)[1]
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{width - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT + 4}" y="{height - 4:.1f}">{escape(name)}</text>')
    for line in sorted(lines, key=lambda line: line.style not in ("faint", "band")):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line.points))
        kind = f"c{line.colour % len(PALETTE)} {line.style}".rstrip()
        parts.append(f'<polyline class="{kind}" points="{path}"><title>{escape(line.name)}</title></polyline>')
    return "\n".join([*parts, "</svg>"])


def stacked_svg(charts: Sequence[str], names: Sequence[str], columns: int = 1, width: int = _WIDTH) -> str:
    """Charts of `line_chart`, each `width` wide, in so many columns over their legend, as a picture that stands alone;
    the legend has names in the colours of their lines."""
    tall, row = ceil(len(charts) / columns) * HEIGHT, max(1, columns * width // 250)
    height = tall + 16 * ceil(len(names) / row) + 16
    box = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {columns * width} {height}" role="img">'
    corners = [(place % columns * width, place // columns * HEIGHT) for place in range(len(charts))]
    placed = (f'<g transform="translate({x} {y})">{chart}</g>' for (x, y), chart in zip(corners, charts, strict=True))
    sized = [chart.replace("<svg ", f'<svg width="{width}" height="{HEIGHT}" ', 1) for chart in placed]
    legend = ""
    for place, name in enumerate(names):
        x, y, colour = LEFT + place % row * 250, 12 + place // row * 16, PALETTE[place % len(PALETTE)]
        legend += f'<text x="{x}" y="{y}" style="fill: {colour}; font-weight: 600">{escape(name)}</text>'
    return "\n".join([box, style_svg(), *sized, f'<g transform="translate(0 {tall})">{legend}</g>', "</svg>"])


def style_svg() -> str:
    """What a page's style sheet says for charts, for a picture that stands alone."""
    fixed = "text { font: 11px sans-serif; fill: #555; } .title { font-weight: 600; font-size: 12px; } "
    fixed += ".grid { stroke: #ddd; } .axis { stroke: #777; } polyline { fill: none; stroke-width: 2.5; } "
    fixed += ".faint { stroke-width: 1; opacity: .3; } .dashed { stroke-dasharray: 7 3; } "
    fixed += ".dotted { stroke-dasharray: 2 3; } "
    colours = " ".join(f".c{place} {{ stroke: {it}; color: {it}; }}" for place, it in enumerate(PALETTE))
    return f"<style>{fixed}{colours} .band {{ stroke: none; fill: currentColor; opacity: .12; }}</style>"


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
