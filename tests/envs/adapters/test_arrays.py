import numpy as np
import pytest
from gymnasium.vector import VectorEnv
from gymnasium.wrappers.vector import NormalizeReward, RecordEpisodeStatistics, RescaleObservation, TransformReward

from reelgym.envs.adapters.arrays import ArrayVectorEnv
from reelgym.envs.stream_gen import StreamGenVectorEnv

LENGTHS = [3, 2, 5, 4]
ACTION = np.ones((4, 1), np.float32)


@pytest.mark.parametrize("lengths", [3, LENGTHS], ids=["lockstep", "ragged"])
def test_gymnasiums_statistics(walk, lengths):
    env = RecordEpisodeStatistics(ArrayVectorEnv(walk(4, lengths)))
    env.reset(seed=0)
    total, count = np.zeros(4), np.zeros(4, int)
    for _ in range(9):
        _, reward, terminated, _, info = env.step(ACTION)
        total, count = total + reward, count + 1
        assert ("episode" in info) == ("final_obs" in info) == terminated.any()
        if terminated.any():
            np.testing.assert_allclose(info["episode"]["r"], np.where(terminated, total, 0))
            assert np.array_equal(info["episode"]["l"], np.where(terminated, count, 0))
            assert [last is None for last in info["final_obs"]] == (~terminated).tolist()
            assert [last[1] for last in info["final_obs"] if last is not None] == count[terminated].tolist()
            total, count = np.where(terminated, 0, total), np.where(terminated, 0, count)
    assert env.episode_count == sum(9 // length for length in np.broadcast_to(lengths, 4))


def test_some_rows_are_reset(walk):
    env = RecordEpisodeStatistics(ArrayVectorEnv(walk(4, LENGTHS, autoreset_mode="Disabled")))
    env.reset(seed=0)
    for _ in range(2):
        observation, _, terminated, _, info = env.step(ACTION)
    assert info["episode"]["l"].tolist() == [0, 2, 0, 0] and "final_obs" not in info
    observation, _ = env.reset(options={"reset_mask": terminated})
    assert type(observation) is np.ndarray and observation[:, 1].tolist() == [2, 0, 2, 2]


def test_gymnasiums_wrappers_on_top(walk):
    env = NormalizeReward(TransformReward(ArrayVectorEnv(walk(4, LENGTHS)), lambda reward: reward * 2))
    assert isinstance(env, VectorEnv) and env.unwrapped.lengths.tolist() == LENGTHS and env.num_envs == 4
    env.reset(seed=0)
    assert env.step(ACTION)[1].dtype.kind == "f"
    low, high = np.zeros(4, np.float32), np.ones(4, np.float32)
    scaled = RescaleObservation(ArrayVectorEnv(walk(4, 3, autoreset_mode="Disabled")), low, high)
    scaled.reset(seed=0)
    for _ in range(3):
        observation, *_ = scaled.step(ACTION)
    assert 0.5 <= observation.min() and observation.max() < 0.6


def test_dictionaries_of_observations(codec, reward, prompts, layout):
    env = ArrayVectorEnv(StreamGenVectorEnv(2, codec, reward, prompts, layout=layout))
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    for _ in range(4):
        observation, *_, info = env.step(np.zeros((2, 3, 4, 4, 4), np.float32))
    assert info["final_obs"][1]["position"] == 4 and env.observation_space.contains(observation)
