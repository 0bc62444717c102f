"""Agents of other libraries: they learn, are kept without pickles, and act alike afterwards."""

from dataclasses import replace

import pytest
import torch

from reelgym.agents.recipes import AGENT_RECIPES, AGENTS, DETECT, STEER, recipe_of
from reelgym.agents.saved import agent_manifest, library_of, load_agent, save_agent
from reelgym.checkpoint import CheckpointError, save_checkpoint
from reelgym.envs import stream_detect
from reelgym.envs.stream_steer import SteerSettings, StreamSteerVectorEnv


@pytest.fixture
def steer(codec, reward, prompts, generator, layout):
    def build(recipe, **others):
        mode = library_of(recipe).AUTORESET
        return StreamSteerVectorEnv(
            recipe.streams, codec, reward, prompts, generator, layout=layout, autoreset_mode=mode, **others
        )

    return build


def small(name, env=STEER):
    """The recipe with so little of everything that a test can run it."""
    recipe = AGENT_RECIPES[name, env]
    few = {"n_steps": 4, "batch_size": 8, "n_epochs": 1, "learning_starts": 4, "gradient_steps": 1}
    settings = {key: few.get(key, value) for key, value in recipe.settings.items()}
    return replace(recipe, streams=4, steps=32, rollout=16, epochs=1, batch=8, settings=settings)


@pytest.mark.parametrize("name", [name for name, env in AGENT_RECIPES if env == STEER])
def test_an_agent_learns_and_is_kept(name, steer, tmp_path):
    recipe, called = small(name), []
    agent = library_of(recipe).learn(
        recipe, steer(recipe), 0, steps=32, call=lambda agent, done: called.append(done), every=16
    )
    assert called[0] >= 16 and called[-1] == 32
    save_agent(tmp_path / "agent", agent, recipe, STEER, {"seed": 0})
    assert not list(tmp_path.rglob("*.pkl")) and not list(tmp_path.rglob("*.zip"))
    assert agent_manifest(tmp_path / "agent")[:2] == (replace(recipe), STEER)
    again = load_agent(tmp_path / "agent", steer(recipe))
    seen = torch.randn(5, steer(recipe).single_observation_space.shape[0])
    assert torch.equal(agent.act(seen), again.act(seen))
    assert agent.act(seen).shape == (5, 7) and agent.act(seen).abs().max() <= 1
    other = steer(recipe, settings=SteerSettings(directions=2))
    with pytest.raises(CheckpointError, match="does not fit this environment's spaces"):
        load_agent(tmp_path / "agent", other)


def test_a_detector_learns_with_features_of_clips(stack, tmp_path):
    recipe = small("sb3-ppo", DETECT)
    vector = stream_detect.make(stack, 4, clips=16)
    agent = library_of(recipe).learn(recipe, vector, 0, steps=32)
    save_agent(tmp_path / "agent", agent, recipe, DETECT, {})
    seen, _ = vector.reset(seed=0)
    again = load_agent(tmp_path / "agent", vector)
    assert torch.equal(agent.act(seen), again.act(seen)) and set(agent.act(seen).tolist()) <= {0, 1, 2}
    assert type(again.policy.features_extractor).__name__ == "ClipFeatures"


@pytest.mark.parametrize("name", AGENTS)
def test_the_same_seed_is_the_same_agent(name, steer):
    recipe = small(name)
    one, two, three = (library_of(recipe).learn(recipe, steer(recipe), seed, steps=16) for seed in (0, 0, 1))
    seen = torch.randn(5, steer(recipe).single_observation_space.shape[0])
    assert torch.equal(one.act(seen), two.act(seen)) and not torch.equal(one.act(seen), three.act(seen))


def test_what_there_is_no_recipe_for():
    with pytest.raises(ValueError, match="no settings are kept for sb3-sac in reelgym/StreamDetect-v0; there are: sb3"):
        recipe_of("sb3-sac", DETECT)
    assert set(AGENTS) == {"sb3-ppo", "sb3-sac", "tianshou-ppo"}


def test_a_checkpoint_of_something_else(tmp_path):
    save_checkpoint(tmp_path / "x", {"weights": {"a": torch.zeros(1)}}, {"part": "codec"})
    with pytest.raises(CheckpointError, match="not one of an agent"):
        agent_manifest(tmp_path / "x")
