"""Oracle validity: the truth scores near 1, every fake lowers its axis, and no falsehood beats the truth."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from reelgym.envs.worlds import fakes
from reelgym.envs.worlds.camera import CAMERAS, blurred, shoot
from reelgym.envs.worlds.grammar import COLOURS, GRAMMARS, SHAPES, chunk_clauses, parse, sample_scripts
from reelgym.envs.worlds.oracle import ORACLE_AXES, diversity, error_map, score_clips, score_streams
from reelgym.envs.worlds.render import render
from reelgym.envs.worlds.scene import BACKGROUND, SIDE, margin, roll

CLIPS = 48
WORLDS = {**GRAMMARS, "moving": replace(GRAMMARS["plain"], motions=("moves",))}
STRENGTHS = {"moving": (0.25, 0.5, 0.75, 1.0), "full": (0.5, 1.0)}


@cache
def truth(name, chunks=4, clips=CLIPS):
    scripts = sample_scripts(clips, split="test", seed=1, grammar=WORLDS[name], clauses=1 if chunks == 1 else None)
    clauses = [chunk_clauses(script, chunks) for script in scripts]
    scene = roll(clauses, 3, torch.Generator().manual_seed(1))
    return clauses, scene, render(scene)


def means(scores):
    return {axis: float(getattr(scores, axis).mean()) for axis in (*ORACLE_AXES, "total")}


@cache
def true_scores(name):
    clauses, _, video = truth(name)
    return score_clips(video, clauses, 3)


@pytest.mark.parametrize("name", GRAMMARS)
@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_the_truth_scores_near_one_on_every_axis(name, chunks):
    clauses, _, video = truth(name, chunks)
    rounded = shoot(video, CAMERAS["clean"])
    assert min(means(score_clips(rounded, clauses, 3)).values()) >= 0.98


@pytest.mark.parametrize("name", GRAMMARS)
@pytest.mark.parametrize("camera", ["phone", "webcam"])
def test_the_truth_survives_the_camera(name, camera):
    clauses, _, video = truth(name)
    film = shoot(video, CAMERAS[camera], torch.Generator().manual_seed(0))
    assert min(means(score_clips(film, clauses, 3)).values()) >= 0.98


@pytest.mark.parametrize("name", GRAMMARS)
def test_the_truth_does_not_drift_over_long_streams(name):
    clauses, _, video = truth(name, chunks=16, clips=16)
    scores = score_streams(video, clauses, 3)
    assert scores.windows.shape == (16, 4)
    assert scores.total.mean() >= 0.98 and scores.tail.mean() >= 0.98 and scores.drift.mean() <= 0.02
    assert score_clips(video, clauses, 3).total.mean() >= 0.98


@pytest.mark.parametrize("name", GRAMMARS)
def test_a_window_of_a_stream_is_as_true_as_the_stream(name):
    clauses, _, video = truth(name, chunks=16, clips=16)
    window = [script[5:7] for script in clauses]
    assert min(means(score_clips(video[:, 15:21], window, 3, fresh=False)).values()) >= 0.98


@pytest.mark.parametrize("name", STRENGTHS)
@pytest.mark.parametrize("family", fakes.FAKES)
def test_every_fake_lowers_its_axis_monotonically(name, family):
    clauses, scene, _ = truth(name)
    fake = fakes.FAKES[family]
    scores = [means(true_scores(name))[fake.axis]]
    for strength in STRENGTHS[name]:
        video = fake(scene, torch.full((CLIPS,), strength), torch.Generator().manual_seed(7))
        scores.append(means(score_clips(video, clauses, 3))[fake.axis])
    assert all(weak > strong or weak < 0.01 for weak, strong in zip(scores[:-1], scores[1:], strict=True)), scores
    assert scores[0] >= 0.98 and scores[-2] <= 0.85 and scores[-1] <= 0.6, scores


def test_every_wrong_word_costs():
    clauses, _, video = truth("moving")

    def other(words, word):
        return words[(words.index(word) + 1) % len(words)]

    wrong = {
        "shape": lambda clause: replace(clause, shape=other(SHAPES, clause.shape)),
        "colour": lambda clause: replace(clause, colour=other(COLOURS, clause.colour)),
        "size": lambda clause: replace(clause, size="large"),
        "direction": lambda clause: replace(clause, direction=other(GRAMMARS["plain"].directions, clause.direction)),
        "speed": lambda clause: replace(clause, speed=other(("medium", "fast"), clause.speed)),
        "light": lambda clause: replace(clause, light="dim"),
        "occluder": lambda clause: replace(clause, occluder=True),
    }
    for word, change in wrong.items():
        asked = [[change(clause) for clause in script] for script in clauses]
        assert score_clips(video, asked, 3).total.mean() < 0.6, word
    assert score_clips(video, clauses[1:] + clauses[:1], 3).total.mean() < 0.2


def test_no_falsehood_beats_the_truth():
    clauses, scene, video = truth("moving")
    best = true_scores("moving").total.mean()
    sigma = torch.full(video.shape[:2], 1.0)
    start = scene.position[:, :1]
    grey = scene.rgb.mean(-1, keepdim=True)
    falsehoods = {
        "oversaturated": render(replace(scene, rgb=(grey + 1.4 * (scene.rgb - grey)).clamp(0, 1))),
        "brighter": (1.2 * video).clamp(0, 1),
        "bigger": render(replace(scene, radius=1.2 * scene.radius)),
        "smaller": render(replace(scene, radius=0.8 * scene.radius)),
        "sharper": (2.5 * video - 1.5 * blurred(video, sigma)).clamp(0, 1),
        "softer": blurred(video, sigma),
        "faster": render(replace(scene, position=(start + 1.4 * (scene.position - start)).clamp(6, 26))),
        "slower": render(replace(scene, position=start + 0.7 * (scene.position - start))),
    }
    for name, false in falsehoods.items():
        assert score_clips(false, clauses, 3).total.mean() < best - 0.03, name


def test_nothing_noise_and_stillness_lose():
    clauses, scene, video = truth("moving")
    frozen = render(replace(scene, position=scene.position[:, :1].expand_as(scene.position)))
    noise = torch.rand(video.shape, generator=torch.Generator().manual_seed(0))
    assert score_clips(torch.full_like(video, BACKGROUND), clauses, 3).total.max() < 0.1
    assert score_clips(noise, clauses, 3).total.max() < 0.1
    assert score_clips(frozen, clauses, 3).total.mean() < 0.3


def test_resting_at_the_far_wall_does_not_pass_for_moving():
    clauses = [chunk_clauses(parse("a red circle moves right"), 4)]
    scene = roll(clauses, 3, torch.Generator().manual_seed(0))
    far = torch.tensor([SIDE - float(margin(scene.radius)[0, 0]), 16.0]).expand_as(scene.position)
    assert score_clips(render(replace(scene, position=far)), clauses, 3).total < 0.3


def test_moving_does_not_pass_for_resting():
    clauses, _, video = truth("moving")
    rests = [[replace(clause, motion="rests", direction=None) for clause in script] for script in clauses]
    assert score_clips(video, rests, 3).MQ.mean() < 0.1


def test_small_errors_cost_little():
    clauses, _, video = truth("moving")
    soft = blurred(video, torch.full(video.shape[:2], 0.5)) + 0.02
    grain = 0.01 * torch.randn(video.shape, generator=torch.Generator().manual_seed(0))
    assert ((soft + grain - video) ** 2).mean() > 3e-4
    assert score_clips((soft + grain).clamp(0, 1), clauses, 3).total.mean() >= 0.95


@pytest.mark.parametrize("name", ["plain", "full"])
def test_an_error_map_lies_on_the_errors_alone(name):
    clauses, _, video = truth(name)
    spoilt = video.clone()
    spoilt[:, 5:7, :, :6, 26:] += 0.2
    assert error_map(video, clauses, 3).mean() < 2e-3
    found = error_map(spoilt, clauses, 3)
    there = torch.zeros_like(found, dtype=torch.bool)
    there[:, 5:7, :6, 26:] = True
    assert found[there].mean() > 20 * found[~there].mean()
    torch.testing.assert_close(found[there].median(), torch.tensor(0.2), atol=0.02, rtol=0)


def test_a_score_does_not_depend_on_the_batch():
    clauses, _, video = truth("full")
    together, alone = true_scores("full"), score_clips(video[5:6], clauses[5:6], 3)
    for axis in (*ORACLE_AXES, "total"):
        torch.testing.assert_close(getattr(together, axis)[5:6], getattr(alone, axis), rtol=0, atol=2e-3)
    again = score_clips(video, clauses, 3)
    assert torch.equal(together.total, again.total)


def test_total_is_the_geometric_mean():
    clauses, scene, _ = truth("moving")
    scores = score_clips(fakes.FAKES["jitter"](scene, torch.full((CLIPS,), 0.3)), clauses, 3)
    product = scores.VQ * scores.MQ * scores.TA * scores.physics
    torch.testing.assert_close(scores.total, product**0.25)


def test_diversity_counts_different_clips():
    clauses = [chunk_clauses(parse("a red circle bounces right"), 4)] * 6
    varied = render(roll(clauses, 3, torch.Generator().manual_seed(0)))
    same = varied[:1].expand_as(varied)
    scores = diversity(torch.stack([varied, same]))
    assert scores[0] > 0.1 and scores[1] == 0
    with pytest.raises(ValueError, match="at least 2"):
        diversity(varied[None, :1])


def test_wrong_shapes_are_refused():
    clauses, _, video = truth("moving")
    with pytest.raises(ValueError, match="scripts"):
        score_clips(video[:3], clauses, 3)
    with pytest.raises(ValueError, match="scripts"):
        score_clips(video, clauses, 4)
    with pytest.raises(ValueError, match="oracle judges"):
        score_clips(video[..., :16], clauses, 3)
