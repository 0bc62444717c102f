"""Every trainer runs where touching an oracle is an error."""

import sys
from dataclasses import replace

import pytest
import torch

from reelgym.agents.finetune import FineTune
from reelgym.agents.finetune_recipes import FINETUNE
from reelgym.distill.causal_init import CausalInit, CausalInitConfig
from reelgym.distill.recipes import DISTILL
from reelgym.distill.trainer import Distill

ORACLES = ("oracle", "oracle_fit", "oracle_law", "oracle_measure")


class Stub:
    def __getattr__(self, name):
        raise AssertionError(f"an oracle was touched: {name}")


@pytest.fixture(autouse=True)
def no_oracles(monkeypatch):
    for name in ORACLES:
        monkeypatch.setitem(sys.modules, f"reelgym.envs.worlds.{name}", Stub())


@pytest.mark.parametrize("method", [*FINETUNE, "dmd", "stream-r1", "starting recipe"])
def test_trainers_train(method, generator, env, prompts, make_wan, codec, reward, layout):
    def clips(batch, step):
        return torch.randn(batch, 12, 4, 4, 4), prompts(batch, step)[0]

    trainers = {
        "dmd": lambda: Distill(DISTILL["dmd"], generator, make_wan(1), prompts, torch.zeros(8, 18)),
        "stream-r1": lambda: Distill(
            DISTILL["stream-r1"],
            generator,
            make_wan(1),
            prompts,
            torch.zeros(8, 18),
            codec=codec,
            reward=reward,
            layout=layout,
        ),
        "starting recipe": lambda: CausalInit(CausalInitConfig(batch=2), generator, clips),
    }
    if method in FINETUNE:
        recipe = FINETUNE[method]
        sizes = {"prompts": 6, "group": 1} if recipe.group == 1 else {"prompts": 2, "group": 3}
        trainers[method] = lambda: FineTune(replace(recipe, **sizes), generator, env, prompts)
    trainer = trainers[method]()
    assert trainer.update()["grad_norm"] > 0 and trainer.counts.updates == 1
