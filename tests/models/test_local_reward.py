"""The reward whose VQ is a map of damage: what it keeps of the reward it is made over, and where its gradient lies."""

import pytest
import torch

from reelgym.envs.stack import Stack, StackSpec
from reelgym.experiments.audit.probe import blur, damaged, grain, look, real_clips, share_inside, touched
from reelgym.experiments.pretrain.hurt import hurt
from reelgym.experiments.pretrain.local import saliency_loss
from reelgym.models.local_reward import DamageMap, LocalReward
from reelgym.models.prompts import PromptBatch
from reelgym.models.reward_net import TinyReward
from reelgym.models.tiny import SHIPPED_REWARDS, load_tiny, save_tiny

DIM = 12


@pytest.fixture
def reward() -> TinyReward:
    torch.manual_seed(0)
    reward = TinyReward(DIM, width=32).requires_grad_(False).eval()
    reward.calibrate(torch.randn(5, 3))
    return reward


def test_motion_and_alignment_stay_to_the_bit(reward: TinyReward) -> None:
    local = LocalReward.over(reward)
    video, embeds = torch.rand(2, 4, 3, 32, 32), torch.rand(2, 5, DIM)
    assert torch.equal(local(video, embeds)[:, 1:], reward(video, embeds)[:, 1:])
    assert torch.equal(local.mean, reward.mean) and torch.equal(local.std, reward.std)
    assert {name.split(".")[0] for name, p in local.named_parameters() if p.requires_grad} == {"damage"}


def test_it_goes_wherever_a_reward_goes(reward: TinyReward, tmp_path) -> None:
    local = LocalReward.over(reward).eval()
    save_tiny(tmp_path, local, {})
    again = load_tiny("reward", tmp_path)
    video, embeds = torch.rand(1, 3, 3, 32, 32), torch.rand(1, 5, DIM)
    assert isinstance(again, LocalReward) and torch.equal(again(video, embeds), local(video, embeds))
    spec = StackSpec(reward=str(tmp_path))
    assert isinstance(spec.load().reward.model, LocalReward) and tmp_path / "checkpoint.json" in spec.depends_on


def test_the_score_has_no_slope_where_nothing_is_wrong() -> None:
    damage = torch.zeros(1, 3, 20, 16, 16, requires_grad=True)
    amount = torch.zeros_like(damage)
    amount[0, 1, :, :8], amount[0, 2, :, :8] = 0.1, 0.2
    (slope,) = torch.autograd.grad(DamageMap().score(damage + amount).sum(), damage)
    first, second, third = slope[0].abs().sum(1)
    assert not first.any() and not second[8:].any() and not third[8:].any()
    assert third[:8].mean() > 8 * second[:8].mean() > 0


def test_frames_are_judged_each_by_itself() -> None:
    torch.manual_seed(0)
    damage, video = DamageMap(), torch.rand(1, 4, 3, 32, 32)
    torch.testing.assert_close(damage.score(damage(video)), damage.score(damage(video.flip(1))))
    torch.testing.assert_close(damage(video)[:, 2:3], damage(video[:, 2:3]))


def test_damage_lies_in_its_place_and_is_told() -> None:
    video = real_clips(32, "train", 0).frames(torch.arange(32))[:, :5]
    found = hurt(video, torch.Generator().manual_seed(0), share=0.7)
    changed = (found.video - video).abs().amax(2) > 0
    told = found.strength > 0
    assert not changed[told][found.amount[told] == 0].any()
    assert 8 < told.sum() < 30 and (found.amount[~told] == 0).all()
    assert (found.amount.flatten(1).amax(1) <= found.strength + 1e-6).all()
    again = hurt(video, torch.Generator().manual_seed(0), share=0.7)
    assert torch.equal(found.video, again.video)


class Told(DamageMap):
    """Knows what the clips were, and so what was done to them."""

    def __init__(self, clean: torch.Tensor) -> None:
        super().__init__()
        self.clean = clean

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pixel_unshuffle(video - self.clean, 2)


def test_the_saliency_belongs_where_the_damage_is() -> None:
    clips = real_clips(16, "train", 0).frames(torch.arange(16))[:, :4]
    spoilt = hurt(clips, torch.Generator().manual_seed(1))
    clean = clips[spoilt.strength > 0]
    right, wrong = (saliency_loss(Told(before), spoilt) for before in (clean, torch.zeros_like(clean)))
    assert 0 < 2 * right < wrong
    assert float(saliency_loss(DamageMap(), hurt(clips, torch.Generator().manual_seed(1), share=0.0))) == 0


@pytest.mark.parametrize("damage", [blur, grain])
def test_the_shipped_one_is_drawn_to_the_damage(damage) -> None:
    stack = Stack.load().with_weights(reward=SHIPPED_REWARDS["local"])
    clips = real_clips(48, "validation", 0)
    video, texts = clips.frames(torch.arange(48))[:, :4], [str(row[0]) for row in clips.clauses]
    chosen = touched(video, "lower half").nonzero().flatten()
    video, prompts = video[chosen], PromptBatch(tuple(texts), stack.encoder.encode(texts)).take(chosen)
    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(0))
    hurtful = look(stack.reward, damaged(video, damage, "lower half", noise), prompts)
    drawn = share_inside(hurtful, "lower half") > share_inside(look(stack.reward, video, prompts), "lower half")
    assert drawn.float().mean() > 0.85
