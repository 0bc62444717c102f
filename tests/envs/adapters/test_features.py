import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from stable_baselines3 import PPO

from reelgym.envs.adapters.features import ClipFeatures
from reelgym.envs.adapters.sb3 import SB3VecEnv
from reelgym.envs.stream_steer import StreamSteerVectorEnv

SHAPE = (4, 3, 8, 8)
LAYOUT = {"age": slice(0, 2), "clip": slice(2, 770), "position": slice(770, 775)}
SPACE = Box(0.0, 1.0, (775,), np.float32)


def test_the_clip_and_the_rest():
    torch.manual_seed(0)
    features = ClipFeatures(SPACE, LAYOUT, SHAPE)
    seen = torch.rand(5, 775)
    out = features(seen)
    assert out.shape == (5, features.features_dim) == (5, 64 + 7)
    assert torch.equal(out[:, 64:], torch.cat((seen[:, :2], seen[:, 770:]), 1))
    torch.testing.assert_close(features(seen[3:4]), out[3:4])


def test_order_of_frames_matters():
    torch.manual_seed(0)
    features = ClipFeatures(SPACE, LAYOUT, SHAPE)
    seen = torch.rand(1, 775)
    other = seen.clone()
    other[:, 2:770] = seen[:, 2:770].view(1, *SHAPE).flip(1).flatten(1)
    assert not torch.allclose(features(seen)[:, :64], features(other)[:, :64])


def test_a_shape_that_does_not_fit_is_told():
    with pytest.raises(ValueError, match="768 columns of 'clip' do not unflatten"):
        ClipFeatures(SPACE, LAYOUT, (4, 3, 8, 9))


def test_ppo_learns_through_it(codec, reward, prompts, layout, generator):
    vector = StreamSteerVectorEnv(2, codec, reward, prompts, generator, layout=layout)
    shape = (2, codec.channels, vector.settings.pool, vector.settings.pool)
    kwargs = {"columns": vector.columns, "clip_shape": shape, "part": "latents"}
    policy = {"features_extractor_class": ClipFeatures, "features_extractor_kwargs": kwargs}
    model = PPO("MlpPolicy", SB3VecEnv(vector), n_steps=4, batch_size=4, n_epochs=1, policy_kwargs=policy, device="cpu")
    before = model.policy.features_extractor.frame[0].weight.clone()
    model.learn(8)
    assert not torch.equal(before, model.policy.features_extractor.frame[0].weight)
