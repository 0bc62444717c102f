"""Self Forcing's public checkpoints and what its cached causal Wan computed with them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reelgym.models.wan import CacheConfig, CausalWan
from reelgym.models.wan_files import load_transformer

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "self-forcing"


def load(name, which="generator_ema", **cache):
    config = json.loads((GOLDEN / name / "config.json").read_text())
    transformer = load_transformer(GOLDEN / name / "checkpoint.pt", config=config["transformer"], which=which)
    cache = CacheConfig(**{"sink_frames": config["sink_frames"], "window_frames": config["window_frames"]} | cache)
    return CausalWan(transformer, config["frames_per_chunk"], config["text_len"], cache).eval(), config


def worst_difference(name, model, config):
    trace = load_file(GOLDEN / name / "trace.safetensors")
    embeds, cache, worst = trace["prompt_embeds"], None, 0.0
    with torch.no_grad():
        for chunk in range(config["chunks"]):
            for sigma in (*config["sigmas"], 0):
                x = trace[f"chunk{chunk}_sigma{sigma:g}_in"].transpose(1, 2)
                flow = model(x, float(sigma), embeds, cache=cache).transpose(1, 2)
                worst = max(worst, float((flow - trace[f"chunk{chunk}_sigma{sigma:g}_flow"]).abs().max()))
            cache = model.write(x, embeds, cache)
    return worst


@pytest.mark.parametrize("which", ["generator", "generator_ema"])
@pytest.mark.parametrize("name", ["full-cache", "sink-window"])
def test_trace_is_reproduced(name, which):
    assert worst_difference(name, *load(name, which)) < 1e-5


@pytest.mark.parametrize("cache", [{"window_frames": 12}, {"sink_frames": 0}, {"window_frames": 6}])
def test_trace_tells_windows_apart(cache):
    assert worst_difference("sink-window", *load("sink-window", **cache)) > 1e-3


def resaved(tmp_path, change, prefix="model."):
    config = json.loads((GOLDEN / "full-cache" / "config.json").read_text())["transformer"]
    weights = torch.load(GOLDEN / "full-cache" / "checkpoint.pt", weights_only=True)["generator_ema"]
    weights = {prefix + name.removeprefix("model."): tensor for name, tensor in weights.items()}
    change(weights)
    torch.save({"model": weights}, tmp_path / "student.pt")
    return tmp_path / "student.pt", config


def test_sharded_prefixes_are_understood(tmp_path):
    path, config = resaved(tmp_path, lambda weights: None, "model._fsdp_wrapped_module.")
    expected = load_transformer(GOLDEN / "full-cache" / "checkpoint.pt", config=config).state_dict()
    for name, tensor in load_transformer(path, config=config, which="model").state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_every_misfit_is_listed(tmp_path):
    def spoil(weights):
        weights["model.extra.weight"] = weights.pop("model.head.head.bias")
        weights["model.blocks.1.ffn.0.weight"] = torch.zeros(3, 4)

    path, config = resaved(tmp_path, spoil)
    with pytest.raises(ValueError) as error:
        load_transformer(path, config=config, which="model")
    for part in ("missing proj_out.bias", "unexpected extra.weight", "blocks.1.ffn.net.0.proj.weight is [3, 4]"):
        assert part in str(error.value)


def test_absent_weights_name_what_there_is(tmp_path):
    path, config = resaved(tmp_path, lambda weights: None)
    with pytest.raises(ValueError, match="holds model, not 'generator_ema'"):
        load_transformer(path, config=config, which="generator_ema")
