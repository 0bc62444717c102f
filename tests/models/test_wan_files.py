"""Every layout of a Wan checkpoint holds the same model, and nothing that does not fit is loaded."""

import json
import pickle
import shutil

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import save_file

from reelgym.checkpoint import CheckpointError
from reelgym.models.streaming import StreamingGenerator
from reelgym.models.wan_files import load_transformer, load_vae

PROMPT = "a red circle moves left"


@pytest.fixture(scope="module")
def plain(wan_folder):
    return WanTransformer3DModel.from_pretrained(wan_folder, subfolder="transformer")


@pytest.fixture(scope="module")
def config(plain):
    return {key: value for key, value in plain.config.items() if not key.startswith("_")}


def original(tensors):
    """diffusers' names to the original ones: the converter's, turned round."""
    ours = {}
    pairs = [
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("attn1", "self_attn"), ("attn2", "cross_attn"), (".to_out.0.", ".o."), (".to_q.", ".q."), (".to_k.", ".k."),
        (".to_v.", ".v."), ("ffn.net.0.proj", "ffn.0"), ("ffn.net.2", "ffn.2"), ("proj_out", "head.head"),
    ]  # fmt: skip
    for name, tensor in tensors.items():
        if name == "scale_shift_table":
            ours["head.modulation"] = tensor
            continue
        name = name.replace("scale_shift_table", "modulation")
        name = (
            name.replace("norm2", "norm__placeholder").replace("norm3", "norm2").replace("norm__placeholder", "norm3")
        )
        for theirs, first in pairs:
            name = name.replace(theirs, first)
        ours[name] = tensor
    assert convert_wan_transformer_to_diffusers(dict(ours)).keys() == tensors.keys()
    return ours


def layouts(plain, folder):
    """Files that hold the same model, each with how it is asked for."""
    tensors, other = plain.state_dict(), {name: tensor + 1 for name, tensor in plain.state_dict().items()}
    first = original(tensors)
    held = {
        "bare.pt": (first, None),
        "diffusers.pt": (tensors, None),
        "ema.pt": ({"generator": original(other), "generator_ema": first, "critic": original(other)}, None),
        "generator.pt": ({"generator": first, "generator_ema": original(other)}, "generator"),
        "model.pth": ({"model": {f"model.{name}": tensor for name, tensor in first.items()}, "step": 3}, None),
        "fsdp.bin": ({"generator": {f"model._fsdp_wrapped_module.{n}": t for n, t in first.items()}}, None),
        "nested.pt": (
            {"state_dict": {f"module._orig_mod.model._checkpoint_wrapped_module.{n}": t for n, t in first.items()}},
            None,
        ),
        "ddp.pt": ({"model": {f"model.module.{name}": tensor for name, tensor in first.items()}}, None),
        "blocks.pt": (
            {"model": {n.replace("blocks.0.", "blocks.0._fsdp_wrapped_module.module."): t for n, t in first.items()}},
            None,
        ),
        "freqs.pt": (first | {"freqs": torch.zeros(4, 6)}, None),
        "comfy.pt": ({f"model.diffusion_model.{name}": tensor for name, tensor in first.items()}, None),
    }
    for name, (content, which) in held.items():
        torch.save(content, folder / name)
        yield folder / name, which
    torch.save(first, folder / "old.pt", _use_new_zipfile_serialization=False)
    yield folder / "old.pt", None
    for name, content in (("first.safetensors", first), ("names.safetensors", tensors)):
        save_file({key: value.contiguous() for key, value in content.items()}, folder / name)
        yield folder / name, None


def test_every_file_is_the_same_model(plain, config, tmp_path):
    torch.manual_seed(0)
    x, text = torch.randn(1, 4, 2, 8, 8), torch.randn(1, 5, 16)
    expected = plain(x, torch.tensor([500.0]), text).sample
    count = 0
    for path, which in layouts(plain, tmp_path):
        model = load_transformer(path, config=config, which=which)
        torch.testing.assert_close(model(x, torch.tensor([500.0]), text).sample, expected, atol=1e-6, rtol=0)
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in plain.state_dict().items()), path
        assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
        count += 1
    assert count == 14


def test_folders_are_the_same_model(plain, wan_folder, tmp_path):
    expected = plain.state_dict()
    plain.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    folder = tmp_path / "original"
    folder.mkdir()
    save_file(
        {name: t.contiguous() for name, t in original(expected).items()}, folder / "diffusion_pytorch_model.safetensors"
    )
    said = {
        "_class_name": "WanModel", "dim": 24, "num_heads": 2, "num_layers": 2, "ffn_dim": 32, "freq_dim": 16,
        "in_dim": 4, "out_dim": 4, "eps": 1e-6, "text_len": 512, "text_dim": 16, "model_type": "t2v",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(said))
    for place in (wan_folder, wan_folder / "transformer", tmp_path / "sharded", folder):
        found = load_transformer(place).state_dict()
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(CheckpointError, match="one state dict; which='generator' is for files"):
        load_transformer(folder, which="generator")
    (folder / "config.json").write_text(json.dumps(said | {"model_type": "i2v"}))
    with pytest.raises(CheckpointError, match="text-to-video"):
        load_transformer(folder)
    shard = sorted((tmp_path / "sharded").glob("*.safetensors"))[0]
    shutil.copy(shard, shard.with_name("diffusion_pytorch_model-copy.safetensors"))  # not in the index: not read
    load_transformer(tmp_path / "sharded")
    index = next((tmp_path / "sharded").glob("*.index.json"))
    places = index.read_text()
    index.unlink()
    with pytest.raises(CheckpointError, match="holds what another file does"):
        load_transformer(tmp_path / "sharded")
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="has no weight_map"):
        load_transformer(tmp_path / "sharded")
    index.write_text(places)
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"lacks {shard.name}"):
        load_transformer(tmp_path / "sharded")


def test_image_to_video_is_refused(config, tmp_path):
    image = config | {"image_dim": 8, "added_kv_proj_dim": 24}
    model = WanTransformer3DModel(**image)
    model.save_pretrained(tmp_path / "i2v")
    torch.save(model.state_dict(), tmp_path / "i2v.pt")
    for name, said in (
        ("i2v", None),
        ("i2v.pt", config | {"image_dim": 8}),
        ("i2v.pt", config | {"added_kv_proj_dim": 24}),
    ):
        with pytest.raises(CheckpointError, match="image-to-video model; load a text-to-video one"):
            load_transformer(tmp_path / name, config=said)


def test_half_precision_is_diffusers_half_precision(wan_folder, tmp_path, plain, config):
    expected = WanTransformer3DModel.from_pretrained(wan_folder, subfolder="transformer", torch_dtype=torch.bfloat16)
    torch.save(plain.state_dict(), tmp_path / "a.pt")
    for found in (
        load_transformer(wan_folder, dtype=torch.bfloat16),
        load_transformer(tmp_path / "a.pt", config=config, dtype=torch.bfloat16),
        StreamingGenerator.from_pretrained(wan_folder, dtype=torch.bfloat16, size=(32, 32)).generator.model.transformer,
    ):
        dtypes = {name: tensor.dtype for name, tensor in found.state_dict().items()}
        assert dtypes == {name: tensor.dtype for name, tensor in expected.state_dict().items()}
        assert set(dtypes.values()) == {torch.bfloat16, torch.float32}
        assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in expected.state_dict().items())
    found = load_transformer(wan_folder, dtype=torch.float16)
    expected = WanTransformer3DModel.from_pretrained(wan_folder, subfolder="transformer", torch_dtype=torch.float16)
    for ours, theirs in (
        (found.named_parameters, expected.named_parameters),
        (found.named_buffers, expected.named_buffers),
    ):
        kept = dict(ours())
        assert kept.keys() == dict(theirs()).keys()
        assert all(kept[name].dtype == tensor.dtype and torch.equal(kept[name], tensor) for name, tensor in theirs())


class Trap:
    """What a stranger's pickle may do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_pickle_is_run(tmp_path, config, plain):
    trap = {"generator": plain.state_dict(), "args": Trap(tmp_path / "sprung")}
    for archive in (True, False):
        torch.save(trap, tmp_path / "a.pt", _use_new_zipfile_serialization=archive)
        for load in (lambda: load_transformer(tmp_path / "a.pt", config=config), lambda: load_vae(tmp_path / "a.pt")):
            with pytest.raises(CheckpointError, match="more than tensors, and to load that could run code: refused"):
                load()
    (tmp_path / "b.pt").write_bytes(pickle.dumps(trap["args"]))
    with pytest.raises(CheckpointError, match="not a checkpoint, or damaged"):
        load_transformer(tmp_path / "b.pt", config=config)
    assert not (tmp_path / "sprung").exists()
    pickle.loads((tmp_path / "b.pt").read_bytes()).close()
    assert (tmp_path / "sprung").exists()  # the trap works


def save_faulty(plain, tmp_path):
    tensors = original(plain.state_dict())
    tensors["extra.weight"] = tensors.pop("head.head.bias")
    tensors["blocks.1.ffn.0.weight"] = torch.zeros(3, 4)
    torch.save(tensors, tmp_path / "bad.pt")
    torch.save(plain.state_dict(), tmp_path / "good.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"step": 3}, tmp_path / "empty.pt")
    torch.save({"generator": {"a": torch.zeros(1)}}, tmp_path / "one.pt")
    torch.save(plain.state_dict() | {"model.proj_out.bias": torch.zeros(16)}, tmp_path / "twice.pt")
    torch.save(plain.state_dict() | {"proj_out.bias": torch.zeros(16, dtype=torch.long)}, tmp_path / "whole.pt")
    (tmp_path / "nothing.pt").touch()
    (tmp_path / "noise.pt").write_bytes(b"not a checkpoint at all" * 9)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "good.pt").read_bytes()[:4000])
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\x00")
    (tmp_path / "void").mkdir()


def test_every_fault_is_listed_and_nothing_is_loaded(plain, config, tmp_path):
    save_faulty(plain, tmp_path)
    wrong = [
        (
            "bad.pt",
            {},
            ["missing proj_out.bias", "unexpected extra.weight", "blocks.1.ffn.net.0.proj.weight is [3, 4]"],
        ),
        ("good.pt", {"config": None}, ["pass config="]),
        ("good.pt", {"which": "generator"}, ["one state dict without a name, not 'generator'"]),
        ("one.pt", {"which": "generator_ema"}, ["holds generator, not 'generator_ema'"]),
        ("one.pt", {}, ["missing patch_embedding.weight", "; ... and ", " more; unexpected a"]),
        ("list.pt", {}, ["holds a list"]),
        ("empty.pt", {}, ["no tensors by name; found step"]),
        ("noise.pt", {}, ["not a checkpoint, or damaged"]),
        ("cut.pt", {}, ["not a checkpoint, or damaged"]),
        ("cut.safetensors", {}, ["not a safetensors file, or damaged"]),
        ("nothing.pt", {}, ["not a checkpoint, or damaged (EOFError)"]),
        ("twice.pt", {}, ["two tensors for one name: proj_out.bias"]),
        ("whole.pt", {}, ["proj_out.bias is torch.int64"]),
        ("good.pt", {"config": config | {"heads": 2}}, ["not one of WanTransformer3DModel", "'heads'"]),
        ("absent.pt", {}, ["no such file"]),
        ("absent.pt", {"config": None}, ["no such file"]),
        ("void", {"config": None}, ["config.json: cannot be read"]),
    ]
    for name, options, words in wrong:
        with pytest.raises(CheckpointError) as caught:
            load_transformer(tmp_path / name, **{"config": config} | options)
        said = str(caught.value)
        assert all(word in said for word in words) and "\n" not in said and len(said) < 3000, said


def test_the_codec_of_a_folder(wan_folder, tmp_path):
    expected = AutoencoderKLWan.from_pretrained(wan_folder, subfolder="vae")
    for place in (wan_folder, wan_folder / "vae"):
        found = load_vae(place)
        assert found.config.z_dim == 4
        assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in expected.state_dict().items())
    config = {key: value for key, value in expected.config.items() if not key.startswith("_")}
    torch.save(expected.state_dict(), tmp_path / "vae.pth")
    assert torch.equal(load_vae(tmp_path / "vae.pth", config).quant_conv.weight, expected.quant_conv.weight)
    with pytest.raises(CheckpointError, match="does not fit the configuration: .*is"):
        load_vae(tmp_path / "vae.pth")
    with pytest.raises(CheckpointError, match="does not fit the configuration: .*is"):
        load_vae(wan_folder, config | {"z_dim": 5})
    with pytest.raises(CheckpointError, match="not AutoencoderKLWan"):
        load_vae(wan_folder / "transformer")


def original_vae(tensors):
    """diffusers' names to those of `Wan2.1_VAE.pth`, by its modules: lists without stages, blocks of `residual`."""
    places = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
    places |= {"conv_shortcut": "shortcut"}
    ours = {}
    for name, tensor in tensors.items():
        *path, leaf = name.split(".")
        match path:
            case ["quant_conv"]:
                path = ["conv1"]
            case ["post_quant_conv"]:
                path = ["conv2"]
            case [side, "conv_in"]:
                path = [side, "conv1"]
            case [side, ("norm_out" | "conv_out") as part]:
                path = [side, "head", "0" if part == "norm_out" else "2"]
            case [side, "mid_block", "attentions", "0", part]:
                path = [side, "middle", "1", part]
            case [side, "mid_block", "resnets", place, part]:
                path = [side, "middle", str(2 * int(place)), places[part]]
            case [side, "down_blocks", place, *part]:
                path = [side, "downsamples", place, *(places.get(one, one) for one in part)]
            case [side, "up_blocks", stage, "resnets", place, part]:
                path = [side, "upsamples", str(4 * int(stage) + int(place)), places[part]]
            case [side, "up_blocks", stage, "upsamplers", "0", *part]:
                path = [side, "upsamples", str(4 * int(stage) + 3), *part]
        ours[".".join((*path, leaf))] = tensor
    assert len(ours) == len(tensors) and not ours.keys() & tensors.keys()
    return ours


def test_the_original_codec(tmp_path):
    config = {"base_dim": 4, "z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    torch.manual_seed(0)
    plain = AutoencoderKLWan(**config).eval()
    tensors = original_vae(plain.state_dict())
    torch.save(tensors, tmp_path / "Wan2.1_VAE.pth")
    found = load_vae(tmp_path / "Wan2.1_VAE.pth", config)
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in plain.state_dict().items())
    assert not any(tensor.is_meta for tensor in (*found.parameters(), *found.buffers()))
    z = torch.randn(1, 4, 2, 2, 2)
    assert torch.equal(found.decode(z).sample, plain.decode(z).sample)
    tensors["decoder.extra"] = tensors.pop("decoder.head.2.bias")
    torch.save(tensors, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match="missing decoder.conv_out.bias; unexpected decoder.extra$"):
        load_vae(tmp_path / "bad.pth", config)


@pytest.fixture(scope="module")
def students(plain, tmp_path_factory):
    """The same student as a file of the Self Forcing family, and with other weights under the plain name."""
    path = tmp_path_factory.mktemp("student") / "student.pt"
    worse = original({name: tensor * 1.5 for name, tensor in plain.state_dict().items()})
    best = {f"model.{name}": tensor for name, tensor in original(plain.state_dict()).items()}
    torch.save({"generator": worse, "generator_ema": best}, path)
    return path


def first_chunks(generator):
    made = generator.open(PROMPT, seed=5)
    return torch.cat([next(made) for _ in range(3)], 1)


def test_a_wan_folder_streams(wan_folder, students, tmp_path):
    load = StreamingGenerator.from_pretrained
    generator = load(wan_folder, size=(32, 48))
    video = first_chunks(generator)
    assert video.shape == (1, 9 + 12 + 12, 3, 32, 48) and video.isfinite().all()
    assert generator.fps == 16 and generator.size == (32, 48) and generator.encoder.text_len == 512
    assert generator.generator.sigmas == pytest.approx((1, 0.9375, 5 / 6, 0.625))
    assert torch.equal(first_chunks(load(wan_folder, size=(32, 48), checkpoint=students)), video)
    worse = first_chunks(load(wan_folder, size=(32, 48), checkpoint=students, which="generator"))
    assert (worse - video).abs().max() > 1e-3
    generator.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.size == (32, 48) and torch.equal(first_chunks(again), video)
    assert load(tmp_path / "saved", size=(16, 16)).size == (16, 16)
    half = first_chunks(load(wan_folder, size=(32, 48), dtype=torch.bfloat16))
    assert half.dtype == torch.float32 and half.isfinite().all() and (half - video).abs().mean() < 0.1


def test_wan_starts_and_sizes(wan_folder, tmp_path):
    load = StreamingGenerator.from_pretrained
    generator = load(wan_folder, size=(32, 32))
    clip = torch.rand(13, 3, 32, 32)
    made = generator.open(PROMPT, start=clip)
    assert made.state.cache.frames == (0, 1, 2, 3) and next(made).shape[1] == 12
    wrong = [
        ("multiples of 16x16 pixels; the nearest is 96x32", lambda: load(wan_folder, size=(33, 100))),
        ("multiples of 16x16", lambda: load(wan_folder, size=(0, 0))),
        ("1, 5, 9, ... frames, not 4", lambda: generator.open(PROMPT, start=clip[:4])),
        ("longer than 512", lambda: generator.open("a " * 600)),
        ("too small", lambda: load(wan_folder, cache=generator.generator.model.cache_config.__class__(3, 5))),
    ]
    shutil.copytree(wan_folder, tmp_path / "part", ignore=shutil.ignore_patterns("text_encoder"))
    wrong.append(("has no text_encoder/", lambda: load(tmp_path / "part")))
    for words, call in wrong:
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
