"""What a `stack.toml` says: which parts a stack has, where each is read from, and how; a fault is one line.

docs/stacks/ has examples with every key.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ..models.cache import CacheConfig
from ..models.fit import parse_size
from ..models.tiny import SHIPPED_REWARDS
from ..rewards.windows import TINY_LAYOUT, ChunkLayout
from .stack_kinds import PART_KINDS, Dtype, PartFile, TransformerFile

Kind = TypeVar("Kind")


class StackFileError(ValueError):
    """A stack.toml that says what no stack has, or something of a wrong type; the message is one line."""


_PATHS = ("weights", "config", "backbone", "template")


@dataclass(frozen=True, kw_only=True)
class StackFile:
    """How a stack is read. Where a field is None or lacks something, the base's counts, and then a default."""

    parts: Mapping[str, PartFile] = field(default_factory=dict)
    layout: ChunkLayout = TINY_LAYOUT
    """How a clip is cut."""
    cache: Mapping[str, Any] = field(default_factory=dict)
    """Fields of CacheConfig for the student, in place of its own."""
    size: tuple[int, int] | None = None
    """(H, W) of the video in pixels."""
    fps: float | None = None
    """Frames a second of the video."""
    dtype: Dtype | None = None
    """Of the weights of Wan, UMT5 and VideoReward."""

    def with_places(self, places: Mapping[str, Path]) -> StackFile:
        """These parts read from other folders, all else as it is; a LoRA goes onto what is there."""
        parts = dict(self.parts)
        for name, place in places.items():
            known = PART_KINDS.get(name, PartFile)
            parts[name] = (parts[name] if name in parts else known(weights="")).at(place)
        return replace(self, parts=parts)

    def without(self, *names: str) -> StackFile:
        """Without these parts."""
        return replace(self, parts={name: part for name, part in self.parts.items() if name not in names})


@dataclass(frozen=True, kw_only=True)
class _Top:
    """The keys of a stack.toml that stand outside [parts]."""

    base: str = ""
    size: str | None = None
    fps: float | None = None
    dtype: Dtype | None = None
    prompts: str | None = None
    clips: str | None = None


def read_stack_file(path: Path) -> tuple[str, dict[str, Any]]:
    """The base of a stack.toml, and what it says itself: keywords of StackFile (of its layout a mapping), and `data`,
    the file of "prompts" and the folder of "clips".

    StackFileError for what no stack has, wrong types and paths that lead nowhere.
    """
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StackFileError(f"{path}: cannot be read as TOML ({error})") from error
    tables = {name: said.pop(name, {}) for name in ("parts", "layout", "cache")}
    if "clock" in said:  # the former name of layout
        tables["layout"] = said.pop("clock")
    top = _read(_Top, said, f"{path}", sorted([*tables, *_names(_Top)]))
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise StackFileError(f"{path}: {name} is a table, [{name}], not {table!r}")
    found: dict[str, Any] = {name: getattr(top, name) for name in ("fps", "dtype")}
    if top.fps is not None and not top.fps > 0:
        raise StackFileError(f"{path}: fps is above 0, not {top.fps}")
    if top.size is not None:
        found["size"] = parse_size(top.size)
    for name, kind in (("layout", ChunkLayout), ("cache", CacheConfig)):
        _read(kind, tables[name], f"{path}: [{name}]")
        found[name] = tables[name]
    if unknown := sorted(set(tables["parts"]) - set(PART_KINDS)):
        raise StackFileError(f"{path}: unknown parts {', '.join(unknown)}; there are {', '.join(PART_KINDS)}")
    found["parts"] = {name: _part(name, part, path) for name, part in tables["parts"].items()}
    data = {name: path.parent / place for name in ("prompts", "clips") if (place := getattr(top, name))}
    for name, place in data.items():
        if not (place.is_dir() if name == "clips" else place.exists()):
            raise StackFileError(f"{path}: {name}: no {'folder' if name == 'clips' else 'file'} {place}")
    return top.base, found | {"data": data}


def _part(name: str, said: Any, path: Path) -> PartFile:
    """A part, whose paths are from where the toml lies."""
    where = f"{path}: [parts.{name}]"
    if not isinstance(said, str | dict):
        raise StackFileError(f"{where}: a folder, an import path or a table, not {said!r}")
    part = _read(PART_KINDS[name], {"weights": said} if isinstance(said, str) else said, where)
    placed = {key: _placed(path, key, value) for key in _PATHS if (value := getattr(part, key, None))}
    if name in ("reward", "heldout") and part.weights in SHIPPED_REWARDS:
        placed["weights"] = str(SHIPPED_REWARDS[part.weights])
    part = replace(part, **placed)
    if isinstance(part, TransformerFile):
        part = part.with_loras({str(path.parent / place): scale for place, scale in part.loras.items()})
    if missing := [place for place in part.files if not place.exists()]:
        raise StackFileError(f"{where}: no folder or file {missing[0]}")
    return part


def _placed(path: Path, key: str, value: str) -> str:
    """A path from where the toml lies; an import path, and the hub id of a backbone, as it is."""
    place = path.parent / value
    elsewhere = (key == "weights" and ":" in value) or key == "backbone"
    return value if elsewhere and not place.exists() else str(place)


def _read(kind: type[Kind], said: Mapping[str, Any], where: str, names: list[str] | None = None) -> Kind:
    """A dataclass from a table; StackFileError for unknown or missing keys and values of another type."""
    if not isinstance(said, dict):
        raise StackFileError(f"{where}: a table, not {said!r}")
    hints, known = get_type_hints(kind), names or _names(kind)
    if unknown := sorted(set(said) - set(_names(kind))):
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise StackFileError(f"{where}: unknown {', '.join(unknown)}; {hint}there are {', '.join(known)}")
    values = {key: _typed(value, hints[key], f"{where}: {key}") for key, value in said.items()}
    lacking = [f.name for f in _fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in lacking if name not in values]:
        raise StackFileError(f"{where}: says no {', '.join(missing)}")
    try:
        return kind(**values)
    except ValueError as error:
        raise StackFileError(f"{where}: {error}") from error


def _typed(value: Any, hint: Any, where: str) -> Any:
    """The value, an int where a float is asked for as a float; StackFileError for one of another type."""
    options = [one for one in get_args(hint) if one is not type(None)] if type(None) in get_args(hint) else [hint]
    for option in options:
        if get_origin(option) is Literal and value in get_args(option):
            return value
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(option, type) and isinstance(value, option) and not (option is int and isinstance(value, bool)):
            return value
    words = [
        " or ".join(map(str, get_args(one))) if get_origin(one) is Literal else _WORDS.get(one, str(one))
        for one in options
    ]
    raise StackFileError(f"{where} is {' or '.join(words)}, not {value!r}")


_WORDS = {str: "a text in quotes", list: "a list", int: "a whole number", float: "a number", bool: "true or false"}


def _fields(kind: Any) -> Any:
    return fields(kind)


def _names(kind: Any) -> list[str]:
    return [f.name for f in fields(kind)]
