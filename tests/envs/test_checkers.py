"""What other libraries' own checkers and wrappers say of every environment that `import reelgym` registers."""

import pickle
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.wrappers.vector import RecordEpisodeStatistics as VectorStatistics
from stable_baselines3.common.env_checker import check_env as check_for_sb3

from reelgym.envs.adapters.arrays import ArrayVectorEnv
from reelgym.envs.adapters.sb3 import SB3VecEnv
from reelgym.envs.adapters.tianshou import TianshouVectorEnv
from reelgym.envs.registration import ENVS
from reelgym.envs.statistics import RecordEpisodeStatistics
from reelgym.envs.vector import TensorVectorEnv

SMALL = {
    "reelgym/StreamGen-v0": {"chunks": 2},
    "reelgym/StreamDenoise-v0": {"chunks": 2},
    "reelgym/StreamSteer-v0": {"chunks": 2},
    "reelgym/StreamDetect-v0": {"clips": 16},
    "reelgym/SelfPlayGenerator-v0": {"chunks": 2},
    "reelgym/SelfPlayDetector-v0": {"chunks": 2, "clips": 4},
}
"""What else an environment is made with here."""
STEPS = 40
"""More than any episode has."""
SB3_ADVICE = (
    "Your observation .* has an unconventional shape",  # latents and embeddings, for a policy that knows them
    "We recommend you to use a symmetric and normalized Box action space",  # latents are an action's unit
    "It seems that your observation .* is an image",  # any Box of three dimensions
    "The minimal resolution for an image is 36x36",
)


@pytest.fixture(params=sorted(ENVS))
def name(request):
    return request.param


@pytest.fixture
def given(name, stack):
    return {"preset": stack, **SMALL.get(name, {})}


@pytest.fixture
def vector(name, given):
    def make(count=2, **others):
        return gymnasium.make_vec(name, num_envs=count, **given, **others)

    return make


def sampled(space, seed):
    """Endless actions, those of unbounded spaces near 0."""
    space.seed(seed)
    while True:
        action = space.sample()
        yield action / 64 if isinstance(space, Box) and space.high.max() > 1 else action


def trajectory(env, seed):
    actions, done = sampled(env.action_space, seed), False
    out = [env.reset(seed=seed)]
    while not done:
        out.append(env.step(next(actions)))
        done = out[-1][2] or out[-1][3]
    return [*out, env.reset()]


def test_gymnasiums_checker(name, given):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(name, **given).unwrapped)


def test_sb3s_checker(name, given):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for advice in SB3_ADVICE:
            warnings.filterwarnings("ignore", message=advice)
        check_for_sb3(gymnasium.make(name, render_mode="rgb_array", **given))


def test_two_with_one_seed_are_equal(name, given):
    one, two = (trajectory(gymnasium.make(name, **given), 5) for _ in range(2))
    assert data_equivalence(one, two, exact=True) and len(one) < STEPS


def test_statistics_of_one(name, given):
    played = trajectory(gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make(name, **given)), 5)
    episode = played[-2][4]["episode"]
    assert episode["l"] == len(played) - 2
    assert episode["r"] == pytest.approx(sum(step[1] for step in played[1:-1]), abs=1e-5)


def test_make_vec_gives_the_vector(vector):
    envs = vector(3)
    assert isinstance(envs, gymnasium.vector.VectorEnv) and isinstance(envs.unwrapped, TensorVectorEnv)
    assert envs.unwrapped is envs and envs.num_envs == 3 and envs.spec.id in ENVS
    observation, _ = envs.reset(seed=0)
    for part in observation.values() if isinstance(observation, dict) else [observation]:
        assert isinstance(part, torch.Tensor)


def test_statistics_of_vectors(vector):
    ours, theirs = RecordEpisodeStatistics(vector()), VectorStatistics(ArrayVectorEnv(vector()))
    actions = sampled(ours.action_space, 3)
    assert theirs.observation_space.contains(theirs.reset(seed=3)[0])
    ours.reset(seed=3)
    ends = 0
    while ends < 3:
        action = next(actions)
        *_, info = ours.step(torch.as_tensor(action))
        observation, *_, expected = theirs.step(action)
        assert theirs.observation_space.contains(observation)
        ended = info["_episode"]
        assert bool(ended.any()) == ("episode" in expected)
        if "episode" in expected:
            np.testing.assert_allclose(info["episode"]["r"], expected["episode"]["r"], atol=1e-5)
            assert info["episode"]["l"].tolist() == expected["episode"]["l"].tolist()
        ends += int(ended.sum())
    assert ends == theirs.episode_count


def test_gymnasiums_loop_over_single_environments(name, given):
    envs = gymnasium.make_vec(name, num_envs=2, vectorization_mode="sync", **given)
    observation, _ = envs.reset(seed=0)
    actions, ends = sampled(envs.action_space, 0), 0
    while ends < 3:
        assert envs.observation_space.contains(observation)
        observation, _, terminated, truncated, _ = envs.step(next(actions))
        ends += terminated.sum()
        assert not truncated.any()


def test_adapters_take_it(vector):
    sb3, tianshou = SB3VecEnv(vector()), TianshouVectorEnv(vector(autoreset_mode="Disabled"))
    space, actions = sb3.vector.observation_space, sampled(sb3.vector.action_space, 0)
    observation, (rows, infos) = sb3.reset(), tianshou.reset()
    ends = np.zeros(2, int)
    while not ends.all():
        assert space.contains(observation) and len(rows) == len(infos) == 2
        action = next(actions)
        observation, _, done, said = sb3.step(action)
        assert [bool(info) for info in said] == done.tolist()
        _, _, terminated, _, _ = tianshou.step(action)
        if terminated.any():
            tianshou.reset(np.flatnonzero(terminated))
        ends += done


def wrong_actions(space):
    """Actions that do not fit, and what is said of them."""
    good = torch.as_tensor(space.sample())
    yield good[:1], "actions have shape"
    yield "wait", "actions cannot be read as a tensor"
    if isinstance(space, Box):
        yield good.long(), "expected floating point"
        yield good.bool(), "expected floating point"
        yield good.to(torch.complex64), "expected floating point"
        yield torch.full_like(good, float("nan")), "actions hold NaN"
    else:
        yield good.float(), "expected integers"
        yield good.bool(), "expected integers"
        yield good.to(torch.complex128), "expected integers"


def test_wrong_actions_are_told(vector):
    envs = vector()
    envs.reset(seed=0)
    wrong = list(wrong_actions(envs.action_space))
    space, good = envs.single_action_space, torch.as_tensor(envs.action_space.sample())
    if isinstance(space, Discrete):
        wrong.append((torch.full_like(good, int(space.start + space.n)), "actions lie in .*: clip them"))
    elif envs.BOUNDED:
        wrong.append((torch.full_like(good, float(space.high.max()) + 1), "actions lie in .*: clip them"))
    else:
        wrong.append((torch.full_like(good, float("inf")), "actions hold infinity"))
    for action, message in wrong:
        with pytest.raises(gymnasium.error.InvalidAction, match=message):
            envs.step(action)
    envs.step(torch.as_tensor(next(sampled(envs.action_space, 0))))


def test_what_is_no_action_at_all_is_told(name, given):
    env = gymnasium.make(name, disable_env_checker=True, **given)
    env.reset(seed=0)
    for nonsense in ("wait", None, {"a": 1}):
        with pytest.raises(gymnasium.error.InvalidAction, match="actions"):
            env.step(nonsense)


def test_a_reset_is_needed(vector):
    envs = vector(autoreset_mode="Disabled")
    actions = sampled(envs.action_space, 0)
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        envs.step(torch.as_tensor(next(actions)))
    envs.reset(seed=0)
    with pytest.raises(gymnasium.error.ResetNeeded, match="an episode has ended"):
        for _ in range(STEPS):
            envs.step(torch.as_tensor(next(actions)))
    envs.reset()
    envs.step(torch.as_tensor(next(actions)))


def test_an_unknown_option_is_told(name, given, vector):
    with pytest.raises(ValueError, match="unknown option 'speed': reset takes"):
        vector().reset(options={"speed": 2})
    with pytest.raises(ValueError, match="unknown option 'speed': reset takes"):
        gymnasium.make(name, **given).reset(options={"speed": 2})
    with pytest.raises(ValueError, match="SAME_STEP or DISABLED"):
        vector(autoreset_mode="NextStep")


def test_a_pickled_environment_goes_on_alike(name, given):
    env = gymnasium.make(name, **given).unwrapped
    env.reset(seed=5)
    action = next(sampled(env.action_space, 5)) if isinstance(env.action_space, Box) else 0
    env.step(action)
    twin = pickle.loads(pickle.dumps(env))
    assert data_equivalence(*([one.step(action), *trajectory(one, 5)] for one in (env, twin)), exact=True)
