"""VideoReward's files: checkpoint layouts, LoRA, settings, the wording of the prompt, and what is said of faults."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reelgym.checkpoint import CheckpointError
from reelgym.models.videoreward import VideoReward
from reelgym.models.videoreward.prompt import read_template

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "videoreward"
TRACE = load_file(GOLDEN / "trace.safetensors")


def difference(model):
    """Of the logits from those of the public implementation."""
    inputs = (TRACE[name] for name in ("pixel_values_videos", "video_grid_thw", "input_ids", "attention_mask"))
    return float((model.logits(*inputs) - TRACE["logits"]).abs().max())


def published():
    """The golden checkpoint's tensors by published name, and its LoRA pairs merged by hand under plain names."""
    wrapped = torch.load(GOLDEN / "checkpoint-1" / "model.pth", weights_only=True)
    bare = {name.removeprefix("base_model.model."): tensor for name, tensor in wrapped.items()}
    merged = {name.replace(".base_layer.", "."): tensor.clone() for name, tensor in bare.items() if "lora" not in name}
    for name in bare:
        if ".lora_A." in name:
            update = bare[name.replace("lora_A", "lora_B")] @ bare[name]
            merged[name.replace(".lora_A.default", "")] += 8 / 4 * update
    return wrapped, merged


def folder_with(tmp_path, tensors=None, config=lambda config: None):
    """A copy of the golden folder with other tensors and changed settings."""
    folder = tmp_path / "reward"
    shutil.copytree(GOLDEN, folder)
    if tensors is not None:
        torch.save(tensors, folder / "checkpoint-1" / "model.pth")
    settings = json.loads((folder / "model_config.json").read_text())
    config(settings)
    (folder / "model_config.json").write_text(json.dumps(settings))
    return folder


def later_name(name):
    """As transformers 4.52 and later write it."""
    if "_head" in name:
        return name
    return "model." + (name if name.startswith("visual.") else "language_model." + name.removeprefix("model."))


@pytest.mark.parametrize("rename", [str, "base_model.model.{}".format, later_name])
def test_merged_checkpoints_agree(tmp_path, rename):
    _, merged = published()
    folder = folder_with(tmp_path, {rename(name): tensor for name, tensor in merged.items()})
    assert difference(VideoReward.from_pretrained(folder)) < 1e-5


@pytest.mark.parametrize("embedding_in", ["checkpoint", "backbone"])
def test_split_checkpoints_agree(tmp_path, embedding_in):
    wrapped, merged = published()
    folder, backbone = folder_with(tmp_path), tmp_path / "backbone"
    (folder / "checkpoint-1" / "model.pth").unlink()
    adapter = {name.replace(".default", ""): tensor for name, tensor in wrapped.items() if "lora" in name}
    save_file(adapter, folder / "checkpoint-1" / "adapter_model.safetensors")
    tuned = {name: tensor for name, tensor in wrapped.items() if ".visual." in name or "rm_head" in name}
    base = {name.removeprefix("base_model.model.").replace(".base_layer.", "."): t for name, t in wrapped.items()}
    frozen = {name: base[name] for name in merged if name.startswith("model.")}
    frozen["visual.patch_embed.proj.weight"] = torch.zeros(1)
    embedding = frozen["model.embed_tokens.weight"]
    frozen["model.embed_tokens.weight"] = torch.cat([embedding, torch.ones(9, 48)])
    if embedding_in == "checkpoint":
        tuned["base_model.model.model.embed_tokens.weight"] = embedding
    torch.save(tuned, folder / "checkpoint-1" / "non_lora_state_dict.pth")
    with pytest.raises(CheckpointError, match="leaves out frozen weights; pass backbone="):
        VideoReward.from_pretrained(folder)
    backbone.mkdir()
    with pytest.raises(CheckpointError, match="no safetensors in it"):
        VideoReward.from_pretrained(folder, backbone)
    names = sorted(frozen)
    for part in range(2):
        save_file({name: frozen[name] for name in names[part::2]}, backbone / f"model-0000{part}.safetensors")
    assert difference(VideoReward.from_pretrained(folder, backbone)) < 1e-5


def test_lora_scale_by_the_root_of_the_rank(tmp_path):
    def change(config):
        config["peft_lora_config"].update(use_rslora=True, lora_alpha=4)

    assert difference(VideoReward.from_pretrained(folder_with(tmp_path, config=change))) < 1e-5


def test_what_is_kept():
    model = VideoReward.from_pretrained(GOLDEN)
    assert model.mean.tolist() == pytest.approx([0.1, -0.2, 0.05])
    assert model.std.tolist() == pytest.approx([0.7, 1.3, 0.9])
    assert (model.axes, model.min_frames, model.special_token_ids) == (("VQ", "MQ", "TA"), 4, (297, 298, 299))
    assert not any("lm_head" in name or "lora" in name for name in model.state_dict())
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


def test_half_precision_on_request():
    model = VideoReward.from_pretrained(GOLDEN, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 and model.mean.dtype == model.head.weight.dtype == torch.float32
    assert 0 < difference(model) < 0.05


def test_every_misfit_is_listed_and_nothing_is_loaded(tmp_path):
    wrapped, _ = published()
    stem = "base_model.model.model.layers.0.self_attn"
    del wrapped[f"{stem}.v_proj.lora_B.default.weight"]
    del wrapped["base_model.model.visual.merger.ln_q.bias"]
    wrapped["base_model.model.visual.blocks.0.norm1.weight"] = torch.zeros(7)
    wrapped["base_model.model.audio.weight"] = torch.zeros(1)
    wrapped[f"{stem}.q_proj.weight"] = torch.zeros(48, 48)
    wrapped[f"{stem}.k_proj.lora_A.default.weight"] = torch.zeros(5, 48)
    wrapped[f"{stem}.o_proj.lora_A.default.weight"] = torch.zeros(4, 47)
    wrapped[f"{stem}.rotary.lora_A.default.weight"] = torch.zeros(4, 48)
    with pytest.raises(CheckpointError) as error:
        VideoReward.from_pretrained(folder_with(tmp_path, wrapped))
    for part in (
        "nothing was loaded",
        "missing lora_B of backbone.language_model.layers.0.self_attn.v_proj.weight",
        "missing backbone.visual.merger.ln_q.bias",
        "backbone.visual.blocks.0.norm1.weight is [7], expected [32]",
        "unexpected audio.weight",
        "q_proj.weight is there twice",
        "LoRA rank of backbone.language_model.layers.0.self_attn.k_proj.weight is 5, in model_config.json 4",
        "o_proj.weight is [48, 4] by [4, 47], expected a product of [48, 48]",
        "unexpected LoRA update of backbone.language_model.layers.0.self_attn.rotary.weight",
    ):
        assert part in str(error.value), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("model_config", "output_dim", 3, "model_config.output_dim is 3, supported is 1"),
        ("model_config", "reward_token", "last", "model_config.reward_token is 'last', supported is 'special'"),
        ("model_config", "use_special_tokens", False, "use_special_tokens is False"),
        ("data_config", "num_frames", 8, "data_config.num_frames is 8"),
        ("data_config", "sample_type", "multi_pts", "sample_type is 'multi_pts'"),
        ("data_config", "max_frame_pixels", None, "missing or no number"),
        ("inference_config", "MQ_std", 0, "positive deviations"),
        ("inference_config", "MQ_std", "wide", "missing or no number"),
        ("peft_lora_config", "lora_r", None, "missing or no number"),
        ("peft_lora_config", "lora_enable", False, "LoRA rank of .* none, lora_enable is not set"),
    ],
)
def test_settings_that_are_not_supported(tmp_path, section, key, value, words):
    def change(config):
        config.setdefault(section, {})[key] = value

    with pytest.raises(CheckpointError, match=words):
        VideoReward.from_pretrained(folder_with(tmp_path, config=change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config: config.pop("model_config"), "model_config.output_dim is None"),
        (lambda config: config.update(model_config=[1]), "model_config is no JSON object"),
        (lambda config: config.update(special_token_ids=[1, 2]), "three different ids"),
        (lambda config: config.update(special_token_ids=[1, 2, 300]), "beyond the 300 rows"),
        (lambda config: config.pop("special_token_ids"), "backbone: needed for the tokenizer"),
    ],
)
def test_settings_that_are_wrong(tmp_path, change, words):
    with pytest.raises(CheckpointError, match=words):
        VideoReward.from_pretrained(folder_with(tmp_path, config=change))


def test_absent_statistics_leave_the_logits(tmp_path):
    model = VideoReward.from_pretrained(folder_with(tmp_path, config=lambda config: config.pop("inference_config")))
    assert model.mean.tolist() == [0, 0, 0] and model.std.tolist() == [1, 1, 1]


def test_the_last_step_unless_one_is_named(tmp_path):
    folder = folder_with(tmp_path)
    weights = torch.load(folder / "checkpoint-1" / "model.pth", weights_only=True)
    for step, value in ((9, 9.0), (10, 10.0)):
        (folder / f"checkpoint-{step}").mkdir()
        weights["base_model.model.rm_head.weight"] = torch.full((1, 48), value)
        torch.save(weights, folder / f"checkpoint-{step}" / "model.pth")
    assert VideoReward.from_pretrained(folder).head.weight[0, 0] == 10
    assert VideoReward.from_pretrained(folder, step=9).head.weight[0, 0] == 9
    with pytest.raises(CheckpointError, match="no checkpoint-2; there are steps 1, 9, 10"):
        VideoReward.from_pretrained(folder, step=2)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model_config.json", None, "model_config.json: no such file"),
        ("model_config.json", b"{", "not JSON"),
        ("model_config.json", b"[]", "not a JSON object"),
        ("backbone.json", None, "no backbone.json in it; pass backbone="),
        ("checkpoint-1/model.pth", None, "neither model.pth nor adapter_model.safetensors and non_lora_state_dict.pth"),
        ("checkpoint-1/model.pth", b"no tensors", "not a file of tensors"),
        ("checkpoint-1", None, "no checkpoint-<step> folder"),
    ],
)
def test_missing_and_damaged_files_are_named(tmp_path, name, content, words):
    place = folder_with(tmp_path) / name
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    if content is not None:
        place.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as error:
        VideoReward.from_pretrained(tmp_path / "reward")
    assert "\n" not in str(error.value)


class Trap:
    """What a file would run if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickles_are_not_executed(tmp_path):
    with pytest.raises(CheckpointError, match="not a file of tensors"):
        VideoReward.from_pretrained(folder_with(tmp_path, {"a": Trap(tmp_path / "sprung")}))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", None, "config.json: no such file"),
        ("config.json", '{"model_type": "llama"}', "model_type is 'llama'"),
        ("tokenizer.json", None, "its tokenizer does not write <.video_pad.> as 24"),
        ("chat_template.jinja", None, "no chat template"),
    ],
)
def test_backbones_that_do_not_serve(tmp_path, qwen_files, name, content, words):
    backbone = tmp_path / "backbone"
    shutil.copytree(qwen_files.backbone, backbone)
    (backbone / name).unlink()
    if name == "tokenizer.json":
        (backbone / "tokenizer_config.json").unlink()
    if content is not None:
        (backbone / name).write_text(content)
    with pytest.raises(CheckpointError, match=words) as error:
        VideoReward.from_pretrained(qwen_files.reward, backbone, qwen_files.template)
    assert "\n" not in str(error.value)


def test_a_tokenizer_of_another_checkpoint_is_refused(qwen_files):
    with pytest.raises(CheckpointError, match=r"gives the reward tokens .* the checkpoint \(297, 298, 299\)"):
        VideoReward.from_pretrained(GOLDEN, qwen_files.backbone, qwen_files.template)


VQ, MQ, TA = "<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>"
WORDING = f"look {VQ} at {MQ} it : {{text_prompt}} {TA}"


def test_wording_from_a_checkout_is_read_and_not_executed(tmp_path):
    source = f'import absent\nraise SystemExit\nDETAILED_PROMPT_WITH_SPECIAL_TOKEN = """{WORDING}"""\n'
    (tmp_path / "prompt_template.py").write_text(source)
    (tmp_path / "own.txt").write_text(WORDING)
    for path in (tmp_path, tmp_path / "prompt_template.py", tmp_path / "own.txt"):
        assert read_template(path) == WORDING


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent.txt", None, "absent.txt: no such file"),
        ("a.txt", "", f"holds {VQ} 0 times"),
        ("a.txt", WORDING.replace("{text_prompt}", "{prompt}"), "holds {text_prompt} 0 times"),
        ("a.txt", WORDING + TA, f"holds {TA} 2 times"),
        ("a.txt", f"{VQ} {{text_prompt}} {MQ} {TA}", "the order must be"),
        ("a.py", "A = 1", "it has no string DETAILED_PROMPT_WITH_SPECIAL_TOKEN"),
        ("a.py", "def", "no prompt template"),
    ],
)
def test_wrong_wording_says_where_to_get_it(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError) as error:
        read_template(tmp_path / name)
    message = str(error.value)
    assert words in message and "--prompt-template" in message and "VideoAlign" in message and "\n" not in message
