"""Detectors of the tiny stack: what they learn from, what is measured, and `reelgym train detector`."""

import json
import shutil
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO

import pytest
import torch

from reelgym.checkpoint import load_checkpoint
from reelgym.envs.clip_dataset import HELD_OUT
from reelgym.experiments import train
from reelgym.experiments.pretrain import detector as pretraining
from reelgym.experiments.pretrain.detector import DETECTOR_RECIPES, LENGTH, filmed
from reelgym.experiments.pretrain.detector_measure import mixed
from reelgym.experiments.pretrain.footage import FOOTAGE_FAMILIES, LEARNED, REAL_FOOTAGE, footage
from reelgym.models.calibration import Calibration
from reelgym.models.tiny import load_manifest, load_tiny


def test_a_mix_counts_both_kinds_alike():
    logits = {
        REAL_FOOTAGE: torch.zeros(6, 2),
        "student": torch.ones(4, 2),
        "scripted": torch.ones(2, 2),
        "teacher": torch.ones(1, 2),
    }
    values, made, weight = mixed(logits, {"student": 3.0, "scripted": 1.0})
    assert values.shape == (12, 2) and torch.equal(made, values[:, 0] > 0)
    assert float(weight[made].sum()) == pytest.approx(1) and float(weight[~made].sum()) == pytest.approx(1)
    assert weight[made].tolist() == pytest.approx([0.75 / 4] * 4 + [0.25 / 2] * 2)


def test_held_out_families_are_in_no_recipe():
    assert not set(LEARNED) & set(HELD_OUT) and set(FOOTAGE_FAMILIES) == {*LEARNED, *HELD_OUT}
    for recipe in DETECTOR_RECIPES.values():
        assert set(recipe.learned()) == {REAL_FOOTAGE, *recipe.weights} and set(recipe.weights) <= set(LEARNED)
    assert DETECTOR_RECIPES["rival"].weights["student"] == 0.5 and DETECTOR_RECIPES["rival"].camera == "night"
    assert DETECTOR_RECIPES["detector"].camera == "phone" and DETECTOR_RECIPES["detector"].measured >= 2000


def test_clips_are_kept_and_made_once(weights, tmp_path, monkeypatch):
    wanted = {REAL_FOOTAGE: 3, "student-1": 2, "scripted": 2}
    first = footage(wanted, "train", 0, weights, tmp_path)
    assert {name: len(video) for name, video in first.items()} == wanted
    assert all(video.dtype == torch.uint8 and video.shape[1:] == (12, 3, 32, 32) for video in first.values())
    from reelgym.experiments.pretrain import footage as module

    again = footage(wanted, "train", 0, weights, tmp_path / "anew")
    assert all(torch.equal(first[name], again[name]) for name in wanted)
    other = footage({REAL_FOOTAGE: 3}, "test", 0, weights, tmp_path)
    assert not torch.equal(other[REAL_FOOTAGE], first[REAL_FOOTAGE])
    monkeypatch.setattr(module, "clips_of", lambda *args, **kwargs: pytest.fail("made again"))
    assert torch.equal(footage(wanted, "train", 0, weights, tmp_path)[REAL_FOOTAGE], first[REAL_FOOTAGE])


def test_a_film_is_what_the_game_shows():
    video = torch.randint(256, (2, 12, 3, 32, 32), dtype=torch.uint8)
    film = filmed(video, "clean", 2, 0)
    assert film.shape == (2, 12, 3, 16, 16)
    means = video.float().unflatten(-1, (16, 2)).unflatten(-3, (16, 2)).mean((-1, -3)) / 255
    torch.testing.assert_close(film, means, atol=0.51 / 255, rtol=0)


@pytest.fixture(scope="module")
def trained(weights, tmp_path_factory):
    """`trained(name, out, **options)`: what the command prints, by recipes that run in seconds."""
    short = replace(LENGTH, steps=2, batch=4, checkpoint_every=1)
    sizes = {"real": 6, "made": 4, "slow": 1, "calibrated": 8, "measured": 8, "judged": 4, "schedule": short}
    recipes = {name: replace(recipe, **sizes) for name, recipe in DETECTOR_RECIPES.items()}

    def train_it(name, out, **options):
        with redirect_stdout(StringIO()) as printed:
            train.run(train.Config(name, weights=weights, threads=1, out=out, **options))
        return printed.getvalue()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "DETECTOR_RECIPES", recipes)
        yield train_it


@pytest.fixture(scope="module")
def runs(trained, tmp_path_factory):
    """What was printed, and the folder, of both."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: (trained(name, folder / name), folder / name) for name in ("detector", "rival")}


@pytest.mark.parametrize("name", ["detector", "rival"])
def test_training_by_the_command(name, runs):
    printed, folder = runs[name]
    manifest = json.loads((folder / "weights" / "checkpoint.json").read_text())["meta"]
    recipe = DETECTOR_RECIPES[name]
    assert manifest["part"] == name and manifest["steps"] == 2 and manifest["seed"] == 0
    assert [manifest[key] for key in ("camera", "pool", "chunk", "fps")] == [recipe.camera, 2, 3, 8]
    figures = {f"{kind}_{family.replace('-', '_')}" for kind in ("auc", "tpr") for family in FOOTAGE_FAMILIES}
    assert figures | {"ece", "false_positives", "seconds"} <= set(manifest["quality"])
    assert {"auc_student_d3", "auc_student_restrav", "auc_student_after_1"} <= set(manifest["quality"])
    assert all(isinstance(value, float) for value in manifest["quality"].values())
    assert list(manifest["calibration"]) == ["1", "2", "3", "4"] and manifest["real_clips"] == 8
    assert all(
        len(row["reals"]) == 201 and row["reals"] == sorted(row["reals"]) for row in manifest["calibration"].values()
    )
    assert Calibration.from_manifest(load_manifest(name, folder / "weights")).chunks == 4
    assert load_tiny(name, folder / "weights").size == 16
    assert "auc_student=" in printed and "step=2 " in (folder / "log.txt").read_text()


def test_a_killed_training_goes_on_to_the_same_end(trained, runs, tmp_path):
    def weights_in(out):
        return load_checkpoint(out / "weights")[0]["weights"]

    whole, parts = runs["rival"][1], tmp_path / "parts"
    shutil.copytree(whole / "clips", parts / "clips")
    trained("rival", parts, stop=1)
    early = weights_in(parts)
    trained("rival", parts)
    assert all(torch.equal(value, weights_in(parts)[key]) for key, value in weights_in(whole).items())
    assert any(not torch.equal(value, early[key]) for key, value in weights_in(whole).items())


def test_compile_is_no_option_of_a_detector():
    with pytest.raises(ValueError, match="--compile has no use for the rival"):
        train.run(train.Config("rival", compile=True))


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder; begin with reelgym train codec"):
        train.run(train.Config("teacher", weights=tmp_path / "nowhere"))
