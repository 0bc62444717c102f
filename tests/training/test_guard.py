"""The guard: it does not disturb a training, and stops one whose held-out reward falls."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from reelgym.agents.finetune import FineTune, FineTuneConfig
from reelgym.agents.reward_gradient import RewardGradient
from reelgym.checkpoint import CheckpointError
from reelgym.models.generator import generate_chunk, stream
from reelgym.models.lora import AdapterConfig, own_weights, trainable_copy
from reelgym.models.sampler import step_sigmas
from reelgym.rewards.stream_reward import StreamReward
from reelgym.training.guard import EvalPoint, Guard, GuardConfig, charge, fallen, pixel_diversity
from reelgym.training.learner import LearnerConfig, NonFiniteError
from reelgym.training.loop import fit
from reelgym.training.tripwires import broken_bounds

HACKING = FineTuneConfig(
    RewardGradient(noise=0.0, shift=0),
    prefix="own",
    prompts=6,
    group=1,
    learner=LearnerConfig(learning_rate=1e-2),
)
WATCH = GuardConfig(every=1, prompts=3, clips=2, sharpness=0.0, motion=0.0, diversity=0.0, saturation=0.0, kl=0.0)


class Disagrees:
    """Likes what the trained reward dislikes, or (sign 1) the same."""

    axes = ("TA",)
    min_frames = 3

    def __init__(self, model, sign):
        self.model, self.sign = model, sign
        self.mean, self.std = torch.zeros(1), torch.ones(1)

    def score(self, video, prompts):
        scores = (self.model.score(video, prompts) - self.model.mean) / self.model.std
        return self.sign * scores.mean(-1, keepdim=True)


@pytest.fixture
def make(generator, env, prompts, codec, layout, reward):
    """A trainer of a copy of the generator, and its guard; sign -1: the held-out reward falls as the other climbs."""

    def made(sign=-1, recipe=HACKING, **changes):
        copied = replace(generator, model=copy.deepcopy(generator.model))
        trainer = FineTune(recipe, copied, env, prompts)
        heldout = StreamReward(Disagrees(reward.model, sign))
        return trainer, Guard(replace(WATCH, **changes), copied, codec, layout, reward, heldout, prompts)

    return made


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.generator.model.parameters()])


def fitted(trainer, updates, guard, **options):
    logged = []

    def log(values, update):
        logged.append({"update": update, **values})

    fit(trainer, updates, guard=guard, log=log, **options)
    return logged


def test_a_look_changes_nothing(make):
    (plain, _), (watched, guard) = make(), make(sign=1, every=2)
    fit(plain, 3)
    logged = fitted(watched, 3, guard)
    assert torch.equal(weights(plain), weights(watched)) and not guard.stopped and guard.stop_reason == ""
    assert [row["update"] for row in logged if "guard/heldout" in row] == [0, 2, 3]
    state, before = torch.get_rng_state(), weights(watched)
    first, second = guard.evaluate(4), guard.evaluate(4)
    assert first == second and torch.equal(torch.get_rng_state(), state) and torch.equal(weights(watched), before)
    assert replace(plain.counts, seconds=0) == replace(watched.counts, seconds=0)


def test_what_a_look_sees(make, codec, prompts):
    trainer, guard = make(prompts=3, clips=2)
    found = guard.evaluate(0)
    names = "reward heldout sharpness flicker motion saturation diversity kl bad_evals".split()
    wires = ["motion", "sharpness", "diversity", "saturation"]
    assert list(found) == [f"guard/{name}" for name in names] + [f"tripwires/{name}" for name in wires]
    assert {found[f"tripwires/{name}"] for name in wires} == {1.0}
    assert found["guard/reward"] == pytest.approx(-found["guard/heldout"], abs=1e-6) and found["guard/kl"] < 1e-9
    assert guard.best.heldout.shape == (3,)
    counts = guard.counts
    assert (counts.chunks, counts.generator_calls, counts.reward_calls) == (24, 24 * 5, 2 * 24)
    assert counts.reference_calls == 3 * (4 + 3) and counts.seconds > 0
    with torch.no_grad():
        for p in trainer.generator.model.parameters():
            p.add_(0.02)
    assert guard.evaluate(1)["guard/kl"] > 0
    one = replace(guard.generator, sigmas=step_sigmas(1, 1.0))
    guard.generator = one
    assert guard.evaluate(2)["guard/kl"] == 0


def test_kl_is_that_of_the_kernels(make, prompts, monkeypatch):
    trainer, guard = make(prompts=2, clips=2)
    with torch.no_grad():
        for p in trainer.generator.model.parameters():
            p.add_(0.02)
    made, found, real = [], [], guard._distance
    monkeypatch.setattr(
        "reelgym.training.guard.generate_chunk", lambda *args: made.append(generate_chunk(*args)) or made[-1]
    )
    monkeypatch.setattr(guard, "_distance", lambda *args: found.append(real(*args)) or found[-1])
    guard.evaluate(0)
    for chunk, ((_, denoising_steps, _), distance) in enumerate(zip(made, found, strict=True)):
        step = denoising_steps[chunk % 3]
        sigma = step.next_sigma
        context = None
        model = guard.reference
        embeds = prompts(2, 2**40)[0]
        for earlier in range(chunk):
            context = model.write(made[earlier][0][::2], embeds[:, earlier], context)
        with torch.no_grad():
            frozen = step.x[::2] - step.sigma * model(step.x[::2], step.sigma, embeds[:, chunk], cache=context)
        wanted = ((1 - sigma) / sigma) ** 2 / 2 * (step.x0[::2] - frozen).square().mean()
        torch.testing.assert_close(distance, wanted)


def test_diversity_is_the_distance_between_clips_of_a_prompt():
    clips = torch.zeros(2, 3, 4, 3, 8, 8)
    clips[1, 2] = 0.5
    torch.testing.assert_close(pixel_diversity(clips), torch.tensor([0.0, 1 / 3]))


def test_it_stops_and_rolls_back_when_the_rewards_part(make):
    trainer, guard = make()
    start = weights(trainer)
    logged = fitted(trainer, 30, guard)
    assert guard.stopped and trainer.counts.updates == 2 == logged[-1]["update"]
    assert logged[-1]["guard/reward"] > logged[0]["guard/reward"] and logged[-1]["guard/bad_evals"] == 2
    assert logged[-1]["guard/heldout"] < logged[0]["guard/heldout"]
    assert torch.equal(weights(trainer), start)
    assert "by update 2 the trained and the held-out reward parted after update 0 (trained " in guard.stop_reason
    assert guard.stop_reason.endswith("; the weights of update 0 are back")
    fitted(trainer, 30, guard)
    assert trainer.counts.updates == 2


def test_the_best_weights_come_back_to_the_last_bit(make, prompts):
    trainer, guard = make(sign=1)
    fitted(trainer, 2, guard)
    best, embeds = weights(trainer), prompts(2, 0)[0]
    clip = stream(trainer.generator, embeds, torch.arange(2))
    guard.heldout.model.model.sign = -1
    guard.best = replace(guard.best, heldout=guard.best.heldout + 9)
    guard.best.values["heldout"] += 9
    fitted(trainer, 9, guard)
    assert guard.stopped and trainer.counts.updates == 4 and "update 2 are back" in guard.stop_reason
    assert torch.equal(weights(trainer), best)
    assert torch.equal(stream(trainer.generator, embeds, torch.arange(2)), clip)


def test_patience_counts_bad_evals_in_a_row(make):
    trainer, guard = make(patience=3)
    guard.evaluate(0)
    worse = replace(guard.best, heldout=guard.best.heldout - 1, values={**guard.best.values, "heldout": -9.0})
    near = replace(guard.best)
    for now, bad_evals in ((worse, 1), (worse, 2), (near, 0), (worse, 1), (worse, 2), (worse, 3)):
        assert not guard.stopped
        guard._judge(now)
        assert guard.bad_evals == bad_evals
    assert guard.stopped
    better = replace(near, values={**near.values, "heldout": 99.0})
    trainer, guard = make(patience=3)
    guard.evaluate(0)
    guard._judge(worse)
    guard._judge(better)
    assert guard.bad_evals == 0 and guard.best is better


def test_the_margin_is_in_standard_errors_of_the_paired_difference():
    best = torch.tensor([0.0, 5.0, -3.0, 2.0])
    difference = torch.tensor([-0.3, -0.1, -0.2, 0.2])
    error = float(difference.std()) / 2
    assert fallen(best + difference, best, 0.9 * 0.1 / error) and not fallen(best + difference, best, 1.1 * 0.1 / error)
    assert not fallen(best, best, 0.0) and fallen(best - 0.1, best, 0.0)
    assert fallen(best * torch.nan, best, 1.0)


def test_floors_are_shares_of_the_start_and_kl_has_a_ceiling():
    start = {"sharpness": 2.0, "motion": 1.0, "diversity": 0.5, "saturation": 0.1, "kl": 0.0}
    now = {"sharpness": 1.1, "motion": 0.7, "diversity": 0.3, "saturation": 0.15, "kl": 0.02}
    limits = GuardConfig().floors, 1.6, 0.01
    assert broken_bounds(now, start, *limits) == [
        "sharpness fell to 0.55 of the start's",
        "KL from the start rose to 0.0200, above 0.01",
    ]
    assert len(broken_bounds(now, start, *limits[:2], 0.0)) == 1
    assert len(broken_bounds({**now, "kl": float("nan")}, start, *limits)) == 2
    assert broken_bounds({**now, "saturation": 0.17}, start, *limits)[1] == "saturation rose to 1.70 of the start's"
    assert broken_bounds(start, start, *limits) == []


def test_a_broken_floor_is_a_strike_however_high_the_reward(make):
    trainer, guard = make(sign=1, motion=99.0, patience=1)
    before = weights(trainer)
    guard.evaluate(0)
    fitted(trainer, 5, guard)
    assert guard.stopped and trainer.counts.updates == 1 and torch.equal(weights(trainer), before)
    assert "by update 1 motion fell to " in guard.stop_reason and guard.best.update == 0


def test_too_far_from_the_start_is_a_strike_however_high_the_reward(make):
    trainer, guard = make(sign=1, kl=1e-9, patience=2)
    before = weights(trainer)
    fitted(trainer, 5, guard)
    assert guard.stopped and trainer.counts.updates == 2 and torch.equal(weights(trainer), before)
    assert "by update 2 KL from the start rose to " in guard.stop_reason and guard.best.update == 0


def test_a_training_that_diverges_is_rolled_back(make, tmp_path):
    trainer, guard = make(sign=1, every=9)
    with pytest.raises(NonFiniteError):
        fit(broken(make()[0], 3), 9)
    fit(broken(trainer, 3), 9, guard=guard, checkpoint=tmp_path / "at")
    start = weights(make()[0])
    assert guard.stopped and torch.equal(weights(trainer), start) and trainer.counts.updates == 3
    assert "the training diverged (after update 3 " in guard.stop_reason and guard.stop_reason.endswith(
        "of update 0 are back"
    )
    other, watch = make(sign=1, every=9)
    fit(other, 9, guard=watch, checkpoint=tmp_path / "at")
    assert other.counts.updates == 3 and watch.stopped and torch.equal(weights(other), start)


def broken(trainer, after):
    update = trainer.update

    def then(*_):
        if trainer.counts.updates == after:
            torch.nn.utils.vector_to_parameters(torch.full((10**6,), torch.inf), trainer.generator.model.parameters())
        return update()

    trainer.update = then
    return trainer


def test_clips_that_cannot_be_shown_are_a_strike(make):
    trainer, guard = make(sign=1, sharpness=0.5)
    guard.evaluate(0)
    with torch.no_grad():
        for parameter in trainer.generator.model.parameters():
            parameter.fill_(torch.nan)
    found = guard.evaluate(1)
    assert guard.bad_evals == 1 and math.isnan(found["guard/heldout"]) and "sharpness fell" in guard._charge


def test_the_charge_says_what_happened():
    values = {"reward": 1.0, "heldout": 0.5}
    best, now = EvalPoint(4, torch.zeros(2), values), EvalPoint(8, torch.zeros(2), {**values, "reward": 0.5})
    said = charge(now, best, True, ["motion fell to 0.50 of the start's"])
    assert said == (
        "by update 8 both rewards fell after update 4 (trained 1.000 to 0.500, held out 0.500 to 0.500) "
        "and motion fell to 0.50 of the start's"
    )


def test_pending_bad_evals_roll_back_at_the_end(make):
    trainer, guard = make(patience=9)
    start = weights(trainer)
    fitted(trainer, 3, guard)
    assert not guard.stopped and "update 0 are back" in guard.stop_reason and torch.equal(weights(trainer), start)
    assert guard.bad_evals == 0


@pytest.mark.parametrize(
    ("sign", "every", "updates", "broken_after"), [(1, 2, 4, 3), (-1, 2, 6, 1), (-1, 2, 6, 3), (-1, 3, 4, 2)]
)
def test_resume_is_bitwise(make, tmp_path, sign, every, updates, broken_after):
    (unbroken, over), (first, watch), (second, watch_on) = (make(sign, every=every) for _ in range(3))
    rows = fitted(unbroken, updates, over)

    class Killed(Exception):
        pass

    def die(values, update):
        if update == broken_after + 1:
            raise Killed

    with pytest.raises(Killed):
        fit(first, updates, guard=watch, log=die, checkpoint=tmp_path / "at", checkpoint_every=1)
    resumed = fitted(second, updates, watch_on, checkpoint=tmp_path / "at")
    assert [row["update"] for row in resumed] == [row["update"] for row in rows if row["update"] > broken_after]
    assert all(row == other for row, other in zip(resumed, rows[-len(resumed) :], strict=True))
    assert torch.equal(weights(second), weights(unbroken)) and watch_on.stop_reason == over.stop_reason
    assert replace(watch_on.counts, seconds=0) == replace(over.counts, seconds=0)
    third, watch_again = make(sign, every=every)
    assert fitted(third, updates, watch_again, checkpoint=tmp_path / "at") == []
    assert torch.equal(weights(third), weights(unbroken)) and watch_again.stopped == over.stopped


def test_a_checkpoint_and_a_call_that_differ_are_told(make, tmp_path):
    (trainer, guard), (other, changed) = make(), make(patience=5)
    fit(trainer, 1, guard=guard, checkpoint=tmp_path / "at")
    with pytest.raises(CheckpointError, match="another config"):
        fit(other, 2, guard=changed, checkpoint=tmp_path / "at")
    with pytest.raises(CheckpointError, match="whether there is a guard"):
        fit(other, 2, checkpoint=tmp_path / "at")
    groups, meta = guard.state()
    with pytest.raises(CheckpointError, match="lacks parts of the guard: best$"):
        changed.load_state({name: group for name, group in groups.items() if name != "best"}, meta)
    fit(other, 1, checkpoint=tmp_path / "bare")
    with pytest.raises(CheckpointError, match="whether there is a guard"):
        fit(trainer, 2, guard=guard, checkpoint=tmp_path / "bare")


def test_wrong_settings_are_told(make):
    with pytest.raises(ValueError, match="at least 2"):
        GuardConfig(clips=1)
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="not below 0"):
            GuardConfig(kl=wrong)


def test_an_adapter_alone_is_kept_and_put_back(generator, env, prompts, codec, layout, reward):
    own = replace(generator, model=trainable_copy(generator.model, AdapterConfig(2)))
    trainer, heldout = FineTune(HACKING, own, env, prompts), StreamReward(Disagrees(reward.model, -1))
    guard = Guard(replace(WATCH, patience=1), own, codec, layout, reward, heldout, prompts)
    start = {name: value.clone() for name, value in own_weights(own.model).items()}
    fit(trainer, 4, guard=guard)
    assert guard.stopped and all(torch.equal(value, start[name]) for name, value in own_weights(own.model).items())
    groups, meta = guard.state()
    assert set(groups["best"]) == set(groups["reference"]) == set(start)
    guard.load_state(groups, meta)
