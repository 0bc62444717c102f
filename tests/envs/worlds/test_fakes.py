"""The scripted fakes: identity at strength 0, each edit does what it says, two families are held out."""

from dataclasses import replace

import pytest
import torch

from reelgym.envs.worlds.fakes import FAKES
from reelgym.envs.worlds.grammar import GRAMMARS, chunk_clauses, sample_scripts
from reelgym.envs.worlds.render import render
from reelgym.envs.worlds.scene import roll

CLIPS = 16
MOVING = replace(GRAMMARS["plain"], motions=("moves",))  # many families spare what rests
SCRIPTS = sample_scripts(CLIPS, split="train", seed=3, grammar=MOVING)
SCENE = roll([chunk_clauses(script, 4) for script in SCRIPTS], 3, torch.Generator().manual_seed(3))
TRUTH = render(SCENE)


def fake(name, strength, seed=0):
    return FAKES[name](SCENE, torch.full((CLIPS,), float(strength)), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", FAKES)
def test_strength_zero_is_the_truth_and_one_is_not(name):
    torch.testing.assert_close(fake(name, 0), TRUTH, rtol=0, atol=1e-6)
    worst = fake(name, 1)
    assert worst.shape == TRUTH.shape and worst.min() >= 0 and worst.max() <= 1
    assert ((worst - TRUTH).flatten(1).abs().amax(1) > 0.05).float().mean() > 0.9


@pytest.mark.parametrize("name", FAKES)
def test_a_seed_fixes_the_fake(name):
    assert torch.equal(fake(name, 0.5, seed=1), fake(name, 0.5, seed=1))


@pytest.mark.parametrize("name", FAKES)
def test_every_clip_has_its_own_strength(name):
    mixed = FAKES[name](SCENE, torch.linspace(0, 1, CLIPS), torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixed[0], TRUTH[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(mixed[-1], fake(name, 1)[-1])


def test_two_families_are_held_out():
    assert {name for name, family in FAKES.items() if family.held_out} == {"ghosting", "energy_gain"}
    assert len(FAKES) == 12 and {family.axis for family in FAKES.values()} == {"VQ", "MQ", "TA", "physics"}


@pytest.mark.parametrize("strength", [torch.full((CLIPS,), 1.5), torch.ones(CLIPS + 1)])
def test_a_wrong_strength_is_refused(strength):
    with pytest.raises(ValueError, match="strength"):
        FAKES["jitter"](SCENE, strength)
