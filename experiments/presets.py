"""Presets of `reelgym compare`: how much of everything, as counts. Budgets of seconds were turned into updates once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..agents.baselines import FINETUNE
from ..agents.learner import LearnerConfig
from ..distill.causal_init import CausalInitConfig
from ..distill.trainer import DistillConfig
from .evaluate import Exam
from .methods import Plan, with_batch

SLOW_DECAY = (0.0, 0.999)


def distillation(rate: float, weighted: bool) -> DistillConfig:
    """DMD with a critic at five times the generator's rate; weighted: by reliability and perplexity, as Stream-R1 is.

    The critic begins as the teacher and must first learn what the student makes, in little time.
    """
    return DistillConfig(
        generator=LearnerConfig(learning_rate=rate, betas=SLOW_DECAY, clip=10.0),
        critic=LearnerConfig(learning_rate=5 * rate, betas=SLOW_DECAY, clip=10.0),
        critic_updates=6,
        critic_rollouts=1,
        reliability=weighted,
        perplexity=weighted,
    )


def recipes() -> dict[str, object]:
    """Every method's recipe, at the rate that an earlier search of `standard` chose; later ones look around it."""
    return {
        "continued": CausalInitConfig(learner=LearnerConfig(learning_rate=3.3e-5), batch=24),
        "dmd": distillation(3.3e-5, weighted=False),
        "stream-r1": distillation(3.3e-5, weighted=True),
        "policy": FINETUNE["policy"],
        "reward": FINETUNE["reward"],
    }


@dataclass(frozen=True)
class Preset:
    """A comparison's size."""

    seconds: float
    """Training budget of one run on one core of the reference machine, from which the updates below were made."""
    updates: Mapping[str, int]
    """Updates of each method within those seconds."""
    seeds: int
    """Runs of each method."""
    exam: Exam
    """Test prompts, looked at once."""
    validation: Exam
    """Prompts of the learning curves and of the search."""
    teacher_prompts: int = 16
    """Prompts that the slow teacher is examined on, the first of the exam's."""
    search: tuple[float, ...] = ()
    """Factors of the stored learning rates to try, each in one run; empty: the stored ones."""
    search_share: float = 0.5
    """Share of the updates that a try gets."""
    points: int = 4
    """Points of a learning curve after its first."""
    shown: int = 4
    """Prompts in the report."""
    pool: int = 512
    """Clips that the continued starting recipe draws from."""
    batch: int | None = None
    """Clips an update, if not the recipes' own."""

    def plans(self) -> dict[str, Plan]:
        """One plan per method."""
        plans = {name: Plan(recipe, self.updates[name], self.pool) for name, recipe in recipes().items()}
        return {name: with_batch(plan, self.batch) if self.batch else plan for name, plan in plans.items()}


PRESETS = {
    "quick": Preset(
        seconds=24,
        updates={"continued": 40, "dmd": 7, "stream-r1": 5, "policy": 4, "reward": 8},
        seeds=2,
        exam=Exam(prompts=24, clips=2, long_prompts=6, slice_prompts=4, scripts_seed=1),
        validation=Exam(prompts=8, clips=1, long_prompts=0, split="validation"),
        points=3,
        pool=256,
    ),
    "standard": Preset(
        seconds=55,
        updates={"continued": 105, "dmd": 17, "stream-r1": 12, "policy": 9, "reward": 19},
        seeds=5,
        exam=Exam(prompts=64, clips=2, long_prompts=16, slice_prompts=12),
        validation=Exam(prompts=16, clips=1, long_prompts=0, split="validation"),
        search=(1 / 3, 1.0, 3.0),
        search_share=0.5,
        points=5,
        shown=6,
    ),
    "smoke": Preset(
        seconds=0,
        updates=dict.fromkeys(("continued", "dmd", "stream-r1", "policy", "reward"), 1),
        seeds=1,
        exam=Exam(prompts=2, clips=2, long_prompts=1, slice_prompts=1),
        validation=Exam(prompts=1, clips=1, long_prompts=0, split="validation"),
        points=1,
        shown=1,
        teacher_prompts=1,
        pool=4,
        batch=1,
    ),
}
"""quick: a look in a few minutes. standard: evidence in less than an hour. smoke: only shows that everything runs."""
