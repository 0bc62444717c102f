"""Tripwires: dying clips and wild updates stop a training, say which, and leave the best weights."""

import pytest
import torch

from reelgym.training.guard import Guard, GuardConfig
from reelgym.training.loop import fit
from reelgym.training.usage import ComputeUsage
from tests.conftest import PaintCodec

WATCH = GuardConfig(every=2, prompts=2, margin=1e9)


class SpoiltCodec(PaintCodec):
    """Pale videos, changed by `spoil` once it is set."""

    spoil = staticmethod(lambda video: video)

    def decode(self, latents, clamp=None):
        video = super().decode(latents, clamp)
        grey = video.mean(2, keepdim=True)
        return self.spoil(grey + 0.3 * (video - grey))


class Scripted:
    """A trainer that moves every weight by .01 an update and measures what it is told; `then` is called after each."""

    def __init__(self, generator, measured, then=lambda update: None):
        self.generator, self.measured, self.then, self.counts = generator, measured, then, ComputeUsage()

    def update(self):
        with torch.no_grad():
            for parameter in self.generator.model.parameters():
                parameter.add_(0.0001)
        self.counts.updates += 1
        self.then(self.counts.updates)
        return self.measured[min(self.counts.updates, len(self.measured)) - 1]

    def state(self):
        return {}, {"updates": self.counts.updates}

    def load_state(self, groups, meta):
        self.counts.updates = meta["updates"]


@pytest.fixture
def make(generator, layout, reward, prompts):
    def made(config=WATCH):
        return Guard(config, generator, SpoiltCodec(), layout, reward, reward, prompts)

    return made


def first_weight(guard):
    return float(next(guard.generator.model.parameters()).detach().flatten()[0])


def saturated(video):
    mean = video.mean(2, keepdim=True)
    return (mean + 3 * (video - mean)).clamp(0, 1)


def blurred(video):
    return torch.nn.functional.avg_pool2d(video.flatten(0, 1), 5, 1, 2).unflatten(0, video.shape[:2])


def still(video):
    return video[:, :1].expand_as(video)


def alike(video):
    return video[:1].expand_as(video)


@pytest.mark.parametrize(
    ("spoil", "name", "said"),
    [
        (still, "motion", "motion fell to 0.00 of the start's"),
        (blurred, "sharpness", "sharpness fell to 0."),
        (saturated, "saturation", "saturation rose to "),
        (alike, "diversity", "diversity fell to 0.00 of the start's"),
    ],
)
def test_clips_that_die_stop_the_training(make, spoil, name, said):
    guard, logged = make(), []

    def dies(update):
        if update == 3:
            guard.codec.spoil = spoil

    trainer, begun = Scripted(guard.generator, [{}], dies), first_weight(guard)
    fit(trainer, 20, guard=guard, log=lambda measured, update: logged.append(measured))
    assert guard.stopped and trainer.counts.updates == 6 and said in guard.stop_reason
    assert guard.best.update <= 2 and f"the weights of update {guard.best.update} are back" in guard.stop_reason
    assert first_weight(guard) == pytest.approx(begun + 0.0001 * guard.best.update, abs=1e-6)
    share = logged[-1][f"tripwires/{name}"]
    assert share > 1.6 if name == "saturation" else share < 0.6


def updates(**signals):
    """Per-update dicts from lists."""
    return [dict(zip(signals, row, strict=True)) for row in zip(*signals.values(), strict=True)]


CALM = [1.0, 1.2, 0.9, 1.1, 1.0, 1.2, 0.9, 1.1, 1.0, 1.0]


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (updates(grad_norm=CALM + [15.0] * 3), "grad_norm rose to 15.0, above 10 times its running median"),
        (updates(critic_loss=CALM + [4.0] * 3), "critic_loss rose to 4.0, above 3 times its running median"),
        (
            updates(critic_loss=CALM + [2.0] * 3, teacher_loss=CALM + [0.5] * 3),
            "critic_to_teacher rose to 4.0, above 3 times the teacher's loss",
        ),
    ],
)
def test_wild_updates_stop_the_training(make, measured, said):
    guard, logged = make(), []
    trainer = Scripted(guard.generator, measured)
    fit(trainer, 40, guard=guard, log=lambda found, update: logged.append(found))
    assert guard.stopped and trainer.counts.updates == 13
    assert guard.stop_reason == f"by update 13 {said}; the weights of update {guard.best.update} are back"
    assert logged[-1][f"tripwires/{said.split()[0]}"] == pytest.approx(float(said.split()[3].strip(",")))
    assert "guard/reward" not in logged[-1]


@pytest.mark.parametrize(
    "measured",
    [
        updates(grad_norm=CALM + [15.0, 15.0] + CALM + [15.0] + CALM),
        updates(grad_norm=CALM + [float("nan")] * 4 + CALM, critic_loss=[1e-9] * 24),
        updates(grad_norm=[1.05**step for step in range(60)]),
        [{"loss": 1.0}] * 20,
        updates(grad_norm=CALM) + updates(grad_norm=[20.0] * 20, critic_loss=[1.0] * 20),
    ],
)
def test_lone_spikes_and_slow_changes_do_not(make, measured):
    guard = make()
    trainer = Scripted(guard.generator, measured)
    fit(trainer, len(measured), guard=guard)
    assert not guard.stopped and trainer.counts.updates == len(measured)
    assert not any(guard.tripwires.above.values())


def test_zero_asks_for_none(make):
    guard = make(GuardConfig(every=2, prompts=2, margin=1e9, grad_norm=0.0))
    fit(Scripted(guard.generator, updates(grad_norm=CALM + [99.0] * 5)), 15, guard=guard)
    assert not guard.stopped


@pytest.mark.parametrize("broken", [9, 11, 12])
def test_what_was_usual_goes_on_after_a_resume(make, tmp_path, broken):
    measured = updates(grad_norm=CALM + [15.0] * 9, critic_loss=[1.0] * 19)
    first, second = make(), make()
    fit(Scripted(first.generator, measured), broken, guard=first, checkpoint=tmp_path / "at")
    assert not first.stopped
    trainer = Scripted(second.generator, measured)
    fit(trainer, 19, guard=second, checkpoint=tmp_path / "at")
    assert second.stopped and trainer.counts.updates == 13
