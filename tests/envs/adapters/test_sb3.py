import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from reelgym.envs.adapters.sb3 import SB3VecEnv
from reelgym.envs.stream_gen import StreamGenVectorEnv
from reelgym.envs.stream_steer import StreamSteerVectorEnv

LENGTHS = pytest.mark.parametrize("lengths", [3, [3, 2, 5, 4]], ids=["lockstep", "ragged"])


def played(vector, actions, seed):
    """What the vector itself gives for actions [T, N, ...]: before, after, reward, ended, each [T, N, ...]."""
    before, (observation, _) = [], vector.reset(seed=seed)
    after, rewards, ends = [], [], []
    for action in torch.as_tensor(actions):
        before.append(observation.clone())
        observation, reward, ended, _, info = vector.step(action)
        last = torch.where(ended[:, None], info["final_obs"], observation) if "final_obs" in info else observation
        after.append(last.clone())
        rewards.append(reward.clone())
        ends.append(ended.clone())
    return [torch.stack(part).numpy() for part in (before, after, rewards, ends)]


def seeded(vector, seed=7):
    adapter = SB3VecEnv(vector)
    adapter.seed(seed)
    return adapter


@LENGTHS
def test_ppo_stores_what_happened(walk, lengths):
    model = PPO("MlpPolicy", seeded(walk(4, lengths)), n_steps=8, batch_size=8, n_epochs=1, seed=0, device="cpu")
    model.env.seed(7)
    model.learn(32)
    buffer = model.rollout_buffer
    observed = buffer.observations.reshape(4, 8, 4).swapaxes(0, 1)
    actions = buffer.actions.reshape(4, 8, 1).swapaxes(0, 1).clip(-1, 1)
    before, _, rewards, ends = played(walk(4, lengths), actions, 7)
    assert np.array_equal(observed, before)
    np.testing.assert_array_equal(buffer.rewards, rewards)
    assert np.array_equal(buffer.episode_starts[1:], ends[:-1]) and buffer.episode_starts[0].all()
    assert len(model.ep_info_buffer) == ends.sum()


@LENGTHS
def test_sac_stores_what_happened(walk, lengths):
    model = SAC("MlpPolicy", seeded(walk(4, lengths)), buffer_size=64, learning_starts=100, seed=0, device="cpu")
    model.env.seed(7)
    model.learn(40)
    buffer = model.replay_buffer
    before, after, rewards, ends = played(walk(4, lengths), buffer.actions[:10], 7)
    assert np.array_equal(buffer.observations[:10], before) and np.array_equal(buffer.next_observations[:10], after)
    np.testing.assert_array_equal(buffer.rewards[:10], rewards)
    assert np.array_equal(buffer.dones[:10], ends) and not buffer.timeouts.any()


def test_an_earlier_observation_stays_what_it_was(walk):
    adapter = seeded(walk(2, [9, 9]))
    kept = [adapter.reset()]
    kept += [adapter.step(np.full((2, 1), 0.5, np.float32))[0] for _ in range(6)]
    places = np.stack([observation[:, 0] for observation in kept])
    np.testing.assert_allclose(np.diff(places, axis=0), 0.5, atol=1e-6)


def test_the_infos_of_ends(walk):
    adapter = seeded(walk(3, [2, 3, 9]))
    start = adapter.reset()
    total, action = np.zeros(3), np.ones((3, 1), np.float32)
    for step in range(3):
        observation, reward, done, infos = adapter.step(action)
        total += reward
        assert done.tolist() == [step == 1, step == 2, False] and done.dtype == bool and reward.dtype == np.float32
        assert type(infos) is list and {type(info) for info in infos} == {dict}
        assert [bool(info) for info in infos] == done.tolist()
        for row in np.flatnonzero(done):
            episode = infos[row]["episode"]
            assert episode["l"] == step + 1 and episode["r"] == pytest.approx(total[row]) and episode["t"] > 0
            last = infos[row]["terminal_observation"]
            assert last[0] == pytest.approx(start[row, 0] + step + 1) and last[1] == step + 1
            assert observation[row, 1] == 0
            assert infos[row]["TimeLimit.truncated"] is False
            total[row] = 0
        assert adapter.info["steps"].tolist() == observation[:, 1].tolist()


def test_what_else_a_vec_env_does(walk):
    vector = walk(3, discrete=True)
    adapter = SB3VecEnv(vector)
    assert adapter.get_attr("lengths", [0, 2]) == [3, 3] and adapter.get_attr("render_mode") == [None] * 3
    adapter.set_attr("lengths", 5)
    assert vector.lengths == 5 and adapter.env_is_wrapped(VecNormalize) == [False] * 3 and adapter.has_attr("check")
    with pytest.raises(ValueError, match="rows are one environment"):
        adapter.env_method("fork", indices=[0])
    assert adapter.get_images() == [None] * 3 and adapter.seed(3) == [3, 4, 5]
    first = adapter.reset()
    adapter.step(np.array([0, 1, 2]))
    adapter.seed(3)
    assert np.array_equal(adapter.reset(), first) and not np.array_equal(adapter.reset(), first)
    assert adapter.env_method("reset", seed=3)[2][0].numpy() == pytest.approx(first)
    adapter.close()
    with pytest.raises(ValueError, match="SAME_STEP autoreset, not DISABLED"):
        SB3VecEnv(walk(3, autoreset_mode="Disabled"))


def test_sb3s_wrappers_and_evaluation_see_whole_episodes(walk):
    model = PPO("MlpPolicy", VecNormalize(seeded(walk(4, [3, 2, 5, 4]))), n_steps=8, batch_size=8, n_epochs=1)
    model.learn(64)
    _, lengths = evaluate_policy(model, SB3VecEnv(walk(2, 3)), 4, return_episode_rewards=True, warn=False)
    assert lengths == [3] * 4


def test_a_stream_with_a_dictionary_of_observations(codec, reward, prompts, layout):
    def make():
        return StreamGenVectorEnv(2, codec, reward, prompts, layout=layout)

    model = PPO("MultiInputPolicy", SB3VecEnv(make()), n_steps=6, batch_size=4, n_epochs=1, device="cpu")
    model.env.seed(7)
    model.learn(12)
    vector, buffer = make(), model.rollout_buffer
    observation, _ = vector.reset(seed=7)
    for step in range(6):
        stored = {name: values.reshape(2, 6, -1)[:, step] for name, values in buffer.observations.items()}
        for name, value in observation.items():
            assert np.array_equal(stored[name], value.reshape(2, -1).numpy()), (name, step)
        action = buffer.actions.reshape(2, 6, 3, 4, 4, 4)[:, step]
        observation, *_ = vector.step(torch.as_tensor(action))
    assert len(model.ep_info_buffer) == 2


def test_options_are_those_of_one_environment(codec, reward, prompts, layout):
    adapter = SB3VecEnv(StreamGenVectorEnv(2, codec, reward, prompts, layout=layout))
    adapter.set_options({"script": "a blue square moves right"})
    adapter.reset()
    assert adapter.info["text"].tolist() == ["a blue square moves right"] * 2
    adapter.set_options([{"script": "a blue square moves right"}, {}])
    with pytest.raises(ValueError, match="give every row the same options: script are in some rows alone"):
        adapter.reset()
    adapter.set_options([{"script": "a blue square moves right"}, {"script": "a red circle moves left"}])
    adapter.reset()
    assert adapter.info["text"].tolist() == ["a blue square moves right", "a red circle moves left"]


def test_a_steered_stream_is_learnt_and_rendered(codec, reward, prompts, layout, generator):
    vector = StreamSteerVectorEnv(2, codec, reward, prompts, generator, layout=layout, render_mode="rgb_array")
    model = PPO("MlpPolicy", SB3VecEnv(vector), n_steps=4, batch_size=4, n_epochs=1, device="cpu")
    model.learn(8)
    images = model.env.get_images()
    assert len(images) == 2 and images[0].dtype == np.uint8 and images[0].shape[-1] == 3
    assert model.env.render().ndim == 3
