"""The report of a comparison: one self-contained page, a view of results.json and the media beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import has_checkpoint, load_checkpoint
from ..envs.draw import overlay
from .evaluation.columns import contrast_columns, judge_of, level_titles, method_columns
from .findings import SLICE_COLUMNS, SLICES_NOTE, slice_table_rows, verdict_lines
from .plots import PALETTE, animation, contact_sheet, curve_lines, data_uri, film_strip, line_chart, png, side_by_side
from .tables import Row, html_legend, html_table, plain_table, rows_of

Media = Mapping[str, NDArray[Any]]
SCALE, MAP_SCALE = 4, 3
COMPARED = "the methods of a comparison, ground truth apart"


def write_report(folder: Path | str, fps: float = 8) -> Path:
    """Write folder/report.html from folder/results.json and, where it is there, the checkpoint folder/media.

    Its tensors, in the group "media": clips/METHOD and long/METHOD uint8 [prompts, F, H, W, 3]; map/frames
    uint8 [n, F, H, W, 3] and map/weights float [n, F, h, w]. Rows of kind "clip" name their prompts in that order:
    {"of": "clips" | "long" | "map", "prompt"}.
    """
    folder = Path(folder)
    results = read_results(folder)
    page, aside = folder / "report.html", folder / ".report.html.tmp"
    aside.write_text(report_html(results, load_media(folder / "media"), fps))
    os.replace(aside, page)
    return page


def read_results(folder: Path | str) -> Row:
    """What folder/results.json holds; ValueError where there is none."""
    path = Path(folder) / "results.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no results.json: give the folder that a comparison wrote")
    results: Row = json.loads(path.read_text())
    return results


def load_media(folder: Path) -> Media:
    """The arrays of a media checkpoint; none where there is no such folder."""
    if not has_checkpoint(folder):
        return {}
    return {name: tensor.numpy() for name, tensor in load_checkpoint(folder)[0]["media"].items()}


def report_html(results: Row, media: Media, fps: float = 8) -> str:
    """The whole page as text. results: what results.json holds; media: see `write_report`."""
    body = [
        _verdicts(results),
        _tables(results),
        _curves(results),
        _pictures(results, media, "clips", "The same prompts side by side", _PICTURES, fps),
        _pictures(results, media, "long", "Streams four times longer", _LONG, fps),
        _maps(results, media, fps),
        _provenance(results),
    ]
    template = Template(files(__package__).joinpath("report.html").read_text())
    title = "reelgym: RL fine-tuning and distillation of a streaming generator"
    return template.substitute(title=escape(title), subtitle=_subtitle(results), body="\n".join(filter(None, body)))


def summary_text(results: Row) -> str:
    """The tables and sentences for a terminal."""
    edges = slice_table_rows(results)
    return "\n".join(
        [
            plain_table(method_columns(results), rows_of(results, "method")),
            "",
            plain_table(contrast_columns(results), rows_of(results, "contrast")),
            "",
            *([plain_table(SLICE_COLUMNS, edges), SLICES_NOTE, ""] if edges else []),
            *verdict_lines(results),
            *([f"judged by {judge_of(results)}"] if judge_of(results) else []),
        ]
    )


def write_picture(folder: Path | str, path: Path | str, prompts: int = 4, fps: float = 8) -> None:
    """One moving picture of the first prompts (rows) by every method (columns), for a README: an animated WebP."""
    results, media = read_results(folder), load_media(Path(folder) / "media")
    shown = [row for row in rows_of(results, "method") if f"clips/{row['method']}" in media]
    if not shown:
        raise ValueError(f"{folder} holds no clips: give the folder that a comparison wrote")
    count = min(prompts, len(media[f"clips/{shown[0]['method']}"]))
    grid = [[media[f"clips/{row['method']}"][place] for row in shown] for place in range(count)]
    sheet = contact_sheet(grid, [row["label"] for row in shown])
    Path(path).write_bytes(animation(sheet, fps, made_by=COMPARED))


def _subtitle(results: Row) -> str:
    config = results.get("config", {})
    judge = [f"judged by {judge_of(results)}"] if judge_of(results) else []
    exam = [f"{config['prompts']} test prompts, {config['clips']} clips each"] if "prompts" in config else []
    told = [*exam, *judge, f"{len(results['seeds'])} seeds", str(results["device"])]
    return " · ".join([f"<code>{escape(str(results['command']))}</code>", *map(escape, told)])


def _verdicts(results: Row) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in verdict_lines(results))
    return f'<ul class="verdicts">{lines}</ul>' if lines else ""


def _tables(results: Row) -> str:
    tables = (
        ("Results", method_columns(results), rows_of(results, "method"), ""),
        ("Contrasts", contrast_columns(results), rows_of(results, "contrast"), ""),
        ("Edge slices", SLICE_COLUMNS, slice_table_rows(results), SLICES_NOTE),
    )
    parts = [
        f"<h2>{head}</h2>\n{html_table(columns, rows)}\n{note and f'<p>{escape(note)}</p>'}{html_legend(columns, rows)}"
        for head, columns, rows, note in tables
        if rows
    ]
    return "\n".join([*parts, *(f"<p>{escape(note)}</p>" for note in results.get("config", {}).get("notes", ()))])


def _curves(results: Row) -> str:
    curves = rows_of(results, "curve")
    if not curves:
        return ""
    names = {row["method"]: row["label"] for row in rows_of(results, "method")}
    order = list(dict.fromkeys(row["method"] for row in curves))
    labels = {name: names.get(name, name) for name in order}
    charts = ""
    for key, title in level_titles(results):
        if not any(key in row for row in curves):
            continue
        lines = curve_lines(curves, "method", labels, "share", key)
        charts += f"<div>{line_chart(lines, title, 'share of the update budget')}</div>"
    keys = "".join(
        f'<span><svg viewBox="0 0 22 10"><polyline class="c{place % len(PALETTE)}" points="0,5 22,5"/></svg>'
        f"{escape(names.get(method, method))}</span>"
        for place, method in enumerate(order)
    )
    return f'<h2>Learning curves</h2><p>{_CURVES}</p><div class="keys">{keys}</div><div class="charts">{charts}</div>'


def _pictures(results: Row, media: Media, of: str, title: str, caption: str, fps: float) -> str:
    shown = [row for row in rows_of(results, "method") if f"{of}/{row['method']}" in media]
    prompts = [row["prompt"] for row in rows_of(results, "clip") if row["of"] == of]
    if not shown or not prompts:
        return ""
    heads = "".join(f"<span>{escape(row['label'])}</span>" for row in shown)
    figures = []
    for place, prompt in enumerate(prompts):
        frames, drawn = side_by_side([media[f"{of}/{row['method']}"][place] for row in shown])
        picture = data_uri(animation(frames, fps, drawn, made_by=COMPARED), "image/webp")
        figures.append(_figure(picture, SCALE * frames.shape[2], prompt))
    return f'<h2>{title}</h2><p>{caption}</p><div class="wide"><div class="heads">{heads}</div>{"".join(figures)}</div>'


def _figure(source: str, width: int, caption: str) -> str:
    text = escape(caption)
    return f'<figure><figcaption>{text}</figcaption><img src="{source}" width="{width}" alt="{text}"></figure>'


def _maps(results: Row, media: Media, fps: float) -> str:
    if "map/frames" not in media:
        return ""
    prompts = [row["prompt"] for row in rows_of(results, "clip") if row["of"] == "map"]
    figures = []
    for prompt, frames, weights in zip(prompts, media["map/frames"], media["map/weights"], strict=True):
        rows = np.concatenate([film_strip(frames), film_strip(overlay(frames, weights))])
        per_frame = ", ".join(f"{value:.2f}" for value in weights.mean(axis=(1, 2)))
        caption = f"{prompt} (weights per frame: {per_frame})"
        figures.append(_figure(data_uri(png(rows), "image/png"), MAP_SCALE * rows.shape[1], caption))
    return f'<h2>Reward maps</h2><p>{_MAPS}</p><div class="wide">{"".join(figures)}</div>'


def _provenance(results: Row) -> str:
    facts = {key: results[key] for key in ("command", "commit", "versions", "device", "seeds") if key in results}
    config = json.dumps(results.get("config", {}), indent=2)
    runs = json.dumps(rows_of(results, "run") + rows_of(results, "search"), indent=1)
    return "\n".join(
        [
            "<h2>How it was made</h2>",
            f"<pre>{escape(json.dumps(facts, indent=2))}</pre>",
            f"<details><summary>Configuration</summary><pre>{escape(config)}</pre></details>",
            f"<details><summary>Every run</summary><pre>{escape(runs)}</pre></details>",
        ]
    )


_CURVES = (
    "Thick lines are means over seeds, thin lines single runs. Who judges trains nothing; where the trained reward "
    "climbs and the judge does not follow, the reward is being gamed."
)
_PICTURES = "One noise for all columns: the generators differ, the dice do not. Not selected: the first test prompts."
_LONG = "The last 15% of such a stream make the column “late”. The teacher makes whole clips only and is not here."
_MAPS = (
    "Clips of the starting student, and below them the weights that Stream-R1 gives the cells of the latent grid "
    "(orange is more than average, grey is less): where and when the reward model sees what is wrong."
)
