"""Parts of one's own: a small package in a temporary folder, through every door, and what is refused."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reelgym import plugins
from reelgym.agents.finetune_recipes import RECIPES
from reelgym.envs.stack import Stack, StackSpec
from reelgym.experiments import cli
from reelgym.experiments.presets import PRESETS
from reelgym.plugins import PluginError, find, resolve
from reelgym.training.recipe import Recipe, find_recipe
from reelgym.video import write_video

ROOT = Path(__file__).parent.parent.parent
SMALL = ["--every", "1", "--validation", "2", "--device", "cpu", "--no-guard", "--updates", "1"]
REWARDS = """
def redness(video, prompts):
    return video[:, :, 0].mean((1, 2, 3))

number = 3
"""
WORLD = """
import torch

from reelgym.noise import stream_keys, uniform


class Flashes:
    judge = "mine.world:brightness"

    def prompts(self, count, *, chunks, split, seed):
        colours = ("red", "blue") if split == "train" else ("green", "cyan")
        return [[f"a {colours[(row + seed) % 2]} circle rests"] * chunks for row in range(count)]

    def video(self, rows, frames_per_chunk, seeds):
        size = (len(rows[0]) * frames_per_chunk, 3, 32, 32)
        return torch.stack([uniform(stream_keys(seed % 1000, 1), 0, 0, size)[0] for seed in seeds])


def brightness(video, rows, frames_per_chunk):
    assert all(row[0].split()[1] in ("green", "cyan") for row in rows)
    return {"total": video.mean((1, 2, 3, 4)), "VQ": video.amax((1, 2, 3, 4))}


flashes = Flashes()
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """`mine`, in the working folder of a command: mine.recipes, the documented example, and mine.rewards."""
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copy(ROOT / "docs" / "examples" / "best_of_n.py", folder / "recipes.py")
    (folder / "__init__.py").write_text("")
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "world.py").write_text(WORLD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


def test_a_recipe_and_a_reward_of_ones_own_train_a_student(package, stack, capsys):
    door = ["mine.recipes:best_of_n", "--stack", str(stack), "--reward", "mine.rewards:redness", *SMALL]
    door += ["--world", "mine.world:flashes"]
    for command in ("finetune", "distill"):
        assert cli.main([command, *door, "--out", f"runs/{command}"]) == 0, capsys.readouterr().err
        assert "32 chunks" not in capsys.readouterr().out
        written = json.loads(Path(f"runs/{command}/results.json").read_text())
        assert written["config"]["reward"] == "mine.rewards:redness" and written["config"]["recipe"]["n"] == 4
        assert "mine.recipes:best_of_n" in written["command"] and "--reward mine.rewards:redness" in written["command"]
    again = [word for word in door if word not in ("--reward", "mine.rewards:redness")]
    assert cli.main(["finetune", *again, "--out", "runs/finetune", "--updates", "2"]) == 1
    assert "another cache, number of steps, LoRA, reward or world" in capsys.readouterr().err


def test_a_reward_of_ones_own_scores_a_file(package, stack):
    write_video("clip.mp4", torch.full((6, 32, 32, 3), 128, dtype=torch.uint8), 8, made_by=None)
    asked = ["--prompt", "a red circle moves left", "--stack", str(stack), "--reward", "mine.rewards:redness"]
    assert cli.main(["score", "clip.mp4", *asked]) == 0
    rows = json.loads(Path("runs/score/results.json").read_text())["rows"]
    assert 0.4 < rows[0]["redness"] < 0.6 and rows[0]["kind"] == "clip"


def test_it_takes_part_in_a_comparison_in_a_spawned_worker(package, weights, capsys, monkeypatch):
    monkeypatch.setitem(PRESETS, "smoke", replace(PRESETS["smoke"], updates={"forward": 1}, sequences=()))
    smoke = ["compare", "--preset", "smoke", "--reward", "mine.rewards:redness", "--world", "mine.world:flashes"]
    smoke += ["--stack", str(weights), "--out", "runs/c"]
    assert cli.main([*smoke, "--workers", "1"]) == 0, capsys.readouterr().err
    add = ["--add", "mine.recipes:best_of_n=1", "--workers", "2"]
    assert cli.main([*smoke, *add]) == 0, capsys.readouterr().err
    rows = json.loads(Path("runs/c/results.json").read_text())["rows"]
    (mine,) = [row for row in rows if row["kind"] == "method" and row["method"] == "mine.recipes:best_of_n"]
    assert mine["updates"] == 1 and mine["chunks"] > 0
    (truth,) = [row for row in rows if row["kind"] == "method" and row["method"] == "truth"]
    assert 0.45 < truth["total"] < 0.55 and truth["vq"] > 0.9 and "a green circle rests" in str(rows)
    assert any(row["kind"] == "contrast" and row["ours"] == "mine.recipes:best_of_n" for row in rows)
    assert cli.main(["compare", "--preset", "smoke", "--add", "mine.recipes:best_of_n"]) == 1
    assert "write module:name=UPDATES" in capsys.readouterr().err


def test_a_stack_file_names_parts_of_ones_own(package, stack):
    Path("stack.toml").write_text(f'base = "{stack}"\n[parts]\nreward = "mine.rewards:redness"\n[layout]\nchunks = 6\n')
    mine = Stack.load("stack.toml")
    assert mine.reward.axes == ("redness",) and mine.layout.chunks == 6 and mine.grammar == "plain"
    assert StackSpec("stack.toml").load().reward.axes == ("redness",)
    for text, what in (("parts = 3\nx = 1", "unknown x"), ('[parts]\neye = "a"', "unknown parts eye")):
        Path("bad.toml").write_text(text)
        with pytest.raises(ValueError, match=what):
            Stack.load("bad.toml")


def test_names_of_installed_packages_are_found(package, monkeypatch):
    monkeypatch.setattr(plugins, "installed", lambda group: {"redness": "mine.rewards:redness"})
    assert find("rewards", "redness", {}).__name__ == "redness"
    assert find("rewards", "redness", {"redness": "json:dumps"}) is json.dumps
    with pytest.raises(PluginError, match="choose from json, redness"):
        find("rewards", "blueness", {"json": json})


def test_what_leads_nowhere_is_told(package):
    for path, what in {
        "mine.rewards": "write module:name",
        "mine.nowhere:x": "no module 'mine.nowhere'",
        "mine.rewards:x": "has no 'x'",
    }.items():
        with pytest.raises(PluginError, match=what):
            resolve(path)
    with pytest.raises(PluginError, match="is no recipe, it lacks trainer"):
        find_recipe("mine.rewards:number", RECIPES)
    with pytest.raises(PluginError, match="redness is no recipe"):
        find_recipe("mine.rewards:redness", RECIPES)
    (package / "mine" / "broken.py").write_text("import not_there")
    with pytest.raises(ModuleNotFoundError, match="not_there"):
        resolve("mine.broken:x")
    assert all(isinstance(recipe, Recipe) for recipe in RECIPES.values())
