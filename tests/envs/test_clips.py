"""Credit of a chunk's elements: perplexity of its window."""

import numpy as np
import pytest
import torch

from reelgym.envs.stream_gen import StreamGenVectorEnv
from reelgym.rewards.stream_reward import RewardSignal
from reelgym.rewards.windows import Clock


@pytest.mark.parametrize("chunks", [1, 2, 3, 4])
def test_credit_is_the_newest_chunks_perplexity_with_mean_one(env, codec, reward, prompts, chunks):
    env.reset(seed=0)
    clips = torch.randn(6, 3 * chunks, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for chunk in clips.split(3, 1):
        env.step(chunk)
    prompt = env.state.prompts[chunks - 1]
    credit = env.clips.credit(clips, prompt)
    window = clips[:, -6:]
    whole = reward(codec.decode(window), prompt, codec.grid(window.shape[1]), need={"perplexity"}).perplexity[:, -3:]
    torch.testing.assert_close(credit, whole / whole.mean((1, 2, 3), keepdim=True))
    torch.testing.assert_close(credit.mean((1, 2, 3)), torch.ones(6))
    seen = env.clips.perplexity(env.state)
    torch.testing.assert_close(credit, seen / seen.mean((1, 2, 3), keepdim=True))
    assert not credit.requires_grad and credit.std() > 0.01


def test_a_window_below_the_rewards_minimum_weighs_all_alike(codec, reward, prompts):
    clock = Clock(chunks=4, frames_per_chunk=1, window_chunks=4)
    clips = StreamGenVectorEnv(2, codec, reward, prompts, clock=clock).clips
    state = clips.begin(2, np.random.default_rng(0))
    assert torch.equal(clips.credit(torch.randn(2, 2, 4, 4, 4), state.prompts[1]), torch.ones(2, 1, 4, 4))
    assert clips.credit(torch.randn(2, 3, 4, 4, 4), state.prompts[2]).std() > 0


def test_credit_needs_a_reward_with_gradients(codec, prompts, clock):
    class Dim:
        min_frames = 3

        def __call__(self, video, prompts, *, need):
            return RewardSignal(video.mean((1, 2, 3, 4))[:, None], video.mean((1, 2, 3, 4)))

    env = StreamGenVectorEnv(2, codec, Dim(), prompts, clock=clock)
    env.reset(seed=0)
    with pytest.raises(TypeError, match="needs a StreamReward, not Dim"):
        env.clips.credit(torch.randn(2, 3, 4, 4, 4), env.state.prompt)
