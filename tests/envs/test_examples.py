"""The scripts in docs/examples do what they say, on an untrained stack."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
TINY = {"num_envs": 2, "num_steps": 8, "epochs": 1, "minibatches": 2, "width": 8}


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_training_through_the_environment(stack):
    script = example("train_through_env")
    history = script.main(script.Args(prompts=1, group=2, updates=2, stack=Path(stack)))
    assert len(history) == 2 and all(abs(value) < 100 for value in history)


def test_ppo_learns_to_balance(tmp_path):
    script = example("ppo")
    args = script.Args(total_steps=8_000, num_envs=4, num_steps=64, learning_rate=2e-3, logdir=tmp_path)
    history = script.main(args)
    assert len(history) == 31 and history[-1] > 2 * history[1]
    events = EventAccumulator(str(tmp_path)).Reload()
    assert len(events.Scalars("return")) == 31


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("reelgym/StreamSteer-v0", {"chunks": 2}),
        ("reelgym/StreamDetect-v0", {"clips": 16}),
        ("reelgym/StreamGen-v0", {"chunks": 2}),
    ],
)
def test_ppo_runs_on_streams(stack, name, kwargs):
    script = example("ppo")
    history = script.main(
        script.Args(env_id=name, env_kwargs=json.dumps({"preset": stack, **kwargs}), total_steps=32, gamma=1.0, **TINY)
    )
    assert len(history) == 2 and all(math.isfinite(value) for value in history)
