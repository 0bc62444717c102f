"""The league's bookkeeping, by hand."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from reelgym.agents.detection import Detection, DetectionConfig, FakePool
from reelgym.agents.finetune import FineTune, FineTuneConfig
from reelgym.agents.league.league import League, LeagueConfig
from reelgym.agents.league.payoffs import Payoffs, contested, intransitive, priorities
from reelgym.agents.league.ratings import rated
from reelgym.agents.league.reward import OpponentReward
from reelgym.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from reelgym.envs.self_play import SelfPlayGame
from reelgym.envs.stream_gen import StreamGenVectorEnv
from reelgym.models.detector import ClipDetector
from reelgym.models.generator import stream
from reelgym.noise import stream_keys
from reelgym.rewards.stream_reward import StreamReward


def test_payoffs_count_and_forget():
    payoffs = Payoffs()
    payoffs.add("g", "d", 3, 4)
    payoffs.add("g", "d", 1, 4)
    payoffs.add("g", "e", 0, 2)
    assert payoffs.rate("g", "d") == 0.5 and payoffs.rate("g", "e") == 0 and payoffs.rate("g", "new") == 0.5
    assert payoffs.table(["g"], ["d", "e", "new"]).tolist() == [[0.5, 0, 0.5]]
    again = Payoffs.from_state(payoffs.state())
    assert again == payoffs
    payoffs.forget("e")
    assert list(payoffs.games) == [("g", "d")]
    with pytest.raises(ValueError, match="5 wins of 4 games"):
        payoffs.add("g", "d", 5, 4)


def test_a_game_worth_playing():
    assert contested(np.array([[0.0, 0.1], [0.5, 1.0]])) == 0.5


def test_priorities():
    assert priorities([0.0, 0.5, 1.0]).tolist() == pytest.approx([0.8, 0.2, 0.0])
    assert priorities([0.0, 0.5, 1.0], "even").tolist() == [0, 1, 0]
    assert priorities([1.0, 1.0]).tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="the pool is empty"):
        priorities([])


def test_two_detectors_that_disagree_on_two_generators():
    assert intransitive(np.array([[0.9, 0.1], [0.1, 0.9]])) == 1
    assert intransitive(np.array([[0.9, 0.5], [0.1, 0.4]])) == 0
    assert intransitive(np.array([[0.52, 0.5], [0.5, 0.52]])) == 0


def test_who_wins_more_is_rated_higher_and_anchors_stay():
    payoffs = Payoffs()
    for generator, wins in (("strong", 90), ("weak", 10), ("anchor", 50)):
        payoffs.add(generator, "judge", wins, 100)
    found = rated(payoffs, anchors=["anchor"])
    assert found["strong"].mu > found["anchor"].mu > found["weak"].mu and found["anchor"].mu == 25
    assert found["strong"].ordinal < found["strong"].mu and found == rated(payoffs, anchors=["anchor"])


@pytest.fixture
def make(generator, codec, reward, prompts, clock):
    def truth(scripts, seed):
        return torch.rand(len(scripts), clock.clip_frames, 3, 8, 8, generator=torch.Generator().manual_seed(seed))

    def make_clips(player, count, seed):
        embeds, _ = prompts(count, seed)
        with torch.no_grad():
            return codec.decode(stream(player, embeds, stream_keys(seed, count)))

    def made(**changes):
        config = LeagueConfig(generator_updates=1, detector_updates=2, clips=4, streams=8, seed=1)
        config = replace(config, **changes)
        torch.manual_seed(0)
        own = replace(generator, model=copy.deepcopy(generator.model))
        judged = OpponentReward(reward.model)
        env = StreamGenVectorEnv(4, codec, StreamReward(judged), prompts, clock=clock)
        recipe = FineTuneConfig(prompts=2, group=2, seed=1)
        fakes = FakePool()
        fakes.add("scripted", torch.rand(6, clock.clip_frames, 3, 8, 8))
        detection = Detection(
            DetectionConfig(batch=3),
            ClipDetector(width=8, size=4),
            lambda n, step: truth([""] * n, step),
            fakes,
        )
        game = SelfPlayGame(config.streams, codec, reward, prompts, truth=truth, clock=clock)
        trainer = FineTune(recipe, own, env, prompts)
        return League(config, trainer, detection, judged, game, make_clips)

    return made


def test_a_league_is_played_and_resumed_exactly(make, tmp_path):
    whole, first, second = make(), make(), make()
    for _ in range(4):
        whole.play_round()
    first.play_round()
    first.play_round()
    save_checkpoint(tmp_path / "league", *first.state())
    second.load_state(*load_checkpoint(tmp_path / "league"))
    second.play_round()
    second.play_round()
    (mine, told), (its, other) = second.state(), whole.state()
    for side in ("generator", "detector"):
        told[side]["counts"]["seconds"] = other[side]["counts"]["seconds"] = 0
    assert told == other and mine.keys() == its.keys()
    for name, group in mine.items():
        assert all(torch.equal(value, its[name][key]) for key, value in group.items()), name
    assert whole.names("generator") == ["generator", "generator-0", "generator-2", "generator-4"]
    assert whole.payoffs.table(whole.names("generator"), whole.names("detector")).shape == (4, 4)
    for other in ({"clips": 5}, {"mix": (0.5, 0.5)}):
        with pytest.raises(CheckpointError, match="another config"):
            make(**other).load_state(*load_checkpoint(tmp_path / "league"))
