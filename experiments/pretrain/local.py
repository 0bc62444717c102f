"""A reward whose saliency lies on the damage: VQ as a map of damage, trained on damage in known places besides pairs.

MQ and TA are the shipped reward's. Three losses: Bradley-Terry over windows whose flaws are known; what was done to
the pixels as the target of the map; and the place of the damage as the target of the saliency itself.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ...envs.stack import Stack
from ...envs.worlds.clips import word_encoder
from ...models.local_reward import DamageMap, LocalReward
from ...models.reward_net import TinyReward
from ...training.regression import Schedule
from .hurt import Hurt, hurt
from .loop import Made, pretrain
from .measure import words
from .reward import RewardRecipe, pair_loss
from .reward_measure import oracle_agreement, unseen_accuracy

WHOLE = 0.97
"""VQ worth from which on a window counts as whole."""
PROBED = 8, 5
"""Windows of a batch whose saliency is trained, and their frames, at most."""
STEEPER = 0.2
"""By how much (in logarithms) saliency has to rise where damage does, for the loss to let go."""


@dataclass(frozen=True)
class LocalRecipe(RewardRecipe):
    """A batch is the reward's; half of its windows are damaged in one place, none climbs (`gamed` has no part)."""

    remade: int = 128
    restore: float = 50.0
    """Weight of the squared error of the damage map."""
    saliency: float = 0.5
    """Weight of the saliency's loss."""
    unit: float = 0.5
    """What counts as one of VQ's standard deviations, of those of the reference windows: the smaller, the more of the
    fused saliency is VQ's where a clip is damaged."""
    first: Schedule = field(default_factory=lambda: Schedule(steps=260, batch=24, learning_rate=2e-3, ema=0.98))
    """Training without the saliency's loss, which alone would be content with a map of noise."""
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=480, batch=24, learning_rate=1.5e-3, ema=0.98))
    """Training with it."""

    def train(self, name: str, stack: Stack, out: Path) -> Made:
        """Train the damage map over the stack's reward, calibrate VQ on windows of every length, and measure."""
        seed, encoder, reward = self.schedule.seed, word_encoder(self.grammar), stack.reward.model
        if not isinstance(reward, TinyReward):
            raise ValueError(f"{name} is made over a TinyReward, not over the stack's {type(reward).__name__}")
        torch.manual_seed(seed)
        model, draw = LocalReward.over(reward), self._windows(stack, encoder)

        def loss(model: LocalReward, generator: torch.Generator, share: slice, weight: float = 0.0) -> Tensor:
            batch = draw(generator)
            batch = batch.take(torch.randperm(len(batch.video), generator=generator)[share])
            whole, spoilt = batch.worth[:, 0] > WHOLE, hurt(batch.video, generator, share=0.5)
            damage = model.damage(spoilt.video)
            worth = batch.worth[:, :1] * (1 - spoilt.strength[:, None]).square()
            preferred = pair_loss(model.damage.score(damage)[:, None], worth)
            missed = (model.damage.restored(damage) - (spoilt.video - batch.video)).square().mean(dim=(1, 2, 3, 4))
            known = (missed * whole).sum() / whole.sum().clamp_min(1)
            clips = batch.video[whole][: PROBED[0], : PROBED[1]]
            placed = saliency_loss(model.damage, hurt(clips, generator)) if weight and len(clips) else 0.0
            return preferred + self.restore * known + weight * placed

        model, before = pretrain(name, model, loss, replace(self.first, seed=seed), out / "map")
        model.damage.requires_grad_(True)
        trained, seconds = pretrain(name, model, partial(loss, weight=self.saliency), self.schedule, out)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            vq = torch.cat([trained.damage.score(trained.damage(draw(generator).video)) for _ in range(40)])
        trained.mean[0], trained.std[0] = vq.mean(), self.unit * vq.std()
        figures = unseen_accuracy(trained, encoder, self.grammar) | oracle_agreement(trained, stack, self.grammar)
        return Made(trained, {**figures, "seconds": before + seconds}, words(self.grammar))


def saliency_loss(damage: DamageMap, spoilt: Hurt) -> Tensor:
    """How far the saliency of the map's score lies from the damage: what falls outside, how its share of each frame
    differs from the damage's, and where it does not rise though the damage does. Differentiable twice over."""
    seen = spoilt.strength > 0
    if not seen.any():
        return spoilt.video.new_zeros(())
    video, amount = spoilt.video[seen].requires_grad_(), spoilt.amount[seen]
    (slope,) = torch.autograd.grad(damage.score(damage(video)).sum(), video, create_graph=True)
    saliency = slope.abs().sum(dim=2)
    saliency = saliency / (saliency.sum(dim=(1, 2, 3), keepdim=True) + 1e-8)
    region = amount.gt(0).any(dim=1, keepdim=True)
    outside = -((saliency * region).sum(dim=(1, 2, 3)) + 1e-6).log()
    due = amount.amax(dim=(-1, -2))
    due = due / due.sum(dim=1, keepdim=True)
    found = (saliency.sum(dim=(-1, -2)) + 1e-6).log()
    differs = (due * (due.clamp_min(1e-6).log() - found)).sum(dim=1)
    rises = due.diff(dim=1) > 0.01
    flat = (functional.relu(STEEPER - found.diff(dim=1)) * rises).sum(dim=1) / rises.sum(dim=1).clamp_min(1)
    return (outside + differs / 2 + 3 * flat).mean()
