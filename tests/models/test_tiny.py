import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from reelgym.checkpoint import CheckpointError
from reelgym.models.cache import CacheConfig
from reelgym.models.prompts import WordEncoder
from reelgym.models.tiny import (
    PARTS,
    TEXT_LEN,
    Part,
    build_codec,
    build_reward,
    build_wan,
    load_encoder,
    load_manifest,
    load_tiny,
    save_tiny,
)

VOCAB = ("red", "blue", "circle")
ENCODER = WordEncoder(VOCAB, TEXT_LEN)
MANIFEST = {"recipe": {"grammar": "plain"}, "seed": 3, "steps": 10, "quality": {"accuracy": 0.9}, "vocab": VOCAB}


def test_codec_returns_as_it_was(tmp_path: Path) -> None:
    codec = build_codec().eval()
    codec.calibrate(torch.rand(1, 4, 3, 32, 32))
    save_tiny(tmp_path / "codec", codec, {"seed": 0})
    again = load_tiny("codec", tmp_path / "codec")
    video = torch.rand(1, 2, 3, 32, 32)
    assert torch.equal(again.encode(video), codec.encode(video)) and not again.training


def test_transformer_returns_with_its_cache(tmp_path: Path) -> None:
    cache = CacheConfig(sink_frames=1, window_frames=9)
    model = build_wan(ENCODER.dim, cache).eval()
    save_tiny(tmp_path / "student", model, MANIFEST)
    again = load_tiny("student", tmp_path / "student")
    x, embeds = torch.randn(1, 3, 8, 8, 8), ENCODER.encode(["red circle"])
    with torch.no_grad():
        assert torch.equal(again(x, 0.5, embeds), model(x, 0.5, embeds))
    assert again.cache_config == cache
    assert load_tiny("teacher", tmp_path / "student").text_len == TEXT_LEN


def test_reward_returns_with_manifest_and_vocabulary(tmp_path: Path) -> None:
    reward = build_reward(ENCODER.dim).eval()
    reward.calibrate(torch.randn(5, 3))
    save_tiny(tmp_path / "reward", reward, MANIFEST)
    video, embeds = torch.rand(1, 3, 3, 32, 32), ENCODER.encode(["red circle"])
    again = load_tiny("reward", tmp_path / "reward")
    assert torch.equal(again(video, embeds), reward(video, embeds)) and torch.equal(again.mean, reward.mean)
    manifest = load_manifest("reward", tmp_path / "reward")
    assert manifest["seed"] == 3 and manifest["quality"] == {"accuracy": 0.9}
    encoder = load_encoder("reward", tmp_path / "reward")
    assert encoder.vocab == VOCAB and torch.equal(encoder.encode(["red circle"]), embeds)


def test_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no reward weights here; make them with `reelgym train reward`"):
        load_tiny("reward", tmp_path / "none")
    with pytest.raises(ValueError, match="no part 'critic'"):
        load_tiny("critic", tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Linear is no part"):
        save_tiny(tmp_path / "x", torch.nn.Linear(1, 1), {})
    save_tiny(tmp_path / "reward", build_reward(ENCODER.dim), {})
    with pytest.raises(CheckpointError, match="holds a reward model, which is no codec"):
        load_tiny("codec", tmp_path / "reward")
    with pytest.raises(CheckpointError, match="no vocabulary"):
        load_encoder("reward", tmp_path / "reward")


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "reward"
    save_tiny(folder, build_reward(ENCODER.dim), {})
    (weights,) = folder.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="damaged"):
        load_tiny("reward", folder)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "reward"
    save_tiny(folder, build_reward(ENCODER.dim), {})
    manifest = folder / "checkpoint.json"
    data = json.loads(manifest.read_text())
    data["meta"]["architecture"]["width"] = 32
    manifest.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="do not fit"):
        load_tiny("reward", folder)


@pytest.mark.parametrize("name", PARTS)
def test_shipped_parts_describe_themselves_as_their_manifests_do(name: Part) -> None:
    module = load_tiny(name)
    described = json.loads(json.dumps({"kind": PARTS[name], **module.config}))
    shipped = load_manifest(name)["architecture"]
    if "cache" in shipped:
        shipped["cache"] = asdict(CacheConfig(**shipped["cache"]))
    assert described == shipped
    again = type(module).from_config(**module.config)
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in module.state_dict().items()
    }
