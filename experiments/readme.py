"""The marked blocks of README.md and docs/: `python -m reelgym.experiments.readme` makes them again.

A block begins with `<!-- KIND: PATH -->` and ends with `<!-- end -->`; PATH counts from the checkout's root. A block
of a results.json is made by the module of the command which the file names (tables.py says how); the kinds weights (a
folder of trained parts) and families (the manifest of a detector) are made here.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from ..checkpoint import MANIFEST, write_json
from . import tables
from .cli import GROUPS
from .map import MAP_PICTURE, map_svg
from .report import read_results
from .tables import Column, Row, legend, made_by, markdown_table

_ROOT = Path(__file__).resolve().parent.parent
IMAGES = "docs/images"
GAP = "gap"
_SHARE = "oracle total on held-out prompts, as a share of the truth's"
RANKS = "pairs of a held-out clip and its fake of an unseen family that {} ranks rightly"
AREA = "area under the ROC curve, the student's clips of test prompts against the world's"
_BARS: tuple[tuple[str, str, str, float], ...] = (
    ("codec", "fraction", _SHARE, 0.95),
    ("teacher", "fraction", _SHARE, 0.80),
    ("student", "fraction", _SHARE, 0.50),
    ("student", GAP, "the teacher's share less the student's", 0.08),
    *(
        bar
        for part in ("reward", "heldout", "local")
        for bar in (
            *((part, f"accuracy_{axis}", RANKS.format(axis), 0.90) for axis in ("VQ", "MQ", "TA")),
            (part, "spearman", "rank correlation with the oracle among the student's clips of one prompt", 0.50),
            (part, "spearman_low", "lower end of its 95% interval", 0.30),
        )
    ),
    ("detector", "auc_student", AREA, 0.95),
    ("rival", "auc_student", AREA, 0.60),
)
"""Of each part what was measured, and the least that was asked of it beforehand."""
WEIGHT_COLUMNS = (
    Column("part", "", lambda row: row["part"]),
    Column("what was measured", "", lambda row: row["what"]),
    Column("bar", "", lambda row: f"{row['least']:.2f}"),
    Column("measured", "", lambda row: "not shipped yet" if row["measured"] is None else f"{row['measured']:.3f}"),
    Column("steps", "", lambda row: f"{row['made']['steps']:,}" if row["made"] else ""),
    Column("minutes", "", lambda row: f"{row['made']['quality']['seconds'] / 60:.0f}" if row["made"] else ""),
)
_FAMILY_COLUMNS = (
    Column("made by", "", lambda row: row["name"]),
    Column("learned from", "", lambda row: "yes" if row["learned"] else "no"),
    Column("AUC", "", lambda row: f"{row['auc']:.3f}"),
    Column("found at 1% false positives", "", lambda row: f"{row['tpr']:.1%}"),
)


@dataclass(frozen=True)
class Config:
    """Without options only the blocks are made again, from what is committed."""

    run: Path | None = None
    """Folder that a command wrote: its results.json is taken over, and so are its pictures, where a page shows it."""
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


def run(config: Config, root: Path = _ROOT) -> None:
    """Take over results where some are given, then fill every block of the pages; prints which pages changed."""
    if config.run is not None:
        take_over(config.run, f"experiments/results/{config.name}/results.json", root)
    for page in pages(root):
        text = page.read_text()
        made = filled(text, root)
        if made != text:
            page.write_text(made)
            print(page.relative_to(root))
        for _, kind, paths, _ in tables.BLOCK.findall(text):
            if kind == "map" and (found := committed(paths.split(), root)):
                (root / IMAGES / MAP_PICTURE).write_text(map_svg(*found) + "\n")


def take_over(run: Path, path: str, root: Path) -> None:
    """Copy the results of a run to `path`, and its pictures to where pages show them if one does."""
    results = read_results(run)
    for place in (root / path).parent, root / IMAGES:
        place.mkdir(parents=True, exist_ok=True)
    shown = {found[1:3] for page in pages(root) for found in tables.BLOCK.findall(page.read_text())}
    if shown & {("pictures", path), ("measured", path)}:
        for name in getattr(owner(results), "PICTURES", ()):
            shutil.copy(run / name, root / IMAGES / name)
    write_json(root / path, results)


def owner(results: Row) -> Any:
    """The module of the command that wrote results."""
    words = results["command"].split()[1:]
    return importlib.import_module("." + ".".join(words[: 2 if words[0] in GROUPS else 1]), __package__)


def pages(root: Path = _ROOT) -> list[Path]:
    """README.md and every page below docs/."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def filled(text: str, root: Path = _ROOT) -> str:
    """A page with the content of its blocks made anew from the files below `root`."""
    return tables.filled_blocks(text, lambda kind, paths: block(kind, paths.split(), root))


def block(kind: str, paths: Sequence[str], root: Path) -> str:
    """The content of one block; ValueError for a kind that nobody makes."""
    if kind in TRAINED:
        return TRAINED[kind](root / paths[0])
    missing = [f"*No results are committed yet: `{path}`.*" for path in paths if not (root / path).is_file()]
    found = committed(paths, root)
    if not found:
        return "\n\n".join(missing)
    module = owner(found[0])
    if kind == "measured":
        rows = found[0]["rows"]
        return f"{made_by(found[0])}.\n\n{module.report(rows)}\n\n{legend(module.COLUMNS, rows)}"
    made = getattr(module, "BLOCKS", {}).get(kind)
    if made is None:
        raise ValueError(f"{paths[0]}: no block of kind {kind!r} in {module.__name__}; see experiments/tables.py")
    return "\n\n".join([*missing, str(made(*found))])


def committed(paths: Sequence[str], root: Path) -> list[Row]:
    """Those of several results that are there."""
    return [read_results((root / path).parent) for path in paths if (root / path).is_file()]


def weights(folder: Path) -> str:
    """What the manifests of the trained parts say, beside the bars that were set beforehand."""
    found = {part: _manifest(folder / part / MANIFEST) for part in dict.fromkeys(bar[0] for bar in _BARS)}
    shares = [found[part].get("quality", {}).get("fraction") for part in ("teacher", "student")]
    gap = None if None in shares else shares[0] - shares[1]
    rows: list[Row] = []
    for part, key, what, least in _BARS:
        measured = gap if key == GAP else found[part].get("quality", {}).get(key)
        made = {} if any(row["part"] == part for row in rows) else found[part]
        rows.append({"part": part, "what": what, "least": least, "measured": measured, "made": made})
    return markdown_table(WEIGHT_COLUMNS, rows)


def families(path: Path) -> str:
    """How well a detector tells each family of made clips, and whether its numbers can be believed."""
    made = _manifest(path)
    quality, learned = made["quality"], made["recipe"]["weights"]
    rows = []
    for family in [key.removeprefix("auc_") for key in quality if key.startswith("auc_")]:
        if f"tpr_{family}" in quality:
            name = family.replace("_", "-") if family.startswith("student_") else family
            told = {"auc": quality[f"auc_{family}"], "tpr": quality[f"tpr_{family}"]}
            rows.append({"name": name, "learned": name in learned, **told})
    after = ", ".join(f"{quality[f'auc_student_after_{chunk}']:.3f}" for chunk in range(1, 5))
    lines = [
        f"- The student's AUC after one, two, three and four chunks: {after}.",
        f"- Expected calibration error: {quality['ece']:.3f}. Real test clips beyond the calibration's 1%: "
        f"{quality['false_positives']:.1%}.",
        f"- On its features of frames, against the student: D3 {quality['auc_student_d3']:.3f}, "
        f"ReStraV {quality['auc_student_restrav']:.3f} (AUC).",
    ]
    return markdown_table(_FAMILY_COLUMNS, rows) + "\n\n" + "\n".join(lines)


TRAINED = {"weights": weights, "families": families}


def _manifest(path: Path) -> Row:
    return dict(json.loads(path.read_text())["meta"]) if path.is_file() else {}


if __name__ == "__main__":
    sys.exit(main())
