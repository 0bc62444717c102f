"""The prompt language: round trip, vocabulary, messages, splits."""

import itertools

import pytest

from reelgym.envs.worlds.grammar import (
    COLOURS,
    DIRECTIONS,
    GRAMMARS,
    MOTIONS,
    SHAPES,
    SIZES,
    SPEEDS,
    Clause,
    PromptError,
    chunk_clauses,
    chunk_prompts,
    parse,
    sample_scripts,
    script_text,
    split_of,
)

SPLITS = ("train", "validation", "test")


def test_the_world_is_as_large_as_promised():
    sizes = [len(words) for words in (SHAPES, COLOURS, SIZES, MOTIONS, DIRECTIONS, SPEEDS)]
    assert sizes == [4, 8, 3, 6, 8, 3]


@pytest.mark.parametrize("name", GRAMMARS)
def test_text_and_parser_are_inverse_on_what_is_sampled(name):
    known = set(GRAMMARS[name].vocabulary()) | {";", "then"}
    for script in sample_scripts(300, split="train", seed=0, grammar=GRAMMARS[name]):
        assert parse(script_text(script)) == script
        assert set(script_text(script).split()) <= known


def test_the_issues_own_prompt_is_read():
    first, second = parse("a red circle moves left fast ; then a blue square moves up")
    assert first == Clause("circle", "red", "medium", "moves", "left", "fast")
    assert second == Clause("square", "blue", "medium", "moves", "up", "medium")


@pytest.mark.parametrize(
    "prompt, words",
    [
        ("a red cirlce moves left", ["cirlce", "circle"]),
        ("a red circle moves", ["ends where a direction"]),
        ("a circle red moves left", ["'circle'", "a colour"]),
        ("a red circle moves left quickly", ["quickly"]),
        ("", ["empty"]),
        ("a red circle rests in green light", ["green", "a light"]),
        ("a red circle rests behind a wall", ["wall"]),
    ],
)
def test_a_wrong_prompt_is_told_what_is_wrong(prompt, words):
    with pytest.raises(PromptError) as error:
        parse(prompt)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", GRAMMARS)
def test_splits_are_apart_and_training_never_sees_a_held_out_triple(name):
    texts = {split: set() for split in SPLITS}
    for split, seed in itertools.product(SPLITS, range(2)):
        scripts = sample_scripts(150, split=split, seed=seed, grammar=GRAMMARS[name])
        assert all(split_of(script) == split for script in scripts)
        unseen = [any(clause.held_out for clause in script) for script in scripts]
        assert sum(unseen) == (0 if split == "train" else 75)
        texts[split] |= {script_text(script) for script in scripts}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not texts[one] & texts[other]


def test_a_fifth_of_the_triples_is_held_out_of_every_word():
    triples = [
        Clause(shape, colour, motion=motion) for shape, colour, motion in itertools.product(SHAPES, COLOURS, MOTIONS)
    ]
    assert 0.18 < sum(clause.held_out for clause in triples) / len(triples) < 0.22
    for shape in SHAPES:
        assert 0 < sum(clause.held_out for clause in triples if clause.shape == shape) < len(triples) / 4 / 3


def test_sampling_depends_on_the_seed_alone():
    draw = [sample_scripts(20, split="test", seed=seed, grammar=GRAMMARS["full"]) for seed in (0, 0, 1)]
    assert draw[0] == draw[1] != draw[2]


def test_clauses_share_the_chunks():
    script = parse("a red circle rests ; then a blue square rests")
    assert [clause.colour for clause in chunk_clauses(script, 5)] == ["red"] * 3 + ["blue"] * 2
    assert chunk_prompts(script_text(script), 2) == ["a red circle rests", "a blue square rests"]
    with pytest.raises(PromptError, match="do not fit"):
        chunk_clauses(script, 1)
