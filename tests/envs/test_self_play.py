"""The self-play game: rules by hand, what is hidden, forks, and PettingZoo's own checks."""

from dataclasses import replace

import gymnasium
import pettingzoo
import pytest
import torch
from pettingzoo.test import parallel_api_test, parallel_seed_test

from reelgym.envs.game_rules import GameRules
from reelgym.envs.parallel import SelfPlayEnv
from reelgym.envs.self_play import DETECTOR, GENERATOR, SelfPlayGame
from reelgym.envs.stream_detect import FAKE, REAL, WAIT


@pytest.fixture
def make(codec, reward, prompts, layout):
    def made(streams=6, **rules):
        def truth(scripts, seed):
            return torch.rand(len(scripts), layout.clip_frames, 3, 8, 8, generator=torch.Generator().manual_seed(seed))

        return SelfPlayGame(streams, codec, reward, prompts, truth=truth, rules=GameRules(**rules), layout=layout)

    return made


def chunks(game, value=0.0):
    return torch.full((game.num_envs, *game.clips.chunk.shape), value)


def play(game, verdicts, seed=3):
    """Rewards of both, [moves, N], where verdicts are the detector's actions of all streams, move by move."""
    game.reset(seed)
    found = {GENERATOR: [], DETECTOR: []}
    for said in verdicts:
        _, rewards, _ = game.step({GENERATOR: chunks(game), DETECTOR: torch.full((game.num_envs,), said)})
        for player, values in rewards.items():
            found[player].append(values)
    return {player: torch.stack(values) for player, values in found.items()}


def test_payoffs_by_hand(make):
    game = make(64, floor=-99.0)
    found = play(game, [WAIT, WAIT, FAKE])
    real = game.state.real
    assert 16 < real.sum() < 48 and game.state.over.all()
    assert (found[DETECTOR][0] == 0).all() and torch.allclose(found[DETECTOR][1], torch.tensor(-0.02))
    assert torch.equal(found[DETECTOR][2], torch.where(real, -1.0, 1.0))
    assert torch.equal(found[GENERATOR].sum(0), torch.where(real, 0.0, -1.0))
    silent = play(game, [WAIT] * 5)
    assert torch.equal(silent[DETECTOR][-1], torch.where(real, 1.0, -1.0)) and (game.state.verdict == REAL).all()
    assert torch.equal(silent[GENERATOR].sum(0), torch.where(real, 0.0, 1.0))
    assert torch.allclose(silent[DETECTOR][:-1].sum(0), torch.tensor(-0.06))


def test_poor_clips_earn_nothing_above_zero(make):
    game = make(32, floor=99.0)
    assert (play(game, [WAIT] * 5)[GENERATOR] == 0).all()
    assert play(game, [WAIT, FAKE])[GENERATOR].min() == -1


def test_a_real_stream_ignores_the_generator(make):
    game, other = make(32), make(32)
    for one, value in ((game, 0.0), (other, 3.0)):
        one.reset(5)
        seen, _, _ = one.step({GENERATOR: chunks(one, value), DETECTOR: torch.zeros(32).long()})
    film, altered = game.observe()[DETECTOR]["video"], seen[DETECTOR]["video"]
    real = game.state.real
    assert torch.equal(film[real], altered[real]) and not torch.equal(film[~real], altered[~real])
    assert set(seen[DETECTOR]) == {"video", "position"} and "real" not in seen[GENERATOR]


def test_a_fork_goes_on_alike(make):
    game = make(4)
    game.reset(1)
    game.step({GENERATOR: chunks(game), DETECTOR: torch.zeros(4).long()})
    state = game.state.take(torch.tensor([2, 2, 0, 1]))
    said = {GENERATOR: chunks(game, 1.0), DETECTOR: torch.tensor([FAKE, FAKE, WAIT, WAIT])}
    game.state = state
    seen, rewards, over = game.step(said)
    assert (
        torch.equal(seen[DETECTOR]["video"][0], seen[DETECTOR]["video"][1])
        and over.tolist() == [True] * 2 + [False] * 2
    )
    assert rewards[DETECTOR][0] == rewards[DETECTOR][1]


def test_it_ends_and_says_so(make):
    game = make(2)
    with pytest.raises(gymnasium.error.ResetNeeded):
        game.observe()
    play(game, [WAIT] * 5)
    with pytest.raises(gymnasium.error.ResetNeeded, match="has ended"):
        game.step({GENERATOR: chunks(game), DETECTOR: torch.zeros(2).long()})


def test_pettingzoo_checks_pass(make):
    parallel_api_test(SelfPlayEnv(make(1)), num_cycles=30)
    parallel_seed_test(lambda: SelfPlayEnv(make(1)), num_cycles=10)


def test_made_by_name_it_passes_them_too():
    def made():
        return pettingzoo.make("parallel", "reelgym/SelfPlay-v0", chunks=2, split="test")

    env = made()
    assert isinstance(env, SelfPlayEnv) and env.game.layout.chunks == 2 and env.render_mode is None
    parallel_api_test(env, num_cycles=6)
    parallel_seed_test(made, num_cycles=4)
    for wrong, words in (
        ({"slice": "cut"}, "slice"),
        ({"render_mode": "human"}, "render_mode"),
        ({"preset": "huge"}, "huge"),
    ):
        with pytest.raises(ValueError, match=words):
            pettingzoo.make("parallel", "reelgym/SelfPlay-v0", **wrong)


def test_one_stream_from_end_to_end(make):
    env = SelfPlayEnv(make(1), render_mode="rgb_array")
    seen, infos = env.reset(seed=2, options={"script": "a red circle moves left"})
    assert infos[GENERATOR]["text"] == "a red circle moves left" and seen[DETECTOR]["position"] == 0
    with pytest.raises(ValueError, match="no action of detector"):
        env.step({GENERATOR: env.action_space(GENERATOR).sample()})
    shown = []
    for _ in range(5):
        actions = {GENERATOR: env.action_space(GENERATOR).sample() * 0, DETECTOR: WAIT}
        seen, rewards, terminated, truncated, infos = env.step(actions)
        assert all(env.observation_space(agent).contains(seen[agent]) for agent in seen)
        shown.append(int(seen[DETECTOR]["position"]))
    assert terminated == {GENERATOR: True, DETECTOR: True} and not any(truncated.values()) and env.agents == []
    assert shown == [1, 2, 3, 4, 4]
    assert infos[DETECTOR]["verdict"] == REAL and isinstance(infos[DETECTOR]["real"], bool)
    assert env.render().dtype == "uint8" and env.state().ndim == 1
    with pytest.raises(gymnasium.error.ResetNeeded, match="has ended"):
        env.step(actions)


@pytest.mark.parametrize("wrong", [{"wait_cost": -1.0}, {"pool": 0}, {"share": 2.0}, {"camera": "toy"}])
def test_wrong_rules_are_told(wrong):
    with pytest.raises(ValueError):
        replace(GameRules(), **wrong)


def test_all_judged_the_game_goes_on_and_pays_nothing(make):
    game = make(4)
    assert (play(game, [FAKE, FAKE, REAL, FAKE, FAKE])[DETECTOR][1:] == 0).all() and (game.state.verdict == FAKE).all()


def test_actions_that_do_not_fit_are_told(make):
    game = make(2)
    game.reset(0)
    waits = torch.zeros(2).long()
    good = chunks(game)
    wrong = [(good[:1], waits), (good, waits[:1]), (good * torch.nan, waits), (good, waits + 3)]
    for chunk, said in wrong:
        with pytest.raises(gymnasium.error.InvalidAction):
            game.step({GENERATOR: chunk, DETECTOR: said})
