"""SIGKILL at random moments: what is resumed ends bit for bit as what was never killed."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from reelgym.checkpoint import load_checkpoint

ROOT = Path(__file__).parent.parent.parent

SCRIPT = f"""
import copy, os, random, signal, sys, time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, {str(ROOT)!r})
from tests.conftest import ColourModel, PaintCodec, WORDS, sample
from reelgym.agents.advantage import AdvantageEstimator
from reelgym.agents.finetune import FineTune, FineTuneConfig
from reelgym.distill.trainer import Distill, DistillConfig
from reelgym.training.loop import fit
from reelgym.training.guard import Guard, GuardConfig
from reelgym.training.learner import LearnerConfig
from reelgym.envs.prompt_source import ScriptPrompts
from reelgym.envs.stream_gen import StreamGenVectorEnv
from reelgym.rewards.reliability import BalanceConfig
from reelgym.rewards.windows import ChunkLayout
from reelgym.models.generator import Generator
from reelgym.models.prompts import WordEncoder
from reelgym.models.sampler import step_sigmas
from reelgym.models.wan import CausalWan
from reelgym.rewards.stream_reward import StreamReward
from diffusers import WanTransformer3DModel

LEARNER = LearnerConfig(learning_rate=1e-3, ema=0.5)
DMD = DistillConfig(LEARNER, LEARNER, batch=2, critic_updates=2, critic_rollouts=2, balance=BalanceConfig(window=2))
RECIPES = {{
    "finetune": FineTuneConfig(advantage=AdvantageEstimator(baseline="critic"), group=3, kl_coef=0.1, learner=LEARNER),
    "dmd": DMD,
    "stream-r1": replace(DMD, reliability=True, perplexity="full"),
}}


def train(folder, told):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layout, codec, reward = ChunkLayout(), PaintCodec(), StreamReward(ColourModel())
    prompts = ScriptPrompts(WordEncoder(WORDS, 8), layout.chunks, sample)
    wan = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=prompts.encoder.dim,
        freq_dim=16, ffn_dim=32, num_layers=1,
    )
    generator = Generator(CausalWan(wan.eval(), 3, 8), step_sigmas(4, 2.0), (4, 4, 4), 3)
    if isinstance(recipe, DistillConfig):
        null, teacher = prompts.encoder.encode([""])[0], copy.deepcopy(generator.model)
        trainer = Distill(recipe, generator, teacher, prompts, null, codec=codec, reward=reward, layout=layout)
    else:
        env = StreamGenVectorEnv(6, codec, reward, prompts, layout=layout, autoreset_mode="Disabled")
        trainer = FineTune(recipe, generator, env, prompts)
    guard = Guard(GuardConfig(every=3, prompts=2, margin=9.0), generator, codec, layout, reward, reward, prompts)
    log = lambda measured, update: os.write(told, b".")
    fit(trainer, updates, guard=guard, log=log, checkpoint=Path(folder), checkpoint_every=1)


def begin(folder):
    heard, told = os.pipe()
    child = os.fork()
    if child:
        os.close(told)
        return child, heard
    train(folder, told)
    os._exit(0)


def end(child, heard):
    while os.read(heard, 99):
        pass
    os.close(heard)
    return os.waitpid(child, 0)[1]


for case in sys.argv[2:]:
    name, *numbers = case.split(",")
    updates, kills, earliest, latest = map(int, numbers)
    recipe, unbroken, killed = RECIPES[name], f"{{sys.argv[1]}}/{{name}}", f"{{sys.argv[1]}}/{{name}}-killed"
    started = time.monotonic()
    assert end(*begin(unbroken)) == 0
    each = (time.monotonic() - started) / updates
    for _ in range(kills):
        child, heard = begin(killed)
        for _ in range(random.randint(earliest, latest)):
            os.read(heard, 1)
        time.sleep(random.uniform(0, each))
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(end(child, heard)) == signal.SIGKILL
    assert end(*begin(killed)) == 0
"""


CASES = {"finetune": (12, 3, 0, 3), "dmd": (4, 1, 3, 3), "stream-r1": (4, 1, 3, 3)}
"""Updates, kills, and logs that a run lives to make, at least and at most; the first: the guard's look at the start."""


def test_kill_9_at_random_moments_changes_no_bit(tmp_path):
    cases = [",".join([name, *map(str, numbers)]) for name, numbers in CASES.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path), *cases], check=True, env=environment)
    for recipe, (updates, *_) in CASES.items():
        same(tmp_path / recipe, tmp_path / f"{recipe}-killed", updates)


def same(unbroken, killed, updates):
    (groups, meta), (others, told) = load_checkpoint(unbroken), load_checkpoint(killed)
    assert groups.keys() == others.keys() and meta["counts"]["updates"] == updates
    for name, group in groups.items():
        assert group.keys() == others[name].keys()
        assert all(torch.equal(value, others[name][key]) for key, value in group.items()), name
    for counts in (meta["counts"], meta["guard"]["counts"], told["counts"], told["guard"]["counts"]):
        counts["seconds"] = counts["cpu_seconds"] = 0
    assert meta == told
