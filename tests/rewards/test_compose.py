import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reelgym.models.codec import Grid
from reelgym.models.prompts import PromptBatch
from reelgym.rewards.compose import CallableReward, EnsembleReward, JoinedReward, detector_reward
from reelgym.rewards.measures import MeasureReward
from reelgym.rewards.reward_model import RewardError
from reelgym.rewards.stream_reward import RewardSettings, StreamReward

PROMPTS = PromptBatch(("a", "bb"), torch.zeros(2, 1, 1))
VIDEO = torch.rand(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
GRID = Grid(torch.arange(4), 2, 2)


def redness(video: Tensor, prompts: PromptBatch) -> Tensor:
    return video[:, :, 0].mean(dim=(1, 2, 3)) * torch.tensor([len(text) for text in prompts.text])


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 1)

    def forward(self, video: Tensor) -> Tensor:
        return self.head(video.mean(dim=(1, 3, 4)))


def test_any_callable() -> None:
    model = CallableReward(redness, ["red"], min_frames=2, mean=[0.5], std=[2.0])
    signal = StreamReward(model)(VIDEO, PROMPTS, GRID, need={"perplexity", "gradient"})
    assert torch.allclose(signal.scores[:, 0], (redness(VIDEO, PROMPTS) - 0.5) / 2)
    assert signal.gradient[:, :, 0].abs().min() > 0 and not signal.gradient[:, :, 1:].any()
    assert signal.perplexity.shape == (2, 4, 2, 2)


def test_a_callable_of_several_axes() -> None:
    model = CallableReward(lambda video, prompts: video.mean(dim=(1, 3, 4)), ["r", "g", "b"])
    signal = StreamReward(model, RewardSettings(axes=("b",)))(VIDEO, PROMPTS)
    assert torch.allclose(signal.scores[:, 0], VIDEO[:, :, 2].mean(dim=(1, 2, 3)))


def test_a_callable_that_returns_something_else() -> None:
    with pytest.raises(ValueError, match=r"returned \[2, 3\] for 2 clips: expected \[2, 1\]"):
        StreamReward(CallableReward(lambda video, prompts: video.mean(dim=(1, 3, 4)), ["r"]))(VIDEO, PROMPTS)
    with pytest.raises(ValueError, match="one number per axis"):
        CallableReward(redness, ["red"], std=[0.0])


def test_a_detectors_verdict() -> None:
    detector = Detector()
    reward = StreamReward(detector_reward(detector))
    assert torch.allclose(reward(VIDEO, PROMPTS).scores, detector(VIDEO).detach())
    assert not any(p.requires_grad for p in detector.parameters())
    assert reward(VIDEO, PROMPTS, need={"gradient"}).gradient.abs().sum() > 0
    assert set(detector_reward(detector).state_dict()) >= {"function.detector.head.weight"}
    twin = copy.deepcopy(detector_reward(detector))
    twin.function.detector.head.weight.zero_()
    assert not torch.equal(StreamReward(twin)(VIDEO, PROMPTS).scores, reward(VIDEO, PROMPTS).scores)


def test_an_ensemble_is_the_mean_less_its_spread() -> None:
    bright = CallableReward(lambda video, prompts: video.mean(dim=(1, 2, 3, 4)), ["x"], 3, [1.0], [2.0])
    members = [CallableReward(redness, ["x"]), bright]
    each = torch.stack([StreamReward(member)(VIDEO, PROMPTS).scores for member in members])
    assert torch.allclose(StreamReward(EnsembleReward(members))(VIDEO, PROMPTS).scores, each.mean(0))
    wary = EnsembleReward(members, pessimism=0.5)
    assert torch.allclose(StreamReward(wary)(VIDEO, PROMPTS).scores, each.mean(0) - 0.5 * each.std(0, correction=0))
    assert wary.min_frames == 3


def test_identical_members_have_a_gradient() -> None:
    twin = CallableReward(redness, ["x"])
    signal = StreamReward(EnsembleReward([twin, twin], pessimism=1.0))(VIDEO, PROMPTS, need={"gradient"})
    assert signal.gradient.isfinite().all()


def test_rewards_side_by_side() -> None:
    joined = JoinedReward([CallableReward(redness, ["red"]), MeasureReward(("motion",))])
    assert joined.axes == ("red", "motion") and joined.min_frames == 3
    alone = StreamReward(MeasureReward(("motion",)))(VIDEO, PROMPTS).scores
    assert torch.allclose(StreamReward(joined)(VIDEO, PROMPTS).scores[:, 1:], alone)


def test_ensembles_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="at least one"):
        EnsembleReward([])
    with pytest.raises(ValueError, match="same axes"):
        EnsembleReward([MeasureReward(("motion",)), MeasureReward(("flicker",))])
    with pytest.raises(ValueError, match="two reward models"):
        JoinedReward([MeasureReward(("motion",)), MeasureReward(("motion",))])


@pytest.mark.parametrize("kind", [lambda values: values.double(), lambda values: values.numpy(), Tensor.tolist])
def test_numbers_of_every_kind_are_taken(kind) -> None:
    reward = StreamReward(CallableReward(lambda video, prompts: kind(redness(video, prompts)), ["red"]))
    torch.testing.assert_close(reward(VIDEO, PROMPTS).scores[:, 0], redness(VIDEO, PROMPTS))


class Returns:
    """A reward model that returns what it is given."""

    axes, min_frames, mean, std = ("x",), 1, torch.zeros(1), torch.ones(1)

    def __init__(self, found: object) -> None:
        self.found = found

    def score(self, video: Tensor, prompts: PromptBatch) -> Tensor:
        return self.found


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        (None, r"returned a NoneType for 2 clips: expected \[2, 1\], floating point"),
        ([None, None], "returned a list"),
        (["1", "2"], "returned a list"),
        (np.zeros((2, 1, 1)), r"returned \[2, 1, 1\]"),
        ([0.0], r"returned \[1\]"),
        (0.0, r"returned \[\]"),
        (torch.zeros(2, dtype=torch.int64), "returned torch.int64"),
        (np.zeros(2, complex), "returned torch.complex128"),
        ([0.0, float("nan")], r"of row 1 is \[nan\]: expected finite"),
        (torch.tensor([[float("inf")], [0.0]]), r"of row 0 is \[inf\]"),
    ],
)
def test_a_reward_that_returns_something_else(found: object, complaint: str) -> None:
    def mine(video: Tensor, prompts: PromptBatch) -> object:
        return found

    for model, name in ((CallableReward(mine, ["x"]), "mine"), (Returns(found), "Returns")):
        for whole in (model, EnsembleReward([model])):
            with pytest.raises(RewardError, match=complaint) as caught:
                StreamReward(whole)(VIDEO, PROMPTS)
            assert "\n" not in str(caught.value) and (whole is not model or name in str(caught.value))


def test_nan_passes_where_nobody_looks() -> None:
    model = CallableReward(lambda video, prompts: [float("nan")] * 2, ["x"])
    assert StreamReward(model, RewardSettings(check=False))(VIDEO, PROMPTS).reward.isnan().all()
