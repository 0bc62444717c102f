"""What the processes of test_ranks.py do: small trainers of every kind, and the gradients of an update."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from reelgym.agents.advantage import AdvantageEstimator
from reelgym.agents.finetune import FineTune, FineTuneConfig
from reelgym.agents.policy_gradient import PolicyGradient
from reelgym.agents.reward_gradient import RewardGradient
from reelgym.distill.causal_init import CausalInit, CausalInitConfig
from reelgym.distill.consistency import Consistency, ConsistencyConfig
from reelgym.distill.on_policy import OnPolicy, OnPolicyConfig
from reelgym.distill.trainer import Distill, DistillConfig
from reelgym.envs.prompt_source import ScriptPrompts
from reelgym.envs.stream_gen import StreamGenVectorEnv
from reelgym.models.generator import Generator
from reelgym.models.prompts import WordEncoder
from reelgym.models.sampler import step_sigmas
from reelgym.models.shards import full
from reelgym.models.wan import CausalWan
from reelgym.rewards.stream_reward import StreamReward
from reelgym.rewards.windows import ChunkLayout
from reelgym.training.learner import LearnerConfig
from reelgym.training.ranks import here, join

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from tests.conftest import WORDS, ColourModel, PaintCodec, sample  # noqa: E402

LAYOUT = ChunkLayout(chunks=2, frames_per_chunk=3, window_chunks=2)
SLOW = LearnerConfig(learning_rate=1e-3, max_grad_norm=0.5, ema=0.5)
GROUPED = FineTuneConfig(
    PolicyGradient(), AdvantageEstimator(shuffle_advantages=True), "full", prompts=6, group=2, kl_coef=0.5, learner=SLOW
)
DMD = DistillConfig(SLOW, SLOW, batch=12, critic_updates=2, critic_rollouts=2, critic_share=0.5)
RECIPES = {
    "reward": FineTuneConfig(RewardGradient(), prefix="own", prompts=6, group=1, kl_coef=1.0, learner=SLOW),
    "policy": GROUPED,
    "critic": replace(
        GROUPED, direction=FineTuneConfig().direction, prefix="local", advantage=AdvantageEstimator(baseline="critic")
    ),
    "stream-r1": replace(DMD, reliability=True, perplexity="full", gan=0.3),
    "sid": replace(DMD, matching="sid", critic_updates=1),
    "on-policy": OnPolicyConfig(SLOW, batch=6),
    "consistency": ConsistencyConfig(SLOW, batch=6),
    "continued": CausalInitConfig(SLOW, batch=6),
}
SHARDED = ("reward", "critic", "stream-r1", "sid", "consistency")


def clips(batch, step):
    random = torch.Generator().manual_seed(step)
    return torch.randn(batch, 6, 4, 4, 4, generator=random), torch.randn(batch, 2, 8, WIDTH, generator=random)


WIDTH = WordEncoder(WORDS, 8).dim


def trainer_of(recipe):
    torch.manual_seed(0)
    codec, reward, prompts = PaintCodec(), StreamReward(ColourModel()), ScriptPrompts(WordEncoder(WORDS, 8), 2, sample)
    wan = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=WIDTH, freq_dim=16,
        ffn_dim=32, num_layers=2,
    )  # fmt: skip
    generator, null = Generator(CausalWan(wan.eval(), 3, 8), step_sigmas(2, 2.0), (4, 4, 4), 3), torch.zeros(8, WIDTH)
    match recipe:
        case FineTuneConfig():
            streams = recipe.prompts * recipe.group // here().count
            env = StreamGenVectorEnv(streams, codec, reward, prompts, layout=LAYOUT, autoreset_mode="Disabled")
            return FineTune(recipe, generator, env, prompts)
        case DistillConfig():
            helpers = {"codec": codec, "reward": reward, "layout": LAYOUT, "clips": clips}
            return Distill(recipe, generator, copy.deepcopy(generator.model), prompts, null, **helpers)
        case OnPolicyConfig():
            return OnPolicy(recipe, generator, prompts, null)
        case ConsistencyConfig():
            return Consistency(recipe, generator, clips)
    return CausalInit(recipe, generator, clips)


def gradients(name):
    """Of every step of every part in an update, after clipping; nothing moves. Also what was measured and counted."""
    found, trainer = {}, trainer_of(RECIPES[name])
    for role, learner in trainer._learners().items() if hasattr(trainer, "_learners") else [("it", trainer.learner)]:

        def record(role=role, learner=learner):
            step = sum(key.startswith(f"{role} ") for key in found) // len(learner.parameters)
            for place, p in enumerate(learner.parameters):
                found[f"{role} {step} {place}"] = full(p.grad).clone()

        learner._move = record
    measured = here().means(trainer.update())
    spent = {key: value for key, value in vars(trainer.counts).items() if "seconds" not in key}
    told = {**measured, **spent}
    return {f"{name} {key}": g for key, g in found.items()} | {
        f"{name} told {key}": torch.tensor(float(value)) for key, value in told.items()
    }


def session(folder):
    found = {}
    join()
    for name in RECIPES:
        found |= gradients(name)
    join(shard=True)
    for name in SHARDED:
        found |= {f"sharded {key}": value for key, value in gradients(name).items()}
    if here().first:
        save_file(found, f"{folder}/gradients.safetensors")
    here().wait()


if __name__ == "__main__":
    torch.set_num_threads(1)
    session(sys.argv[1])
