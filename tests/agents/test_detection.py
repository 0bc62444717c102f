"""Training a detector: what the pool draws, and that what is drawn is what is learned from."""

import pytest
import torch

from reelgym.agents.detection import Detection, DetectionConfig, ReplayBuffer, uniform_sampler
from reelgym.models.detector import ClipDetector
from reelgym.training.learner import LearnerConfig


def flat(count, level):
    return torch.full((count, 6, 3, 8, 8), level)


@pytest.fixture
def pool():
    pool = ReplayBuffer()
    for name, level in (("dark", 0.2), ("grey", 0.4), ("bright", 0.8)):
        pool.add(name, flat(3, level))
    return pool


def shares(pool, weights, count=600):
    drawn = pool.draw(count, torch.Generator().manual_seed(0), weights)[:, 0, 0, 0, 0]
    return [float((drawn - level).abs().lt(0.01).float().mean()) for level in (0.2, 0.4, 0.8)]


def test_families_are_drawn_by_weight(pool):
    assert shares(pool, None) == pytest.approx([1 / 3] * 3, abs=0.06)
    assert shares(pool, {"bright": 3.0, "dark": 1.0}) == pytest.approx([0.25, 0, 0.75], abs=0.06)
    assert shares(pool, {"grey": 1.0}) == [0, 1, 0]


def test_a_draw_follows_from_its_generator(pool):
    one, two, other = (pool.draw(9, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_real_clips_and_fakes_of_a_step_are_drawn_apart():
    many = torch.arange(250, dtype=torch.uint8).view(-1, 1, 1, 1, 1)
    pool = ReplayBuffer({"fake": many})
    pairs = [
        [(draw[:, 0, 0, 0, 0] * 255).round() for draw in (uniform_sampler(many)(64, step), pool.draw(64, random(step)))]
        for step in range(20)
    ]
    real, fake = (torch.cat(side) for side in zip(*pairs, strict=True))
    assert torch.stack((real, fake)).corrcoef()[0, 1].abs() < 0.1 and len(real.unique()) > 240
    first = random(0)
    assert uniform_sampler(many)(1, 0)[0] * 255 != many[torch.randint(250, (1,), generator=first)][0]


def random(seed):
    return torch.Generator().manual_seed(seed)


def test_later_clips_of_a_family_stand_behind_the_earlier(pool):
    pool.add("dark", flat(2, 0.6))
    assert pool.families["dark"].shape[0] == 5 and pool.families["dark"].dtype == torch.uint8


def test_what_the_pool_lacks_is_said(pool):
    with pytest.raises(ValueError, match="no clips of teacher in the pool of fakes"):
        pool.draw(2, torch.Generator(), {"teacher": 1.0})
    for empty in (ReplayBuffer().draw, lambda *args: pool.draw(*args, {})):
        with pytest.raises(ValueError, match="pool of fakes is empty"):
            empty(2, torch.Generator())


def test_a_detector_learns_the_families_that_weights_name(pool):
    torch.manual_seed(0)
    config = DetectionConfig(LearnerConfig(learning_rate=1e-2), batch=8, camera="clean", pool=1)
    detector = ClipDetector(width=8, size=8)
    trainer = Detection(config, detector, lambda count, step: flat(count, 0.4), pool)
    trainer.weights = {"bright": 1.0}
    found = [trainer.update() for _ in range(60)]
    assert found[-1]["right"] == 1 and found[-1]["loss"] < found[0]["loss"] / 2
    with torch.no_grad():
        bright, grey = (float(detector(flat(1, level))[0, -1]) for level in (0.8, 0.4))
    assert bright > 1 and grey < -1
