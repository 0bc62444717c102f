"""Detectors of the tiny stack: what they learn from, what is measured, and `reelgym train detector`."""

import json
from dataclasses import replace

import pytest
import torch

from reelgym.checkpoint import load_checkpoint
from reelgym.envs.detect_bank import HELD_OUT
from reelgym.experiments import train
from reelgym.experiments.pretrain import detector as pretraining
from reelgym.experiments.pretrain.detector import LENGTH, RECIPES, filmed
from reelgym.experiments.pretrain.detector_measure import calibration_error, mixed
from reelgym.experiments.pretrain.footage import FAMILIES, LEARNED, REAL, footage
from reelgym.models.calibration import Calibration
from reelgym.models.tiny import load_manifest, load_tiny


def test_calibration_error_by_hand():
    made = torch.tensor([True, True, False, False])
    even = torch.ones(4)
    assert calibration_error(torch.tensor([1.0, 1.0, 0.0, 0.0]), made, even) == 0
    assert calibration_error(torch.full((4,), 0.5), made, even) == pytest.approx(0)
    assert calibration_error(torch.full((4,), 0.9), made, even) == pytest.approx(0.4)
    weight = torch.tensor([3.0, 3.0, 1.0, 1.0])
    assert calibration_error(torch.full((4,), 0.5), made, weight) == pytest.approx(0.25)


def test_a_mix_counts_both_kinds_alike():
    logits = {
        REAL: torch.zeros(6, 2),
        "student": torch.ones(4, 2),
        "scripted": torch.ones(2, 2),
        "teacher": torch.ones(1, 2),
    }
    values, made, weight = mixed(logits, {"student": 3.0, "scripted": 1.0})
    assert values.shape == (12, 2) and torch.equal(made, values[:, 0] > 0)
    assert float(weight[made].sum()) == pytest.approx(1) and float(weight[~made].sum()) == pytest.approx(1)
    assert weight[made].tolist() == pytest.approx([0.75 / 4] * 4 + [0.25 / 2] * 2)


def test_held_out_families_are_in_no_recipe():
    assert not set(LEARNED) & set(HELD_OUT) and set(FAMILIES) == {*LEARNED, *HELD_OUT}
    for recipe in RECIPES.values():
        assert set(recipe.learned()) == {REAL, *recipe.weights} and set(recipe.weights) <= set(LEARNED)
    assert RECIPES["rival"].weights["student"] == 0.5 and RECIPES["rival"].camera == "night"
    assert RECIPES["detector"].camera == "phone" and RECIPES["detector"].measured >= 2000


def test_clips_are_kept_and_made_once(weights, tmp_path, monkeypatch):
    wanted = {REAL: 3, "student-1": 2, "scripted": 2}
    first = footage(wanted, "train", 0, weights, tmp_path)
    assert {name: len(video) for name, video in first.items()} == wanted
    assert all(video.dtype == torch.uint8 and video.shape[1:] == (12, 3, 32, 32) for video in first.values())
    from reelgym.experiments.pretrain import footage as module

    again = footage(wanted, "train", 0, weights, tmp_path / "anew")
    assert all(torch.equal(first[name], again[name]) for name in wanted)
    other = footage({REAL: 3}, "test", 0, weights, tmp_path)
    assert not torch.equal(other[REAL], first[REAL])
    monkeypatch.setattr(module, "clips_of", lambda *args, **kwargs: pytest.fail("made again"))
    assert torch.equal(footage(wanted, "train", 0, weights, tmp_path)[REAL], first[REAL])


def test_a_film_is_what_the_game_shows():
    video = torch.randint(256, (2, 12, 3, 32, 32), dtype=torch.uint8)
    film = filmed(video, "clean", 2, 0)
    assert film.shape == (2, 12, 3, 16, 16)
    means = video.float().unflatten(-1, (16, 2)).unflatten(-3, (16, 2)).mean((-1, -3)) / 255
    torch.testing.assert_close(film, means, atol=0.51 / 255, rtol=0)


@pytest.fixture
def small(monkeypatch):
    """Recipes that run in seconds."""
    short = replace(LENGTH, steps=2, batch=4, checkpoint_every=1)
    sizes = {
        "real": 6,
        "made": 4,
        "slow": 1,
        "calibrated": 8,
        "measured": 8,
        "judged": 4,
        "schedule": short,
    }
    monkeypatch.setattr(pretraining, "RECIPES", {name: replace(recipe, **sizes) for name, recipe in RECIPES.items()})


@pytest.mark.parametrize("name", ["detector", "rival"])
def test_training_by_the_command(name, small, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train.run(train.Config(name, weights=weights, threads=1))
    folder = tmp_path / "runs" / name
    manifest = json.loads((folder / "weights" / "checkpoint.json").read_text())["meta"]
    recipe = RECIPES[name]
    assert manifest["part"] == name and manifest["steps"] == 2 and manifest["seed"] == 0
    assert [manifest[key] for key in ("camera", "pool", "chunk", "fps")] == [recipe.camera, 2, 3, 8]
    figures = {f"{kind}_{family.replace('-', '_')}" for kind in ("auc", "tpr") for family in FAMILIES}
    assert figures | {"ece", "false_positives", "seconds"} <= set(manifest["quality"])
    assert {"auc_student_d3", "auc_student_restrav", "auc_student_after_1"} <= set(manifest["quality"])
    assert all(isinstance(value, float) for value in manifest["quality"].values())
    assert list(manifest["calibration"]) == ["1", "2", "3", "4"] and manifest["real_clips"] == 8
    assert all(
        len(row["reals"]) == 201 and row["reals"] == sorted(row["reals"]) for row in manifest["calibration"].values()
    )
    assert Calibration.from_manifest(load_manifest(name, folder / "weights")).chunks == 4
    assert load_tiny(name, folder / "weights").size == 16
    assert "auc_student=" in capsys.readouterr().out and "step=2 " in (folder / "log.txt").read_text()


def test_a_killed_training_goes_on_to_the_same_end(small, weights, tmp_path):
    def trained(out, **given):
        train.run(train.Config("rival", weights=weights, threads=1, out=out, **given))
        return load_checkpoint(out / "weights")[0]["weights"]

    whole = trained(tmp_path / "whole")
    early = trained(tmp_path / "parts", stop=1)
    resumed = trained(tmp_path / "parts")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert any(not torch.equal(whole[key], early[key]) for key in whole)


def test_compile_is_no_option_of_a_detector():
    with pytest.raises(ValueError, match="--compile has no use for the rival"):
        train.run(train.Config("rival", compile=True))
