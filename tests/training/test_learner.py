import pytest
import torch
from torch import nn

from reelgym.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from reelgym.training.learner import Learner, LearnerConfig, NonFiniteError

CONFIG = LearnerConfig(learning_rate=1e-2, ema=0.9, weight_decay=0.1)
PLANNED = LearnerConfig(learning_rate=1e-2, ema=0.998, planned=6, muon_lr=1e-2, ema_warmup=True)


class Net(nn.Module):
    """One matrix that is Muon's, and the rest AdamW's."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(3, 3)])
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.blocks[0](x).tanh())


def module():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def loss(net, step):
    return net(torch.randn(4, 3, generator=torch.Generator().manual_seed(step))).square().mean()


def vector(net):
    return nn.utils.parameters_to_vector(net.parameters()).detach()


def learn(learner, steps):
    for step in steps:
        learner.step(loss(learner.module, step))


def test_a_step_is_adamw_on_the_clipped_gradient():
    learner, plain = Learner(module(), LearnerConfig(learning_rate=1e-2, max_grad_norm=0.1)), module()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(3):
        value = loss(plain, step)
        value.backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        measured = learner.step(loss(learner.module, step))
        assert measured == {"loss": pytest.approx(value.item()), "grad_norm": pytest.approx(norm.item()), "skipped": 0}
    assert torch.equal(learner.module.weight, plain.weight)


def test_parts_of_an_update_add_up():
    whole, parts = Learner(module(), CONFIG), Learner(module(), CONFIG)
    whole.step((loss(whole.module, 0) + loss(whole.module, 1)) / 2)
    for step in range(2):
        parts.backward(loss(parts.module, step) / 2)
    parts.optimizer_step()
    torch.testing.assert_close(whole.module.weight, parts.module.weight)


def test_averaged_weights_follow():
    learner = Learner(module(), CONFIG)
    mean = learner.module.weight.detach().clone()
    for step in range(3):
        learner.step(loss(learner.module, step))
        mean = 0.9 * mean + 0.1 * learner.module.weight.detach()
    torch.testing.assert_close(learner.ema_model().weight, mean)
    with pytest.raises(ValueError, match="ema"):
        Learner(module(), LearnerConfig()).ema_model()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_never_touches_the_weights(bad):
    learner = Learner(module(), CONFIG)
    learn(learner, range(2))
    before = learner.module.weight.detach().clone()
    with pytest.raises(NonFiniteError, match="after update 2"):
        learner.step(loss(learner.module, 0) * bad)
    assert torch.equal(before, learner.module.weight) and learner.module.weight.grad is None


def test_a_few_may_be_skipped():
    learner = Learner(module(), LearnerConfig(skips=1))
    assert learner.step(loss(learner.module, 0) * float("nan"))["skipped"] == 1
    learn(learner, range(1))
    assert (learner.updates, learner.skipped) == (1, 1)
    learner.step(loss(learner.module, 0) * float("nan"))
    with pytest.raises(NonFiniteError):
        learner.step(loss(learner.module, 0) * float("nan"))


@pytest.mark.parametrize(("make", "config"), [(module, CONFIG), (Net, PLANNED)])
def test_resume_is_bitwise(tmp_path, make, config):
    unbroken, first = Learner(make(), config), Learner(make(), config)
    learn(unbroken, range(6))
    learn(first, range(3))
    groups, meta = first.state()
    save_checkpoint(tmp_path / "at", groups, meta)
    fresh = make()
    nn.utils.vector_to_parameters(torch.zeros(len(vector(fresh))), fresh.parameters())
    second = Learner(fresh, config)
    second.load_state(*load_checkpoint(tmp_path / "at"))
    learn(second, range(3, 6))
    assert torch.equal(vector(second.module), vector(unbroken.module))
    assert torch.equal(vector(second.ema_model()), vector(unbroken.ema_model())) and second.updates == 6
    with pytest.raises(CheckpointError, match="averaged"):
        Learner(make(), LearnerConfig()).load_state(*load_checkpoint(tmp_path / "at"))


def test_muon_takes_the_matrices_of_blocks_alone():
    learner = Learner(Net(), PLANNED)
    (group,) = learner.optimizers["muon"].param_groups
    assert [p is learner.module.blocks[0].weight for p in group["params"]] == [True]
    assert len(learner.optimizers["optimizer"].param_groups[0]["params"]) == 3
    assert list(Learner(Net(), CONFIG).optimizers) == ["optimizer"]


def test_the_rate_warms_up_and_falls_to_a_twentieth():
    planned = LearnerConfig(planned=1000)
    assert planned.lr_multiplier(0) == 1 / 20 and planned.lr_multiplier(20) == pytest.approx(1)
    assert planned.lr_multiplier(1000) == pytest.approx(0.05)
    assert {CONFIG.lr_multiplier(update) for update in (0, 500)} == {1}
    learner = Learner(Net(), PLANNED)
    learn(learner, range(6))
    for optimizer in learner.optimizers.values():
        assert optimizer.param_groups[0]["lr"] == 1e-2 * PLANNED.lr_multiplier(5)


def test_the_average_warms_up():
    learner = Learner(Net(), PLANNED)
    mean = vector(learner.module)
    for step in range(3):
        learner.step(loss(learner.module, step))
        decay = (2 + step) / (11 + step)
        mean = decay * mean + (1 - decay) * vector(learner.module)
    torch.testing.assert_close(vector(learner.ema_model()), mean)


def test_wrong_settings_are_told():
    with pytest.raises(ValueError, match="nothing to train"):
        Learner(module().requires_grad_(False), CONFIG)
    with pytest.raises(ValueError, match="positive"):
        LearnerConfig(learning_rate=0)


TINY = LearnerConfig(learning_rate=2e-6, ema=0.9)


def half():
    net = module()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(0.02)
    return net.bfloat16()


def test_weights_in_bfloat16_train_in_float32():
    plain, net = half(), half()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=2e-6, weight_decay=0.0)
    learner, whole = Learner(net, TINY), Learner(half().float(), TINY)
    optimizer_moved = set()
    for step in range(80):
        gradient = torch.full((2, 3), (-1.0) ** (step % 7 == 6))  # the same for all three, exact in bfloat16
        for weight in (plain.weight, net.weight, whole.module.weight):
            (weight * gradient.type_as(weight)).sum().backward()
        learner.masters.collect()
        optimizer.step()
        optimizer.zero_grad()
        measured, _ = learner.optimizer_step(), whole.optimizer_step()
        optimizer_moved.add(measured["weights_moved"])
    assert torch.equal(plain.weight, half().weight)  # 2e-6 is below half of the last place of .02
    assert torch.equal(learner.parameters[0], whole.module.weight) and not torch.equal(net.weight, half().weight)
    assert torch.equal(net.weight, whole.module.weight.bfloat16()) and optimizer_moved == {0.0, 6 / 8}


def test_what_is_in_bfloat16_resumes_to_the_bit_and_shares_its_masters(tmp_path):
    def small(net, step):
        return net(torch.randn(4, 3, generator=torch.Generator().manual_seed(step)).bfloat16()).square().mean()

    unbroken, first, second = (Learner(half(), CONFIG) for _ in range(3))
    for step in range(4):
        unbroken.step(small(unbroken.module, step))
    for step in range(2):
        first.step(small(first.module, step))
    save_checkpoint(tmp_path / "at", *first.state())
    second.load_state(*load_checkpoint(tmp_path / "at"))
    for step in range(2, 4):
        second.step(small(second.module, step))
    assert all(torch.equal(a, b) for a, b in zip(second.parameters, unbroken.parameters, strict=True))
    assert second.ema[0].dtype == torch.float32 and torch.equal(second.ema[0], unbroken.ema[0])
    assert Learner(second.module, TINY).parameters[0] is second.parameters[0]  # as the stages of a mixture do
    second.module.weight.data.fill_(0.25)
    second.step(small(second.module, 0))
    assert (second.parameters[0] - 0.25).abs().max() < 0.02  # weights that were put back
    with pytest.raises(CheckpointError, match="another dtype"):
        Learner(half().float(), CONFIG).load_state(*load_checkpoint(tmp_path / "at"))
