"""Memory: micro-batches and activations that are made again change no gradient."""

from dataclasses import replace

import pytest
import torch

from reelgym.agents.finetune import FineTune, FineTuneConfig
from reelgym.agents.policy_gradient import PolicyGradient
from reelgym.agents.reward_gradient import RewardGradient, WindowGradient
from reelgym.distill.causal_init import CausalInit, CausalInitConfig
from reelgym.distill.consistency import Consistency, ConsistencyConfig
from reelgym.distill.on_policy import OnPolicy, OnPolicyConfig
from reelgym.distill.trainer import Distill, DistillConfig
from reelgym.models.lora import AdapterConfig, frozen_copy, trainable_copy
from reelgym.training.microbatches import microbatches, parts

FINETUNE = {
    "forward": FineTuneConfig(prompts=3, group=2, kl_coef=0.5, kl_every=2),
    "policy": FineTuneConfig(PolicyGradient(), prompts=3, group=2),
    "reward": FineTuneConfig(RewardGradient(shift=0), prompts=3, group=2, prefix="own"),
    "window": FineTuneConfig(WindowGradient(), prompts=3, group=2, prefix="own"),
}
DISTILL = DistillConfig(batch=5, critic_updates=0)


@pytest.fixture
def gradient(monkeypatch, generator, env, prompts, make_wan):
    """What the learner of a method's trainer has gathered when it is to step, and the trainer."""
    generator.model.requires_grad_(True)

    def clips(batch, step):
        x0 = torch.randn(batch, 12, 4, 4, 4, generator=torch.Generator().manual_seed(step))
        return x0, prompts(batch, step)[0]

    def made(kind, whose, model):
        own = replace(generator, model=model)
        if kind in FINETUNE:
            return FineTune(FINETUNE[kind], own, env, prompts)
        null = prompts.encoder.encode([""])[0]
        match kind:
            case "on-policy":
                return OnPolicy(OnPolicyConfig(batch=5), own, prompts, null)
            case "consistency":
                return Consistency(ConsistencyConfig(batch=5), own, clips, null)
            case "continued":
                return CausalInit(CausalInitConfig(batch=5, past="clean"), own, clips)
        config = replace(DISTILL, matching=kind, critic_updates=int(whose == "critic"))
        return Distill(config, own, make_wan(1), prompts, null)

    def found(kind, whose="learner", adapter=None, again=False):
        model = trainable_copy(generator.model, adapter)
        if again:
            model.transformer.enable_gradient_checkpointing()
        trainer = made(kind, whose, model)
        learner, gathered = getattr(trainer, whose), []

        def stop():
            gathered.append([p.grad.clone() for p in learner.parameters if p.grad is not None])
            return {"grad_norm": 0.0, "skipped": 0.0}

        monkeypatch.setattr(learner, "optimizer_step", stop)
        trainer.update()
        assert len(gathered[0]) > 4
        return gathered[0], trainer

    return found


def test_parts_are_as_few_as_are_allowed_and_alike():
    assert parts(5) == [(slice(0, 5), 1.0)] and parts(0) == [(slice(0, 0), 0.0)]
    with microbatches(2):
        assert [rows for rows, _ in parts(5)] == [slice(0, 1), slice(1, 3), slice(3, 5)]
        assert sum(share for _, share in parts(5)) == pytest.approx(1) and len(parts(4)) == 2
    assert len(parts(5)) == 1
    with pytest.raises(ValueError, match="at least 1 clip"), microbatches(0):
        pass


KINDS = [*((kind, "learner") for kind in (*FINETUNE, "dmd", "sid", "on-policy", "consistency", "continued"))]


@pytest.mark.parametrize(("kind", "whose"), [*KINDS, ("dmd", "critic")])
def test_the_gradient_is_the_same(gradient, kind, whose):
    whole, trainer = gradient(kind, whose)
    with microbatches(2):
        split, _ = gradient(kind, whose)
    again, twin = gradient(kind, whose, again=True)
    if kind == "dmd":
        assert twin.critic.module.transformer.is_gradient_checkpointing
    largest = max(float(value.abs().max()) for value in whole)
    for value, part, made_again in zip(whole, split, again, strict=True):
        torch.testing.assert_close(part, value, atol=1e-5 * largest, rtol=0)
        torch.testing.assert_close(made_again, value, atol=1e-5 * largest, rtol=0)


def test_a_kl_penalty_on_an_adapter_is_that_of_a_deep_copy(gradient, monkeypatch):
    shared, trainer = gradient("forward", adapter=AdapterConfig(2))
    places = {p.data_ptr() for p in trainer.generator.model.parameters()}
    assert sum(p.data_ptr() in places for p in trainer.reference.parameters()) == len(places) - 16
    monkeypatch.setattr("reelgym.agents.finetune.frozen_copy", lambda model: whole(model))

    def whole(model):
        import copy

        return copy.deepcopy(model).requires_grad_(False)

    deep, trainer = gradient("forward", adapter=AdapterConfig(2))
    assert not places & {p.data_ptr() for p in trainer.reference.parameters()}
    assert all(torch.equal(one, other) for one, other in zip(shared, deep, strict=True))
    assert frozen_copy(trainer.generator.model) is not trainer.generator.model
