"""The game from the detector's side: the game's own rewards, row by row, over clips that are played ahead."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from reelgym.envs.adapters.sb3 import SB3VecEnv
from reelgym.envs.game_rules import GameRules
from reelgym.envs.self_play import DETECTOR, GENERATOR, SelfPlayGame
from reelgym.envs.self_play_detector import SelfPlayDetectorVectorEnv
from reelgym.envs.stream_detect import FAKE, REAL, WAIT
from reelgym.models.generator import stream

CHUNKS = 4


@pytest.fixture
def world(layout):
    def truth(scripts, seed):
        return torch.rand(len(scripts), layout.clip_frames, 3, 8, 8, generator=torch.Generator().manual_seed(seed))

    return truth


@pytest.fixture
def make(codec, prompts, generator, layout, world):
    def made(count=6, **others):
        return SelfPlayDetectorVectorEnv(count, codec, prompts, generator, truth=world, layout=layout, **others)

    return made


def actions(steps, count, seed=0):
    return torch.randint(3, (steps, count), generator=torch.Generator().manual_seed(seed))


def test_it_pays_and_shows_what_the_game_does(make, codec, reward, prompts, layout, world, generator):
    env, rules = make(32, autoreset_mode="Disabled", check=False), GameRules()
    seen, _ = env.reset(seed=4)
    game = SelfPlayGame(32, codec, reward, prompts, truth=world, rules=rules, layout=layout)
    theirs = game.reset(env.state.seed)
    assert torch.equal(game.state.real, env.state.episodes.real) and 4 < game.state.real.sum() < 28
    latents = stream(generator, torch.stack([b.embeds for b in game.state.clips.prompts], 1), game.state.keys)
    blank = torch.zeros_like(latents[:, :3])
    over = torch.zeros(32, dtype=torch.bool)
    for move, said in enumerate(actions(CHUNKS + 1, 32, 1) * (torch.arange(CHUNKS + 1) > 0)[:, None]):
        shown = theirs[DETECTOR]
        there = ~over
        clip = seen[:, env.columns["clip"]].unflatten(1, env.clip_shape) * 255
        assert torch.equal(clip[there].round().to(torch.uint8), shown["video"][there])
        assert torch.equal(seen[:, env.columns["position"]].argmax(1)[there], shown["position"][there])
        chunk = latents[:, 3 * move : 3 * move + 3] if move < CHUNKS else blank
        theirs, rewards, over = game.step({GENERATOR: chunk, DETECTOR: said})
        seen, reward_here, ended, truncated, info = env.step(said)
        assert torch.equal(reward_here, rewards[DETECTOR]) and torch.equal(ended, over) and not truncated.any()
        assert torch.equal(info["label"], torch.where(over, (~game.state.real).long(), -1))
    assert over.all() and torch.equal(env.state.verdict, game.state.verdict)


def test_rewards_by_hand(make):
    env = make(autoreset_mode="Disabled")
    env.reset(seed=0)
    rewards = torch.stack([env.step(torch.full((6,), WAIT))[1] for _ in range(CHUNKS + 1)])
    assert (rewards[0] == 0).all() and torch.allclose(rewards[1:CHUNKS], torch.tensor(-0.02))
    assert torch.equal(rewards[CHUNKS], torch.where(env.state.episodes.real, 1.0, -1.0))
    with pytest.raises(gymnasium.error.ResetNeeded, match="an episode has ended"):
        env.step(torch.full((6,), WAIT))


def test_rows_end_alone_and_go_on_with_other_clips(make):
    env = make(3, clips=4)
    first, _ = env.reset(seed=0)
    before = env.state.episodes
    seen, _, ended, _, info = env.step(torch.tensor([WAIT, FAKE, WAIT]))
    assert ended.tolist() == [False, True, False] and env.state.seen.tolist() == [1, 0, 1]
    assert torch.equal(env.state.episodes.film[[0, 2]], before.film[[0, 2]])
    assert not torch.equal(env.state.episodes.film[1], before.film[1])
    assert any(torch.equal(env.state.episodes.film[1], clip) for clip in env.state.buffer.film)
    assert info["final_info"]["label"][1] == int(not before.real[1]) and info["label"].tolist() == [-1] * 3
    assert torch.equal(seen[1], first[1]) and not torch.equal(seen[0], first[0])


def test_a_stock_serves_so_many_steps(make):
    env, stocks = make(4, clips=8, refresh_every=3), []
    env.reset(seed=0)
    for said in actions(9, 4):
        env.step(said)
        stocks.append(env.state.buffer)
    same = [one is two for one, two in zip(stocks[1:], stocks, strict=False)]
    assert same == [True, True, False, True, True, False, True, True]
    assert env.state.played == 3 and not torch.equal(stocks[0].film, stocks[-1].film)
    usual = make(4, clips=8)
    usual.reset(seed=0)
    for said in actions(10, 4):
        usual.step(said)
    assert usual.state.played == 1
    usual.step(actions(1, 4)[0])
    assert usual.state.played == 2


def played(env, said):
    return [torch.stack(parts) for parts in zip(*(env.step(row)[:3] for row in said), strict=True)]


def test_seeds_decide_everything_and_a_fork_goes_on_alike(make):
    runs = []
    for seed in (3, 3, 4):
        env = make(clips=8, refresh_every=2)
        runs.append([env.reset(seed=seed)[0], *played(env, actions(12, 6))])
    assert all(torch.equal(one, two) for one, two in zip(runs[0], runs[1], strict=True))
    assert not torch.equal(runs[0][1], runs[2][1])
    rows, said = torch.tensor([4, 0, 4]), actions(8, 6, 7)
    branch = env.fork(rows)
    env.state = replace(env.state, buffer=None)
    branch.state = replace(branch.state, buffer=None)
    for kept, forked in zip(played(env, said), played(branch, said[:, rows]), strict=True):
        assert torch.equal(kept[:, rows], forked)


def test_a_mask_begins_its_rows(make):
    env = make(3, autoreset_mode="Disabled", clips=4)
    with pytest.raises(gymnasium.error.ResetNeeded, match="the first reset begins every row"):
        env.reset(options={"reset_mask": np.array([True, False, True])})
    env.reset(seed=0, options={"scripts": ["a red circle moves left"] * 3})
    env.step(torch.tensor([WAIT, REAL, WAIT]))
    before = env.state.episodes.film
    for options in ({}, {"scripts": ["a blue square moves right"] * 3}):
        env.reset(options={"reset_mask": np.array([False, True, False]), **options})
        assert env.state.seen.tolist() == [1, 0, 1] and not env.state.over.any()
        assert torch.equal(env.state.episodes.film[[0, 2]], before[[0, 2]])


def test_a_mask_of_all_rows_is_a_reset_by_its_seed(make):
    env, whole = make(3, autoreset_mode="Disabled"), np.ones(3, bool)
    env.reset(seed=1)
    env.reset(seed=2, options={"reset_mask": whole})
    other = make(3)
    other.reset(seed=2)
    assert torch.equal(env.state.episodes.film, other.state.episodes.film)


def test_bad_input_is_told(make, generator):
    for wrong in ({"clips": 0}, {"refresh_every": 0}):
        with pytest.raises(ValueError, match="clips and refresh_every are at least 1"):
            make(**wrong)
    with pytest.raises(ValueError, match=r"the opponent makes chunks \[2, 4, 4, 4\]"):
        SelfPlayDetectorVectorEnv(1, make().game.clips.codec, make().prompts, replace(generator, frames_per_chunk=2))


def test_made_by_name(stack):
    name, given = "reelgym/SelfPlayDetector-v0", {"preset": stack, "clips": 2}
    assert gymnasium.make_vec(name, num_envs=2, max_episode_steps=3, **given).layout.chunks == 2
    with pytest.raises(ValueError, match="a clip of one chunk takes 2 moves"):
        gymnasium.make_vec(name, num_envs=2, max_episode_steps=1, **given)
    env = gymnasium.make(name, chunks=2, **given)
    assert env.reset(seed=0)[0].shape == (6 * 3 * 16 * 16 + 3,)


def test_ppo_learns_to_wait_for_the_first_chunk(make):
    """True clips are bright noise, the untrained generator's are not: one look tells them apart."""
    torch.manual_seed(0)
    envs = SB3VecEnv(make(16, clips=64))
    model = PPO("MlpPolicy", envs, n_steps=32, batch_size=128, gamma=1.0, learning_rate=1e-3, seed=0)
    model.learn(10 * 16 * 32)
    gained = [episode["r"] for episode in model.ep_info_buffer]
    assert np.mean(gained) > 0.6
