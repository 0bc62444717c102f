"""Forecasts of memory and FLOPs, held against trainings that were run."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from reelgym.distill.forecast import matching_method
from reelgym.distill.recipes import DMD
from reelgym.distill.trainer import Distill
from reelgym.experiments import cli
from reelgym.models.generator import Generator
from reelgym.models.lora import trainable_copy
from reelgym.models.sampler import step_sigmas
from reelgym.training.footprint import bytes_of, footprint, held_by
from reelgym.training.forecast import Forecast, Shape, forecast

WAN = {
    "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 8,
    "freq_dim": 16, "ffn_dim": 96, "num_layers": 3,
}  # fmt: skip
SHAPE = Shape(
    {"config": WAN, "frames_per_chunk": 2, "text_len": 4, "cache": {}, "rope_theta": 1e4},
    (4, 8, 8),
    2,
    1,
    torch.float32,
)
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
        sdpa_backward_flop_count(g, q, k, v)
    ),
}
RECIPE = DMD.with_batch(2)


@pytest.fixture(scope="module")
def planned():
    return forecast(SHAPE, matching_method(RECIPE, SHAPE.steps), clips=2)


@pytest.fixture(scope="module")
def trainer():
    """The same training, in numbers."""
    torch.manual_seed(0)
    teacher = SHAPE.build()
    student = Generator(trainable_copy(teacher), step_sigmas(1, 5.0), SHAPE.latent, 2)

    def prompts(batch, step):
        return torch.zeros(batch, SHAPE.chunks, 4, 8), (("",) * SHAPE.chunks,) * batch

    made = Distill(RECIPE, student, teacher, prompts, torch.zeros(4, 8))
    made.update()
    return made


def peak_of(work):
    """Most bytes at once that torch's allocator gave out, beyond those of before."""
    with profile(profile_memory=True, activities=[ProfilerActivity.CPU]) as found:
        work()
    now = peak = 0
    events = (e for e in found.profiler.kineto_results.events() if e.name() == "[memory]")
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def test_memory_is_what_the_allocator_gives_out(planned, trainer):
    assert planned.work.peak == pytest.approx(peak_of(trainer.update), rel=0.1)
    parts = (trainer.learner.module, trainer.teacher, trainer.critic.module, trainer.learner, trainer.critic)
    assert list(planned.held.values()) == [bytes_of(held) for held in held_by(*parts)]


def test_activations_that_are_made_again_are_not_held():
    def pass_through(recompute):
        model = SHAPE.with_layers(6).build()
        if recompute:
            model.transformer.enable_gradient_checkpointing()
        model(torch.zeros(2, 4, *SHAPE.latent), 0.5, torch.zeros(2, 2, 4, 8)).square().mean().backward()
        yield "all"

    held, again = (footprint(pass_through(recompute), []) for recompute in (False, True))
    assert again.peak < held.peak / 2 and again.flops["all"] > 1.2 * held.flops["all"]


def test_flops_are_those_that_an_update_counts(planned, trainer):
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counted:
        trainer.update()
    assert planned.flops == pytest.approx(counted.get_total_flops(), rel=0.1)
    assert set(planned.work.flops) == {"rollout", "critic", "scores", "student"}


def test_shards_split_what_is_held(planned):
    assert planned.memory(8) == planned.memory(1) > planned.memory(8, sharded=True)
    held = sum(planned.held.values())
    assert planned.memory(8, sharded=True) > held / 8 + planned.work.peak - planned.gradients


def test_the_command(planned, monkeypatch, capsys, tmp_path, stack):
    monkeypatch.setattr("reelgym.experiments.plan.forecast", lambda *_: planned)
    asked = ["plan", "--stack", stack, "--out", str(tmp_path), "--gpus", "1", "8"]
    assert cli.main(asked) == 0
    said = capsys.readouterr().out
    assert "student's optimiser" in said and "8 --shard" in said and "try" not in said
    assert cli.main([*asked, "--memory", "1"]) == 0
    assert "Nothing fits: try --recompute, --lora-rank 32" in capsys.readouterr().out
    assert cli.main([*asked, "--recipe", "consistency"]) == 1
    assert "consistency cannot be planned yet" in capsys.readouterr().err
    assert isinstance(planned, Forecast)
