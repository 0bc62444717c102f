"""`reelgym audit credit`: its arithmetic by hand, and a run on a stack with random weights."""

import json
import math

import numpy as np
import pytest

from reelgym.experiments import cli
from reelgym.experiments.audit.credit import CREDIT_SETTINGS, needed, setting_row, signal


def test_noise_free_gradients_need_one_update_or_less():
    along = np.ones(8)
    assert signal(along, along) > 1e10 and needed(signal(along, along), 64) < 1e-10
    assert signal(-along, along) < 0 and needed(signal(-along, along), 64) is None


@pytest.mark.parametrize(("noise", "chunks"), [(3.0, 16), (1.0, 64)])
def test_an_average_over_the_chunks_needed_has_a_cosine_of_half(noise, chunks):
    random, truth = np.random.default_rng(0), np.eye(400)[0]
    updates = truth + noise * random.normal(size=(20_000, 400)) / 20
    ratio = signal(updates @ truth, np.linalg.norm(updates, axis=1))
    assert ratio == pytest.approx(1 / noise, rel=0.05)
    count = needed(ratio, chunks) / chunks
    mean = truth + noise / math.sqrt(count) * random.normal(size=(2000, 400)) / 20
    assert np.mean(mean[:, 0] / np.linalg.norm(mean, axis=1)) == pytest.approx(0.5, abs=0.03)


def test_a_row_counts_all_updates():
    results = [{"along": [1.0, 3.0], "length": [2.0, 4.0], "chunks": 32, "seconds": 3.0, "halves": 0.5}] * 2
    row = setting_row("forward", results)
    assert (row["updates"], row["chunks"], row["seconds"], row["cosine"]) == (4, 16, 1.5, 0.625)
    assert row["needed_low"] <= row["needed"] <= row["needed_high"]


def test_a_dash_changes_one_thing(differences):
    for name, (label, recipe) in CREDIT_SETTINGS.items():
        if not label.startswith("- "):
            above = recipe
        elif name not in ("small", "large"):  # as many clips in other groups
            base = CREDIT_SETTINGS["own"][1] if name == "clip" else above
            assert len(differences(base, recipe)) == 1, name


def test_end_to_end(stack, tmp_path, capsys):
    size = ["--seeds", "1", "--chunks", "16", "--truth", "64", "--workers", "1"]
    args = ["audit", "credit", "--settings", "reward", *size, "--weights", str(stack), "--out", str(tmp_path)]
    assert cli.main(args) == 0, capsys.readouterr().err
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["kind"] for row in rows] == ["truth", "setting"] and rows[1]["updates"] == 1
    assert "reward gradient" in capsys.readouterr().out
    assert cli.main([*args, "--settings", "all"]) == 1 and "choose from" in capsys.readouterr().err
    assert set(CREDIT_SETTINGS) >= {"reward", "forward", "policy", "raven", "flow-grpo", "ddpo", "placebo"}
