import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reelgym.distill.recipes import DISTILL
from reelgym.envs.stack import STACKS
from reelgym.experiments import cli
from reelgym.experiments.bench import distill, reward
from reelgym.models.reward_net import TinyReward


def test_bench_reward_end_to_end(capsys, tmp_path):
    size = ["--width", "64", "--layers", "1", "--side", "56"]
    args = ["--batches", "1", "2", "--repeats", "1", "--threads", "1", *size, "--out", str(tmp_path)]
    assert cli.main(["bench", "reward", *args]) == 0, capsys.readouterr().err
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [(row["model"], row["clips"]) for row in rows] == [
        ("tiny", 1),
        ("tiny", 2),
        ("Qwen2-VL, random", 1),
        ("Qwen2-VL, random", 2),
    ]
    assert all(row["difference"] <= 1e-4 for row in rows)
    assert all(row["ratio"] == row["published_ms"] / row["ours_ms"] for row in rows)
    assert rows[1]["ours_mib"] > rows[0]["ours_mib"] > rows[0]["published_mib"] == rows[1]["published_mib"]


def test_the_published_procedure_recomputes_its_tower():
    model = TinyReward(12, width=32)
    twin = reward.recomputing(model, ("encoder",))
    calls = []
    twin.encoder.inner.stem.register_forward_hook(lambda *_: calls.append(1))
    video = torch.rand(1, 4, 3, 32, 32, requires_grad=True)
    scores = twin(video, torch.zeros(1, 6, 12))
    for axis in (1, 2):
        torch.autograd.grad(scores[0, axis], video, retain_graph=True)
    assert len(calls) == 3
    assert torch.allclose(scores, model(video, torch.zeros(1, 6, 12)))


def test_bench_distill_splits_an_update(capsys, tmp_path, monkeypatch, stack):
    monkeypatch.setitem(STACKS, "tiny", Path(stack))
    small = {name: recipe.with_batch(2) for name, recipe in DISTILL.items()}
    small[distill.AS_IT_WAS] = replace(small["dmd"], critic_updates=3)
    monkeypatch.setattr(distill, "_KNOWN", small)
    args = ["--recipes", "stream-r1", "consistency", "--repeats", "1", "--out", str(tmp_path)]
    assert cli.main(["bench", "distill", *args]) == 0, capsys.readouterr().err
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["recipe"] for row in rows] == [distill.AS_IT_WAS, "stream-r1", "consistency"]
    for row in rows[:2]:
        parts = [row[name] for name in ("rollout", "critic", "scores", "reward", "step")]
        assert min(parts) >= 0 and sum(parts) == pytest.approx(row["seconds"])
    assert rows[1]["reward"] > rows[0]["reward"] and rows[2]["critic"] is None
    assert rows[0]["ratio"] == 1 and distill.report(rows) in capsys.readouterr().out
