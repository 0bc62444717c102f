"""What elements of a chunk weigh: perplexity of its window."""

import numpy as np
import pytest
import torch

from reelgym.envs.stream_gen import StreamGenVectorEnv
from reelgym.rewards.stream_reward import RewardSignal
from reelgym.rewards.windows import ChunkLayout

NEED = {"scores", "perplexity"}


@pytest.mark.parametrize("mode", ["Disabled", "SameStep"])
def test_an_episode_says_what_its_steps_ask_of_the_reward(codec, reward, prompts, layout, mode):
    envs = [StreamGenVectorEnv(6, codec, reward, prompts, layout=layout, autoreset_mode=mode) for _ in range(3)]
    texts, random = prompts(6, 0)[1], torch.Generator().manual_seed(0)
    for env, need in zip(envs, (None, NEED, ()), strict=True):
        env.reset(seed=0, options={"scripts": texts, "need": need})
    latents = torch.zeros(6, 0, 4, 4, 4)
    for number in range(4):
        chunk = torch.randn(6, 3, 4, 4, 4, generator=random)
        latents = torch.cat((latents, chunk), 1)
        (_, earned, _, _, plain), (_, also, _, _, info), (_, nothing, *_) = (env.step(chunk) for env in envs)
        assert torch.equal(earned, also) and not nothing.any() and earned.any() and "perplexity" not in plain
        weight = info.get("final_info", info)["perplexity"]
        prompt, window = envs[0].clips.begin(6, np.random.default_rng(0), texts).prompts[number], latents[:, -6:]
        whole = reward(codec.decode(window), prompt, codec.grid(window.shape[1]), need={"perplexity"}).perplexity[
            :, -3:
        ]
        torch.testing.assert_close(weight, whole / whole.mean((1, 2, 3), keepdim=True))
        torch.testing.assert_close(weight.mean((1, 2, 3)), torch.ones(6))
        assert not weight.requires_grad and weight.std() > 0.01
        if "final_info" not in info:
            seen = envs[1].clips.perplexity(envs[1].state)
            torch.testing.assert_close(weight, seen / seen.mean((1, 2, 3), keepdim=True))
    if mode == "SameStep":  # the next episode asks as usual
        assert envs[2].step(chunk)[1].any() and "perplexity" not in envs[1].step(chunk)[4]


def test_a_window_below_the_rewards_minimum_has_no_weights(codec, reward, prompts):
    env = StreamGenVectorEnv(
        2, codec, reward, prompts, layout=ChunkLayout(chunks=4, frames_per_chunk=1, window_chunks=4)
    )
    env.reset(seed=0, options={"need": NEED})
    infos = [env.step(torch.randn(2, 1, 4, 4, 4))[4] for _ in range(3)]
    assert [("perplexity" in info) for info in infos] == [False, False, True]
    assert infos[2]["perplexity"].shape == (2, 1, 4, 4) and env.fork(torch.tensor([1])).state.perplexity.shape[0] == 1


def test_weights_need_a_reward_with_gradients(codec, prompts, layout):
    class Dim:
        min_frames = 3

        def __call__(self, video, prompts, *, need):
            return RewardSignal(video.mean((1, 2, 3, 4))[:, None], video.mean((1, 2, 3, 4)))

    env = StreamGenVectorEnv(2, codec, Dim(), prompts, layout=layout)
    with pytest.raises(TypeError, match="needs a StreamReward, not Dim"):
        env.reset(seed=0, options={"need": NEED})
