"""No step waits for its device. Tensors of the meta device have no values: who looks at one fails, GPU or not."""

import gymnasium
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reelgym.envs.clip_dataset import build_dataset
from reelgym.envs.game_rules import ThresholdPolicy
from reelgym.envs.registration import ENVS, register_envs
from reelgym.models.detector import ClipDetector

STEPS = {"reelgym/StreamSteer-v0": 3, "reelgym/SelfPlayDetector-v0": 4}
"""Past the first reset, where clips are of two chunks, and past the second buffer; 9 for the others."""
CROSSINGS = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class NoCrossing(TorchDispatchMode):
    """Refuses copies between devices that wait for the copy to end."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = function(*args, **kwargs)
        if function in CROSSINGS:
            source = args[0] if function is CROSSINGS[0] else args[1]
            waits = not kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
            assert not waits or source.device == found.device, "a copy between devices waits for the device"
        return found


def make(name, device):
    register_envs()
    parts = {
        "reelgym/StreamDetect-v0": {"dataset": build_dataset(8)},
        "reelgym/SelfPlayGenerator-v0": {"chunks": 2, "opponent": ThresholdPolicy(ClipDetector().to(device))},
        "reelgym/SelfPlayDetector-v0": {"chunks": 2, "clips": 4, "refresh_every": 2},
    }.get(name, {"chunks": 2})
    env = gymnasium.make_vec(name, num_envs=3, device=device, **parts)
    env.action_space.seed(0)
    return env, [torch.as_tensor(env.action_space.sample()).to(device) for _ in range(STEPS.get(name, 9))]


@pytest.mark.parametrize("name", ENVS)
def test_no_step_looks_at_a_value(name):
    env, actions = make(name, torch.device("meta"))
    env.reset(seed=0)
    with NoCrossing():
        for action in actions:
            observation, reward, terminated, _, _ = env.step(action)
    assert observation is not None and reward.device.type == terminated.device.type == "meta"


def test_what_waits_is_noticed():
    meta = torch.zeros(2, device="meta")
    with NoCrossing():
        torch.zeros(2).to("meta", non_blocking=True)
        for wrong in (lambda: torch.zeros(2).to("meta"), lambda: meta.copy_(torch.zeros(2)), meta.sum().item):
            with pytest.raises((AssertionError, RuntimeError)):
                wrong()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ENVS)
def test_no_step_waits_for_the_gpu(name):
    env, actions = make(name, torch.device("cuda"))
    env.reset(seed=0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for action in actions:
            env.step(action)
    finally:
        torch.cuda.set_sync_debug_mode("default")
