"""Recipes of distillation by name."""

from __future__ import annotations

from ..training.learner import LearnerConfig
from ..training.recipe import Recipe
from .causal_init import CausalInitConfig
from .trainer import DistillConfig

SLOW_DECAY = (0.0, 0.999)
"""AdamW's betas of DMD."""


def distillation(rate: float, weighted: bool) -> DistillConfig:
    """DMD with a critic at five times the generator's rate; weighted: by reliability and perplexity, as Stream-R1 is.

    The critic begins as the teacher and must first learn what the student makes, in little time.
    """
    return DistillConfig(
        generator=LearnerConfig(learning_rate=rate, betas=SLOW_DECAY, max_grad_norm=10.0),
        critic=LearnerConfig(learning_rate=5 * rate, betas=SLOW_DECAY, max_grad_norm=10.0),
        critic_updates=6,
        critic_rollouts=1,
        reliability=weighted,
        perplexity=weighted,
    )


CONTINUED = CausalInitConfig(learner=LearnerConfig(learning_rate=1e-4), batch=24)
DISTILL: dict[str, Recipe] = {
    "dmd": distillation(1.1e-5, weighted=False),
    "stream-r1": distillation(1.1e-5, weighted=True),
    "continued": CONTINUED,
}
"""dmd, stream-r1: at the rate that the search of the committed standard comparison chose. continued: the starting
recipe goes on, which is the floor that a method must beat."""
