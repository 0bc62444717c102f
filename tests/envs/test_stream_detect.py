"""StreamDetect on a dataset whose clips can be told apart: pixel k of clip m, chunk c is a known number."""

import gymnasium
import numpy as np
import pytest
import torch

from reelgym.envs.clip_dataset import ClipDataset, build_dataset
from reelgym.envs.single import SingleEnv
from reelgym.envs.stream_detect import DetectSettings, StreamDetectVectorEnv

WAIT, REAL, FAKE = range(3)
CLIPS, CHUNKS = 6, 3


@pytest.fixture
def dataset():
    clip, chunk = torch.arange(CLIPS), torch.arange(CHUNKS)
    value = (40 * clip[:, None] + 10 * chunk + 5).to(torch.uint8)
    video = value[..., None, None, None, None].expand(-1, -1, 2, 3, 4, 4)
    texts = tuple((f"clip {number}",) * CHUNKS for number in range(CLIPS))
    return ClipDataset(video.contiguous(), clip % 2 == 1, torch.where(clip % 2 == 1, clip, 0), texts)


@pytest.fixture
def make(dataset):
    def made(count=4, **others):
        return StreamDetectVectorEnv(count, dataset, **others)

    return made


def acts(*values):
    return torch.tensor(values)


def at(clips, **others):
    return {"options": {"clips": torch.tensor(clips), **others}}


def test_rewards_and_ends(make):
    env = make(autoreset_mode="Disabled")
    env.reset(**at([0, 0, 1, 1]))
    _, reward, terminated, truncated, info = env.step(acts(REAL, FAKE, FAKE, REAL))
    assert reward.tolist() == [1, -1, 1, -1] and terminated.all() and not truncated.any()
    assert info["label"].tolist() == [0, 0, 1, 1] and info["family"].tolist() == [0, 0, 1, 1]


def test_waiting_costs_and_ends_as_a_wrong_verdict(make):
    env = make(2, autoreset_mode="Disabled", settings=DetectSettings(wait_cost=0.25))
    env.reset(**at([2, 3]))
    for _ in range(CHUNKS - 1):
        _, reward, terminated, _, info = env.step(acts(WAIT, WAIT))
        assert reward.tolist() == [-0.25, -0.25] and not terminated.any()
        assert info["label"].tolist() == [-1, -1] and info["family"].tolist() == [-1, -1]
    _, reward, terminated, _, info = env.step(acts(WAIT, FAKE))
    assert reward.tolist() == [-1, 1] and terminated.all() and info["label"].tolist() == [0, 1]


def test_the_observation_is_the_newest_chunks(make, dataset):
    env = make(2)
    assert env.clip_shape == (4, 3, 2, 2) and env.columns == {"clip": slice(0, 48), "position": slice(48, 51)}
    observation, _ = env.reset(**at([1, 4]))
    for seen in range(1, CHUNKS + 1):
        clip, position = (observation[:, env.columns[name]] for name in ("clip", "position"))
        frames = clip.unflatten(1, env.clip_shape)
        for row, number in enumerate((1, 4)):
            expected = [40 * number + 10 * (seen - 1) + 5, 40 * number + 10 * (seen - 2) + 5 if seen > 1 else 0]
            assert (frames[row, 2:] * 255).round().unique().tolist() == expected[:1]
            assert (frames[row, :2] * 255).round().unique().tolist() == expected[1:]
        assert position.tolist() == [[float(seen == chunk) for chunk in range(1, CHUNKS + 1)]] * 2
        assert env.single_observation_space.contains(observation[0].numpy())
        observation = env.step(acts(WAIT, WAIT))[0]


def test_pooling_averages_squares(dataset):
    torch.manual_seed(0)
    noisy = ClipDataset(
        torch.randint(256, dataset.video.shape, dtype=torch.uint8), dataset.label, dataset.family, dataset.texts
    )
    sizes = {}
    for pool in (1, 2, 4):
        env = StreamDetectVectorEnv(1, noisy, settings=DetectSettings(pool=pool, window=1))
        observation, _ = env.reset(**at([3]))
        sizes[pool] = observation[0, env.columns["clip"]].unflatten(0, env.clip_shape)
    pixels = noisy.video[3, 0] / 255
    assert torch.equal(sizes[1], pixels)
    assert (sizes[4][..., 0, 0] - pixels.mean((-1, -2))).abs().max() <= 0.5 / 255 + 1e-6
    with pytest.raises(ValueError, match="pool 3 does not divide frames of 4 x 4"):
        StreamDetectVectorEnv(1, dataset, settings=DetectSettings(pool=3))


def test_same_step_renews_only_what_ended(make):
    env = make()
    first, _ = env.reset(**at([0, 1, 2, 3]))
    second, _, terminated, _, info = env.step(acts(WAIT, FAKE, REAL, WAIT))
    assert terminated.tolist() == [False, True, True, False]
    assert env.state.seen.tolist() == [2, 1, 1, 2] and env.state.clip[[0, 3]].tolist() == [0, 3]
    assert torch.equal(info["final_obs"][1:3], first[1:3]) and torch.equal(info["final_obs"][0], second[0])
    assert info["final_info"]["label"].tolist() == [-1, 1, 0, -1] and info["label"].tolist() == [-1] * 4
    assert info["_final_obs"].tolist() == terminated.tolist() == info["final_info"]["_label"].tolist()


def test_disabled_begins_the_rows_of_a_mask(make):
    env = make(3, autoreset_mode="Disabled")
    with pytest.raises(gymnasium.error.ResetNeeded, match="the first reset begins every row"):
        env.reset(options={"reset_mask": np.array([True, False, True])})
    env.reset(**at([0, 1, 2]))
    env.step(acts(WAIT, REAL, WAIT))
    with pytest.raises(gymnasium.error.ResetNeeded, match="an episode has ended"):
        env.step(acts(WAIT, WAIT, WAIT))
    _, info = env.reset(**at([5, 5, 5], reset_mask=np.array([False, True, False])))
    assert env.state.clip.tolist() == [0, 5, 2] and env.state.seen.tolist() == [2, 1, 2]
    assert info["label"].tolist() == [-1] * 3
    assert env.step(acts(REAL, FAKE, REAL))[1].tolist() == [1, 1, 1]


def test_where_nobody_looks_an_ended_row_stays(make):
    env = make(2, autoreset_mode="Disabled", check=False)
    env.reset(**at([0, 0]))
    env.step(acts(REAL, WAIT))
    before = env.state
    _, reward, terminated, _, info = env.step(acts(WAIT, WAIT))
    assert reward.tolist() == [0, pytest.approx(-0.02)] and terminated.tolist() == [True, False]
    assert info["label"].tolist() == [0, -1]
    assert env.state.verdict[0] == before.verdict[0] == REAL and env.state.seen.tolist() == [1, 3]


def played(env, actions):
    """Everything that a run of actions [T][N] gives, stacked."""
    steps = [env.step(action) for action in actions]
    return [torch.stack(parts) for parts in zip(*((o, r, t, i["final_obs"]) for o, r, t, _, i in steps), strict=True)]


def random_actions(steps, count, seed=0):
    return torch.randint(3, (steps, count), generator=torch.Generator().manual_seed(seed))


def test_a_row_is_the_same_in_any_batch(make):
    env, keys, actions = make(8), torch.arange(8) * 7 + 3, random_actions(20, 8)
    start, _ = env.reset(options={"keys": keys})
    together = played(env, actions)
    for row in (0, 5):
        alone = make(1)
        assert torch.equal(alone.reset(options={"keys": keys[row : row + 1]})[0][0], start[row])
        for one, many in zip(played(alone, actions[:, row : row + 1]), together, strict=True):
            assert torch.equal(one[:, 0], many[:, row])


def test_seeds_decide_everything(make):
    runs = []
    for seed in (3, 3, 4):
        env = make(8)
        runs.append([env.reset(seed=seed)[0], *played(env, random_actions(12, 8))])
    assert all(torch.equal(one, two) for one, two in zip(runs[0], runs[1], strict=True))
    assert not torch.equal(runs[0][0], runs[2][0])


def test_all_clips_are_drawn_alike(make):
    env = make(6000)
    env.reset(seed=0)
    env.step(torch.ones(6000, dtype=torch.int64))
    assert (torch.bincount(env.state.clip, minlength=CLIPS) / 1000 - 1).abs().max() < 0.12


def test_a_fork_continues_exactly(make):
    env, rows = make(), torch.tensor([2, 0, 2])
    env.reset(seed=1)
    env.step(acts(WAIT, REAL, WAIT, FAKE))
    branch, actions = env.fork(rows), random_actions(10, 4)
    for kept, forked in zip(played(env, actions), played(branch, actions[:, rows]), strict=True):
        assert torch.equal(kept[:, rows], forked)


def test_the_single_environment_is_the_vector_of_one(make):
    env, vector = SingleEnv(make(1, autoreset_mode="Disabled")), make(1, autoreset_mode="Disabled")
    one, info = env.reset(seed=4)
    many, _ = vector.reset(seed=4)
    assert np.array_equal(one, many[0].numpy()) and info == {"label": -1, "family": -1}
    for action in (WAIT, FAKE):
        observation, reward, terminated, truncated, info = env.step(action)
        many, rewards, ends, _, _ = vector.step(acts(action))
        assert np.array_equal(observation, many[0].numpy()) and reward == float(rewards) and terminated == bool(ends)
    assert terminated and not truncated and info["label"] in (0, 1)
    env.reset(options={"clip": 5})
    assert env.step(FAKE)[1] == 1


def test_render_tells_after_the_verdict(make):
    env = make(2, autoreset_mode="Disabled", render_mode="rgb_array_list")
    env.reset(**at([1, 1]))
    before = env.render()
    assert len(before) == 2 and len(before[0]) == 2 and before[0][0].dtype == np.uint8
    assert np.array_equal(before[0][0], before[1][0])
    env.step(acts(FAKE, WAIT))
    assert not np.array_equal(env.render()[0][0], before[0][0])
    view = env._view(env.state)
    assert view.notes[0] == ["chunk 1 of 3: fake", "chunk 2 of 3"] and view.notes[1] == ["it is flicker", ""]
    assert view.prompts == ["clip 1", "clip 1"]


def test_bad_input_is_told(make, dataset):
    env = make()
    with pytest.raises(ValueError, match="unknown option 'scripts'"):
        env.reset(options={"scripts": ["a"]})
    with pytest.raises(ValueError, match=r"clips lie in 0 .. 5"):
        env.reset(**at([0, 1, 2, 6]))
    with pytest.raises(ValueError, match=r"keys have shape \(2,\), expected \(4,\)"):
        env.reset(options={"keys": acts(1, 2)})
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(acts(0, 0, 0, 0))
    env.reset(seed=0)
    with pytest.raises(gymnasium.error.InvalidAction, match="lie in 0 to 3"):
        env.step(acts(0, 1, 2, 3))
    with pytest.raises(gymnasium.error.InvalidAction, match="expected integers"):
        env.step(torch.zeros(4))
    for wrong in ({"wait_cost": -0.1}, {"window": 0}, {"pool": 0}):
        with pytest.raises(ValueError, match="wait_cost is at least 0"):
            DetectSettings(**wrong)
    with pytest.raises(ValueError, match="uint8"):
        ClipDataset(dataset.video.float(), dataset.label, dataset.family, dataset.texts)
    with pytest.raises(ValueError, match="of one length"):
        ClipDataset(dataset.video, dataset.label[1:], dataset.family, dataset.texts)


def test_made_by_name(stack):
    name, small = "reelgym/StreamDetect-v0", {"preset": stack, "clips": 8}
    env = gymnasium.make(name, **small)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (6 * 3 * 16 * 16 + 4,)
    first, again = (gymnasium.make_vec(name, num_envs=2, seed=3, **small) for _ in range(2))
    assert first.dataset.video is again.dataset.video and len(first.dataset) == 8
    assert first.dataset.names[first.dataset.family.max()] == "generated"
    assert gymnasium.make_vec(name, num_envs=2, max_episode_steps=2, generated=0, **small).chunks == 2
    with pytest.raises(ValueError, match="clips, split: of a dataset to be built"):
        gymnasium.make_vec(name, num_envs=2, dataset=build_dataset(4), clips=8, split="test")
    with pytest.raises(TypeError, match="nonsense"):
        gymnasium.make_vec(name, num_envs=2, preset=stack, nonsense=1)
