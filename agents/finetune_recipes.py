"""Recipes of RL fine-tuning by name: ours, and what published work does, in the same trainer."""

from __future__ import annotations

from dataclasses import replace

from ..training.learner import LearnerConfig
from .advantage import AdvantageEstimator
from .finetune import FineTuneConfig
from .forward_process import ForwardProcess
from .policy_gradient import PolicyGradient
from .reward_gradient import RewardGradient, WindowGradient

EPISODE = AdvantageEstimator(returns="episode", normalize_std="group")
"""One score for all chunks of a clip, as published."""


def rate(learning_rate: float) -> LearnerConfig:
    """AdamW at this rate."""
    return LearnerConfig(learning_rate=learning_rate)


FINETUNE: dict[str, FineTuneConfig] = {
    "reward": FineTuneConfig(RewardGradient(), prefix="own", prompts=4, group=1, kl_coef=1.0, learner=rate(1.5e-4)),
    "forward": FineTuneConfig(ForwardProcess(), kl_coef=1.0, learner=rate(1e-4)),
    "policy": FineTuneConfig(PolicyGradient(train_timesteps=(-1,)), kl_coef=1.0, learner=rate(1e-4)),
    "raven": FineTuneConfig(
        PolicyGradient(timesteps_per_update=3), EPISODE, prefix="own", kl_coef=0.05, learner=rate(5e-5)
    ),
    "flow-grpo": FineTuneConfig(
        PolicyGradient(timesteps_per_update=3, noise_level=0.7, rescale=False),
        EPISODE,
        prefix="own",
        kl_coef=0.05,
        learner=rate(5e-5),
    ),
    "ddpo": FineTuneConfig(
        PolicyGradient(timesteps_per_update=3, rescale=False, clip_coef=1e-4),
        AdvantageEstimator(returns="episode", baseline="batch"),
        prefix="own",
        prompts=16,
        group=1,
        epochs=2,
        learner=rate(5e-5),
    ),
}
"""reward, forward and policy are ours: a reward gradient, and two that see nothing of the reward but its value, with
advantages by chunk from forked prefixes; they push the last step alone (policy: the last stochastic one). raven (the RL
half of 2605.15190), flow-grpo (2505.05470) and ddpo (2305.13301) push all stochastic steps, give a clip one score and
share no prefix. All but reward play 16 clips an update."""
ALIASES = {"refl": "reward", "nft": "forward", "grpo": "policy", "cm-grpo": "raven"}
"""The papers' names."""
_WINDOW = replace(FINETUNE["reward"], direction=WindowGradient())
"""reward, but an update sees one window of each clip: what fits where the whole clip's frames do not."""
RECIPES = FINETUNE | {"reward-window": _WINDOW} | {alias: FINETUNE[name] for alias, name in ALIASES.items()}
