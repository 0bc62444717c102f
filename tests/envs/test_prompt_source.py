"""Prompts of edge slices, and the environments whose first chunk the world gives."""

import pickle

import gymnasium
import pytest
import torch

import reelgym  # noqa: F401
from reelgym.agents.rollout import GeneratorPolicy
from reelgym.envs.prompt_source import slice_prompts
from reelgym.envs.worlds.grammar import GRAMMARS
from reelgym.envs.worlds.scene import BACKGROUND
from reelgym.envs.worlds.slices import SLICES
from reelgym.models.cache import KVCache
from reelgym.models.generator import stream, update_cache
from reelgym.models.prompts import WordEncoder
from reelgym.models.tiny import build_generator, load_tiny
from reelgym.noise import stream_keys

GEN, STEER, DENOISE = (f"reelgym/Stream{name}-v0" for name in ("Gen", "Steer", "Denoise"))


def source(name, **options):
    chunks = 4 * SLICES[name].length
    return slice_prompts(WordEncoder(GRAMMARS["plain"].vocabulary()), chunks, 3, name, split="test", **options)


@pytest.mark.parametrize("name", SLICES)
def test_prompts_and_openings_are_of_the_same_draw(name):
    prompts = source(name)
    embeds, texts = prompts(3, 7)
    opening = prompts.opening(3, 7)
    assert embeds.shape[:2] == (3, 4 * SLICES[name].length) and opening.shape == (3, 3, 3, 32, 32)
    assert torch.equal(opening, prompts.opening(3, 7)) and prompts(3, 7)[1] == texts
    twin = pickle.loads(pickle.dumps(prompts))
    assert torch.equal(opening, twin.opening(3, 7)) and twin(3, 7)[1] == texts
    assert not torch.equal(opening, prompts.opening(3, 8)) and prompts(3, 8)[1] != texts


def test_an_odd_light_is_seen_and_not_heard():
    prompts = source("odd_light")
    assert not any("light" in text for row in prompts(4, 0)[1] for text in row)
    border = prompts.opening(4, 0)[:, :, :, 0].mean((1, 3))
    assert (border.amin(1) < 0.8 * BACKGROUND).all()


@pytest.mark.parametrize("name", SLICES)
@pytest.mark.parametrize("env_id", [GEN, STEER, DENOISE])
def test_every_environment_begins_with_the_opening(stack, env_id, name):
    envs = gymnasium.make_vec(env_id, num_envs=2, preset=stack, slice=name, split="test", autoreset_mode="Disabled")
    observation, _ = envs.reset(seed=0)
    clip = getattr(envs.state, "clip", envs.state)
    assert clip.position == 1 and envs.layout.chunks == 4 * SLICES[name].length
    assert clip.latents[:, :3].eq(0).all() and clip.latents[:, 3:].abs().sum() > 0
    if env_id != STEER:
        assert observation["position"].tolist() == [1, 1]
        assert torch.equal(observation["latents"], clip.latents)
    ended, steps = False, 0
    while not ended and steps < 6:
        _, reward, terminated, _, _ = envs.step(torch.zeros(envs.action_space.shape))
        ended, steps = bool(terminated.all()), steps + 1
    assert reward.isfinite().all() and (ended == (env_id != DENOISE and name != "long_horizon"))


def test_a_policy_reads_what_the_world_gave(stack):
    envs = gymnasium.make_vec(GEN, num_envs=2, preset=stack, slice="odd_light", autoreset_mode="Disabled")
    generator = build_generator(load_tiny("student", f"{stack}/student"), load_tiny("codec", f"{stack}/codec"))
    policy, keys = GeneratorPolicy(generator), stream_keys(0, 2)
    observation, _ = envs.reset(seed=0)
    policy.reset(keys)
    state, chunks = envs.state, [observation["latents"][:, 3:]]
    for _ in range(3):
        chunks.append(policy.act(observation))
        observation, _, ended, _, _ = envs.step(chunks[-1])
    assert ended.all() and policy.state.chunk == 4
    embeds = torch.stack([batch.embeds for batch in state.prompts], 1)
    torch.testing.assert_close(torch.cat(chunks, 1), stream(generator, embeds, keys, chunks[0]))
    alone = stream(generator, embeds, keys)
    assert not torch.allclose(alone[:, 3:6], chunks[1])
    torch.testing.assert_close(stream(generator, embeds, keys, alone[:, :6]), alone)


def test_a_policy_that_joins_late_reads_the_window(stack, monkeypatch):
    envs = gymnasium.make_vec(GEN, num_envs=1, preset=stack, autoreset_mode="Disabled")
    generator = build_generator(load_tiny("student", f"{stack}/student"), load_tiny("codec", f"{stack}/codec"))
    envs.reset(seed=0)
    for number in range(3):
        observation = envs.step(torch.full((1, 3, 8, 8, 8), float(number)))[0]
    policy = GeneratorPolicy(generator)
    policy.reset(stream_keys(0, 1))
    read = []
    monkeypatch.setattr(
        "reelgym.agents.rollout.update_cache",
        lambda *args: read.append(float(args[2].mean())) or update_cache(*args),
    )
    policy.act(observation)
    assert read[:2] == [1, 2] and len(read) == 3 and policy.state.chunk == 4 and isinstance(policy.state.cache, KVCache)


def test_what_cannot_be_is_told(stack):
    with pytest.raises(ValueError, match="unknown slice 'fog'; use one of: odd_light"):
        gymnasium.make(GEN, preset=stack, slice="fog")
    with pytest.raises(ValueError, match="slice='cut' brings its own prompts"):
        gymnasium.make(GEN, preset=stack, slice="cut", grammar="full")
    with pytest.raises(ValueError, match="at least 2, not 1"):
        gymnasium.make(GEN, preset=stack, slice="cut", chunks=1)
