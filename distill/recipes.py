"""Recipes of distillation by name; all but the first four kinds are settings of one trainer."""

from __future__ import annotations

from dataclasses import replace

from ..rewards.reliability import BalanceConfig
from ..training.learner import LearnerConfig
from ..training.recipe import Recipe
from .causal_init import CausalInitConfig
from .consistency import ConsistencyConfig
from .on_policy import OnPolicyConfig
from .trainer import DistillConfig

SLOW_DECAY = (0.0, 0.999)
"""AdamW's betas of DMD."""


def distillation(rate: float) -> DistillConfig:
    """DMD with a critic at five times the generator's rate, which begins as the teacher.

    Eight clips an update, and two of the critic on half of them: with 16 clips and six updates of the critic on all of
    them an update takes more than three times as long and teaches little more (`reelgym bench distill`).
    """
    return DistillConfig(
        generator=LearnerConfig(learning_rate=rate, betas=SLOW_DECAY, max_grad_norm=10.0),
        critic=LearnerConfig(learning_rate=5 * rate, betas=SLOW_DECAY, max_grad_norm=10.0),
        batch=8,
        critic_updates=2,
        critic_share=0.5,
        critic_rollouts=1,
    )


DMD = distillation(1.5e-4)
STREAM_R1 = replace(DMD, reliability=True, perplexity="full")
CONTINUED = CausalInitConfig(learner=LearnerConfig(learning_rate=1e-4), batch=24)
DISTILL: dict[str, Recipe] = {
    "dmd": DMD,
    "dmd2": replace(DMD, gan=0.3),
    "sid": replace(DMD, matching="sid"),
    "stream-r1": STREAM_R1,
    "dmd-spatial": replace(DMD, perplexity="spatial", tau=float("inf")),
    "dmd-balanced": replace(DMD, perplexity="spatial", reliability=True),
    "dmd-reliability": replace(DMD, reliability=True),
    "re-dmd": replace(DMD, reliability=True, axes=("MQ",), balance=BalanceConfig(spread=0.0)),
    "on-policy": OnPolicyConfig(),
    "consistency": ConsistencyConfig(),
    "teacher-forcing": replace(CONTINUED, past="clean"),
    "continued": CONTINUED,
}
"""dmd: distribution matching; dmd2: with a GAN term on clips of the world. sid: the same two scores, differentiated.
stream-r1: weighed by reliability and perplexity; dmd-spatial, dmd-balanced and dmd-reliability are steps on the way to
it, re-dmd is Reward Forcing's. No critic: on-policy follows the student's own flow to its end; consistency,
teacher-forcing and continued (each chunk beside a past as noisy as itself, as in diffusion forcing) learn from clips of
the world."""
