"""What tests of experiments share."""

import shutil

import pytest
import torch

from reelgym.envs.worlds.grammar import GRAMMARS
from reelgym.models.codec import FrameCodec
from reelgym.models.detector import ClipDetector
from reelgym.models.prompts import WordEncoder
from reelgym.models.reward_net import TinyReward
from reelgym.models.tiny import CODEC, STREAMING_CACHE, TRANSFORMER, load_manifest, load_tiny, save_tiny
from reelgym.models.wan import CausalWan


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A stack with random weights, thinner than the tiny one."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("stack")
    encoder = WordEncoder(GRAMMARS["plain"].vocabulary(), 8)
    sizes = TRANSFORMER | {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 24}
    manifest = {"vocab": list(encoder.vocab), "recipe": {"grammar": "plain"}}
    for name in ("teacher", "student"):
        transformer = WanTransformer3DModel(text_dim=encoder.dim, **sizes)
        save_tiny(folder / name, CausalWan(transformer, 3, 8, STREAMING_CACHE), manifest)
    save_tiny(folder / "codec", FrameCodec.from_config(CODEC | {"block_out_channels": (8, 8, 8)}), manifest)
    save_tiny(folder / "rival", ClipDetector(width=8), {})
    save_tiny(folder / "reward", TinyReward(encoder.dim, width=16), manifest)
    return folder


@pytest.fixture(scope="module")
def stack(weights, tmp_path_factory):
    """The same with a held-out reward, as commands take it: thinner than what tests of other rooms have."""
    folder = tmp_path_factory.mktemp("thin") / "stack"
    shutil.copytree(weights, folder)
    torch.manual_seed(1)
    reward = load_tiny("reward", folder / "reward")
    for p in reward.parameters():
        p.data += 0.01 * torch.randn_like(p)
    save_tiny(
        folder / "heldout",
        reward,
        {key: load_manifest("reward", folder / "reward")[key] for key in ("vocab", "recipe")},
    )
    return str(folder)


@pytest.fixture
def differences():
    """What fields of the second dataclass, and of those in it, differ from the first's."""

    def found(one, other):
        if not hasattr(one, "__dataclass_fields__") or type(one) is not type(other):
            return [] if one == other else [other]
        return [part for name in vars(one) for part in found(getattr(one, name), getattr(other, name))]

    return found
