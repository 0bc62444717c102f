"""README and docs say what is there: tables are views of files, commands parse, code runs, links lead somewhere."""

import ast
import importlib
import json
import re
import shlex
import textwrap
from pathlib import Path

import gymnasium
import pytest
import torch
from PIL import Image

import reelgym
from reelgym.checkpoint import save_checkpoint
from reelgym.envs.game_rules import ThresholdPolicy
from reelgym.envs.registration import ENVS
from reelgym.envs.stack import Stack
from reelgym.envs.worlds import grammar
from reelgym.envs.worlds.fakes import FAKES
from reelgym.envs.worlds.slices import SLICES
from reelgym.experiments import cli, readme
from reelgym.experiments.map import MAP_PICTURE, map_svg
from reelgym.experiments.report import write_picture
from reelgym.experiments.tables import BLOCK
from reelgym.models import tiny
from reelgym.models.detector import ClipDetector
from reelgym.models.prompts import WordEncoder

ROOT = Path(__file__).parent.parent
PAGES = {str(page.relative_to(ROOT)): page.read_text() for page in readme.pages()}
WORLD = PAGES["docs/world.md"]
FENCES = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
WORKSHOP = {
    "docs/detection.md": ("reelgym.models.classifiers", "reelgym.models.scorers"),
    "docs/envs/self_play.md": ("reelgym.envs", "reelgym.envs.game_rules", "reelgym.models.detector"),
    "docs/finetuning.md": ("reelgym.experiments.train_student",),
}
"""Pages for those who build with the parts, and the modules that they open; all others keep to the public page."""
ONE_UPDATE = {
    "updates=10": "updates=1",
    "updates=4": "updates=1",
    "learn(4096)": "learn(64)",
    "clips=64": "clips=8",
    "GuardConfig()": "GuardConfig(prompts=4)",
}


def commands():
    """Every line of a shell block and every `...` in the text that runs reelgym, make or torchrun."""
    found = []
    for text in PAGES.values():
        lines = [line for language, code in FENCES.findall(text) if language == "sh" for line in code.splitlines()]
        lines += re.findall(r"`([^`\n]+)`", FENCES.sub("", text)) + re.findall(r"^    (make .*)$", text, re.MULTILINE)
        found += [line for line in lines if re.match(r"(reelgym|make|torchrun|python -m) ", line)]
    return sorted(set(found))


def test_tables_are_views_of_their_files():
    for name, text in PAGES.items():
        assert readme.filled(text) == text, f"{name} is stale: run python -m reelgym.experiments.readme"


def test_every_picture_belongs_to_a_command_whose_results_a_page_shows():
    blocks = [(kind, paths.split()) for text in PAGES.values() for _, kind, paths, _ in BLOCK.findall(text)]
    shown = {path for _, paths in blocks for path in paths if path.endswith("results.json")}
    owners = [readme.owner(json.loads((ROOT / path).read_text())) for path in shown]
    owned = {name for owner in owners for name in getattr(owner, "PICTURES", ())}
    owned |= {MAP_PICTURE for kind, _ in blocks if kind == "map"}
    assert owned == {file.name for file in (ROOT / readme.IMAGES).iterdir() if file.is_file()}


def test_a_table_without_results_says_so():
    for text in PAGES.values():
        for head, kind, paths, _ in BLOCK.findall(text):
            block = text[text.index(head) :].split("<!-- end -->")[0]
            there = [kind == "weights" or (ROOT / path).is_file() for path in paths.split()]
            assert block.count("No results are committed yet") == there.count(False)


def test_the_map_is_drawn_from_what_is_committed():
    (paths,) = [paths for text in PAGES.values() for _, kind, paths, _ in BLOCK.findall(text) if kind == "map"]
    drawn = (ROOT / readme.IMAGES / MAP_PICTURE).read_text()
    assert drawn == map_svg(*readme.committed(paths.split(), ROOT)) + "\n", "run python -m reelgym.experiments.readme"


def test_commands_are_found():
    named = [line.split() for line in commands() if line.startswith("reelgym ")]
    assert {" ".join(words[1 : 3 if words[1] in cli.GROUPS else 2]) for words in named} == set(cli.COMMANDS)
    assert any(line.startswith("torchrun") for line in commands())


@pytest.mark.parametrize("line", commands())
def test_a_command_parses(line, monkeypatch, capsys):
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    module = words[words.index("-m") + 1] if "-m" in words else "reelgym"
    args = words[words.index("-m") + 2 :] if "-m" in words else words[1:]
    assert module in ("reelgym", *(f"reelgym.experiments.{name}" for name in ("readme", "gallery")))
    name = module.removeprefix("reelgym.experiments.")
    program = importlib.import_module(module) if module != "reelgym" else cli
    if module == "reelgym":
        name = ".".join(args[: 2 if args[0] in cli.GROUPS else 1])
    called = []
    monkeypatch.setattr(importlib.import_module(f"reelgym.experiments.{name}"), "run", called.append)
    assert program.main(args) == 0, capsys.readouterr().err
    assert len(called) == 1


def test_links_lead_somewhere():
    for name, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#]+)", text):
            assert target.startswith("http") or (ROOT / name).parent.joinpath(target).exists(), f"{name}: {target}"


@pytest.mark.parametrize("name", ENVS)
def test_every_environment_has_a_page_with_its_spaces(name):
    module = ENVS[name][0].split(":")[0].split(".")[-1]
    page = "self_play" if module.startswith("self_play") else module
    text = PAGES[f"docs/envs/{page}.md"]
    given = {"stream_detect": {"clips": 2}, "self_play_generator": {"opponent": ThresholdPolicy(ClipDetector())}}
    env = gymnasium.make(name, **given.get(module, {}))
    heads = "Description, Action Space, Observation Space, Rewards, Starting State, Episode End, Arguments, "
    heads += "Version History, Example"
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == heads.split(", ")
    assert f"| Action Space | `{env.action_space}` |\n" in text
    assert f"| Observation Space | `{env.observation_space}` |\n" in text
    assert f'| import | `gymnasium.make("{name}")` |\n' in text
    assert f"](../images/envs/{page}.webp)" in text and f"({page}.md)" in PAGES["docs/envs/README.md"]


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """A stack with random weights and one layer."""
    from diffusers import WanTransformer3DModel

    from reelgym.models.reward_net import TinyReward
    from reelgym.models.wan import CausalWan

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("stack")
    encoder = WordEncoder(grammar.GRAMMARS["plain"].vocabulary(), tiny.TEXT_LEN)
    thin = tiny.TRANSFORMER | {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 24}
    manifest = {"vocab": list(encoder.vocab), "recipe": {"grammar": "plain"}}
    for name in ("teacher", "student"):
        wan = CausalWan(WanTransformer3DModel(text_dim=encoder.dim, **thin), 3, tiny.TEXT_LEN, tiny.STREAMING_CACHE)
        tiny.save_tiny(folder / name, wan, manifest)
    tiny.save_tiny(folder / "codec", tiny.build_codec(), manifest)
    for name in ("reward", "heldout"):
        tiny.save_tiny(folder / name, TinyReward(encoder.dim, width=16), manifest)
    for name in ("detector", "rival"):
        tiny.save_tiny(folder / name, ClipDetector(), {})
    return folder


@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if "```python" in text])
def test_python_runs(name, stack, monkeypatch):
    from reelgym.envs.stack import STACKS

    monkeypatch.setitem(STACKS, "tiny", stack)
    space: dict = {"gymnasium": gymnasium}
    for language, code in FENCES.findall(PAGES[name]):
        if language == "python":
            for long, short in ONE_UPDATE.items():
                code = code.replace(long, short)
            exec(compile(code, name, "exec"), space)


@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if "```python" in text])
def test_python_imports_from_the_public_page(name):
    for language, code in FENCES.findall(PAGES[name]):
        for node in ast.walk(ast.parse(textwrap.dedent(code)) if language == "python" else ast.Module([], [])):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("reelgym"):
                names = {alias.name for alias in node.names}
                public = node.module == "reelgym" and names <= {*reelgym.__all__, "video"}
                assert public or node.module in WORKSHOP.get(name, ()), f"{node.module}: {names}"


def test_the_words_and_fakes_of_the_world_are_those_of_the_code():
    tables = re.findall(r"^\| (\w+) \| (.*?) \|(?: .*\|)?$", WORLD, re.MULTILINE)
    said = dict(tables)
    for slot in ("shape", "colour", "size", "motion", "direction", "speed", "light"):
        assert tuple(said[slot].split(", ")) == getattr(grammar, f"{slot.upper()}S")
    assert {name: said[name] for name in FAKES} == {name: fake.axis for name, fake in FAKES.items()}
    held_out = set(re.findall(r"^\| (\w+) \|.*\(held out\) \|$", WORLD, re.MULTILINE))
    assert held_out == {name for name, fake in FAKES.items() if fake.held_out}


def test_the_slices_of_the_world_are_those_of_the_code():
    section = WORLD.split("## Edge slices")[1].split("<!-- slices:")[0]
    said = dict(re.findall(r"^\| (\w+) \| (.*?) \|$", section, re.MULTILINE))
    assert {name: said[name] for name in said if name != "slice"} == {n: edge.meaning for n, edge in SLICES.items()}


def test_the_words_of_the_plain_grammar_are_named():
    plain = grammar.GRAMMARS["plain"]
    paragraph = " ".join(PAGES["docs/weights.md"].split("**plain**")[1].split("\n\n")[0].split())
    for words in (plain.shapes, plain.colours):
        assert f"({', '.join(words)})" in paragraph
    assert plain.sizes == ("medium",) and set(plain.motions) == {"moves", "rests"} and plain.clauses == (1, 2)
    assert set(plain.directions) == {"right", "left", "up", "down"} and plain.speeds == ("medium", "fast")
    assert grammar.parse("a red circle moves left fast")[0].held_out


def test_the_readme_is_short_and_names_every_file():
    text = PAGES["README.md"]
    assert len(text.splitlines()) <= 150
    (tree,) = [code for language, code in FENCES.findall(text) if language == "text"]
    named, folder = set(), ""
    for line in tree.splitlines():
        folder = folder if line.startswith(" ") else line.split("/")[0]
        for name in re.findall(r"[\w/]+(?:\{[\w,]*\})?[\w/]*\.py", line):
            head, _, rest = name.partition("{")
            middles, _, tail = rest.partition("}")
            inside = f"{folder}/" if line.startswith(" ") else ""
            named |= {f"{inside}{head}{middle}{tail}" for middle in middles.split(",")}
    assert not [name for name in named if not (ROOT / name).is_file()]
    rooms = ("models", "rewards", "envs", "training", "agents", "distill")
    there = {str(file.relative_to(ROOT)) for room in rooms for file in (ROOT / room).rglob("*.py")}
    assert not {name for name in there if not name.endswith("__init__.py")} - named


def test_the_recipes_of_contributing_run(stack, tmp_path, monkeypatch):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    files = dict(re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    assert set(files) == {"towards_best.py", "test_towards_best.py", "rewards.py", "walk.py", "dice.py"}
    assert text.count("```python") == len(files)
    for name, code in files.items():
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    load = Stack.load
    monkeypatch.setattr(Stack, "load", lambda source="tiny", device="cpu": load(stack, device))
    importlib.import_module("test_towards_best").test_it_learns()
    assert importlib.import_module("rewards").darkness(torch.ones(2, 3, 3, 4, 4), None).tolist() == [-1, -1]
    envs = gymnasium.make_vec("walk:my/Walk-v0", num_envs=3, length=1)
    envs.reset(seed=0)
    assert "final_obs" in envs.step(envs.action_space.sample())[-1]
    dice = importlib.import_module("dice")
    dice.run(dice.Config(seeds=1, workers=1))
    rows = json.loads((tmp_path / "runs/dice/results.json").read_text())["rows"]
    assert dice.report(rows) == "| throw | above |\n| :-- | --: |\n| throw-0 | 0.432 |"


def test_links_of_contributing_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)", (ROOT / "CONTRIBUTING.md").read_text())
    assert links and not [link for link in links if not (ROOT / link).exists()]


def test_every_page_is_in_the_index():
    index = PAGES["docs/README.md"]
    assert not [
        page for page in (ROOT / "docs").glob("*.md") if page.name != "README.md" and f"]({page.name}" not in index
    ]


def results():
    """A results.json as small as can be."""
    method = {"kind": "method", "method": "start", "label": "starting student", "total": 0.5, "low": 0.4, "high": 0.6}
    return {
        "command": "reelgym compare --preset standard",
        "commit": "0123456789abcdef-dirty",
        "device": "a machine",
        "seeds": [0, 1],
        "config": {"workers": 2, "prompts": 4, "clips": 3, "notes": ["A note."]},
        "rows": [method, {"kind": "clip", "of": "clips", "prompt": "a red circle moves left"}],
    }


def test_blocks_are_filled_from_a_run(tmp_path, capsys):
    picture = f"{readme.IMAGES}/clips.webp"
    path = "experiments/results/standard/results.json"
    blocks = "".join(f"<!-- {kind}: {path} -->\nold\n<!-- end -->\n" for kind in ("pictures", "table", "verdict"))
    (tmp_path / "README.md").write_text(f"before\n{blocks}after\n")
    readme.run(readme.Config(), tmp_path)
    assert (tmp_path / "README.md").read_text().count("No results are committed yet") == 3

    wrote = tmp_path / "runs"
    wrote.mkdir()
    (wrote / "results.json").write_text(json.dumps(results()))
    media = {"clips/start": torch.randint(256, (1, 3, 8, 8, 3), dtype=torch.uint8)}
    save_checkpoint(wrote / "media", {"media": media}, {})
    write_picture(wrote, wrote / "clips.webp")
    readme.run(readme.Config(wrote), tmp_path)
    assert json.loads((tmp_path / path).read_text()) == results()
    assert Image.open(tmp_path / picture).n_frames == 3
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("<!-- end -->\nafter\n") and "old" not in text
    assert "| starting student |" in text and "0.500 [0.400, 0.600]" in text
    assert "`0123456789ab` (with changes) on: a machine, 2 worker processes" in text and "- A note." in text
    assert f"]({picture})" in text and "1. a red circle moves left" in text
    assert "test prompts, 3 clips each, seeds 0, 1." in text and "- Nothing was trained." in text
    assert capsys.readouterr().out == "README.md\n" * 2
    readme.run(readme.Config(), tmp_path)
    assert capsys.readouterr().out == ""


def test_the_comparison_page_answers_every_question_of_its_run():
    (path,) = [path for _, kind, path, _ in BLOCK.findall(PAGES["docs/comparison.md"]) if kind == "verdict"]
    rows = json.loads((ROOT / path).read_text())["rows"]
    text = PAGES["docs/comparison.md"].lower()
    for row in rows:
        if row["kind"] == "contrast":
            assert row["question"].rstrip(":").lower() + "? " in text and f"{row['difference']:+.3f}" in text


def test_a_run_that_is_none_is_one_line(capsys, tmp_path):
    assert readme.main(["--run", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("readme: error: ") and not list(tmp_path.iterdir())
