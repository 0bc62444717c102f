"""Prompts in a text, CSV or JSONL file, and folders of captioned clips; the content of each decides its split."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPLITS = ("train", "validation", "test")
TEXT_COLUMNS = ("text", "prompt", "caption")
"""Under which of these names a column holds what is asked for."""
CAPTION_FILES = ("metadata.jsonl", "metadata.csv")
VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif"}
THEN = re.compile(r"\s*;\s*then\s+")
"""Between the parts of a prompt that changes on the way."""
_LISTED = 5


class DataFileError(ValueError):
    """A file of prompts or captions cannot be read; the message is one line and names the place."""


@dataclass(frozen=True)
class PromptRow:
    """A prompt. text: of a whole clip, or one for each of its chunks.   split: where it belongs.   where: its line."""

    text: str | tuple[str, ...]
    split: str
    where: str

    def chunks(self, count: int) -> tuple[str, ...]:
        """One prompt for each of so many chunks; ValueError where they do not fit."""
        return spread(self.text, count)


@dataclass(frozen=True)
class ClipFile:
    """A captioned clip. path: of its file.   text: as of PromptRow.   split: what its row says, or None."""

    path: Path
    text: str | tuple[str, ...]
    split: str | None


def spread(text: str | Sequence[str], chunks: int) -> tuple[str, ...]:
    """One prompt a chunk: the parts of "... ; then ..." share the chunks evenly, earlier ones taking what does not
    divide. ValueError where there are more parts than chunks, or a row of prompts of another length."""
    parts = tuple(THEN.split(text)) if isinstance(text, str) else tuple(text)
    if isinstance(text, str) and len(parts) <= chunks:
        return tuple(parts[chunk * len(parts) // chunks] for chunk in range(chunks))
    if len(parts) != chunks:
        raise ValueError(f"{len(parts)} prompts do not fit into a clip of {chunks} chunks")
    return parts


def split_by_hash(content: str) -> str:
    """The split of a text, or of a file's SHA-256: of a hundred, 80 are for training, 10 for validation, 10 for tests.
    What else is there has no say in it."""
    bucket = int(hashlib.sha256(content.encode()).hexdigest()[:8], 16) % 100
    return "train" if bucket < 80 else "validation" if bucket < 90 else "test"


def read_prompts(path: str | Path) -> list[PromptRow]:
    """Prompts of a `.txt` (one a line), `.csv` or `.jsonl` file, each once, in order.

    A column or key text, prompt or caption holds them (in JSONL a list is one prompt for each chunk); "; then" stands
    between the parts of one that changes on the way. A column split says train, validation or test; where there is
    none, `split_by_hash` does. DataFileError for what cannot be read, and for no prompt at all.
    """
    path = Path(path)
    rows: list[tuple[str, str | tuple[str, ...], Any]]
    if path.suffix in (".csv", ".jsonl"):
        rows = [(where, _text(row, where), row.get("split")) for where, row in _rows(path)]
    elif path.suffix == ".txt":
        rows = [(f"{path}, line {n}", line.strip(), None) for n, line in enumerate(_lines(path), 1) if line.strip()]
    else:
        raise DataFileError(f"{path}: prompts are in a .txt, .csv or .jsonl file")
    found: dict[str | tuple[str, ...], PromptRow] = {}
    for where, text, said in rows:
        content = text if isinstance(text, str) else "\n".join(text)
        found.setdefault(text, PromptRow(text, _split(said, where) or split_by_hash(content), where))
    if not found:
        raise DataFileError(f"{path}: holds no prompt")
    return list(found.values())


def read_clip_folder(folder: str | Path) -> tuple[list[ClipFile], dict[str, list[str]]]:
    """The captioned clips of a folder with metadata.jsonl or metadata.csv (file_name, text; split, where there is one),
    and the names of what was left out: captions without a file, files without a caption, captions that come twice.

    DataFileError for a folder without metadata, or with metadata that cannot be read.
    """
    folder = Path(folder)
    there = [folder / name for name in CAPTION_FILES if (folder / name).is_file()]
    if len(there) != 1:
        what = "has both" if there else "is no folder with" if not folder.is_dir() else "has neither"
        raise DataFileError(f"{folder}: {what} {' and '.join(CAPTION_FILES) if there else ' or '.join(CAPTION_FILES)}")
    clips: dict[str, ClipFile] = {}
    lost, twice = list[str](), list[str]()
    for where, row in _rows(there[0]):
        name = row.get("file_name")
        if not isinstance(name, str) or not name.strip():
            raise DataFileError(f"{where}: says no file_name")
        name = Path(name).as_posix()
        if name in clips:
            twice.append(name)
        elif Path(name).is_absolute() or ".." in Path(name).parts or not (folder / name).is_file():
            lost.append(name)
        else:
            clips[name] = ClipFile(folder / name, _text(row, where), _split(row.get("split"), where))
    names = (path.relative_to(folder).as_posix() for path in _clip_files(folder) if path not in there)
    silent = [name for name in names if name not in clips]
    faults = {"captions without a file": lost, "files without a caption": silent, "captions given twice": twice}
    return list(clips.values()), {what: names for what, names in faults.items() if names}


def files_of_data(data: Mapping[str, Path]) -> list[Path]:
    """The files that "prompts" and "clips" are read from."""
    prompts = [path for name, path in data.items() if name == "prompts"]
    return [*prompts, *(file for name, path in data.items() if name == "clips" for file in _clip_files(path))]


def _clip_files(folder: Path) -> list[Path]:
    """Metadata and videos, wherever below the folder these are; no hidden ones."""
    files = [folder / name for name in CAPTION_FILES if (folder / name).is_file()]
    found = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
    return [*files, *(path for path in found if not path.name.startswith("."))]


def listed(names: Sequence[str]) -> str:
    """How many there are, and the first of them."""
    more = [f"... and {len(names) - _LISTED} more"] if len(names) > _LISTED else []
    return f"{len(names)} ({', '.join([*names[:_LISTED], *more])})"


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a CSV or JSONL file with where they stand."""
    if path.suffix == ".csv":
        try:
            reader = csv.DictReader(_lines(path), strict=True)
            for row in reader:
                yield f"{path}, line {reader.line_num}", {k: v for k, v in row.items() if k is not None}
        except csv.Error as error:
            raise DataFileError(f"{path}: not CSV ({error})") from error
        return
    for number, line in enumerate(_lines(path), 1):
        where = f"{path}, line {number}"
        if line.strip():
            try:
                said: Any = json.loads(line)
            except ValueError as error:
                raise DataFileError(f"{where}: not JSON ({error})") from error
            said = {"text": said} if isinstance(said, str) else said
            if not isinstance(said, dict):
                raise DataFileError(f"{where}: neither an object nor a text")
            yield where, said


def _lines(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise DataFileError(f"{path}: cannot be read ({reason})") from error


def _text(row: dict[str, Any], where: str) -> str | tuple[str, ...]:
    name = next((name for name in TEXT_COLUMNS if name in row), None)
    if name is None:
        raise DataFileError(f"{where}: has none of {', '.join(TEXT_COLUMNS)}, but {', '.join(row) or 'nothing'}")
    text = row[name]
    if isinstance(text, list) and text and all(isinstance(part, str) and part.strip() for part in text):
        return tuple(part.strip() for part in text)
    if not isinstance(text, str) or not text.strip():
        raise DataFileError(f"{where}: {name} is a text, or a list of one for each chunk, not {text!r}")
    return text.strip()


def _split(said: Any, where: str) -> str | None:
    if said in (None, ""):
        return None
    if said not in SPLITS:
        raise DataFileError(f"{where}: split is one of {', '.join(SPLITS)}, not {said!r}")
    return str(said)
