import numpy as np
import pytest
import torch
from gymnasium.wrappers.vector import RecordEpisodeStatistics as Gymnasiums

from reelgym.envs.adapters.arrays import ArrayVectorEnv
from reelgym.envs.statistics import RecordEpisodeStatistics

LENGTHS = [3, 2, 5, 4]
ACTION = torch.ones(4, 1)


@pytest.mark.parametrize("lengths", [3, LENGTHS], ids=["lockstep", "ragged"])
@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
def test_it_says_what_gymnasiums_says(walk, lengths, mode):
    ours = RecordEpisodeStatistics(walk(4, lengths, autoreset_mode=mode))
    theirs = Gymnasiums(ArrayVectorEnv(walk(4, lengths, autoreset_mode=mode)))
    for env in (ours, theirs):
        env.reset(seed=0)
    for _ in range(12):
        *_, done, _, info = ours.step(ACTION)
        *_, expected = theirs.step(ACTION.numpy())
        assert torch.equal(info["_episode"], done)
        if done.any():
            np.testing.assert_allclose(info["episode"]["r"], expected["episode"]["r"], rtol=1e-6)
            assert info["episode"]["l"].tolist() == expected["episode"]["l"].tolist()
            assert torch.equal(info["episode"]["t"] > 0, done)
            if mode == "Disabled":
                ours.reset(options={"reset_mask": done})
                theirs.reset(options={"reset_mask": done.numpy()})
        else:
            assert not any(part.any() for part in info["episode"].values())


def test_an_episode_ends_once(walk):
    env = RecordEpisodeStatistics(walk(4, LENGTHS, autoreset_mode="Disabled", check=False))
    env.reset(seed=0)
    infos = [env.step(ACTION)[4] for _ in range(6)]
    assert torch.stack([info["_episode"] for info in infos]).sum(0).tolist() == [1] * 4
    assert torch.stack([info["episode"]["l"] for info in infos]).amax(0).tolist() == LENGTHS
