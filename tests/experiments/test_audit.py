import json
import math

import pytest
import torch
from PIL import Image
from torch import Tensor

from reelgym.experiments import cli
from reelgym.experiments.audit import probe, reward
from reelgym.experiments.audit.probe import real_clips
from reelgym.experiments.audit.reward import ascend, starts
from reelgym.experiments.pretrain.reward_measure import visibly_changed
from reelgym.models.prompts import PromptBatch
from reelgym.models.tiny import load_tiny
from reelgym.rewards.compose import CallableReward
from reelgym.rewards.stream_reward import StreamReward


def call(capsys, *args):
    status = cli.main(list(args))
    out, err = capsys.readouterr()
    return status, out, err


def test_probe_end_to_end(capsys, tmp_path):
    status, out, err = call(capsys, "audit", "probe", "--clips", "8", "--out", str(tmp_path))
    assert status == 0, err
    assert "| all | blur | lower half |" in out and "| VQ | colour shift | all |" in out
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert len(rows) == 2 * len(probe.DAMAGES) * (len(probe.REGIONS) + 1)
    assert all(0 <= row["holds"] <= min(row["inside"], row["rising"]) for row in rows if row["clips"])
    with Image.open(tmp_path / "probe.png") as picture:
        assert picture.size[0] > 400


def test_clips_without_an_object_in_place_are_one_line():
    model = StreamReward(CallableReward(lambda video, prompts: video.mean(dim=(1, 2, 3, 4)), ["x"], 1))
    with pytest.raises(ValueError, match="none of 2 clips has its object in the lower half"):
        probe.figure(model, torch.full((2, 4, 3, 32, 32), 0.12), PromptBatch(("", ""), torch.zeros(2, 1, 1)))


def test_nothing_probed_has_no_shares():
    found = probe.compared(torch.zeros(0, 4, 32, 32), torch.zeros(0, 4, 32, 32), "upper left")
    row = probe.row_of(found, damage="blur")
    assert row["clips"] == 0 and row["holds"] is None and row["chance"] == 1 / 24 and row["weights"] == ""


def test_wrong_frames_and_clips_are_one_line(capsys, tmp_path):
    for frames in ("2", "7"):
        status, _, err = call(capsys, "audit", "probe", "--frames", frames, "--out", str(tmp_path))
        assert status == 1 and err.startswith("reelgym: error: frames must be 3 to 6") and err.count("\n") == 1
    status, _, err = call(capsys, "audit", "probe", "--clips", "0", "--out", str(tmp_path))
    assert (status, err) == (1, "reelgym: error: clips must be at least 1, not 0\n")


def test_reward_end_to_end(capsys, tmp_path):
    args = ["--clips", "6", "--climbers", "2", "--steps", "4", "--strengths", "1", "--out", str(tmp_path)]
    status, out, err = call(capsys, "audit", "reward", *args)
    assert status == 0, err
    assert "Exploits held out: " in out and "Exploits met in training: " in out
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    kinds = [row["kind"] for row in rows]
    assert [kinds.count(kind) for kind in ("exploit", "ascent", "bound")] == [9, 4, 4]
    few = [row for row in rows if row["kind"] == "ascent" and row["start"] != "latents"]
    assert all(row["steps"] == 4 and row["below"] == 1 for row in few)  # such climbs were in training
    assert all(row["truth"] > 0.98 for row in rows if row["kind"] == "exploit" and row["pairs"])
    again = reward.report(rows)
    assert again in out


def test_damage_grows_and_stays_in_its_region():
    video = real_clips(4, "validation", 0).frames(torch.arange(4))[:, :4]
    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(0))
    for name, damage in probe.DAMAGES.items():
        hurt = probe.damaged(video, damage, "lower half", noise)
        assert torch.equal(hurt[..., :16, :], video[..., :16, :]), name
    grown = (probe.damaged(video, probe.grain, "left half", noise) - video).abs().mean(dim=(0, 2, 3, 4))
    assert (grown.diff() > 0).all()


def test_share_inside_by_hand():
    saliency = torch.zeros(1, 2, 32, 32)
    saliency[0, 0, 20, 3], saliency[0, 1, 3, 20] = 3.0, 1.0
    found = {region: float(probe.share_inside(saliency, region)) for region in probe.REGIONS}
    assert found["lower half"] == 0.75 and found["lower left"] == 0.75 and found["right half"] == 0.25
    assert probe.share_inside(torch.zeros(1, 2, 32, 32), "lower half") == 0


def test_touched_is_where_the_object_is():
    video = torch.full((2, 3, 3, 32, 32), 0.12)
    video[0, :, :, 20:24, 4:8] = 1.0
    video[1, :2, :, 20:24, 4:8] = 1.0
    assert probe.touched(video, "lower half").tolist() == [True, False]
    assert not probe.touched(video, "upper right").any()


class WorstFrame:
    """Looks only at how dark the darkest frame of the lower half is: a probe's dream."""

    def __call__(self, video: Tensor, prompts: PromptBatch) -> Tensor:
        frames = video[..., 16:, :].square().mean(dim=(2, 3, 4))
        return -torch.logsumexp(40 * frames, dim=1)


def test_a_reward_whose_saliency_is_known_passes_the_probe():
    model = StreamReward(CallableReward(WorstFrame(), ["x"], 3))
    ramp = torch.linspace(0.2, 0.8, 4)[:, None, None, None].expand(4, 3, 32, 32)[None]
    saliency = probe.look(model, ramp.clone(), PromptBatch(("",), torch.zeros(1, 1, 1)))
    assert probe.share_inside(saliency, "lower half") == 1
    found = probe.compared(saliency, saliency.flip(1), "lower half")
    assert found["rising"].all() and found["inside"].all()
    assert not found["control"].any() and not found["drawn"].any()


def test_ascent_climbs_and_stays_in_range():
    model = StreamReward(CallableReward(lambda video, prompts: video.mean(dim=(1, 2, 3, 4)), ["x"], 1))
    video, prompts = torch.rand(2, 3, 3, 8, 8), PromptBatch(("", ""), torch.zeros(2, 1, 1))
    end = ascend(model, video, prompts, 5, 0.02)
    torch.testing.assert_close(end, (video + 0.1).clamp(0, 1), atol=1e-4, rtol=0)
    assert set(starts(video, 0)) == {"real", "latents", "blank", "noise"}


def test_ascent_through_a_codec():
    model = StreamReward(CallableReward(lambda video, prompts: video.mean(dim=(1, 2, 3, 4)), ["x"], 1))
    codec = load_tiny("codec")
    video = real_clips(2, "validation", 0).frames(torch.arange(2))[:, :3]
    prompts = PromptBatch(("", ""), torch.zeros(2, 1, 1))
    end = ascend(model, video, prompts, 5, 0.1, codec)
    assert end.shape == video.shape and not end.requires_grad and (0 <= end).all() and (end <= 1).all()
    assert (model(end, prompts).reward > model(codec.decode(codec.encode(video)).detach(), prompts).reward).all()


def test_bounds_by_hand():
    rows = {row["bound"]: row for row in reward.bound_rows(torch.tensor([[0.1], [1.5], [-2.0], [0.0]]))}
    assert rows[2.0]["greatest"] == pytest.approx(math.exp(2)) and rows[2.0]["clamped"] == 0.5
    assert rows[None]["greatest"] == pytest.approx(math.exp(3)) and rows[None]["clamped"] == 0
    assert rows[None]["effective"] < rows[2.0]["effective"] < rows[1.0]["effective"] <= 1


def test_verdict_names_the_misses():
    rows = [
        {"exploit": "a", "trained": "no", "strength": 1.0, "pairs": 10, "below": 0.9},
        {"exploit": "b", "trained": "yes", "strength": 0.5, "pairs": 30, "below": 1.0},
        {"exploit": "c", "trained": "yes", "strength": 0.5, "pairs": 0, "below": None},
    ]
    held_out, trained = reward.exploit_verdict(rows).splitlines()
    assert held_out == "Exploits held out: 0.900 of 10 pairs rank below the true clip; below 0.95: a at 1 (0.900)."
    assert trained.endswith("1.000 of 30 pairs rank below the true clip; each at least 0.95.")
    assert "none is to be seen" in reward.exploit_verdict(rows[2:])


def test_what_is_not_to_be_seen_is_no_change():
    video = torch.rand(2, 3, 3, 8, 8)
    other = video.clone()
    other[1, 0, 0, 0, 0] += 0.1
    assert visibly_changed(video, other).tolist() == [False, True]
