"""Adapters: what they share, what they are at the start, and their files in the names of others."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from reelgym.checkpoint import CheckpointError
from reelgym.models.lora import (
    ATTENTION,
    AdapterConfig,
    adapter_of,
    frozen_copy,
    load_own_weights,
    merged,
    own_weights,
    trainable_copy,
)
from reelgym.models.lora_files import COMFYUI, LORA, attach_loras, is_lora, lora_weights, save_lora
from reelgym.models.stream_files import cast, save_transformer
from reelgym.models.wan_files import load_transformer

EVERYWHERE = (*ATTENTION, "net.0.proj", "net.2", "linear_1", "linear_2", "time_proj", "proj_out")


@pytest.fixture
def base(make_wan):
    return make_wan(0).requires_grad_(False)


@pytest.fixture
def velocity(prompts):
    x = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    return lambda model: model(x, 0.5, prompts(2, 0)[0][:, 0])


def moved(model):
    """As an adapter is after a training."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1, generator=generator)
    return model


def shared(one, other):
    """Names of the parameters of one that lie in the other's memory."""
    places = {parameter.data_ptr() for parameter in other.parameters()}
    return {name for name, parameter in one.named_parameters() if parameter.data_ptr() in places}


def test_a_fresh_adapter_changes_nothing_and_shares_the_base(base, velocity):
    student = trainable_copy(base, AdapterConfig(4), seed=3)
    assert torch.equal(velocity(student), velocity(base))
    trained = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 8 and trained.isdisjoint(shared(student, base))
    assert shared(student, base) | trained == {name for name, _ in student.named_parameters()}
    assert set(own_weights(student)) == trained and set(own_weights(base)) == set(base.state_dict())
    assert adapter_of(student) == AdapterConfig(4, 4, tuple(sorted(ATTENTION))) and adapter_of(base) is None
    again, other = (trainable_copy(base, AdapterConfig(4), seed=seed) for seed in (3, 4))
    same = [torch.equal(own_weights(again)[name], value) for name, value in own_weights(student).items()]
    assert all(same) and any(not torch.equal(own_weights(other)[name], v) for name, v in own_weights(student).items())
    assert not any("lora" in name for name, _ in base.named_modules())


def test_a_frozen_copy_stays_where_the_adapter_was(base, velocity):
    student = moved(trainable_copy(base, AdapterConfig(4)))
    start, whole = frozen_copy(student), copy.deepcopy(student)
    assert shared(start, base) == shared(student, base) and not any(p.requires_grad for p in start.parameters())
    for parameter in own_weights(student).values():
        parameter.add_(0.1)
    assert torch.equal(velocity(start), velocity(whole)) and not torch.equal(velocity(start), velocity(student))
    load_own_weights(start, own_weights(student))
    assert torch.equal(velocity(start), velocity(student))
    with pytest.raises(RuntimeError):
        load_own_weights(start, base.state_dict())
    full = trainable_copy(base)  # without an adapter all is copied
    assert not shared(full, base) and not shared(frozen_copy(full), full)


def test_an_adapter_on_bfloat16_is_float32(base, velocity):
    cast(base.transformer, torch.bfloat16)
    student = trainable_copy(base, AdapterConfig(4))
    assert {p.dtype for p in student.parameters() if p.requires_grad} == {torch.float32}
    assert torch.equal(velocity(student), velocity(base)) and student.dtype == torch.bfloat16


def test_targets_that_are_not_there_are_told(base):
    with pytest.raises(ValueError, match=r"no linear layer of the transformer ends in to_z; they end in .*attn1.to_q"):
        trainable_copy(base, AdapterConfig(4, targets=("to_q", "to_z")))
    for bad in ({"rank": 0}, {"rank": 1, "alpha": 0}, {"rank": 1, "targets": ()}):
        with pytest.raises(ValueError, match="a LoRA has"):
            AdapterConfig(**bad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_files_are_the_adapter_in_memory(base, velocity, tmp_path, dtype):
    from diffusers import WanPipeline
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    cast(base.transformer, dtype)
    student = moved(trainable_copy(base, AdapterConfig(4, alpha=6, targets=EVERYWHERE)))
    wanted = velocity(student)
    assert (wanted - velocity(base)).abs().max() > 0.01
    save_lora(tmp_path, student)
    assert is_lora(tmp_path) and is_lora(tmp_path / COMFYUI)
    for place in (tmp_path, tmp_path / COMFYUI):
        loaded = attach_loras(copy.deepcopy(base), {str(place): 1.0})
        pipeline = WanPipeline(None, None, None, None, copy.deepcopy(base).transformer)
        pipeline.load_lora_weights(str(place))
        theirs = copy.deepcopy(base)
        theirs.transformer = pipeline.transformer
        for model in [loaded] + [theirs] * (dtype == torch.float32):
            torch.testing.assert_close(velocity(model), wanted, atol=2e-6, rtol=0)
    named = {name.split(".lora_")[0] for name in load_file(tmp_path / COMFYUI)}
    plain = {f"{name.removeprefix('diffusion_model.')}.weight": torch.zeros(1) for name in named}
    found = {name.removesuffix(".weight") for name in convert_wan_transformer_to_diffusers(plain)}
    assert found == {name.split(".lora_")[0] for name in lora_weights(student)}


def test_scales_sums_and_what_goes_on_from_them(base, velocity, tmp_path):
    student = moved(trainable_copy(base, AdapterConfig(4)))
    save_lora(tmp_path, student)
    assert torch.equal(velocity(attach_loras(copy.deepcopy(base), {str(tmp_path): 0.0})), velocity(base))
    halves = attach_loras(copy.deepcopy(base), {str(tmp_path): 0.5, str(tmp_path / COMFYUI): 0.5})
    torch.testing.assert_close(velocity(halves), velocity(student), atol=2e-6, rtol=0)
    further = trainable_copy(halves, AdapterConfig(2))
    assert torch.equal(velocity(further), velocity(halves)) and len(own_weights(further)) == 16
    save_transformer(tmp_path / "whole", halves, {})
    kept = load_transformer(tmp_path / "whole").state_dict()
    whole = trainable_copy(halves)
    assert all(torch.equal(kept[name], value) for name, value in whole.transformer.state_dict().items())
    assert set(dict(whole.named_parameters())) == set(dict(base.named_parameters()))
    assert all(parameter.requires_grad for parameter in whole.parameters()) and merged(whole) is whole
    torch.testing.assert_close(velocity(whole), velocity(student), atol=2e-6, rtol=0)


def test_a_lora_that_does_not_fit_is_one_line(base, tmp_path):
    save_lora(tmp_path, moved(trainable_copy(base, AdapterConfig(4))))
    weights = load_file(tmp_path / LORA)
    name = "transformer.blocks.0.attn1.to_q.lora_A.weight"
    wide = weights | {name: torch.zeros(4, 25)}
    faults = {
        "other modules: .* no linear layer for blocks.7": {n.replace("s.0.", "s.7."): t for n, t in weights.items()},
        r"to_q.lora_A.weight is 25 wide, the transformer's layer 24": wide,
        r"is of rank 3, its other half \[24, 4\] is not": weights | {name: torch.zeros(3, 24)},
        r"lora_A.weight \[4, 24\] has no other half": {name: torch.zeros(4, 24)},
        "other modules": {"unet.down.0.lora_A.weight": torch.zeros(2, 2)},
        "not a LoRA for Wan": {"diffusion_model.double_blocks.0.lora_A.weight": torch.zeros(2, 2)},
    }
    for number, (words, tensors) in enumerate(faults.items()):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / f"{number}.safetensors")
        with pytest.raises(CheckpointError, match=f"^[^\n]*{words}[^\n]*$"):
            attach_loras(base, {str(tmp_path / f"{number}.safetensors"): 1.0})
    (tmp_path / "bad.safetensors").write_text("no")
    for place, words in (("bad.safetensors", "damaged"), ("none", "no LoRA here")):
        with pytest.raises(CheckpointError, match=words):
            attach_loras(base, {str(tmp_path / place): 1.0})
