"""The marked blocks of README.md and docs/: `python -m reelgym.experiments.readme` makes them again.

A block begins with `<!-- KIND: PATH -->` and ends with `<!-- end -->`; PATH counts from the root of the checkout. The
kinds are table, verdict, pictures and slices (of a comparison's results.json), measured (of any other command's),
weights (a folder of trained parts) and families (the folder of a detector).
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from ..checkpoint import MANIFEST, write_json
from .cli import GROUPS
from .report import read_results, write_picture
from .tables import (
    CONTRAST_COLUMNS,
    METHOD_COLUMNS,
    SLICE_COLUMNS,
    SLICES_NOTE,
    Column,
    Row,
    findings,
    markdown_table,
    rows_of,
    slice_table_rows,
    verdict_lines,
)

ROOT = Path(__file__).resolve().parent.parent
PICTURE = "docs/images/clips.webp"
BLOCK = re.compile(
    r"(<!-- (table|verdict|pictures|slices|measured|weights|families): (\S+) -->\n).*?(<!-- end -->)", re.DOTALL
)
PROMPTS = 4
TAKEN = {
    "reelgym audit probe": ("probe.png",),
    "reelgym audit cache": ("cache-policies.webp", "cache-policies.svg"),
    "reelgym agents": ("StreamSteer-v0.svg", "StreamDetect-v0.svg"),
    "reelgym bench rl": ("bench-rl.svg",),
    "reelgym selfplay": ("selfplay-payoffs.svg", "selfplay-auc.svg", "selfplay-clips.webp"),
    "reelgym bench adaptation": ("bench-adaptation.svg",),
}
"""Pictures that a command's results come with."""
GAP = "gap"
SHARE = "oracle total on held-out prompts, as a share of the truth's"
RANKS = "pairs of a held-out clip and its fake of an unseen family that {} ranks rightly"
AREA = "area under the ROC curve, the student's clips of test prompts against the world's"
BARS: tuple[tuple[str, str, str, float], ...] = (
    ("codec", "fraction", SHARE, 0.95),
    ("teacher", "fraction", SHARE, 0.80),
    ("student", "fraction", SHARE, 0.50),
    ("student", GAP, "the teacher's share less the student's", 0.08),
    *(
        bar
        for part in ("reward", "heldout")
        for bar in (
            *((part, f"accuracy_{axis}", RANKS.format(axis), 0.90) for axis in ("VQ", "MQ", "TA")),
            (part, "spearman", "rank correlation with the oracle among the student's clips of one prompt", 0.50),
            (part, "spearman_low", "lower end of its 95% interval", 0.30),
        )
    ),
    ("detector", "auc_student", AREA, 0.95),
    ("rival", "auc_student", AREA, 0.60),
)
FAMILY_COLUMNS = (
    Column("made by", "", lambda row: row["name"]),
    Column("learned from", "", lambda row: "yes" if row["learned"] else "no"),
    Column("AUC", "", lambda row: f"{row['auc']:.3f}"),
    Column("found at 1% false positives", "", lambda row: f"{row['tpr']:.1%}"),
)
WEIGHT_COLUMNS = (
    Column("part", "", lambda row: row["part"]),
    Column("what was measured", "", lambda row: row["what"]),
    Column("bar", "", lambda row: f"{row['least']:.2f}"),
    Column("measured", "", lambda row: "not shipped yet" if row["measured"] is None else f"{row['measured']:.3f}"),
    Column("steps", "", lambda row: f"{row['made']['steps']:,}" if row["made"] else ""),
    Column("minutes", "", lambda row: f"{row['made']['quality']['seconds'] / 60:.0f}" if row["made"] else ""),
)


@dataclass(frozen=True)
class Config:
    """Without options only the tables are made again, from what is committed."""

    run: Path | None = None
    """Folder that a command wrote: its results.json is taken over, and so are its pictures, where it has any."""
    name: str = "standard"
    """Where results.json is taken over to: experiments/results/NAME."""


def main(args: Sequence[str] | None = None) -> int:
    """Exit status of `python -m reelgym.experiments.readme`: 0, or 1 and one line."""
    try:
        run(tyro.cli(Config, prog="python -m reelgym.experiments.readme", args=args))
    except (OSError, ValueError) as error:
        print(f"readme: error: {error}", file=sys.stderr)
        return 1
    return 0


def run(config: Config, root: Path = ROOT) -> None:
    """Take over a comparison where one is given, then fill every block of the pages."""
    if config.run is not None:
        results = read_results(config.run)
        folder = root / "experiments" / "results" / config.name
        for place in (folder, (root / PICTURE).parent):
            place.mkdir(parents=True, exist_ok=True)
        if results["command"].startswith("reelgym compare") and config.name == Config.name:
            write_picture(config.run, root / PICTURE, PROMPTS)
        for command, pictures in TAKEN.items():
            for name in pictures if results["command"].startswith(command) else ():
                shutil.copy(config.run / name, (root / PICTURE).parent / name)
        write_json(folder / "results.json", results)
    for page in pages(root):
        text = page.read_text()
        made = filled(text, root)
        if made != text:
            aside = page.with_name(f".{page.name}.tmp")
            aside.write_text(made)
            os.replace(aside, page)
            print(page.relative_to(root))


def pages(root: Path = ROOT) -> list[Path]:
    """README.md and every page below docs/."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def filled(text: str, root: Path = ROOT) -> str:
    """A page with the content of its blocks made anew from the files below `root`."""
    kinds: dict[str, Callable[[Path, str], str]] = {
        "table": table,
        "verdict": verdict,
        "pictures": pictures,
        "slices": slices,
        "measured": measured,
        "weights": weights,
        "families": families,
    }
    return BLOCK.sub(lambda found: f"{found[1]}\n{kinds[found[2]](root, found[3])}\n\n{found[4]}", text)


def table(root: Path, path: str) -> str:
    """Where, how and with what it was measured, the methods, an answer to what was declared, what the columns mean."""
    results = _results(root / path)
    if results is None:
        return _nothing(path)
    config = results["config"]
    made = f"{_compared(results)} {config['prompts']} test prompts, {config['clips']} clips each, "
    made += f"{len(results['seeds'])} seeds."
    parts = [made, markdown_table(METHOD_COLUMNS, rows_of(results, "method"))]
    answers = verdict_lines(results, declared=True)
    parts += ["Asked before the run:", "\n".join(f"- {line}" for line in answers)] if answers else []
    return "\n\n".join([*parts, _legend(METHOD_COLUMNS)])


def verdict(root: Path, path: str) -> str:
    """What a comparison found, in sentences and differences, and which runs say so."""
    results = _results(root / path)
    if results is None:
        return _nothing(path)
    parts = [f"### {head}\n\n" + "\n".join(f"- {line}" for line in lines) for head, lines in findings(results)]
    config, seeds = results["config"], ", ".join(str(seed) for seed in results["seeds"])
    exam = f"{config['prompts']} test prompts, {config['clips']} clips each, seeds {seeds}."
    notes = "\n".join(f"- {note}" for note in config["notes"])
    contrasts = rows_of(results, "contrast")
    if contrasts:
        shown = markdown_table(CONTRAST_COLUMNS, contrasts)
        parts.append(f"### All differences in one table\n\n{shown}\n\n{_legend(CONTRAST_COLUMNS)}")
    return "\n\n".join([f"{_compared(results)} {exam}", *parts, f"### How it was run\n\n{notes}"])


def pictures(root: Path, path: str) -> str:
    """The picture and what is to be seen in it."""
    results = _results(root / path)
    if results is None or not (root / PICTURE).is_file():
        return _nothing(path)
    prompts = [row["prompt"] for row in rows_of(results, "clip") if row["of"] == "clips"][:PROMPTS]
    lines = "\n".join(f"{number}. {prompt}" for number, prompt in enumerate(prompts, 1))
    caption = "One prompt a row, one noise for the whole row. Not selected: the first test prompts of the run below."
    return f"![Clips of every row of the table, side by side]({PICTURE})\n\n{caption}\n\n{lines}"


def slices(root: Path, path: str) -> str:
    """The edge slices of a comparison: where and how they were measured, and the table."""
    results = _results(root / path)
    edges = slice_table_rows(results) if results else []
    if results is None or not edges:
        return _nothing(path)
    made = f"{_compared(results)} {results['config']['preset']['exam']['slice_prompts']} test prompts a slice, "
    return f"{made}{len(results['seeds'])} seeds.\n\n{markdown_table(SLICE_COLUMNS, edges)}\n\n{SLICES_NOTE}"


def measured(root: Path, path: str) -> str:
    """Where and how a command measured, its tables, and what their columns mean."""
    results = _results(root / path)
    if results is None:
        return f"*No results are committed yet: `{path}`.*"
    words = results["command"].split()[1:]
    module = importlib.import_module("." + ".".join(words[: 2 if words[0] in GROUPS else 1]), __package__)
    return f"{_made(results)}.\n\n{module.report(results['rows'])}\n\n{_legend(module.COLUMNS)}"


def _legend(columns: Sequence[Column]) -> str:
    """What the columns mean, folded away."""
    meanings = {column.title: column.caption for column in columns if column.caption}
    lines = "\n".join(f"- {title}: {caption}" for title, caption in meanings.items())
    return f"<details><summary>What the columns mean</summary>\n\n{lines}\n\n</details>"


def _compared(results: Row) -> str:
    return f"{_made(results)}, {results['config']['workers']} worker processes of one thread."


def _made(results: Row) -> str:
    commit = (results["commit"] or "unknown").removesuffix("-dirty")
    changed = " (with changes)" if str(results["commit"]).endswith("-dirty") else ""
    return f"Made by `{results['command']}` at commit `{commit[:12]}`{changed} on: {results['device']}"


def weights(root: Path, path: str) -> str:
    """What the manifests of the trained parts say, beside the bars that were set beforehand."""
    found = {part: _manifest(root / path / part / MANIFEST) for part in dict.fromkeys(bar[0] for bar in BARS)}
    rows: list[Row] = []
    for part, key, what, least in BARS:
        first = all(row["part"] != part for row in rows)
        cells = {"part": part, "what": what, "least": least, "measured": _figure(found, part, key)}
        rows.append({**cells, "made": found[part] if first else {}})
    return markdown_table(WEIGHT_COLUMNS, rows)


def families(root: Path, path: str) -> str:
    """How well a detector tells each family of made clips, and whether its numbers can be believed."""
    made = _manifest(root / path)
    quality, learned = made["quality"], made["recipe"]["weights"]
    rows = []
    for key in [key for key in quality if f"tpr_{key.removeprefix('auc_')}" in quality and key.startswith("auc_")]:
        family = key.removeprefix("auc_")
        name = family.replace("_", "-") if family.startswith("student_") else family
        rows.append({"name": name, "learned": name in learned, "auc": quality[key], "tpr": quality[f"tpr_{family}"]})
    after = ", ".join(f"{quality[f'auc_student_after_{chunk}']:.3f}" for chunk in range(1, 5))
    lines = [
        f"- The student's AUC after one, two, three and four chunks: {after}.",
        f"- Expected calibration error: {quality['ece']:.3f}. Real test clips beyond the calibration's 1%: "
        f"{quality['false_positives']:.1%}.",
        f"- On its features of frames, against the student: D3 {quality['auc_student_d3']:.3f}, "
        f"ReStraV {quality['auc_student_restrav']:.3f} (AUC).",
    ]
    return markdown_table(FAMILY_COLUMNS, rows) + "\n\n" + "\n".join(lines)


def _results(path: Path) -> Row | None:
    return read_results(path.parent) if path.is_file() else None


def _nothing(path: str) -> str:
    preset = Path(path).parent.name
    return f"*No results are committed yet: `{path}` is what `reelgym compare --preset {preset}` will have written.*"


def _manifest(path: Path) -> Row:
    return dict(json.loads(path.read_text())["meta"]) if path.is_file() else {}


def _figure(found: dict[str, Row], part: str, key: str) -> float | None:
    """A measured quality of a part; GAP: by how much the teacher's share exceeds the student's."""
    if key != GAP:
        return found[part].get("quality", {}).get(key)
    teacher, student = (_figure(found, name, "fraction") for name in ("teacher", "student"))
    return None if teacher is None or student is None else teacher - student


if __name__ == "__main__":
    sys.exit(main())
