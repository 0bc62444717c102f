"""What is installed is what the tree holds."""

import ast
import fnmatch
import importlib.metadata
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
LAYERS = ("models", "rewards", "envs", "training", "agents", "distill", "experiments")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = SETTINGS["tool"]["setuptools"]


def files():
    """Every file of the package, relative to the root, without caches and results."""
    found = [path for room in (*LAYERS, "video") for path in (ROOT / room).rglob("*") if path.is_file()]
    return [path.relative_to(ROOT) for path in found if "__pycache__" not in path.parts and "results" not in path.parts]


def test_every_package_is_listed():
    folders = {path.parent for path in files() if path.suffix == ".py"}
    assert {".".join(["reelgym", *folder.parts]) for folder in folders} | {"reelgym"} == set(SETUPTOOLS["packages"])
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders)


def test_every_data_file_is_shipped():
    globs = [
        str(Path(*package.split(".")[1:]) / pattern).replace("**", "*")
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
    ]
    data = [str(path) for path in files() if path.suffix != ".py"]
    assert [path for path in data if not any(fnmatch.fnmatch(path, pattern) for pattern in globs)] == []


def test_every_direct_dependency_is_pinned_within_its_bounds():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    project = SETTINGS["project"]
    for requirement in [*project["dependencies"], *(r for rs in project["optional-dependencies"].values() for r in rs)]:
        name, lower = re.fullmatch(r"([a-z0-9-]+)(?:\[.*\]|>=([0-9.]+))", requirement).groups()
        if name != "reelgym":
            number = [[int(part) for part in version.split(".")] for version in (pins[name], lower)]
            assert number[0] >= number[1], requirement


def test_what_runs_here_is_what_is_pinned():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for name in ("torch", "diffusers", "gymnasium", "numpy", "av", "safetensors"):
        assert importlib.metadata.version(name).split("+")[0] == pins[name]


def test_the_license_is_whole():
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text


SOURCES = sorted(
    path
    for path in [*ROOT.glob("*.py"), *(p for layer in (*LAYERS, "video") for p in (ROOT / layer).rglob("*.py"))]
    if path.name != "__init__.py"
)
SHARED = {"Config", "run", "main", "COLUMNS", "STUDY", "work", "jobs", "rows", "report", "settings", "PICTURES"}
"""What modules of one kind all have: commands, studies, tables."""
SHARED |= {"make", "make_single", "learn", "restored", "Call", "AUTORESET"}
"""Environments, and the two libraries whose agents learn in them."""


def public(path):
    """Names that a module defines for others."""
    for node in ast.parse(path.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found = [target.id for target in targets if isinstance(target, ast.Name)]
        found += [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
        yield from {name for name in found if not name.startswith("_")}


def test_no_public_name_twice():
    homes = {}
    for path in SOURCES:
        for name in public(path):
            homes.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in homes.items() if len(found) > 1 and name not in SHARED} == {}


def test_no_file_over_300_lines():
    long = {
        str(path.relative_to(ROOT)): count for path in SOURCES if (count := len(path.read_text().splitlines())) > 300
    }
    assert long == {}
