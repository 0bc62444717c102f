"""The league's bookkeeping, by hand."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from reelgym.agents.detection import Detection, DetectionConfig, ReplayBuffer
from reelgym.agents.finetune import FineTune, FineTuneConfig
from reelgym.agents.league.config import LeagueConfig
from reelgym.agents.league.league import League
from reelgym.agents.league.match import apply_camera, detector_logits, resolve_match
from reelgym.agents.league.payoffs import Payoffs, contested, intransitive, priorities
from reelgym.agents.league.ratings import rated
from reelgym.agents.league.reward import OpponentReward
from reelgym.agents.rollout import GeneratorPolicy
from reelgym.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from reelgym.envs.game_rules import GameRules, ThresholdPolicy
from reelgym.envs.self_play import DETECTOR, GENERATOR, SelfPlayGame, record
from reelgym.envs.stream_detect import REAL
from reelgym.envs.stream_gen import StreamGenVectorEnv
from reelgym.models.detector import ClipDetector
from reelgym.models.generator import stream
from reelgym.models.prompts import PromptBatch
from reelgym.noise import stream_keys
from reelgym.rewards.stream_reward import StreamReward


def test_payoffs_count():
    payoffs = Payoffs()
    payoffs.add("g", "d", 3, 4)
    payoffs.add("g", "d", 1, 4)
    payoffs.add("g", "e", 0, 2)
    assert payoffs.rate("g", "d") == 0.5 and payoffs.rate("g", "e") == 0 and payoffs.rate("g", "new") == 0.5
    assert payoffs.table(["g"], ["d", "e", "new"]).tolist() == [[0.5, 0, 0.5]]
    again = Payoffs.from_state(payoffs.state())
    assert again == payoffs
    with pytest.raises(ValueError, match="5 wins of 4 games"):
        payoffs.add("g", "d", 5, 4)


def test_a_game_worth_playing():
    assert contested(np.array([[0.0, 0.1], [0.5, 1.0]])) == 0.5


def test_priorities():
    assert priorities([0.0, 0.5, 1.0]).tolist() == pytest.approx([0.8, 0.2, 0.0])
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
    assert found["strong"].sigma < 25 / 3 and found == rated(payoffs, anchors=["anchor"])


@pytest.fixture
def make(generator, codec, reward, prompts, layout):
    def truth(scripts, seed):
        return torch.rand(len(scripts), layout.clip_frames, 3, 8, 8, generator=torch.Generator().manual_seed(seed))

    def make_clips(player, count, seed):
        embeds, _ = prompts(count, seed)
        with torch.no_grad():
            return codec.decode(stream(player, embeds, stream_keys(seed, count)))

    def made(**changes):
        config = LeagueConfig(
            generator_updates=1, detector_updates=2, clips=4, exploiter_updates=1, runaway=1.0, seed=1
        )
        config = replace(config, **changes)
        torch.manual_seed(0)
        own = replace(generator, model=copy.deepcopy(generator.model))
        judged = OpponentReward(reward.model)
        env = StreamGenVectorEnv(4, codec, StreamReward(judged), prompts, layout=layout)
        recipe = FineTuneConfig(prompts=2, group=2, seed=1)
        fakes = ReplayBuffer()
        fakes.add("scripted", torch.rand(6, layout.clip_frames, 3, 8, 8))
        detection = Detection(
            DetectionConfig(batch=3),
            ClipDetector(width=8, size=4),
            lambda n, step: truth([""] * n, step),
            fakes,
        )
        game = SelfPlayGame(8, codec, reward, prompts, truth=truth, layout=layout, rules=GameRules(share=0.0))
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
        for counts in (told[side]["counts"], other[side]["counts"]):
            counts["seconds"] = counts["cpu_seconds"] = 0
    assert told == other and mine.keys() == its.keys()
    for name, group in mine.items():
        assert all(torch.equal(value, its[name][key]) for key, value in group.items()), name
    everybody = [*map("generator-{}".format, range(3)), "generator-x2", "generator-3", "generator-4", "generator-x4"]
    assert whole.names("generator") == everybody and whole.newest("generator") == "generator-4"
    assert len(whole.payoffs.games) == 49 and set(whole.payoffs.games.values()) == {8}
    for other in ({"clips": 5}, {"mix": (0.5, 0.3, 0.2)}):
        with pytest.raises(CheckpointError, match="another config"):
            make(**other).load_state(*load_checkpoint(tmp_path / "league"))
    groups, told = load_checkpoint(tmp_path / "league")
    with pytest.raises(CheckpointError, match="lacks member-generator-1"):
        make().load_state({name: part for name, part in groups.items() if name != "member-generator-1"}, told)
    with pytest.raises(CheckpointError, match="no league's checkpoint: it lacks payoffs"):
        make().load_state(groups, {key: value for key, value in told.items() if key != "payoffs"})


def test_a_showing_settles_as_the_game_does(make):
    league = make()
    game = league.game
    game.rules = GameRules(wait_cost=0.1, floor=0.0)
    judge = ThresholdPolicy(league.detector_named("detector-0"), confidence=0.01)
    showing = record(game, league.generator.generator, 3)
    found = resolve_match(showing, judge, game.rules)
    seen = game.reset(3)
    policy = GeneratorPolicy(league.generator.generator)
    policy.reset(game.state.keys)
    said, memory, total = torch.zeros(8).long(), judge.detector.open(8, game.device), torch.zeros(8, 2)
    for move in range(game.layout.chunks + 1):
        with torch.no_grad():
            chunk = (
                policy.act(seen[GENERATOR]) if move < game.layout.chunks else torch.zeros(8, *game.clips.chunk.shape)
            )
            seen, rewards, over = game.step({GENERATOR: chunk, DETECTOR: said})
            total += torch.stack((rewards[GENERATOR], rewards[DETECTOR]), 1)
            if over.all():
                break
            logit, memory = judge.detector.watch(game.newest(), memory)
        said = judge.act(logit, move + 1 == game.layout.chunks)
    assert torch.equal(found.verdict, game.state.verdict) and torch.allclose(found.returns, total)
    assert torch.equal(found.real, game.state.real) and 0 < found.games < 8
    assert found.wins == int((~game.state.real & (game.state.verdict == REAL)).sum())


class Says:
    """A detector that says the same of every clip."""

    def __init__(self, value):
        self.value = value

    def open(self, count, device):
        return None

    def watch(self, video, state):
        return torch.as_tensor(self.value).expand(len(video), *torch.as_tensor(self.value).shape[1:]), state


def test_filmed_clips_and_those_who_judge_them(make):
    rules = GameRules()
    showing = apply_camera(torch.rand(6, 6, 3, 8, 8), rules, 3, 0, real=True)
    assert showing.film.shape == (6, 2, 3, 3, 4, 4) and showing.film.dtype == torch.uint8 and showing.real.all()
    wrong = resolve_match(showing, ThresholdPolicy(Says(9.0)), rules)
    assert (wrong.returns == torch.tensor([0.0, -1.0])).all() and (wrong.shown == 1).all() and wrong.games == 0
    late = resolve_match(showing, ThresholdPolicy(Says(-0.5)), rules)
    assert torch.allclose(late.returns[:, 1], torch.tensor(1 - rules.wait_cost)) and (late.shown == 2).all()
    with pytest.raises(ValueError, match="not finite"):
        detector_logits(Says(float("nan")), showing)
    with pytest.raises(ValueError, match=r"returned \[6, 1\] for 6 streams"):
        detector_logits(Says(torch.zeros(6, 1)), showing)


def test_a_side_that_runs_away_pauses_and_a_frozen_one_stays(make):
    league = make(runaway=0.6, exploit_every=0)
    league.everybody()
    league.payoffs = Payoffs({("generator-0", "detector-0"): 8}, {("generator-0", "detector-0"): 8})
    league.play_round()
    assert league.paused == {"generator": 1, "detector": 0}
    assert league.names("generator") == ["generator-0"] and league.newest("detector") == "detector-1"
    alone = make(learns=("detector",), runaway=0.6)
    alone.everybody()
    alone.payoffs = Payoffs({("generator-0", "detector-0"): 0}, {("generator-0", "detector-0"): 8})
    for _ in range(2):
        alone.play_round()
    assert alone.names("generator") == ["generator-0"] and alone.names("detector", "exploiter") == ["detector-x2"]
    assert alone.generator.counts.updates == 0 and alone.detector.counts.updates == 4 and not any(alone.paused.values())


def test_what_a_detector_learns_from(make):
    league = make(mix=(0.5, 0.3, 0.2), anchored=0.1)
    league.play_round()
    assert league._families() == {"generator-1": pytest.approx(0.9), "scripted": pytest.approx(0.1)}
    league.play_round()
    league.play_round()
    shares = league._families()
    assert shares["generator-3"] == pytest.approx(0.27) and shares["generator-x2"] == pytest.approx(0.18)
    assert shares["generator-1"] + shares["generator-2"] == pytest.approx(0.45) and shares["scripted"] == 0.1
    alone = make(mix=(0.0, 1.0, 0.0), learns=("detector",), exploit_every=0)
    alone.play_round()
    assert alone._families() == {"scripted": 0.2, "generator-0": pytest.approx(0.8)}, "anchors stay in every arm"


def test_the_reward_is_pure_until_the_camera_changes(make):
    league = make()
    league.reward.against([league.detector_named("detector-0")], 1)
    video = torch.rand(3, 6, 3, 8, 8, requires_grad=True)
    prompts = PromptBatch(("",) * 3, torch.zeros(3, 2, 4))
    first, again = (league.reward.score(video, prompts) for _ in range(2))
    assert torch.equal(first, again) and first.shape == (3, len(league.reward.axes))
    (gradient,) = torch.autograd.grad(first[:, -1].sum(), video)
    assert gradient.abs().sum() > 0
    league.reward.against([league.detector_named("detector-0")], 2)
    other = league.reward.score(video, prompts)
    assert torch.equal(other[:, :-1], first[:, :-1]) and not torch.equal(other[:, -1], first[:, -1])
    with pytest.raises(ValueError, match="one detector at least"):
        league.reward.against([], 0)
    league.reward.against([league.detector_named("detector-0")], 1, 12.0)
    assert league.reward.std[-1] == pytest.approx(1 / 12)
    league.reward.against([league.detector_named("detector-0")], 1)
    assert league.reward.std[-1] == pytest.approx(1 / 3)


def test_a_pool_of_fakes():
    pool = ReplayBuffer()
    random = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="pool of fakes is empty"):
        pool.draw(2, random)
    pool.add("dark", torch.zeros(3, 2, 3, 4, 4))
    pool.add("light", torch.ones(1, 2, 3, 4, 4))
    drawn = pool.draw(64, random).mean((1, 2, 3, 4))
    assert 16 < int(drawn.sum()) < 48 and pool.draw(8, random, {"light": 2.0, "dark": 0.0}).min() == 1
    with pytest.raises(ValueError, match="no clips of green"):
        pool.draw(2, random, {"green": 1.0})
