"""Tables of results and pages that show them: the one home of columns, cells, tables, their legends and marked blocks.

A study lists `Column`s; what a cell shows is made by `number` or `interval`, or any function of a row. The same columns
and rows make a table for a terminal (`plain_table`), for a page of docs (`markdown_table`, several by `sections`) and
for a report (`html_table`); `legend` and `html_legend` say what the columns mean.

A page of docs holds blocks `<!-- KIND: PATH -->` ... `<!-- end -->`, which `filled` makes anew. Those of a results.json
belong to the module of the command that wrote it (readme.py asks it): KIND measured is that module's `report(rows)`
with a legend of its `COLUMNS`; any other KIND is a function of results in its `BLOCKS`, of several where the block has
more than one PATH; its `PICTURES` are files that docs show.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

Row = dict[str, Any]
NOTHING = "–"
BLOCK = re.compile(r"(<!-- (\w+): (\S+(?: \S+)*?) -->\n).*?(<!-- end -->)", re.DOTALL)
"""Of a page: head, kind, path or paths, end."""


@dataclass(frozen=True)
class Column:
    """title: the head. caption: what it means and which direction is better. show: a row's cell as text. added: shown
    only where some row has it, such as a statistic that older results lack; its `show` takes rows of every kind."""

    title: str
    caption: str
    show: Callable[[Row], str]
    added: bool = False


def number(key: str, form: str) -> Callable[[Row], str]:
    """Shows a row's number under `key` in the format `form`; a dash where there is none."""
    return lambda row: NOTHING if row.get(key) is None else format(row[key], form)


def interval(mean: str, form: str, ends: str = "") -> Callable[[Row], str]:
    """Shows a row's number under `mean` with its interval, under `low` and `high` with `ends` before them."""

    def show(row: Row) -> str:
        if row.get(mean) is None:
            return NOTHING
        return f"{row[mean]:{form}} [{row[f'{ends}low']:{form}}, {row[f'{ends}high']:{form}}]"

    return show


def rows_of(results: Row, kind: str) -> list[Row]:
    """The rows of one kind ("method", "contrast", "slice", "run", "curve", "search", "clip") in their order."""
    return [row for row in results["rows"] if row.get("kind") == kind]


def plain_table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """Aligned columns for a terminal; the first column to the left, the others to the right."""
    cells = _cells(columns, rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown_table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """The same table for a page of docs."""
    cells = _cells(columns, rows)
    head, *body = ("| " + " | ".join(line) + " |" for line in cells)
    return "\n".join([head, "| :-- |" + " --: |" * (len(cells[0]) - 1), *body])


def sections(*parts: tuple[str, Sequence[Column], Sequence[Row]]) -> str:
    """Tables as Markdown, each under its head; those without rows are left out."""
    return "\n\n".join(f"{head}\n\n{markdown_table(columns, rows)}" for head, columns, rows in parts if rows)


def html_table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """The same table for a report; captions appear over the heads."""
    shown = _shown(columns, rows)
    head = "".join(f'<th title="{escape(column.caption)}">{escape(column.title)}</th>' for column in shown)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in _cells(shown, rows)[1:]
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def html_legend(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """What the columns of a table of these rows mean, one line of HTML each."""
    lines = (f"<div><b>{escape(column.title)}</b> {escape(column.caption)}</div>" for column in _shown(columns, rows))
    return f'<div class="legend">{"".join(lines)}</div>'


def legend(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """What the columns of tables of these rows mean, as Markdown, folded away."""
    meanings = {column.title: column.caption for column in _shown(columns, rows) if column.caption}
    lines = "\n".join(f"- {title}: {caption}" for title, caption in meanings.items())
    return f"<details><summary>What the columns mean</summary>\n\n{lines}\n\n</details>"


def _shown(columns: Sequence[Column], rows: Iterable[Row]) -> list[Column]:
    return [column for column in columns if not column.added or any(column.show(row) != NOTHING for row in rows)]


def _cells(columns: Sequence[Column], rows: Sequence[Row]) -> list[list[str]]:
    """A line of heads, then one for each row."""
    shown = _shown(columns, rows)
    return [[column.title for column in shown], *([column.show(row) for column in shown] for row in rows)]


def made_by(results: Row) -> str:
    """Which command made results, of which commit and on what."""
    commit = (results["commit"] or "unknown").removesuffix("-dirty")
    changed = " (with changes)" if str(results["commit"]).endswith("-dirty") else ""
    return f"Made by `{results['command']}` at commit `{commit[:12]}`{changed} on: {results['device']}"


def filled_blocks(page: str, make: Callable[[str, str], str]) -> str:
    """A page with the content of its blocks made anew: make(KIND, PATH) -> Markdown."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{make(found[2], found[3])}\n\n{found[4]}", page)
