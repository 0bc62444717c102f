"""What a user adds: parts found by an import path (`module:name`), or by a name that an installed package gives."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

_GROUPS = ("recipes", "rewards", "worlds", "stacks", "judges")
"""Kinds of parts; the entry points of a package name them as `reelgym.recipes` and so on."""


class PluginError(ValueError):
    """A name that stands for nothing, or an import path that leads nowhere; the message says what was looked for."""


def resolve(path: str) -> Any:
    """The object that `module:name` names; the working folder is searched too.

    PluginError where there is no such module or name. An error inside the module is its own and passes through.
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise PluginError(f"{path!r} is no import path: write module:name, such as my_package.recipes:best_of_n")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise
        raise PluginError(f"{path}: there is no module {error.name!r}, neither installed nor in {here}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise PluginError(f"{path}: {module} has no {name!r}")
        found = getattr(found, part)
    return found


def installed(group: str) -> dict[str, str]:
    """What installed packages offer in one of _GROUPS: import paths by name."""
    return {point.name: point.value for point in entry_points(group=f"reelgym.{group}")}


def find(group: str, name: str, builtin: Mapping[str, Any]) -> Any:
    """The part of a group that a name or an import path stands for.

    builtin: what reelgym itself has, by name: objects, or import paths. A name of its own wins over an installed one.
    PluginError that lists what there is.
    """
    if name in builtin:
        part = builtin[name]
        return resolve(part) if isinstance(part, str) else part
    if ":" in name:
        return resolve(name)
    offered = installed(group)
    if name in offered:
        return resolve(offered[name])
    there = ", ".join([*builtin, *sorted(set(offered) - set(builtin))])
    raise PluginError(f"no {name!r} among the {group}: choose from {there}, or give an import path module:name")
