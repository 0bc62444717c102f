"""The pictures of `reelgym selfplay`: who beats whom, AUC over the chunks of a clip, clips before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from torch import Tensor

from ..plots import Line, animation, contact_sheet, line_chart, stacked_svg, style_svg
from ..tables import Row, rows_of
from .dataset import SEEN, UNSEEN
from .rows import START
from .runs import VARIANTS
from .tables import VARIANT_LABELS

CELL, _MARGIN, _TOP = 34, 110, 96
_FPS = 8.0
DARK, LIGHT = (33, 102, 172), (178, 24, 43)


def payoffs_svg(rows: Sequence[Row]) -> str:
    """The league's payoffs of the first seed as a heat map: rows are generators, columns detectors, in the order in
    which they came; a cell is the share of streams that the generator wins."""
    cells = rows_of({"rows": rows}, "payoff")
    first = next((row for row in cells if row["arm"] == "league"), cells[0])
    cells = [row for row in cells if (row["arm"], row["seed"]) == (first["arm"], first["seed"])]
    names, columns = (list(dict.fromkeys(row[side] for row in cells)) for side in ("generator", "detector"))
    width, height = _MARGIN + CELL * len(columns) + 20, _TOP + CELL * len(names) + 12
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">', style_svg()]
    for place, name in enumerate(columns):
        x = _MARGIN + CELL * place + CELL / 2
        parts.append(f'<text transform="translate({x + 4:.0f} {_TOP - 6}) rotate(-60)">{escape(name)}</text>')
    for place, name in enumerate(names):
        y = _TOP + CELL * place + CELL / 2 + 4
        parts.append(f'<text text-anchor="end" x="{_MARGIN - 6}" y="{y:.0f}">{escape(name)}</text>')
    for row in cells:
        x, y = _MARGIN + CELL * columns.index(row["detector"]), _TOP + CELL * names.index(row["generator"])
        colour, ink = _shade(row["payoff"])
        told = f"{row['generator']} against {row['detector']}: {row['payoff']:.2f}"
        box = f'<rect x="{x}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" style="fill: {colour}">'
        parts.append(f"{box}<title>{escape(told)}</title></rect>")
        text = f"{row['payoff']:.2f}".removeprefix("0")
        centre = f'x="{x + CELL / 2 - 0.5:.1f}" y="{y + CELL / 2 + 4:.0f}"'
        parts.append(f'<text text-anchor="middle" {centre} style="fill: {ink}">{text}</text>')
    return "\n".join([*parts, "</svg>"])


def auc_svg(rows: Sequence[Row]) -> str:
    """AUC after every chunk, mean over unseen families and over seen ones, of every arm's detectors."""
    charts = []
    arms = [START, *(arm for arm in VARIANTS if any(row["arm"] == arm for row in rows_of({"rows": rows}, "family")))]
    for families, title in ((UNSEEN, "families that no league learns from"), (SEEN, "families seen in training")):
        lines = [Line(VARIANT_LABELS[arm], _curve(rows, arm, families), place) for place, arm in enumerate(arms)]
        charts.append(line_chart(lines, f"AUC, {title}", "chunks seen", [("", 0.5)]))
    return stacked_svg(charts, [VARIANT_LABELS[arm] for arm in arms])


def clips_webp(groups: Mapping[str, Mapping[str, Tensor]]) -> bytes:
    """Clips of the same prompts and noise side by side: the start, and the newest generator of every arm."""
    first = next(iter(groups.values()))["start"]
    columns = [first, *(group["end"] for group in groups.values())]
    heads = ["shipped student", *(VARIANTS[arm].label.split(":")[0] for arm in groups)]
    sheet = contact_sheet([[clip[place].numpy() for clip in columns] for place in range(len(first))], heads)
    return animation(sheet, _FPS, quality=80, made_by="generators of a self-play league")


def _curve(rows: Sequence[Row], arm: str, families: Sequence[str]) -> tuple[tuple[float, float], ...]:
    own = [row for row in rows_of({"rows": rows}, "family") if row["arm"] == arm and row["family"] in families]
    chunks = sorted(int(key.removeprefix("auc_")) for key in own[0] if key.startswith("auc_"))
    return tuple((float(k), sum(row[f"auc_{k}"] for row in own) / len(own)) for k in chunks)


def _shade(value: float) -> tuple[str, str]:
    """Red where the detector wins, blue where the generator does, white between; and the ink on it."""
    share, end = (2 * value - 1, DARK) if value > 0.5 else (1 - 2 * value, LIGHT)
    mixed = [round(255 + share * (part - 255)) for part in end]
    return f"rgb({', '.join(map(str, mixed))})", "#fff" if share > 0.55 else "#222"
