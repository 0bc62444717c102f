"""What a job's result depends on: its config, the code that its worker imports, and the files that its config names."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

from ..checkpoint import LARGE, quick_digest, sha256_file

_OURS = __name__.split(".")[0]
IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
"""`module:name` as a string stands for an import: of a plug-in, or of an environment's entry point."""
INSTALLED = {"site-packages", "dist-packages"}


def described(value: Any) -> Any:
    """A config as JSON holds it; a dataclass says its class too, so that two with equal fields are not the same.

    ValueError for an object that JSON cannot tell from another one.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {"class": _called(type(value)), **{f.name: described(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, Mapping):
        return {str(key): described(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [described(part) for part in value]
    if isinstance(value, type | FunctionType):
        return _called(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path | torch.device | torch.dtype | Enum):
        return str(value)
    raise ValueError(f"a job's config holds {value!r}: use dataclasses, functions of a module, numbers and strings")


def code_of(config: Any) -> set[str]:
    """Modules of the classes and functions in a config, and those that a string `module:name` in it names."""
    parts = [*_parts(config), *_dependencies(config)]
    named = {part.split(":")[0] for part in parts if isinstance(part, str) and IMPORT_PATH.fullmatch(part)}
    return named | {part.__module__ for part in parts if isinstance(part, type | FunctionType)}


def files_of(config: Any) -> str:
    """Hash of the files that a config's parts depend on: every dataclass in it may have a property `depends_on`, of
    paths to files (of very large ones size and ends count), and of strings `module:name`."""
    paths = [part for part in _dependencies(config) if isinstance(part, Path)]
    files = [sha256_file(part) if part.stat().st_size < LARGE else quick_digest([part]) for part in paths]
    return hashlib.sha256("\n".join(files).encode()).hexdigest()


def made_from(work: Callable[..., Any], *modules: str) -> str:
    """Hash of the code that `work` and these modules are made of: their own and all that they import, and what that
    imports, wherever in the file the import stands.

    Counted is what belongs to reelgym, to the top packages of `work` and `modules`, and to neither Python nor
    site-packages. Comments, docstrings and layout are left out. A string `module:name` counts as an import; a module
    whose name is put together as the program runs is not found.
    """
    roots = (work.__module__, *sorted(modules))
    own = {_OURS, *(name.split(".")[0] for name in roots)}
    found: dict[str, str] = {}
    waiting, met, places = list(roots), set(roots), dict[str, _Place]()
    while waiting:
        name = waiting.pop()
        file = _place(name, own, places)[0]
        if file is None or not file.endswith(".py") or not os.path.isfile(file):
            continue
        stat = os.stat(file)
        found[name], imports = _read(name, file, stat.st_mtime_ns, stat.st_size)
        waiting += [one for one in imports if one not in met]
        met.update(imports)
    text = "\n".join(f"{name} {digest}" for name, digest in sorted(found.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _called(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _parts(value: Any) -> Iterator[Any]:
    """Everything in a config, dataclasses with their classes."""
    yield value
    if is_dataclass(value) and not isinstance(value, type):
        yield type(value)
        for field in fields(value):
            yield from _parts(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _parts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _parts(part)


def _dependencies(config: Any) -> list[Path | str]:
    there = (part for part in _parts(config) if is_dataclass(part) and not isinstance(part, type))
    return [thing for part in there for thing in getattr(part, "depends_on", ())]


_Place = tuple[str | None, Sequence[str]]
"""A module's file and the folders of its parts, found without importing it; nothing where it does not count."""


def _place(name: str, own: set[str], places: dict[str, _Place]) -> _Place:
    """places: what was found before."""
    if name not in places:
        above, _, part = name.rpartition(".")
        places[name] = _part_of(_place(above, own, places)[1], part) if above else _top(name, own)
    return places[name]


def _part_of(folders: Sequence[str], part: str) -> _Place:
    paths = [os.path.join(folder, part) for folder in folders]
    files = (file for path in paths for file in (f"{path}.py", os.path.join(path, "__init__.py")))
    return next(filter(os.path.isfile, files), None), [path for path in paths if os.path.isdir(path)]


def _top(name: str, own: set[str]) -> _Place:
    if name in sys.stdlib_module_names and name not in own:
        return None, []
    if (module := sys.modules.get(name)) is None:
        place = _spec(name)
    else:
        place = getattr(module, "__file__", None), list(getattr(module, "__path__", ()))
    installed = any(INSTALLED & set(Path(one).parts) for one in (place[0] or "", *place[1]))
    return (None, []) if installed and name not in own else place


def _spec(top: str) -> _Place:
    """Of a package that is not loaded; like `plugins.resolve`, the working folder is searched too."""
    try:
        spec = importlib.util.find_spec(top) or PathFinder.find_spec(top, [str(Path.cwd())])
    except (ImportError, ValueError):
        return None, []
    return (spec.origin, list(spec.submodule_search_locations or ())) if spec else (None, [])


@lru_cache(maxsize=2048)
def _read(name: str, file: str, changed: int, size: int) -> tuple[str, tuple[str, ...]]:
    """Hash of a file's syntax, and the names of what it imports: of modules, and of what may be modules."""
    nodes: list[ast.AST] = []
    text = _bare(ast.parse(Path(file).read_bytes()), nodes)
    package = name.split(".") if os.path.basename(file) == "__init__.py" else name.split(".")[:-1]
    imports = {".".join(package[:end]) for end in range(1, len(package) + 1)}
    for node in nodes:
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            imports |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and IMPORT_PATH.fullmatch(node.value):
            imports.add(node.value.split(":")[0])
    parents = {one.rsplit(".", count)[0] for one in imports for count in range(1, one.count(".") + 1)}
    return hashlib.sha256(text.encode()).hexdigest(), tuple(sorted(imports | parents))


def _bare(thing: Any, nodes: list[ast.AST]) -> str:
    """Syntax as text without places and docstrings, of modules, classes, functions and attributes; `nodes` gets what
    is in it."""
    if isinstance(thing, ast.AST):
        nodes.append(thing)
        parts = [_bare(getattr(thing, name, None), nodes) for name in thing._fields]
        return f"{type(thing).__name__}({','.join(parts)})"
    if isinstance(thing, list):
        return f"[{','.join([_bare(part, nodes) for part in thing if not _does_nothing(part)])}]"
    return repr(thing)


def _does_nothing(thing: Any) -> bool:
    """A string by itself."""
    return isinstance(thing, ast.Expr) and isinstance(thing.value, ast.Constant) and isinstance(thing.value.value, str)
