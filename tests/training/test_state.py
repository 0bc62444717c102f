"""Checkpoints of trainings: settings that have another name today are found again."""

import torch

from reelgym import FINETUNE
from reelgym.training.state import config_settings, unpack
from reelgym.training.usage import ComputeUsage

CREDIT = {
    "reach": "clip", "baseline": "group", "spread": "group", "bootstrap": False, "decay": 0.95, "perplexity": False,
    "placebo": False,
}  # fmt: skip


def test_a_checkpoint_from_before_the_settings_were_renamed():
    config = FINETUNE["flow-grpo"]
    older = config_settings(config)
    for part in ("learner", "critic"):
        older[part]["clip"] = older[part].pop("max_grad_norm")
    older["reference"], older["reference_every"] = older.pop("kl_coef"), older.pop("kl_every")
    del older["advantage"]
    older["credit"] = CREDIT
    older["direction"] = {"kind": "policy", "steps": 3, "among": [], "rescale": False, "clip": 0.0, "sde": 0.7}
    groups, meta = {"trainer": {"one": torch.ones(1)}}, {"config": older, "counts": {"updates": 3}, "learners": {}}
    counts = ComputeUsage()
    assert unpack(config, counts, {}, groups, meta) == groups["trainer"] and counts.updates == 3
