"""`reelgym score --detector` on real files, with a detector whose verdict is known."""

import json

import pytest
import torch

from reelgym.envs.clip_dataset import generate
from reelgym.envs.stack import Stack
from reelgym.envs.worlds.grammar import GRAMMARS, chunk_clauses, sample_scripts
from reelgym.envs.worlds.render import render
from reelgym.envs.worlds.scene import roll
from reelgym.experiments.cli import main
from reelgym.experiments.score_detector import DetectorScorer
from reelgym.experiments.scorer import Config, read_windows
from reelgym.experiments.stats import auc
from reelgym.models.calibration import Calibration
from reelgym.models.detector import ClipDetector
from reelgym.models.tiny import (
    build_codec,
    load_manifest,
    load_tiny,
    save_tiny,
)
from reelgym.video import write_video

CHUNK = 3


def calibration():
    logits = torch.linspace(-3, 3, 200)[:, None].expand(-1, 4) + torch.tensor([0.0, 0.5, 1.0, 1.5])
    place = torch.arange(200)
    return Calibration.fit(logits, (place > 100) ^ (place % 4 == 0))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    save_tiny(folder / "codec", build_codec(), {})
    manifest = {"pool": 2, "chunk": CHUNK, "fps": 8, **calibration().to_manifest()}
    save_tiny(folder / "detector", ClipDetector(width=16, size=16), manifest)
    return folder


@pytest.fixture
def call(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*args):
        given = ["--weights", str(weights)] if "--stack" not in args else []
        status = main(["score", *map(str, args), "--device", "cpu", *given])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def film(path, frames, seed=0):
    pixels = torch.rand(frames, 32, 32, 3, generator=torch.Generator().manual_seed(seed))
    large = (pixels * 255).byte().repeat_interleave(4, 1).repeat_interleave(4, 2)
    write_video(path, large, 8.0, made_by=None)


def results():
    return json.loads(open("runs/score/results.json").read())


def test_a_clip_over_time(call, tmp_path):
    film(tmp_path / "a.mp4", 12)
    status, out, err = call("a.mp4", "--detector")
    assert (status, err) == (0, "") and "a.mp4: 12 frames at 8 fps (the file has 8), 32 x 32 pixels" in out
    assert "It knows the procedural world alone" in out and "curve: " in out
    clip, *moments = results()["rows"]
    assert results()["command"].startswith("reelgym score a.mp4 --device cpu --stack ")
    assert results()["command"].endswith("--detector")
    assert [(row["chunks"], row["last_frame"], row["seconds"]) for row in moments] == [
        (1, 2, 0.375),
        (2, 5, 0.75),
        (3, 8, 1.125),
        (4, 11, 1.5),
    ]
    last = moments[-1]
    assert clip["probability"] == last["probability"] and clip["false_positive_rate"] == last["false_positive_rate"]
    assert (
        clip["verdict"] == ("made" if clip["probability"] > 0.5 else "real") and f"verdict: {clip['verdict']};" in out
    )
    known = calibration()
    for row in moments:
        logit = torch.tensor([row["logit"]])
        assert row["probability"] == pytest.approx(float(known.probability(logit, row["chunks"])), abs=1e-3)
        assert row["false_positive_rate"] == pytest.approx(float(known.false_positives(logit, row["chunks"])), abs=1e-2)


def test_the_logits_are_those_of_the_detector_behind_the_codec(call, tmp_path, weights):
    film(tmp_path / "a.mp4", 12)
    assert call("a.mp4", "--detector")[0] == 0
    codec, detector = load_tiny("codec", weights / "codec"), load_tiny("detector", weights / "detector")
    with torch.no_grad():
        seen = codec.decode(codec.encode(read_windows(tmp_path / "a.mp4", 8.0, 32)[0][None]))
        small = (seen.unflatten(-1, (16, 2)).unflatten(-3, (16, 2)).mean((-1, -3)) * 255).round() / 255
        logits = detector(small)[0, CHUNK - 1 :: CHUNK]
    found = torch.tensor([row["logit"] for row in results()["rows"] if row["kind"] == "moment"])
    torch.testing.assert_close(found, logits, atol=1e-3, rtol=1e-3)


def test_a_longer_video_in_windows(call, tmp_path):
    film(tmp_path / "long.mp4", 20)
    status, out, _ = call("long.mp4", "--detector")
    assert status == 0
    clip, *moments = results()["rows"]
    assert sorted({row["first_frame"] for row in moments}) == [0, 3, 6, 8] and len(moments) == 16
    ends = torch.tensor([row["logit"] for row in moments if row["chunks"] == 4])
    assert clip["logit"] == pytest.approx(float(ends.mean()), abs=1e-5) and ends.std() > 0
    lines = [line.split()[0] for line in out.splitlines() if " s  " in line]
    assert lines == ["0-2", "0-5", "0-8", "0-11", "3-14", "6-17", "8-19"]


def test_a_short_video_is_judged_by_what_there_is(call, tmp_path):
    film(tmp_path / "short.mp4", 7)
    assert call("short.mp4", "--detector")[0] == 0
    moments = results()["rows"][1:]
    assert [(row["first_frame"], row["chunks"]) for row in moments] == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_a_detector_of_ones_own(call, tmp_path, weights):
    film(tmp_path / "a.mp4", 12)
    torch.manual_seed(5)
    save_tiny(
        tmp_path / "own", ClipDetector(width=8, size=8), load_manifest("detector", weights / "detector") | {"pool": 4}
    )
    assert call("a.mp4", "--detector")[0] == 0
    shipped = results()["rows"][0]["logit"]
    assert call("a.mp4", "--detector-weights", "own")[0] == 0
    assert results()["rows"][0]["logit"] != pytest.approx(shipped, abs=1e-4)


def test_what_is_wrong_is_said(call, tmp_path, weights):
    film(tmp_path / "good.mp4", 12)
    (tmp_path / "text.mp4").write_text("not a video at all\n" * 99)
    save_tiny(tmp_path / "bare", ClipDetector(width=8), {})
    broken = ClipDetector(width=8)
    broken.judge[-1].bias.data.fill_(torch.nan)
    save_tiny(tmp_path / "nan", broken, load_manifest("detector", weights / "detector"))
    save_tiny(tmp_path / "other", build_codec(), {})
    for args, words in [
        (["absent.mp4", "--detector"], "absent.mp4: no such file"),
        (["text.mp4", "--detector"], "text.mp4: not a video"),
        (["good.mp4", "--detector", "--fps", 1], "2 frames at 1 fps are too few, the detector needs 3"),
        (["good.mp4", "--detector", "--fps", -1], "fps must be a positive number"),
        (["good.mp4", "--detector", "--prompt", "a"], "--prompt: of no use to a detector"),
        (["good.mp4", "--detector", "--reward", "x"], "--reward: of no use to a detector"),
        (["good.mp4"], "--prompt is missing"),
        (["good.mp4", "--detector-weights", "nowhere"], "nowhere: no detector weights here"),
        (["good.mp4", "--detector-weights", "bare"], "bare: train the detector with `reelgym train detector`"),
        (["good.mp4", "--detector-weights", "nan"], "not finite: its weights are damaged"),
        (["good.mp4", "--detector-weights", "other"], "holds a codec model, which is no detector"),
        (["good.mp4", "--detector", "--stack", "nowhere"], "'nowhere' is neither a folder"),
    ]:
        status, _, err = call(*args)
        assert status == 1 and err.startswith("reelgym: error: ") and err.count("\n") == 1 and words in err, err


def test_compression_turns_no_verdict(tmp_path):
    """The shipped detector on files of the world and of the shipped student, of prompts that no training has."""
    scripts = sample_scripts(8, split="test", seed=5, grammar=GRAMMARS["plain"])
    clauses = [chunk_clauses(script, 4) for script in scripts]
    real = render(roll(clauses, CHUNK, torch.Generator().manual_seed(5)))
    kinds = {"real": real, "made": generate(Stack.load(), scripts, 4, 5)}
    examiner = DetectorScorer.load(Config(tmp_path / "a.mp4"), torch.device("cpu"))
    logits = {}
    for kind, clips in kinds.items():
        told = []
        for row, clip in enumerate(clips):
            pixels = (clip.movedim(1, -1) * 255).round().byte()
            large = pixels.repeat_interleave(4, 1).repeat_interleave(4, 2)
            write_video(tmp_path / "a.mp4", large, 8.0, crf=28 if row % 2 else None, made_by=None)
            video, _ = read_windows(tmp_path / "a.mp4", 8.0, 32)
            told.append((examiner.examine(video)[0], examiner.examine(clip)[0]))
        assert [file["verdict"] for file, _ in told] == [clip["verdict"] for _, clip in told]
        logits[kind] = torch.tensor([file["logit"] for file, _ in told])
    assert auc(logits["real"].numpy(), logits["made"].numpy()) > 0.95
