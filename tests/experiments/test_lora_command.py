"""A LoRA through the commands: trained, killed, resumed, saved, named by a stack, and streamed."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from reelgym.checkpoint import load_checkpoint
from reelgym.distill.recipes import DISTILL
from reelgym.envs.stack import Stack
from reelgym.experiments import cli
from reelgym.experiments.compare import Config, plans_of, training_jobs, write_loras
from reelgym.experiments.runs import work
from reelgym.experiments.train_student import save_student
from reelgym.models.lora import AdapterConfig, lora_words
from reelgym.models.lora_files import LORA

OPTIONS = ("--lora-rank", "2", "--validation", "1", "--no-guard", "--student-steps", "2")


def trained(command, stack, out, updates, *more):
    return cli.main([*command.split(), "--stack", str(stack), "--out", str(out), "--updates", str(updates), *more])


def test_a_critic_is_a_second_adapter_on_the_teacher(real_stack):
    stack = Stack.load(real_stack)
    trainer = DISTILL["dmd"].with_batch(1).trainer(stack, stack.student(AdapterConfig(2)))
    teacher, critic = (
        {n: p.data_ptr() for n, p in m.named_parameters()} for m in (stack.teacher, trainer.critic.module)
    )
    bases = {name.replace(".base_layer", ""): place for name, place in critic.items() if "lora_" not in name}
    assert bases == teacher and len(critic) > len(teacher)
    x, sigma, embeds = torch.randn(1, 2, 4, 6, 10), torch.tensor([0.5]), stack.prompts()(1, 0)[0]
    assert torch.equal(stack.teacher(x, sigma, embeds), trainer.critic.module(x, sigma, embeds))
    assert trainer.update()["grad_norm"] >= 0
    assert torch.equal(stack.teacher(x, sigma, embeds), stack.teacher(x, sigma, embeds))
    assert not torch.equal(stack.teacher(x, sigma, embeds), trainer.critic.module(x, sigma, embeds))


def test_weights_in_bfloat16_train_in_float32(real_stack):
    toml = real_stack.with_name("half.toml")
    toml.write_text('base = "stack.toml"\ndtype = "bfloat16"\n')
    stack = Stack.load(toml)
    trainer = DISTILL["dmd"].with_batch(1).with_learning_rate(1e-5).trainer(stack, stack.student())
    moved = trainer.update()["weights_moved"]
    groups, _ = trainer.state()
    assert 0 < moved < 0.5 and {"generator-master", "critic-master"} <= set(groups)
    assert trainer.generator.model.dtype == trainer.critic.module.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "command", ["distill dmd --batch 1", "finetune forward --prompts 1 --group 2 --microbatch 1 --recompute"]
)
def test_a_lora_is_resumed_to_the_bit_saved_and_streams(real_stack, tmp_path, capsys, command):
    for out, updates in (("whole", 2), ("cut", 1), ("cut", 2)):
        assert trained(command, real_stack, tmp_path / out, updates, *OPTIONS) == 0, capsys.readouterr().err
    student = tmp_path / "cut" / "student"
    found = [load_file(tmp_path / out / "student" / LORA) for out in ("whole", "cut")]
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items()) and len(found[0]) == 32
    assert any(value.any() for name, value in found[0].items() if "lora_B" in name)
    assert sorted(path.name for path in student.iterdir()) == ["comfyui", LORA, "student.json"]
    groups, _ = load_checkpoint(tmp_path / "cut" / "checkpoint")
    models = [groups[name] for name in groups if name.endswith("-model") or name == "trainer"]
    assert all("lora_" in name for group in models for name in group if name.startswith("transformer"))
    assert trained(command, real_stack, tmp_path / "cut", 3, *OPTIONS, "--lora-alpha", "4") == 1
    assert "LoRA, reward or world: give another --out" in capsys.readouterr().err
    if command.startswith("finetune"):
        return
    clip = ["generate", "a circle ; then a square", "--stack", str(real_stack), "--chunks", "2"]
    assert cli.main([*clip, "--student", str(student), "--out", str(tmp_path / "clip.mp4")]) == 0
    assert "clip.mp4: 5 frames, 0.625 s, by the student" in capsys.readouterr().out
    mine = Stack.load(real_stack).with_weights(student=student)
    assert len(mine.generator.sigmas) == 2 and set(mine.weights()) >= {"student", "student-lora"}
    toml = real_stack.with_name("lora.toml")
    shutil.copytree(student, real_stack.with_name("look"), dirs_exist_ok=True)
    toml.write_text('base = "stack.toml"\n[parts.student]\nweights = "wan"\nlora = "look"\nlora_scale = 0.5\n')
    assert cli.main(["stack", "check", str(toml), "--out", str(tmp_path / "check")]) == 0, capsys.readouterr().err
    assert "float32, LoRA of rank 2 on 16 layers" in capsys.readouterr().out
    again = Stack.load(toml).with_weights(student=student).said.parts["student"]
    assert again.loras == {str(real_stack.with_name("look")): 0.5, str(student): 1.0}


def test_methods_that_train_a_lora_are_compared_and_kept(real_stack, tmp_path):
    few = {"prompts": 1, "updates": 1, "batch": 1, "seeds": 1, "student_steps": 2, "lora_rank": 2}
    toml = real_stack.with_name("compared.toml")
    toml.write_text('base = "stack.toml"\nprompts = "compared.csv"\n')
    rows = "".join(f"a circle in {split},{split}\n" for split in ("train", "validation", "test"))
    toml.with_name("compared.csv").write_text(f"text,split\n{rows}")
    config = Config("smoke", stack=str(toml), only=("dmd",), out=tmp_path, **few)
    (job,) = training_jobs(config, plans_of(config))
    result = work(job.config)
    write_loras(tmp_path / "students", {job.name: result})
    stack = Stack.load(real_stack).with_weights(student=tmp_path / "students" / "dmd-0")
    trained = stack.generator
    assert len(trained.sigmas) == 2 and "LoRA of rank 2 on 16 layers" in lora_words(trained.model)
    assert any(value.any() for name, value in result[0]["weights"].items() if "lora_B" in name)


def test_a_lora_of_the_shipped_student(tmp_path):
    stack = Stack.load()
    student = stack.student(AdapterConfig(2, targets=("to_q", "net.2")))
    for parameter in student.model.parameters():
        if parameter.requires_grad:
            parameter.data.fill_(0.1)
    save_student(tmp_path / "student", stack, student, DISTILL["dmd"], 1)
    weights = load_file(tmp_path / "student" / LORA)
    assert {name.split(".lora_")[0].split(".", 3)[3] for name in weights} == {"attn1.to_q", "attn2.to_q", "ffn.net.2"}
    start = stack.generator.model.state_dict()
    now = stack.with_weights(student=tmp_path / "student").generator.model.state_dict()
    changed = {name for name, value in now.items() if not torch.equal(value, start[name])}
    assert len(changed) == 12 and all(name.endswith(("to_q.weight", "net.2.weight")) for name in changed)
    base = {name.replace(".base_layer", ""): p for name, p in student.model.named_parameters() if "lora_" not in name}
    assert all(torch.equal(base[name], value) for name, value in start.items())


def test_what_is_wrong_with_a_lora_is_one_line(real_stack, tmp_path, capsys):
    toml = real_stack.with_name("lora.toml")
    (tmp_path / LORA).write_text("no")
    for line, words in (
        ('lora = "nowhere"', "[parts.student]: no folder or file"),
        ("lora = 3", "lora is a text in quotes or a list, not 3"),
        (f'lora = "{tmp_path}"\nlora_scale = [1.0, 2.0]', "lora_scale is a number, or one for each of 1 LoRAs"),
        (f'lora = "{tmp_path}"', "not a safetensors file, or damaged"),
        (f'weights = "{tmp_path}"', "holds a LoRA: name it as `lora`, and as `weights` what it goes onto"),
    ):
        weights = "" if "weights" in line else 'weights = "wan"\n'
        toml.write_text(f'base = "stack.toml"\n[parts.student]\n{weights}{line}\n')
        assert cli.main(["stack", "check", str(toml), "--out", str(tmp_path / "check")]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("reelgym: error: ") and words in error
    for options, words in (
        (["--lora-alpha", "2"], "give its --lora-rank too"),
        (["--lora-rank", "0"], "a rank of 1 or more"),
        (["--lora-rank", "2", "--lora-targets", "to_z"], "no linear layer of the transformer ends in to_z"),
    ):
        assert trained("distill dmd", real_stack, tmp_path / "run", 1, "--no-guard", *options) == 1
        assert words in capsys.readouterr().err
