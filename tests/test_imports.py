"""The order of imports, read from the source, and what `import reelgym` costs."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("models", "rewards", "envs", "training", "agents", "distill", "experiments")
NEIGHBOURS = {"agents", "distill"}
LEAVES = ("video", "noise", "checkpoint", "plugins")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in [*ROOT.glob("*.py"), *(p for room in (*LAYERS, *LEAVES) for p in (ROOT / room).rglob("*.py"))]
}
DISTRIBUTION = {
    "PIL": "pillow",
    "huggingface_hub": "huggingface-hub",
    "stable_baselines3": "stable-baselines3",
}
HEAVY = (
    "diffusers",
    "transformers",
    "accelerate",
    "stable_baselines3",
    "tianshou",
    "pettingzoo",
    "matplotlib",
    "av",
    "tensorboard",
    "pandas",
    "scipy",
)


def imported(name, source=None):
    """Absolute names of the modules that module `name` imports; those of the package without its own name."""
    package = name.split(".")[:-1]
    for node in ast.walk(ast.parse(source if source is not None else MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("reelgym.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            assert node.level <= len(package) + 1, f"{name} imports from above the package"
            parts = [*base, *(node.module.removeprefix("reelgym.").split(".") if node.module else [])]
            for alias in node.names:
                full = ".".join([*parts, alias.name])
                yield full if full in MODULES or f"{full}.__init__" in MODULES else ".".join(parts)


def is_oracle(name):
    return name.startswith("envs.worlds.oracle")


def violation(name, target):
    """Why module `name` may not import `target`, or None."""
    here, there = name.split(".")[0], target.split(".")[0]
    if here in LAYERS:
        if there in LAYERS and LAYERS.index(there) > LAYERS.index(here):
            return f"{here} stands below {there}"
        if here != there and {here, there} <= NEIGHBOURS:
            return f"{here} and {there} are neighbours"
        if is_oracle(target) and here != "experiments" and not is_oracle(name):
            return "only experiments and tests import the oracles"
    elif here in LEAVES and here != there and (there in LAYERS or there in LEAVES):
        return "a leaf imports nothing of the package"
    return None


@pytest.mark.parametrize("name", sorted(MODULES))
def test_order_of_imports(name):
    reasons = {target: violation(name, target) for target in imported(name)}
    assert {target: reason for target, reason in reasons.items() if reason} == {}


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("models.wan", "from ..rewards.stream_reward import StreamReward"),
        ("distill.x", "from ..agents.rollout import rollout"),
        ("models.wan", "def late():\n    from .. import envs"),
        ("rewards.x", "import reelgym.distill.trainer"),
        ("envs.worlds.grammar", "from ...experiments import results"),
        ("agents.x", "from ..envs.worlds import oracle"),
        ("noise", "from .models.wan import CausalWan"),
    ],
)
def test_the_order_test_can_fail(name, source):
    assert [target for target in imported(name, source) if violation(name, target)]


def test_no_circles():
    open_, done = [], set()

    def visit(name):
        if name in open_:
            raise AssertionError(" -> ".join([*open_[open_.index(name) :], name]))
        if name not in done:
            open_.append(name)
            for target in sorted({f"{t}.__init__" if f"{t}.__init__" in MODULES else t for t in imported(name)}):
                if target in MODULES:
                    visit(target)
            done.add(open_.pop())

    for name in sorted(MODULES):
        visit(name)


def test_nothing_is_imported_that_is_not_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *(r for rs in project["optional-dependencies"].values() for r in rs)]
    declared = {re.split(r"[\[<>=~! ]", requirement)[0] for requirement in requirements}
    own = {name.split(".")[0] for name in MODULES} | {"", "reelgym"}
    for name in MODULES:
        for target in imported(name):
            top = target.split(".")[0]
            if top not in own and top not in sys.stdlib_module_names:
                assert DISTRIBUTION.get(top, top) in declared, f"{name} imports {top}, which pyproject.toml lacks"


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_reelgym_stays_light():
    assert python(f"import sys, reelgym; print([m for m in {HEAVY} if m in sys.modules])").strip() == "[]"


def test_the_game_for_two_is_registered_without_importing_pettingzoo():
    show = "print('reelgym/SelfPlay-v0' in pettingzoo.parallel_registry)"
    assert python(f"import pettingzoo, reelgym; {show}").split() == ["True"]
    assert python(f"import reelgym, reelgym.envs.parallel, pettingzoo; {show}").split() == ["True"]


def test_the_command_line_answers_help_without_torch():
    code = "import sys; from reelgym.experiments.cli import main; main(['--help']); print('torch' in sys.modules)"
    assert python(code).splitlines()[-1] == "False"


def test_the_public_page_says_one_thing_and_is_true():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    said = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    homes, names = (ast.literal_eval(said[name]) for name in ("_HOMES", "__all__"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {node.module: tuple(alias.name for alias in node.names) for node in block.body}
    assert typed == homes and sorted(name for part in homes.values() for name in part) == sorted(names)
    assert len(names) == len(set(names)) <= 30
    for home, part in homes.items():
        path = MODULES.get(home) or MODULES[f"{home}.__init__"]
        for name in part:
            assert re.search(rf"^(class|def) {name}\b|^{name}\b.*=", path.read_text(), re.MULTILINE), f"{home}.{name}"


def test_public_names_are_imported_when_asked_for():
    code = "import sys, reelgym; before = 'torch' in sys.modules; from reelgym import Stack, stream_keys"
    assert python(f"{code}; print(before, Stack.__name__, 'Guard' in dir(reelgym))").split() == [
        "False",
        "Stack",
        "True",
    ]
    assert python("import reelgym\ntry: reelgym.nothing\nexcept AttributeError as e: print(e)").startswith(
        "module 'reel"
    )
