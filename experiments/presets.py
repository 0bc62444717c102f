"""Presets of `reelgym compare`: how much of everything, as counts. Budgets of seconds were turned into updates once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..agents.finetune_recipes import FINETUNE
from ..distill.recipes import CONTINUED, DISTILL
from ..training.mixture import Mixture
from ..training.recipe import Recipe
from ..training.sequence import Sequence, Stage
from .evaluate import EvalConfig
from .evaluation.upper_bound import OracleWeightedConfig
from .systems import REFERENCES

METHODS = {
    "continued": "starting recipe continued",
    "dmd": "DMD",
    "stream-r1": "Stream-R1",
    "policy": "policy gradient",
    "forward": "forward process (NFT)",
    "reward": "reward gradient",
    "raven": "policy gradient, whole clip",
    "teacher-forcing": "teacher forcing",
    "consistency": "causal consistency",
    "on-policy": "on-policy distillation",
    "sid": "SiD",
    "dmd-spatial": "DMD + spatial",
    "dmd-balanced": "DMD + spatial + balanced",
    "dmd-reliability": "DMD + inter-reliability",
    "re-dmd": "Re-DMD",
    "dmd-oracle": "DMD + oracle's error map",
    "dmd&reward": "DMD and reward gradient",
    "dmd&forward": "DMD and forward process",
    "consistency&reward": "causal consistency and reward gradient",
    "dmd+forward": "DMD, then forward process",
    "stream-r1+reward": "Stream-R1, then reward gradient",
    "reward+dmd": "reward gradient, then DMD",
    "on-policy+dmd": "on-policy distillation, then DMD",
    "consistency+dmd": "causal consistency, then DMD",
}
"""Rows that train the starting student; in a name, + stands between those of a sequence, & within one update."""
RL = ("policy", "forward", "reward", "raven")
"""Of these, what learns from a reward alone."""
_LABELS = REFERENCES | METHODS


def label_of(name: str) -> str:
    """What a row is called in tables; a recipe of one's own by its import path."""
    return _LABELS.get(name, name)


def kind_of(name: str) -> str:
    """What a method learns from: "rl", "distillation", "both" or "start", which knows neither reward nor teacher; a row
    that is not trained and a recipe of one's own are kinds by themselves."""
    parts = re.split("[+&]", name)
    if name not in METHODS:
        return name
    if name in ("continued", "teacher-forcing"):
        return "start"
    return "both" if len({part in RL for part in parts}) > 1 else "rl" if parts[0] in RL else "distillation"


def needs_of(name: str) -> set[str]:
    """What a method of METHODS learns from: "reward", "teacher", "clips" and "world"; nothing of a recipe of one's
    own."""
    parts, needs = (re.split("[+&]", name) if name in METHODS else []), set[str]()
    for part in parts:
        if part == "dmd-oracle":
            needs.add("world")
        elif part in RL or part == "stream-r1" or part.startswith(("dmd-", "re-")):
            needs.add("reward")
        if part in ("sid", "stream-r1") or "dmd" in part:
            needs.add("teacher")
        if part in ("continued", "teacher-forcing", "consistency"):
            needs.add("clips")
    return needs


ABLATION = ("dmd-spatial", "dmd-balanced", "stream-r1", "dmd-reliability", "re-dmd", "dmd-oracle")
"""Parts of Stream-R1 on DMD: weights within a frame, then also reliability and balanced axes, then also weights of
frames; reliability alone, of all axes and of motion; and weights that no training may know, as an upper bound."""
SEQUENCES = ("dmd+forward", "stream-r1+reward")
FOUR_STEPS = ("continued", "dmd", "stream-r1", "policy", "forward", "reward", "raven")
"""Methods of the comparison at four steps, without its SEQUENCES."""


_FREE = {name: replace(FINETUNE[name], kl_coef=0.0) for name in ("reward", "forward")}
"""Beside distribution matching no pull towards the start is wanted: that start is what is to be left."""
METHOD_RECIPES: dict[str, Recipe] = {
    **DISTILL,
    **FINETUNE,
    "raven": FINETUNE["raven"].with_learning_rate(1.7e-5),
    "dmd-oracle": OracleWeightedConfig(**vars(DISTILL["dmd"])),
    "dmd&reward": Mixture.of((DISTILL["dmd"], 1), (_FREE["reward"], 1)),
    "consistency&reward": Mixture.of((DISTILL["consistency"], 1), (_FREE["reward"], 1)),
    "dmd&forward": Mixture.of((DISTILL["dmd"], 1), (_FREE["forward"], 1)),
}
"""Every method's recipe, at the rate that a search chose or, in distillation, that a few runs at two steps did. A
sequence has none."""
FOUR_STEP_RATES = {"dmd": 1.1e-5, "stream-r1": 1.1e-5}
"""What the search of the committed standard run chose for a student of four steps."""


def chain(name: str, plans: Mapping[str, Stage]) -> Stage:
    """The sequence that `name` spells: half of the updates of each of its two parts (rounded up), at their rates."""
    stages = tuple(replace(plans[part], updates=(plans[part].updates + 1) // 2) for part in name.split("+"))
    return Stage(Sequence(stages), sum(stage.updates for stage in stages))


@dataclass(frozen=True)
class Preset:
    """A comparison's size."""

    seconds: float
    """Training budget of one run on one core of the reference machine, from which the updates below were made."""
    updates: Mapping[str, int]
    """Updates of each method within those seconds; a method that is not here is left out."""
    seeds: int
    """Runs of each method."""
    exam: EvalConfig
    """Test prompts, looked at once."""
    validation: EvalConfig
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
    sequences: tuple[str, ...] = ()
    """Methods in turn, such as "dmd+forward": half of the updates of each part."""
    student_steps: int | None = None
    """Denoising steps of the student; None: its own."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Learning rates in place of the recipes' own."""

    def plans(self) -> dict[str, Stage]:
        """One recipe and its updates per method, sequences last."""
        known: dict[str, Recipe] = {**METHOD_RECIPES, "continued": replace(CONTINUED, pool=self.pool)}
        known |= {name: known[name].with_learning_rate(rate) for name, rate in self.rates.items()}
        plans = {name: Stage(known[name], updates) for name, updates in self.updates.items()}
        if self.batch:
            plans = {name: replace(plan, recipe=plan.recipe.with_batch(self.batch)) for name, plan in plans.items()}
        return plans | {name: chain(name, plans) for name in self.sequences}


_RUNG = Preset(
    seconds=80,
    updates={},
    seeds=5,
    exam=EvalConfig(prompts=32, clips=2, long_prompts=6),
    validation=EvalConfig(prompts=24, clips=1, long_prompts=0, split="validation"),
    points=5,
    teacher_prompts=8,
)
PRESETS = {
    "quick": Preset(
        seconds=25,
        updates={"consistency": 28, "dmd": 14, "reward": 20, "dmd&reward": 10},
        student_steps=2,
        seeds=2,
        exam=EvalConfig(prompts=24, clips=2, long_prompts=4, scripts_seed=1),
        validation=EvalConfig(prompts=8, clips=1, long_prompts=0, split="validation"),
        points=3,
        teacher_prompts=8,
        pool=256,
    ),
    "two-steps": replace(
        _RUNG,
        student_steps=2,
        updates={
            "continued": 76,
            "consistency": 44,
            "dmd": 44,
            "stream-r1": 32,
            "forward": 30,
            "reward": 52,
            "dmd&reward": 26,
            "consistency&reward": 29,
        },
    ),
    "ablation": replace(
        _RUNG,
        seconds=60,
        student_steps=2,
        updates=dict.fromkeys(("dmd", *ABLATION), 24),
        exam=replace(_RUNG.exam, longer=16, long_prompts=4),
        points=3,
    ),
    "one-step": replace(_RUNG, student_steps=1, updates={"dmd": 55, "reward": 80, "dmd&reward": 32}),
    "standard": Preset(
        seconds=40,
        updates={"continued": 72, "dmd": 24, "stream-r1": 17, "policy": 26, "forward": 26, "reward": 42, "raven": 13},
        seeds=10,
        exam=EvalConfig(prompts=48, clips=2, long_prompts=12, slice_prompts=4),
        validation=EvalConfig(prompts=16, clips=1, long_prompts=0, split="validation"),
        search=(1 / 3, 1.0, 3.0),
        search_share=0.4,
        points=4,
        shown=6,
        sequences=SEQUENCES,
        rates=FOUR_STEP_RATES,
    ),
    "smoke": Preset(
        seconds=0,
        updates=dict.fromkeys((*FOUR_STEPS, "dmd&reward"), 1),
        seeds=1,
        exam=EvalConfig(prompts=2, clips=2, long_prompts=1, slice_prompts=1),
        validation=EvalConfig(prompts=1, clips=1, long_prompts=0, split="validation"),
        points=1,
        shown=1,
        teacher_prompts=1,
        pool=4,
        batch=1,
        sequences=SEQUENCES,
    ),
}
"""quick: a look in a few minutes. two-steps, one-step, standard (four): evidence, each in about an hour. smoke: only
shows that everything runs."""
