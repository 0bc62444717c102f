"""The two commands that measure the generator, small."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from reelgym.envs.stack import STACKS, Stack
from reelgym.experiments import cli
from reelgym.experiments.audit import cache
from reelgym.experiments.bench import random_wan, streaming, streaming_runs
from reelgym.experiments.options import cache_policies
from reelgym.models.cache import CacheConfig
from reelgym.models.generator import stream
from reelgym.models.stream_files import StreamSettings
from reelgym.noise import stream_keys

SMALL = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 16, "freq_dim": 16, "ffn_dim": 32}


@pytest.fixture
def tiny(stack, monkeypatch):
    """The untrained stack in place of the shipped one."""
    monkeypatch.setitem(STACKS, "tiny", Path(stack))
    return Stack.load("tiny").pipeline


def rows_in(folder, kind):
    rows = json.loads((folder / "results.json").read_text())["rows"]
    return [row for row in rows if row["kind"] == kind]


def test_bench_streaming_end_to_end(tiny, tmp_path, capsys):
    args = [
        "--parts",
        "position",
        "recompute",
        "batch",
        "first",
        "--chunks",
        "3",
        "6",
        "--latents",
        "6",
        "--rounds",
        "1",
    ]
    args += ["--batches", "1", "2", "--streams", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert cli.main(["bench", "streaming", *args]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert all(head in out for head in ("Chunk 6 against chunk 3", "Against full recomputation", "Time to the first"))
    found = {row["policy"]: row for row in rows_in(tmp_path, "position")}
    assert list(found) == list(streaming.STREAM_POLICIES)
    assert found["window"]["late_mib"] == pytest.approx(found["window"]["early_mib"] * 9 / 6)
    assert found["keep everything"]["late_mib"] == pytest.approx(found["keep everything"]["early_mib"] * 15 / 6)
    assert all(row["ratio"] == pytest.approx(row["late_ms"] / row["early_ms"]) for row in found.values())
    by_three, by_one = rows_in(tmp_path, "recompute")
    assert (by_three["frames_per_chunk"], by_one["frames_per_chunk"]) == (3, 1) and by_one["latents"] == 6
    assert max(by_three["difference"], by_one["difference"]) < 1e-4
    assert [row["streams"] for row in rows_in(tmp_path, "batch")] == [1, 2] and rows_in(tmp_path, "first")[0]["ms"] > 0


def test_wan_of_random_weights_is_timed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(streaming, "random_wan", lambda *given: random_wan.random_wan(*given, *small()))
    args = ["--config", "wan-1.3b", "--random-weights", "--size", "32x16", "--parts", "batch", "--batches", "1"]
    args += ["--rounds", "1", "--device", "cpu", "--dtype", "bfloat16", "--out", str(tmp_path)]
    assert cli.main(["bench", "streaming", *args]) == 0, capsys.readouterr().err
    (model,), (batch,) = rows_in(tmp_path, "model"), rows_in(tmp_path, "batch")
    assert (model["width"], model["height"], model["dtype"], model["window"]) == (32, 16, "bfloat16", 21)
    assert batch["shown_fps"] == 16 and batch["fps"] < batch["denoise_fps"]


def small():
    """Arguments of a small transformer and a small codec, of Wan's factors."""
    vae = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 2, 2], "num_res_blocks": 1}
    vae |= {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    return SMALL | {"in_channels": 4, "out_channels": 4, "num_layers": 1}, vae


def test_the_random_encoder_tells_texts_apart():
    made = random_wan.random_wan(
        StreamSettings(size=(16, 16), text_len=6), torch.device("cpu"), torch.float32, *small()
    )
    found = made.encode(["a", "b", "a"])
    assert found.shape == (3, 6, 16) and torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


def test_recomputation_makes_the_same_clip(tiny):
    made = tiny.with_cache(CacheConfig())
    embeds, keys = made.encode([streaming_runs.PROMPT]), stream_keys(3, 1)
    with torch.no_grad():
        anew = streaming_runs.recomputed(made.generator, keys, embeds, 3)
    cached = stream(made.generator, embeds[:, None].expand(-1, 3, -1, -1), keys)
    torch.testing.assert_close(anew, cached, atol=1e-4, rtol=0)
    assert streaming_runs.token_ratio(7, 4) == pytest.approx(3.2)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--config", "wan-1.3b"], "needs --weights FOLDER"),
        (["--random-weights"], "go with --config wan-1.3b"),
        (["--policies", "lru"], "no policy 'lru'; choose from window"),
        (["--chunks", "9", "4"], "an early one from 2 on, and a later one"),
        (["--rounds", "0"], "counted from 1"),
        (["--config", "wan-1.3b", "--random-weights", "--size", "big"], "write WIDTHxHEIGHT"),
    ],
)
def test_bench_streaming_says_what_is_wrong(args, words, capsys):
    assert cli.main(["bench", "streaming", "--device", "cpu", *args]) == 1
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_audit_cache_end_to_end(tiny, tmp_path, capsys, monkeypatch):
    known = cache_policies(CacheConfig(0, 12), 3)
    assert len(cache.POLICIES) == 5 and set(cache.POLICIES) <= set(known)
    monkeypatch.setattr(cache, "POLICIES", cache.SHOWN_CHUNKS)
    args = ["--horizon", "2", "--prompts", "3", "--seeds", "1", "--settle", "1", "--follow", "2", "--drift-chunks", "2"]
    assert cli.main(["audit", "cache", *args, "--device", "cpu", "--out", str(tmp_path)]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    policies = {row["policy"]: row for row in rows_in(tmp_path, "policy")}
    assert tuple(policies) == cache.SHOWN_CHUNKS
    assert policies["keep everything"]["kept"] == 24 and policies["window"]["kept"] == 9
    assert "difference" not in policies["window"] and policies["sink and window"]["verdict"] in ("yes", "no", "unclear")
    assert [row["chunk"] for row in rows_in(tmp_path, "window") if row["policy"] == "window"] == [4, 8]
    switches = rows_in(tmp_path, "switch")
    assert len(switches) == 6 and {row["how"] for row in switches} == {"keep", "recache"}
    assert all(1 <= row["latency"] <= 3 for row in switches) and "After a switch of the prompt." in out
    assert len(rows_in(tmp_path, "drift")) == 4
    assert Image.open(tmp_path / "cache-policies.webp").n_frames == 24
    assert "polyline" in (tmp_path / "cache-policies.svg").read_text()
    assert cli.main(["audit", "cache", "--seeds", "0", "--device", "cpu"]) == 1
    assert "counted from 1" in capsys.readouterr().err


def test_what_is_compiled_is_a_copy(tiny, monkeypatch):
    made = tiny
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: asked.append((self, how)))
    config = streaming.Config(mode="reduce-overhead", rounds=1)
    (row,) = streaming_runs.compile_rows(made, config, lambda what: None)
    ((module, how),) = asked
    assert module is not made.generator.model.transformer and how == {"mode": "reduce-overhead", "dynamic": None}
    assert row["difference"] == 0 and row["compiled_ms"] > 0
