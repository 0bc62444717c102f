"""The game from the generator's side: a detector that is scripted, or untrained, says what the detector says."""

from dataclasses import dataclass

import gymnasium
import pytest
import torch

from reelgym.envs.game_rules import GameRules, ThresholdPolicy, checked
from reelgym.envs.self_play_generator import SelfPlayGeneratorVectorEnv
from reelgym.envs.stream_detect import FAKE, REAL, WAIT
from reelgym.models.detector import ClipDetector, DetectorState


@dataclass(frozen=True)
class Bright:
    """Sure that bright chunks are made, the surer the more of them: its logit is their count, less the dark ones."""

    def open(self, count, device):
        return DetectorState((torch.zeros(count, device=device),))

    def watch(self, video, state):
        (logit,) = state.parts
        logit = logit + torch.where(video.mean((1, 2, 3, 4)) > 0.3, 1.0, -1.0)
        return logit, DetectorState((logit,))


@pytest.fixture
def make(codec, reward, prompts, layout):
    def made(count=3, opponent=None, floor=-99.0, share=0.0, **others):
        rules = GameRules(floor=floor, share=share, camera="clean")
        opponent = opponent or ThresholdPolicy(Bright(), confidence=1.5)
        return SelfPlayGeneratorVectorEnv(count, codec, reward, prompts, opponent, rules=rules, layout=layout, **others)

    return made


def chunk(env, *brightness):
    return torch.tensor(brightness).view(-1, 1, 1, 1, 1).expand(env.action_space.shape).contiguous()


def test_rewards_by_hand(make):
    env = make(autoreset_mode="Disabled")
    env.reset(seed=0)
    rewards, verdicts = [], []
    for step in ((2.0, -2.0, 2.0), (2.0, -2.0, -2.0), (0.0, 0.0, -2.0), (-2.0, 2.0, 2.0)):
        _, reward, ended, truncated, info = env.step(chunk(env, *step))
        rewards.append(reward.tolist())
        verdicts.append(info["verdict"].tolist())
    assert rewards == [[0, 0, 0], [0, 0, 0], [-1, 1, 0], [0, 0, 1]] and ended.all() and not truncated.any()
    assert verdicts == [[WAIT] * 3] * 2 + [[FAKE, REAL, WAIT], [FAKE, REAL, REAL]]
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(chunk(env, 0.0, 0.0, 0.0))


def test_poor_clips_and_real_ones_earn_nothing(make):
    for rules, wanted in (({"floor": 99.0}, 0.0), ({"share": 1.0}, 0.0), ({}, 1.0)):
        env = make(2, **rules, **({"truth": lambda s, _: torch.zeros(len(s), 12, 3, 8, 8)} if "share" in rules else {}))
        env.reset(seed=0)
        total = sum(env.step(chunk(env, -2.0, -2.0))[1] for _ in range(4))
        assert (total == wanted).all()


def test_it_begins_again_and_a_fork_goes_on_alike(make):
    torch.manual_seed(0)
    env = make(4, ThresholdPolicy(ClipDetector(8, 4), confidence=0.02))
    seen, info = env.reset(seed=1, options={"scripts": ["a red circle moves left"] * 4})
    assert info["text"].tolist() == ["a red circle moves left"] * 4 and set(seen) == {"latents", "prompt", "position"}
    rows, ends = torch.tensor([3, 1]), 0
    env.step(torch.randn(env.action_space.shape))
    branch = env.fork(rows)
    for _ in range(3):
        action = torch.randn(env.action_space.shape)
        kept, reward, ended, _, info = env.step(action)
        forked, again, *_ = branch.step(action[rows])
        assert torch.equal(reward[rows], again)
        ends += int(ended.all())
    assert ends == 1 and (info["final_info"]["verdict"] != WAIT).all() and (info["verdict"] == WAIT).all()
    assert (kept["position"] == 0).all() and (forked["position"] == 0).all()


def test_what_cannot_judge_is_told(make):
    with pytest.raises(ValueError, match=r"the opponent cannot judge chunks of \[3, 3, 4, 4\]"):
        make(opponent=ThresholdPolicy(ClipDetector(8, 16)))

    class Wrong(Bright):
        broken = True

        def watch(self, video, state):
            return torch.full((len(video),), torch.nan if self.broken else 0.0), state

    wrong = Wrong()
    with pytest.raises(ValueError, match="not finite"):
        make(opponent=ThresholdPolicy(wrong))
    wrong.broken = False
    env = make(opponent=ThresholdPolicy(wrong))
    env.reset(seed=0)
    wrong.broken = True
    with pytest.raises(ValueError, match="not finite"):
        env.step(chunk(env, 0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match=r"returned \[2, 1\] for 2 streams"):
        checked(torch.zeros(2, 1), 2)


def test_a_judge_decides_when_it_is_sure():
    judge = ThresholdPolicy(Bright(), confidence=2.0, bias=1.0)
    logits = torch.tensor([-2.0, 0.5, 2.0, 3.5])
    assert judge.act(logits, last=False).tolist() == [REAL, WAIT, WAIT, FAKE]
    assert judge.act(logits, last=True).tolist() == [REAL, REAL, FAKE, FAKE]


def test_made_by_name(stack):
    name = "reelgym/SelfPlayGenerator-v0"
    env = gymnasium.make_vec(name, num_envs=2, preset=stack, max_episode_steps=2)
    assert env.layout.chunks == 2 and env.opponent.confidence == 2.0 and env.game.rules.share == 0
    assert not any(parameter.requires_grad for parameter in env.opponent.detector.parameters())
