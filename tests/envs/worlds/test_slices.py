"""Edge slices: what each is made of, that it is the world's own, and what a generator hears of it."""

import pytest
import torch

from reelgym.envs.worlds import slices
from reelgym.envs.worlds.fakes import FAKES
from reelgym.envs.worlds.grammar import GRAMMARS, chunk_clauses, parse, script_text, split_of
from reelgym.envs.worlds.oracle import score_clips
from reelgym.envs.worlds.render import render
from reelgym.envs.worlds.slices import SLICES, heard, slice_scene, slice_scripts

FRAMES, COUNT = 3, 12


def drawn(name, split="test", seed=1):
    scripts = slice_scripts(name, COUNT, split=split, seed=seed, distinct=True)
    chunks = 4 * SLICES[name].length
    return scripts, [chunk_clauses(script, chunks) for script in scripts], chunks


@pytest.mark.parametrize("name", SLICES)
def test_the_truth_scores_near_one(name):
    scripts, clauses, chunks = drawn(name)
    video = render(slice_scene(name, scripts, chunks, FRAMES, seed=5))
    assert score_clips(video, clauses, FRAMES).total.mean() >= 0.98
    assert score_clips(video, clauses, FRAMES, given=FRAMES).total.mean() >= 0.98


@pytest.mark.parametrize("name", SLICES)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_scripts_are_of_their_split_and_a_function_of_the_seed(name, split):
    scripts, clauses, chunks = drawn(name, split)
    assert len({script_text(script) for script in scripts}) == COUNT
    assert all(split_of(script) == split for script in scripts)
    assert scripts == drawn(name, split)[0] != drawn(name, split, seed=2)[0]
    first, again, other = (slice_scene(name, scripts, chunks, FRAMES, seed).position for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (COUNT, chunks * FRAMES, 2)


def two(script, *names):
    return [tuple(getattr(clause, name) for name in names) for clause in script]


IS_OF = {
    "odd_light": lambda script: all(clause.light in ("red", "blue") for clause in script),
    "occluder": lambda script: all(clause.occluder for clause in script),
    "rare_motion": lambda script: all(clause.motion in ("orbits", "sways", "zigzags", "bounces") for clause in script),
    "low_contrast": lambda script: all(clause.light == "dim" for clause in script),
    "same_colours": lambda script: len(set(two(script, "colour"))) == 1 < len(set(two(script, "shape"))),
    "collision": lambda script: len(script) == 1 and script[0].speed == "fast",
    "cut": lambda script: all(
        len(set(two(script, *part))) == 2 for part in (["colour"], ["shape"], ["motion", "direction"])
    ),
    "prompt_switch": lambda script: (
        len(set(two(script, "colour", "shape"))) == 1 < len(set(two(script, "motion", "direction")))
    ),
    "long_horizon": lambda script: len(script) == 4,
}


@pytest.mark.parametrize("name", SLICES)
def test_scripts_are_of_the_slice(name):
    assert set(IS_OF) == set(SLICES)
    assert all(IS_OF[name](script) for script in drawn(name)[0])
    assert not all(IS_OF[name](script) for other in SLICES if other != name for script in drawn(other)[0])


def test_an_occluder_hides_and_a_wall_is_met_after_the_first_chunk():
    scripts, _, _ = drawn("occluder")
    scene = slice_scene("occluder", scripts, 4, FRAMES, seed=5)
    assert ((scene.position[:, FRAMES:, 0] - 16).abs() < 5).any(1).all()
    scripts, clauses, _ = drawn("collision")
    scene = slice_scene("collision", scripts, 4, FRAMES, seed=5)
    steps = scene.position.diff(dim=1)
    assert torch.allclose(steps[:, :1].norm(dim=-1), torch.tensor(2.0), atol=1e-4)
    assert ((steps[:, FRAMES - 1 :] - steps[:, :1]).norm(dim=-1) > 0.1).any(1).all()


@pytest.mark.parametrize("name", SLICES)
def test_what_is_heard_is_known_and_known_words_stay(name):
    plain = GRAMMARS["plain"]
    known = set(plain.vocabulary())
    for clause in {clause for script in drawn(name)[0] for clause in script}:
        said = heard(clause, plain)
        assert set(str(said).split()) <= known and heard(said, plain) == said
        assert heard(clause, GRAMMARS["full"]) == clause
        assert (said.shape, said.colour) == (clause.shape, clause.colour)


@pytest.mark.parametrize(
    "clause, said",
    [
        ("a small red cross moves down-left slow in dim light behind a bar", "a red cross moves down"),
        ("a large red cross bounces up fast", "a red cross moves up fast"),
        ("a red cross moves up-left fast", "a red cross moves left fast"),
        ("a red cross orbits fast in red light", "a red cross rests"),
        ("a red cross sways left", "a red cross rests"),
    ],
)
def test_what_is_heard_of_a_clause(clause, said):
    assert str(heard(parse(clause)[0], GRAMMARS["plain"])) == said


def test_frames_that_are_given_do_not_count_and_are_seen():
    scripts, clauses, chunks = drawn("prompt_switch")
    scene = slice_scene("prompt_switch", scripts, chunks, FRAMES, seed=5)
    true = render(scene)
    blank = FAKES["blank"](scene, torch.ones(COUNT))
    spoilt = torch.cat((blank[:, :FRAMES], true[:, FRAMES:]), 1)
    assert (
        score_clips(spoilt, clauses, FRAMES).VQ.mean()
        < 0.8
        < score_clips(spoilt, clauses, FRAMES, given=FRAMES).VQ.mean()
    )
    elsewhere = torch.cat((true[:, :FRAMES], true[:, FRAMES:].flip(-1)), 1)
    honest, leapt = (score_clips(video, clauses, FRAMES, given=FRAMES).physics.mean() for video in (true, elsewhere))
    assert leapt < honest - 0.2


def test_an_unknown_slice_is_told():
    with pytest.raises(ValueError, match="unknown slice 'fog'; use one of: odd_light, .*long_horizon"):
        slice_scripts("fog", 1, split="test", seed=0)


@pytest.mark.parametrize("name", ["occluder", "collision"])
def test_a_clips_beginning_does_not_depend_on_how_many_are_drawn(name):
    scripts = slice_scripts(name, 12, split="train", seed=5)
    many = slice_scene(name, scripts, 4, 3, seed=5)
    few = slice_scene(name, scripts[:2], 4, 3, seed=5)
    assert torch.equal(many.position[:2], few.position)


def test_a_slice_that_cannot_be_is_told(monkeypatch):
    monkeypatch.setattr(slices, "_TRIES", 1)
    with pytest.raises(ValueError, match="no clip of slice 'collision' was found in 1 tries"):
        slice_scene("collision", slice_scripts("collision", 4, split="train", seed=0), 4, 3, seed=0)


def test_more_scripts_than_there_are_is_an_error():
    with pytest.raises(ValueError, match=r"only \d+ scripts of 64 were found in the test split: ask for fewer"):
        slice_scripts("collision", 64, split="test", seed=0, distinct=True)
