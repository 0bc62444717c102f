"""The law of motion: what each motion does, walls, edits, seeds."""

import math

import pytest
import torch

from reelgym.envs.worlds.grammar import GRAMMARS, chunk_clauses, parse, sample_scripts
from reelgym.envs.worlds.scene import ORBIT_RADIUS, SIDE, SPEED, margin, roll


def play(text, *, clips=32, chunks=4, seed=0):
    script = chunk_clauses(parse(text), chunks)
    return roll([script] * clips, 3, torch.Generator().manual_seed(seed))


def steps(scene):
    return scene.position[:, 1:] - scene.position[:, :-1]


@pytest.mark.parametrize("name", GRAMMARS)
def test_nothing_leaves_the_frame(name):
    scripts = sample_scripts(64, split="train", seed=0, grammar=GRAMMARS[name])
    scene = roll([chunk_clauses(script, 16) for script in scripts], 3, torch.Generator().manual_seed(0))
    low = margin(scene.radius)[..., None]
    assert (scene.position >= low - 1e-4).all() and (scene.position <= SIDE - low + 1e-4).all()


def test_what_moves_goes_straight_at_its_speed_until_the_wall():
    move = steps(play("a red circle moves right slow"))
    expected = torch.tensor([SPEED[0], 0.0]).expand_as(move)
    torch.testing.assert_close(move, expected, rtol=0, atol=1e-5)
    late = steps(play("a red circle moves down-left fast", chunks=16))[:, -3:]
    assert late.abs().max() == 0


def test_what_bounces_keeps_its_speed_and_turns_back():
    scene = play("a red circle bounces right fast", chunks=16)
    move = steps(scene)
    assert (move[..., 0] > 0).any(1).all() and (move[..., 0] < 0).any(1).all()
    away = move.norm(dim=-1)
    assert ((away - SPEED[2]).abs() < 1e-4).float().mean() > 0.8


def test_what_rests_does_not_move():
    assert steps(play("a red circle rests fast")).abs().max() == 0


def test_what_orbits_stays_on_its_circle():
    scene = play("a small red circle orbits fast", chunks=8)
    chord = 2 * ORBIT_RADIUS * math.sin(SPEED[2] / ORBIT_RADIUS / 2)
    torch.testing.assert_close(steps(scene).norm(dim=-1), torch.full((32, 23), chord), rtol=0, atol=1e-3)


def test_what_sways_and_zigzags_keeps_to_its_axis():
    sway = steps(play("a red circle sways up"))
    assert sway[..., 0].abs().max() < 1e-5 and sway[..., 1].abs().max() > 0.5
    zigzag = steps(play("a small red circle zigzags right slow"))
    assert (zigzag[..., 0] > 0).all()
    assert (zigzag[:, 0, 1].sign() != zigzag[:, 4, 1].sign()).float().mean() > 0.8


def test_an_edit_changes_the_object_where_it_stands():
    scene = play("a small red circle moves right ; then a large blue square rests")
    assert scene.radius[0].tolist() == pytest.approx([3.2] * 6 + [6.0] * 6)
    assert scene.shape[0].tolist() == [0] * 6 + [1] * 6
    jump = (scene.position[:, 6] - scene.position[:, 5]).norm(dim=-1)
    assert jump.max() <= (margin(torch.tensor(6.0)) - margin(torch.tensor(3.2))) * math.sqrt(2) + 1e-3


def test_a_seed_fixes_the_scene_and_seeds_differ():
    one, same, other = (play("a red circle bounces up", seed=seed).position for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
