"""Forecasts of memory and FLOPs, held against trainings that were run."""

import copy

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from reelgym.agents.finetune_recipes import FINETUNE
from reelgym.distill.recipes import DISTILL
from reelgym.envs.stack import Stack
from reelgym.experiments import cli
from reelgym.experiments.stack.check import OnePrompt
from reelgym.models.generator import Generator
from reelgym.models.lora import AdapterConfig
from reelgym.models.sampler import step_sigmas
from reelgym.rewards.windows import ChunkLayout
from reelgym.training.forecast import ATTENTION_FLOPS, Footprint, Held, Tally, forecast


@pytest.fixture
def small(make_wan, codec, reward, prompts):
    """A stack of one layer, two chunks and one step."""
    student, teacher = make_wan(0).requires_grad_(False), make_wan(1).requires_grad_(False)
    generator = Generator(student, step_sigmas(1, 2.0), (4, 4, 4), 3)
    parts = {
        "codec": codec,
        "reward": reward,
        "encoder": prompts.encoder,
        "world": OnePrompt("a red circle moves left"),
    }
    stack = Stack({}, ChunkLayout(2, 3, 2)).with_parts(**parts, student=student, teacher=teacher)
    return stack.with_parts(generator=generator)


RECIPES = {"dmd": DISTILL["dmd"].with_batch(2), "reward": FINETUNE["reward"].with_batch(2)}


def measured(recipe, stack):
    """Most bytes at once that torch's allocator gave out in an update, beyond those of before; and operations."""
    trainer = recipe.trainer(stack, stack.student())
    trainer.update()
    with profile(profile_memory=True, activities=[ProfilerActivity.CPU]) as found:
        trainer.update()
    now = peak = 0
    events = (e for e in found.profiler.kineto_results.events() if e.name() == "[memory]")
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    with FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS) as counter:
        trainer.update()
    return peak, counter.get_total_flops()


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_what_an_update_takes(name, small):
    before = [p.clone() for p in small.generator.model.parameters()]
    found = forecast(RECIPES[name], small)
    peak, flops = measured(RECIPES[name], small)
    assert max(held.bytes for held in found.held.values()) == pytest.approx(peak, rel=0.1)
    assert sum(found.flops.values()) == pytest.approx(flops, rel=0.1)
    size = sum(p.nbytes for p in small.generator.model.parameters())
    assert found.weights["student"] == pytest.approx(size, rel=0.01)
    assert found.optimizer == pytest.approx(2 * size * (2 if name == "dmd" else 1), rel=0.01)
    assert all(torch.equal(a, b) for a, b in zip(before, small.generator.model.parameters(), strict=True))


def test_an_adapter_shares_its_base_and_keeps_little(small):
    found = forecast(RECIPES["reward"], small, AdapterConfig(2))
    whole = forecast(RECIPES["reward"], small)
    assert found.optimizer < whole.optimizer / 2 and sum(found.weights.values()) < sum(whole.weights.values())


def test_activations_that_are_made_again_are_not_held(make_wan):
    found = []
    for recompute in (False, True):
        model = make_wan(0)
        blocks = model.transformer.blocks
        blocks.extend(copy.deepcopy(blocks[0]) for _ in range(5))
        if recompute:
            model.transformer.enable_gradient_checkpointing()
        with Tally({"student": model}) as tally:
            model(
                torch.zeros(2, 6, 4, 4, 4), 0.5, torch.zeros(2, 2, 8, model.config["config"]["text_dim"])
            ).square().mean().backward()
        found.append(tally.footprint())
    held, again = found
    assert again.held["student"].activations < held.held["student"].activations / 2
    assert again.flops["student"] > 1.2 * held.flops["student"] and set(again.flops) == {"student"}


def test_shards_split_what_trains():
    found = Footprint({"student": 80, "codec": 5}, 160, {"student": Held(80, 7)}, {"student": 1}, {"student": 4})
    assert found.memory(8) == found.memory(1) == 80 + 5 + 160 + 87
    assert found.memory(8, sharded=True) == (80 + 160) // 8 + 5 + 10 + 7 + 12


def test_layers_add_up():
    two, three = (Footprint({"s": 10 * n}, 20 * n, {"s": Held(n, 5 + n)}, {"s": 100 * n}, {"s": 10}) for n in (2, 3))
    assert three.at(two, (3, 2), 30) == Footprint({"s": 300}, 600, {"s": Held(30, 35)}, {"s": 3000}, {"s": 10})


def test_the_command(monkeypatch, capsys, tmp_path, stack):
    found = Footprint(
        {"student": 2 * 10**9}, 4 * 10**9, {"student": Held(0, 10**9)}, {"student": 10**15}, {"student": 1}
    )
    monkeypatch.setattr("reelgym.experiments.plan.forecast", lambda *_: found)
    asked = ["plan", "--stack", stack, "--out", str(tmp_path), "--gpus", "1", "8"]
    assert cli.main(asked) == 0
    said = capsys.readouterr().out
    assert "student's weights" in said and "8 --shard" in said and "try" not in said
    assert cli.main([*asked, "--memory", "1"]) == 0
    assert "Nothing fits: try --recompute, --lora-rank 32" in capsys.readouterr().out
    assert cli.main([*asked, "--recipe", "nothing"]) == 1
    assert "nothing" in capsys.readouterr().err
