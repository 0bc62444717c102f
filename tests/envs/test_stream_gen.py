import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import reelgym  # noqa: F401
from reelgym.envs.single import SingleEnv
from reelgym.envs.stream_gen import StreamGenVectorEnv
from reelgym.rewards.compose import CallableReward
from reelgym.rewards.reward_model import RewardError
from reelgym.rewards.stream_reward import RewardSignal, StreamReward
from reelgym.rewards.windows import ChunkLayout, clip_prompts

ROWS = torch.tensor([2, 0, 2])


def make(codec, reward, prompts, num=3, **kwargs):
    return StreamGenVectorEnv(num, codec, reward, prompts, **kwargs)


def chunks(num, count=4, seed=0):
    return torch.randn(count, num, 3, 4, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_an_episode_by_hand(codec, reward, prompts, layout):
    env = make(codec, reward, prompts, autoreset_mode="Disabled")
    observation, info = env.reset(seed=1)
    assert env.observation_space.contains({k: v.numpy() for k, v in observation.items()})
    assert observation["latents"].count_nonzero() == 0
    texts, actions = env.state.texts, chunks(3)
    for step, action in enumerate(actions):
        assert list(info["text"]) == [row[step] for row in texts]
        assert torch.equal(observation["prompt"], torch.stack([prompts.encode([row])[0][0, step] for row in texts]))
        observation, gained, terminated, truncated, info = env.step(action)
        window = torch.cat(list(actions[max(0, step - 1) : step + 1]), 1)
        expected = reward(codec.decode(window), env.state.prompts[step]).reward / layout.chunks
        torch.testing.assert_close(gained, expected)
        assert torch.equal(observation["latents"][:, -window.shape[1] :], window)
        assert observation["position"].tolist() == [step + 1] * 3
        assert terminated.tolist() == [step == 3] * 3 and not truncated.any()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(action)
    assert env.reset()[0]["position"].tolist() == [0] * 3


def test_a_window_below_the_rewards_minimum_earns_nothing(codec, reward, prompts):
    layout = ChunkLayout(chunks=6, frames_per_chunk=1, window_chunks=4)
    env = make(codec, reward, lambda batch, step: prompts_of(prompts, 6, batch), layout=layout)
    env.reset(seed=0)
    rewards = [env.step(torch.rand(3, 1, 4, 4, 4))[1] for _ in range(4)]
    assert [bool(r.count_nonzero()) for r in rewards] == [False, False, True, True]


def prompts_of(prompts, chunks, batch):
    embeds, texts = prompts(batch, 0)
    return embeds[:, :1].expand(-1, chunks, -1, -1), tuple((row[0],) * chunks for row in texts)


def test_deterministic_under_a_seed(codec, reward, prompts):
    first, second = make(codec, reward, prompts), make(codec, reward, prompts)
    for env in (first, second):
        env.reset(seed=5)
    for action in [*chunks(3), *chunks(3, seed=1)]:
        one, two = first.step(action), second.step(action)
        assert torch.equal(one[1], two[1]) and torch.equal(one[0]["prompt"], two[0]["prompt"])


def test_same_step_autoreset_keeps_the_final_observation(codec, reward, prompts):
    env = make(codec, reward, prompts)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    env.reset(seed=2)
    for action in chunks(3):
        observation, _, terminated, _, info = env.step(action)
    assert terminated.all() and info["_final_obs"].all()
    assert observation["position"].tolist() == [0] * 3 and observation["latents"].count_nonzero() == 0
    assert torch.equal(info["final_obs"]["latents"][:, 3:], action)
    assert info["final_obs"]["position"].tolist() == [4] * 3
    assert not any("oracle" in key for key in (*info, *info["final_info"]))


def test_lockstep_is_stated(codec, reward, prompts):
    env = make(codec, reward, prompts, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0, options={"reset_mask": np.ones(3, bool)})
    with pytest.raises(ValueError, match="lockstep"):
        env.reset(options={"reset_mask": np.array([True, False, True])})
    with pytest.raises(ValueError, match="SAME_STEP or DISABLED"):
        make(codec, reward, prompts, autoreset_mode=AutoresetMode.NEXT_STEP)
    with pytest.raises(gymnasium.error.InvalidAction, match="actions have shape"):
        env.step(torch.zeros(2, 3, 4, 4, 4))


def test_scripts_can_be_given(codec, reward, prompts):
    env = make(codec, reward, prompts, num=2)
    _, info = env.reset(options={"scripts": ["a blue square moves left", ["a red circle moves left"] * 4]})
    assert list(info["text"]) == ["a blue square moves left", "a red circle moves left"]
    with pytest.raises(ValueError, match="4 chunks"):
        env.reset(options={"scripts": [["a"], ["a"]]})
    with pytest.raises(ValueError, match="came for 2 clips"):
        env.reset(options={"scripts": ["a blue square moves left"]})


def test_actions_are_never_clipped(codec, reward, prompts):
    env = make(codec, reward, prompts)
    env.reset(seed=0)
    assert env.step(torch.full((3, 3, 4, 4, 4), 100.0))[0]["latents"].max() == 100


def test_rows_do_not_depend_on_each_other(codec, reward, prompts):
    env, alone = make(codec, reward, prompts), make(codec, reward, prompts, num=1)
    env.reset(seed=0)
    alone.reset(options={"scripts": [env.state.texts[1]]})
    for action in chunks(3):
        together, single = env.step(action), alone.step(action[1:2])
        torch.testing.assert_close(together[1][1:2], single[1])


def test_a_fork_continues_exactly(codec, reward, prompts):
    env = make(codec, reward, prompts)
    env.reset(seed=0)
    actions = chunks(3)
    for action in actions[:2]:
        env.step(action)
    branch = env.fork(ROWS)
    for action in actions[2:]:
        kept, forked = env.step(action), branch.step(action[ROWS])
        assert torch.equal(kept[1][ROWS], forked[1])
        before, after = (out[4].get("final_obs", out[0])["latents"] for out in (kept, forked))
        assert torch.equal(before[ROWS], after)


def test_the_return_is_the_clips_reward(codec, reward, prompts, layout):
    env = make(codec, reward, prompts)
    env.reset(seed=3)
    embeds, texts = prompts.encode(env.state.texts)
    actions = chunks(3)
    total = sum(env.step(action)[1] for action in actions)
    video = codec.decode(torch.cat(list(actions), 1))
    signal = reward.windowed(layout, codec)(video, clip_prompts(embeds, texts))
    torch.testing.assert_close(signal.reward, total)


def test_render_draws_the_newest_frame_and_what_it_earned(codec, reward, prompts):
    env = make(codec, reward, prompts, render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    assert len(before) == 3 and all(canvas.dtype == np.uint8 for canvas in before)
    assert all(not side % 2 for side in before[0].shape[:2]) and not before[0][23:183, 8:168].any()
    action = torch.zeros(3, 3, 4, 4, 4)
    action[:, -1, 0] = 2.0
    env.step(action)
    after = env.render()
    assert after[0].shape == before[0].shape
    assert (after[0][23:183, 8:168] == [255, 128, 128]).all()  # 8 pixels enlarged to 160, from the margin and a title
    assert make(codec, reward, prompts).render() is None


def test_render_as_a_list_has_every_frame_once(codec, reward, prompts):
    env = make(codec, reward, prompts, render_mode="rgb_array_list")
    env.reset(seed=0)
    assert env.render() == ([], [], [])
    env.step(torch.zeros(3, 3, 4, 4, 4))
    assert [len(canvases) for canvases in env.render()] == [3, 3, 3]
    assert env.metadata["render_fps"] == 8


def test_perplexity_is_of_the_window_and_asked_for_by_render_alone(codec, reward, prompts, monkeypatch):
    asked, part = [], reward._part
    monkeypatch.setattr(reward, "_part", lambda *args: asked.append(set(args[2])) or part(*args))
    env = make(codec, reward, prompts, render_mode="rgb_array")
    env.reset(seed=0)
    for action in chunks(3)[:2]:
        env.step(action)
    assert asked == [set()] * 2
    weights = env.clips.perplexity(env.state)
    video = torch.cat(env.state.video, 1)
    whole = reward(video, env.state.prompts[1], codec.grid(6), need={"perplexity"}).perplexity
    assert torch.equal(weights, whole[:, 3:])
    env.render()
    assert "perplexity" in asked[-1]


def test_a_reward_without_gradients_is_drawn_without_a_map(codec, prompts):
    class Dim:
        min_frames = 3

        def __call__(self, video, prompts, *, need):
            return RewardSignal(video.mean((1, 2, 3, 4))[:, None], video.mean((1, 2, 3, 4)))

    env = make(codec, Dim(), prompts, render_mode="rgb_array")
    env.reset(seed=0)
    assert len(env.clips.view(env.state).panels) == 1 and env.render()[0].shape[1] == 240
    flat = make(codec, StreamReward(CallableReward(lambda video, prompts: video.detach().mean((1, 2, 3, 4)), ["dim"])),
                prompts)  # fmt: skip
    flat.reset(seed=0)
    flat.step(chunks(3)[0])
    assert not flat.clips.perplexity(flat.state).any()


def test_the_single_environment_passes_the_checker(codec, reward, prompts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*alternative render modes.*")
        check_env(SingleEnv(make(codec, reward, prompts, 1, autoreset_mode="Disabled", render_mode="rgb_array")))


def test_the_single_environment_is_the_vector_of_one(codec, reward, prompts):
    env = SingleEnv(make(codec, reward, prompts, 1, autoreset_mode="Disabled"))
    vector = make(codec, reward, prompts, num=1)
    one, _ = env.reset(seed=4)
    many, _ = vector.reset(seed=4)
    assert np.array_equal(one["prompt"], many["prompt"][0].numpy())
    for action in chunks(1):
        observation, gained, terminated, truncated, info = env.step(action[0].numpy())
        assert isinstance(gained, float) and gained == float(vector.step(action)[1])
    assert terminated and not truncated and set(info) == {"text"}
    assert env.reset(options={"script": "a blue square moves left"})[1]["text"] == "a blue square moves left"


@pytest.mark.parametrize("shape", [(3,), (3, 1), (1,), ()])
@pytest.mark.parametrize("kind", [torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.clone, torch.Tensor.long])
def test_what_a_reward_returns_is_looked_at(codec, prompts, shape, kind):
    class Mine:
        min_frames = 3

        def __call__(self, video, prompts, *, need):
            return RewardSignal(None, kind(torch.full(shape, worth)))

    env, worth = make(codec, Mine(), prompts), 0.5
    env.reset(seed=0)
    if shape != (3,) or kind is torch.Tensor.long:
        with pytest.raises(RewardError, match=r"the reward Mine returned .* for 3 clips: expected \[3\]"):
            env.step(chunks(3)[0])
        return
    assert env.step(chunks(3)[0])[1].tolist() == [0.125] * 3
    worth = float("nan")
    with pytest.raises(RewardError, match="the reward Mine of row 0 is nan"):
        env.step(chunks(3)[0])
    blind = make(codec, Mine(), prompts, check=False)
    blind.reset(seed=0)
    assert blind.step(chunks(3)[0])[1].isnan().all()
