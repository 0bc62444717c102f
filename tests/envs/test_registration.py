"""What `import reelgym` registers, made by name from the folder of a (here untrained) stack."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import reelgym  # noqa: F401
from reelgym.envs.stack import Stack
from reelgym.envs.stream_gen import StreamGenVectorEnv

NAME = "reelgym/StreamGen-v0"


def test_make_and_check(stack):
    env = gymnasium.make(NAME, preset=stack, render_mode="rgb_array")
    check_env(env.unwrapped)
    observation, info = env.reset(seed=0)
    assert observation["latents"].shape == (6, 8, 8, 8) and info["text"].startswith("a")
    for _ in range(4):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample() / 64)
    assert terminated and not truncated and env.render().shape[1:] == (344, 3)


def test_make_vec(stack):
    envs = gymnasium.make_vec(NAME, num_envs=2, preset=stack, split="test", max_episode_steps=2)
    assert isinstance(envs, StreamGenVectorEnv) and envs.layout.chunks == 2
    observation, _ = envs.reset(seed=0)
    assert isinstance(observation["latents"], torch.Tensor)
    for _ in range(2):
        _, reward, terminated, _, info = envs.step(torch.randn(2, 3, 8, 8, 8))
    assert reward.shape == (2,) and terminated.all() and "final_obs" in info


def test_make_vec_in_other_ways(stack):
    envs = gymnasium.make_vec(NAME, num_envs=2, preset=stack, vectorization_mode="sync")
    observation, _ = envs.reset(seed=0)
    assert isinstance(observation["latents"], np.ndarray) and observation["position"].tolist() == [0, 0]


def test_an_unknown_preset_is_told():
    with pytest.raises(ValueError, match="'huge' is neither a folder with codec and reward"):
        gymnasium.make(NAME, preset="huge")


def test_an_option_that_nobody_takes_is_told_with_the_nearest(stack):
    with pytest.raises(TypeError, match="unknown option 'chunk'; did you mean 'chunks'"):
        gymnasium.make_vec(NAME, num_envs=2, preset=stack, chunk=8)


def test_a_live_stack_is_taken_as_it_is(stack):
    live = Stack.load(stack)
    envs = gymnasium.make_vec(NAME, num_envs=2, stack=live)
    assert envs.codec is live.codec and envs.reward is live.reward
    with pytest.raises(ValueError, match="the stack is on cpu, not on meta"):
        gymnasium.make_vec(NAME, num_envs=2, stack=live, device="meta")


def test_importing_registers_and_imports_little():
    code = "import sys, gymnasium, reelgym; print(gymnasium.spec('reelgym/StreamGen-v0').id, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [NAME, "False"]
