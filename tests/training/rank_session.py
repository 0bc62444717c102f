"""What the processes of test_ranks.py do: small trainers of every kind, and the gradients of an update."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
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
from reelgym.models.lora import AdapterConfig, trainable_copy
from reelgym.models.prompts import WordEncoder
from reelgym.models.sampler import step_sigmas
from reelgym.models.shards import full
from reelgym.models.wan import CausalWan
from reelgym.rewards.stream_reward import StreamReward
from reelgym.rewards.windows import ChunkLayout
from reelgym.training.guard import Guard, GuardConfig
from reelgym.training.learner import LearnerConfig
from reelgym.training.loop import fit
from reelgym.training.mixture import Mixture, MixtureTrainer
from reelgym.training.ranks import RankError, Ranks, here, join, speaks, together

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
WAYS = dict.fromkeys(RECIPES, ("",)) | dict.fromkeys(("reward", "stream-r1"), ("", "sharded "))
WAYS["lora-stream-r1"] = ("sharded ",)
"""Which trainers learn in which way."""


def clips(batch, step):
    random = torch.Generator().manual_seed(step)
    return torch.randn(batch, 6, 4, 4, 4, generator=random), torch.randn(batch, 2, 8, WIDTH, generator=random)


WIDTH = WordEncoder(WORDS, 8).dim


def trainer_of(recipe, adapter=False, of=None):
    torch.manual_seed(0)
    codec, reward, prompts = PaintCodec(), StreamReward(ColourModel()), ScriptPrompts(WordEncoder(WORDS, 8), 2, sample)
    wan = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=WIDTH, freq_dim=16,
        ffn_dim=32, num_layers=1,
    )  # fmt: skip
    teacher, null = CausalWan(wan.eval(), 3, 8), torch.zeros(8, WIDTH)
    model = trainable_copy(teacher, AdapterConfig(2) if adapter else None)
    generator = of or Generator(model, step_sigmas(2, 2.0), (4, 4, 4), 3)
    match recipe:
        case FineTuneConfig():
            streams = recipe.prompts * recipe.group // here().count
            env = StreamGenVectorEnv(streams, codec, reward, prompts, layout=LAYOUT, autoreset_mode="Disabled")
            return FineTune(recipe, generator, env, prompts)
        case DistillConfig():
            helpers = {"codec": codec, "reward": reward, "layout": LAYOUT, "clips": clips}
            return Distill(recipe, generator, teacher, prompts, null, **helpers)
        case OnPolicyConfig():
            return OnPolicy(recipe, generator, prompts, null)
        case ConsistencyConfig():
            return Consistency(recipe, generator, clips, null)
    return CausalInit(recipe, generator, clips)


def gradients(name):
    """Of every step of every part in an update, after clipping; nothing moves. Also what was measured and counted."""
    found, trainer = {}, trainer_of(RECIPES[name.removeprefix("lora-")], name.startswith("lora-"))
    for role, learner in trainer._learners().items() if hasattr(trainer, "_learners") else [("it", trainer.learner)]:

        def record(role=role, learner=learner):
            step = sum(key.startswith(f"{role} ") for key in found) // len(learner.parameters)
            for place, p in enumerate(learner.parameters):
                found[f"{role} {step} {place}"] = full(p.grad).clone()

        learner._move = lambda record=record: record() or {}
    measured = here().means(trainer.update())
    spent = {key: value for key, value in vars(trainer.counts).items() if "seconds" not in key}
    told = {**measured, **spent}
    return {f"{name} {key}": g for key, g in found.items()} | {
        f"{name} told {key}": torch.tensor(float(value)) for key, value in told.items()
    }


def watched():
    """A trainer with everything that a checkpoint carries, and its guard."""
    trainer = trainer_of(RECIPES["critic"])
    generator, env = trainer.generator, trainer.env
    distil = trainer_of(RECIPES["stream-r1"], of=generator)
    mixture = MixtureTrainer(Mixture.of((RECIPES["critic"], 1), (RECIPES["stream-r1"], 1)), [trainer, distil])
    config, prompts = GuardConfig(every=2, prompts=2, margin=9.0, kl=0.0), trainer.prompts
    return mixture, Guard(config, generator, env.codec, LAYOUT, env.reward, env.reward, prompts)


def trained(updates, checkpoint=None, then=None):
    """Everything that a training to so many updates ends with, in one piece, going on from the checkpoint; `then`, it
    goes on from the same objects."""
    trainer, guard = watched()
    logged = []
    log = lambda measured, update: logged.append(update)  # noqa: E731
    fit(trainer, updates, guard=guard, checkpoint=checkpoint, log=log)
    if then is not None:
        fit(trainer, then, guard=guard, log=log)
    groups, meta = trainer.state()
    groups |= {f"guard-{name}": group for name, group in guard.state()[0].items()}
    flat = {f"{group}/{name}": full(value).clone() for group, named in groups.items() for name, value in named.items()}
    return flat, meta, logged


def two(folder):
    """Two processes: gradients of every trainer, and a training that leaves a checkpoint on its way; in both ways."""
    found = {}
    for way in ("", "sharded "):
        join(shard=bool(way))
        for name, ways in WAYS.items():
            if way in ways:
                found |= {f"{way}{key}": value for key, value in gradients(name).items()}
        place = folder / f"{way or 'plain'}".strip()
        flat, _, logged = trained(1, place, then=3)
        assert logged == ([0, 1, 2, 3] if here().first else [])
        found |= {f"{way}trained {key}": value for key, value in flat.items()}
    if here().first:
        save_file(found, folder / "two.safetensors")


def three(folder):
    """Three processes go on from what two wrote, each way from the other's; then one of them is killed."""
    found = {}
    for way, other in (("sharded ", "plain"), ("", "sharded")):
        join(shard=bool(way))
        flat, _, _ = trained(3, copy_of(folder / other, here()))
        found |= {f"{way}trained {key}": value for key, value in flat.items()}
    if here().first:
        save_file(found, folder / "three.safetensors")
    trainer, guard = watched()
    if here().index == 2:
        Ranks.collect = lambda ranks, own: os.kill(os.getpid(), signal.SIGKILL)  # its part is written
    try:
        with together():
            fit(trainer, 2, guard=guard, checkpoint=folder / "sharded")
    except RankError as error:
        if speaks():
            (folder / "killed.txt").open("a").write(f"{error}\n")


def copy_of(checkpoint, ranks):
    """The same checkpoint elsewhere, since a training that goes on writes its own."""
    place = checkpoint.with_name(f"{checkpoint.name}-{ranks.count}")
    ranks.told(lambda: ranks.first and shutil.copytree(checkpoint, place, dirs_exist_ok=True))
    return place


def become(rank, count, port):
    """Leave the old processes, and be one of others."""
    dist.barrier() if dist.is_initialized() else None
    dist.destroy_process_group() if dist.is_initialized() else None
    PartialState._reset_state()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": port}
    os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "TORCHELASTIC_USE_AGENT_STORE": "False"}


def main(folder, port):
    torch.set_num_threads(1)
    rank, third = int(os.environ["RANK"]), 0
    heard, told = os.pipe()
    if rank == 1:  # the third process waits until two have done their part
        third = os.fork()
        if not third:
            os.close(told)
            os.read(heard, 1)
            rank = 2
    if rank < 2:
        two(folder)
    become(rank, 3, port)
    if third:
        os.write(told, b".")
    three(folder)
    if rank == 2:
        os._exit(0)
    if third:
        assert os.WTERMSIG(os.waitpid(third, 0)[1]) == signal.SIGKILL


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
