import numpy as np
import pytest
import torch
from tianshou.algorithm import PPO
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, Collector, VectorReplayBuffer
from tianshou.trainer import OnPolicyTrainerParams
from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
from torch.distributions import Independent, Normal

from reelgym.envs.adapters.tianshou import TianshouVectorEnv
from reelgym.envs.stream_gen import StreamGenVectorEnv
from reelgym.envs.stream_steer import StreamSteerVectorEnv

LENGTHS = [3, 2, 5, 4]


def gaussian(parts):
    return Independent(Normal(*parts), 1)


def build(env):
    shapes = {"state_shape": env.observation_space[0].shape, "hidden_sizes": [16]}
    actor = ContinuousActorProbabilistic(
        preprocess_net=Net(**shapes), action_shape=env.action_space[0].shape, unbounded=True
    )
    policy = ProbabilisticActorPolicy(actor=actor, dist_fn=gaussian, action_space=env.action_space[0])
    critic = ContinuousCritic(preprocess_net=Net(**shapes))
    return PPO(policy=policy, critic=critic, optim=AdamOptimizerFactory(lr=1e-3))


def collected(env, episodes=None, steps=None):
    """The collector's buffer of one collection, and what it says of it."""
    buffer = VectorReplayBuffer(200, len(env))
    collector = Collector(build(env), env, buffer)
    collector.reset(gym_reset_kwargs={"seed": 7})
    return buffer, collector.collect(n_episode=episodes, n_step=steps)


def row_of(buffer, row, count):
    return buffer[buffer.buffers[row].sample_indices(0) + buffer._offset[row]][:count]


def test_a_collector_stores_what_happened(walk):
    torch.manual_seed(0)
    env = TianshouVectorEnv(walk(4, 3, autoreset_mode="Disabled"))
    buffer, stats = collected(env, steps=24)
    vector = walk(4, 3, autoreset_mode="Disabled")
    observation, _ = vector.reset(seed=7)
    rows = [row_of(buffer, row, 6) for row in range(4)]
    assert stats.n_collected_episodes == 8 and stats.lens_stat.mean == 3
    for step in range(6):
        np.testing.assert_allclose(np.stack([row.obs[step] for row in rows]), observation, atol=1e-5)
        actions = torch.as_tensor(np.stack([row.act[step] for row in rows])).clamp(-1, 1)
        observation, reward, ended, _, _ = vector.step(actions)
        np.testing.assert_allclose(np.stack([row.obs_next[step] for row in rows]), observation, atol=1e-5)
        np.testing.assert_allclose([row.rew[step] for row in rows], reward, atol=1e-5)
        assert np.array_equal([row.terminated[step] for row in rows], ended)
        if ended.all():
            observation, _ = vector.reset()


def test_rows_that_end_one_by_one_are_reset_one_by_one(walk):
    env = TianshouVectorEnv(walk(4, LENGTHS, autoreset_mode="Disabled"))
    for episodes in (4, 6, 3):
        buffer, stats = collected(env, episodes=episodes)
        assert stats.n_collected_episodes == episodes and set(stats.lens) <= set(LENGTHS)
    for row, length in enumerate(LENGTHS[:3]):
        steps = row_of(buffer, row, length)
        assert steps.obs[:, 1].tolist() == list(range(length)) and (steps.obs[:, 3] == row).all()
        assert steps.terminated.tolist() == [False] * (length - 1) + [True]


def test_rows_that_are_not_stepped_stay(walk):
    env = TianshouVectorEnv(walk(4, LENGTHS, autoreset_mode="Disabled"))
    first, _ = env.reset(seed=1)
    env.step(np.ones((4, 1), np.float32))
    _, _, terminated, _, infos = env.step(np.ones((2, 1), np.float32), [1, 3])
    assert terminated.tolist() == [True, False] and [info["env_id"] for info in infos] == [1, 3]
    observation, reward, terminated, _, _ = env.step(np.full((2, 1), -1.0, np.float32), np.array([3, 0]))
    assert observation[:, 1].tolist() == [3, 2] and not terminated.any()
    np.testing.assert_allclose(observation[:, 0], [first[3, 0] + 1, first[0, 0]], atol=1e-6)
    np.testing.assert_allclose(reward, observation[:, 0] + [0.03, 0.0], atol=1e-6)
    begun, _ = env.reset([1])
    assert begun.shape == (1, 4) and begun[0, 1:].tolist() == [0, 1, 1]
    assert env.step(np.ones((4, 1), np.float32))[0][:, 1].tolist() == [3, 1, 2, 4]


def steer(codec, reward, prompts, generator, layout, count=4):
    return StreamSteerVectorEnv(count, codec, reward, prompts, generator, layout=layout, autoreset_mode="Disabled")


def test_ppo_trains_on_a_steered_stream(codec, reward, prompts, generator, layout):
    env = TianshouVectorEnv(steer(codec, reward, prompts, generator, layout))
    algorithm = build(env)
    collector = Collector(algorithm, env, VectorReplayBuffer(64, 4))
    before = [parameter.clone() for parameter in algorithm.policy.parameters()]
    result = algorithm.run_training(
        OnPolicyTrainerParams(
            training_collector=collector,
            max_epochs=2,
            epoch_num_steps=16,
            collection_step_num_env_steps=16,
            update_step_num_repetitions=1,
            batch_size=8,
            test_in_training=False,
            verbose=False,
            show_progress=False,
        )
    )
    assert result.train_step == 32 and result.train_episode == 8
    assert not all(torch.equal(*pair) for pair in zip(before, algorithm.policy.parameters(), strict=True))


def test_lockstep_is_stated(codec, reward, prompts, generator, layout):
    env = TianshouVectorEnv(steer(codec, reward, prompts, generator, layout))
    env.reset()
    with pytest.raises(ValueError, match="all 4 or none, not 2: n_episode of a collector has to be a multiple"):
        env.step(np.zeros((2, 7), np.float32), [0, 1])
    with pytest.raises(ValueError, match="lockstep"):
        env.reset([1])
    with pytest.raises(ValueError, match="DISABLED, not SAME_STEP"):
        TianshouVectorEnv(StreamGenVectorEnv(2, codec, reward, prompts, layout=layout))


def test_dictionaries_of_observations_and_options(codec, reward, prompts, layout):
    vector = StreamGenVectorEnv(2, codec, reward, prompts, layout=layout, autoreset_mode="Disabled")
    env = TianshouVectorEnv(vector)
    observation, _ = env.reset(options={"script": "a red circle moves left"})
    assert observation.shape == (2,) and Batch(obs=observation).obs.latents.shape == (2, 6, 4, 4, 4)
    assert env.info["text"].tolist() == ["a red circle moves left"] * 2
    observation, *_ = env.step(np.zeros((2, 3, 4, 4, 4), np.float32))
    assert observation[1]["position"] == 1


def test_what_else_tianshou_asks(walk):
    env = TianshouVectorEnv(walk(3, autoreset_mode="Disabled"))
    assert len(env) == 3 and env.action_space == [env.vector.single_action_space] * 3 and not env.is_async
    assert env.get_env_attr("lengths", [0]) == [3] and env.seed(4) == [[4]] * 3 and env.render() == [None] * 3
    env.set_env_attr("lengths", 2)
    with pytest.raises(ValueError, match="leave id out"):
        env.set_env_attr("lengths", 1, [0])
    assert env.vector.lengths == 2
    env.close()
    with pytest.raises(AssertionError, match="after close"):
        env.reset()
