"""The walk of docs/stacks over random weights of the real classes: every command that takes a stack of one's own, and
who judges it."""

import json
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch

from reelgym.agents.finetune_recipes import FINETUNE
from reelgym.agents.league import build
from reelgym.envs.stack import Stack, StackSpec
from reelgym.experiments import cli, compare, jobs, selfplay
from reelgym.experiments.evaluation import judged
from reelgym.experiments.evaluation.columns import method_columns
from reelgym.experiments.evaluation.judges import clip_measures, judge_for, judge_reward, open_judge
from reelgym.experiments.evaluation.vbench import read_vbench
from reelgym.experiments.league import runs as league
from reelgym.experiments.league.dataset import Budget, FamilyClips
from reelgym.experiments.presets import needs_of
from reelgym.experiments.pretrain import detector as pretraining
from reelgym.experiments.tables import plain_table
from reelgym.models.detector import ClipDetector
from reelgym.models.tiny import load_tiny, save_tiny
from reelgym.rewards.measures import MeasureReward

HELDOUT = sys.modules["random_stack"].HELDOUT
ROWS = [["a circle"] * 2, ["a square"] * 2]


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A stack.toml: Wan, AutoencoderKLWan, UMT5, Qwen2-VL with VideoReward's head twice, prompts, encoded videos."""
    toml = sys.modules["random_stack"].main(tmp_path_factory.mktemp("walk"))
    toml.with_name("bare.toml").write_text(toml.read_text().split("[parts.reward]")[0])
    return toml


@pytest.fixture(scope="module")
def begun(walked):
    """What `train student` prints of a student that begins as its teacher."""
    line = f"train student --stack {walked} --batch 1 --out {walked.parent / 'begun'} --threads 1"
    with redirect_stdout(StringIO()) as printed:
        assert cli.main([*line.split(), "--steps", "2", "--recipe", "teacher-forcing+consistency"]) == 0
    return printed.getvalue()


@pytest.fixture(autouse=True)
def here(walked, monkeypatch):
    monkeypatch.chdir(walked.parent)
    monkeypatch.setattr(jobs, "made_from", lambda work, *modules: "one state of the code")
    monkeypatch.setattr(judged, "LONG", 2)


def command(capsys, line):
    status = cli.main(line.split())
    out, err = capsys.readouterr()
    assert status == 0, err
    assert "tiny" not in (out + err).lower()
    return out


def test_parts_are_checked_and_data_is_cached(walked, capsys):
    assert "stack.toml fits: 6 parts" in command(capsys, "stack check stack.toml --no-update --device cpu --out check")
    out = command(capsys, "stack cache stack.toml --device cpu --out cache")
    assert "clips: 4 clips (2 train, 1 validation, 1 test)" in out and "4 prompts (2 train" in out


def test_a_student_begins_as_its_teacher(walked, begun, capsys):
    line = "train student --stack stack.toml --batch 1 --out begun --threads 1"
    assert "validation_loss=" in begun and "begun/student" in begun and "tiny" not in begun
    told = json.loads(Path("begun/student/student.json").read_text())
    assert told["steps"] == 2 and told["made_from"] == Stack.load(walked).weights()["teacher"]
    start = Stack.load(walked).teacher.transformer.state_dict()
    trained = Stack.load(walked).with_weights(student=Path("begun/student")).student().model
    moved = [not torch.equal(start[name], value) for name, value in trained.transformer.state_dict().items()]
    assert any(moved) and trained.cache_config.sink_frames == 3
    for options, words in (("--recipe dmd", "choose from teacher-forcing"), ("--compile", "have no use with --stack")):
        assert cli.main([*line.split(), *options.split()]) == 1 and words in capsys.readouterr().err
    assert cli.main([*line.split(), "--recipe", "consistency"]) == 1
    assert "by another recipe" in capsys.readouterr().err
    assert cli.main("train teacher --stack stack.toml".split()) == 1 and "not the teacher" in capsys.readouterr().err


def test_methods_are_compared(walked, capsys):
    small = "--preset smoke --workers 1 --device cpu --stack stack.toml --only dmd reward"
    out = command(capsys, f"compare {small} --out compared")
    assert "judged by the held-out reward" in out and "reward gradient above DMD" in out and "codec ceiling" in out
    found = json.loads(Path("compared/results.json").read_text())
    methods = [row for row in found["rows"] if row["kind"] == "method"]
    assert [row["method"] for row in methods] == ["codec", "teacher", "start", "dmd", "reward"]
    assert all(row["low"] <= row["total"] <= row["high"] and "vq" in row for row in methods)
    assert methods[2]["diversity"] == 1 and methods[2]["late"] is not None
    assert {row["of"]: row["prompt"] for row in found["rows"] if row["kind"] == "clip"}.keys() == {
        "clips",
        "long",
        "map",
    }
    assert {row["verdict"] for row in found["rows"] if row["kind"] == "contrast"} == {"unclear"}
    lines = Path("compared/scores.csv").read_text().splitlines()
    assert lines[0] == "method,seed,prompt,clip,VQ,MQ,TA,total" and len(lines) == 1 + 1 + 4 * 2
    assert Path("compared/videos/dmd-0/0000-1.mp4").stat().st_size > 500
    vbench(Path("compared/videos"), Path("scored"))
    out = command(capsys, f"compare {small} --out compared --vbench scored")
    assert "judged by VBench-Long, read from its own" in out and "motion_smoothness" in out
    again = [row for row in json.loads(Path("compared/results.json").read_text())["rows"] if row["kind"] == "method"]
    assert again[1]["axis/imaging_quality"] == 0.5 and again[1]["axis/motion_smoothness"] == 0.75
    assert again[1]["total"] == 0.625
    page = Path("compared/report.html").read_text()
    assert "judged by VBench-Long" in page and page.count("<img") == 3 and "racle" not in page
    rows = [{**methods[0], "axis/similarity 4": 0.5}]
    assert "similarity 4" in plain_table(method_columns({**found, "rows": rows}), rows)


def test_a_begun_student_is_distilled_and_streams(walked, begun, capsys):
    Path("begun.toml").write_text('base = "stack.toml"\n[parts]\nstudent = "begun/student"\n')
    line = "distill dmd --batch 1 --updates 1 --validation 1 --no-guard --device cpu --stack begun.toml"
    assert "heldout on validation prompts" in command(capsys, f"{line} --out distilled")
    line = "generate circle --chunks 2 --device cpu --stack begun.toml --student distilled/student --out clip.mp4"
    assert "clip.mp4: 5 frames" in command(capsys, line)


def vbench(videos, folder):
    """What VBench-Long writes of folders of videos."""
    folder.mkdir()
    for run in videos.iterdir():
        clips = [
            run / "split_clip" / clip.stem / f"{clip.stem}_{n:03}.mp4" for clip in run.glob("*.mp4") for n in (0, 1)
        ]
        smooth = [
            {"video_path": str(clip), "video_results": 0.5 + 0.5 * (place % 2)} for place, clip in enumerate(clips)
        ]
        sharp = [{"video_path": str(clip), "video_results": 50.0} for clip in clips]
        held = {"motion_smoothness": [0.75, smooth], "imaging_quality": [0.5, sharp]}
        (folder / f"results_{run.name}_eval_results.json").write_text(json.dumps(held))


def test_methods_that_lack_a_part_are_left_out(walked):
    bare = walked.with_name("lacking.toml")
    bare.write_text(walked.read_text().split("\n[parts.reward]")[0].replace('clips = "clips"', "") + HELDOUT)
    config = compare.Config("quick", stack=str(bare), device="cpu")
    assert list(compare.plans_of(config)) == ["dmd"]
    assert compare.references_of(config) == ["teacher", "start", "four-steps"]
    with pytest.raises(ValueError, match="consistency needs clips, which this stack lacks"):
        compare.plans_of(replace(config, only=("consistency", "dmd")))
    assert needs_of("dmd&reward") == {"reward", "teacher"} and needs_of("on-policy") == set()


def test_files_of_vbench(tmp_path):
    def write(name, held):
        (tmp_path / f"{name}_eval_results.json").write_text(json.dumps(held))

    with pytest.raises(ValueError, match="no .*_eval_results.json here"):
        read_vbench(tmp_path)
    write("a", {"dynamic_degree": [0.5, [{"video_path": "v/dmd-0/0000-0.mp4", "video_results": True}]]})
    found = read_vbench(tmp_path)
    assert found.variant == "VBench" and found.judged("dmd-0", ["0000-0"]) == {"dynamic_degree": [1.0], "total": [1.0]}
    with pytest.raises(ValueError, match="no scores of dmd-0/0000-1; evaluate all"):
        found.judged("dmd-0", ["0000-0", "0000-1"])
    fused = {"video_path": "v/dmd-0/0000-0.mp4", "inclip_score": 0.5, "video_results": 0.5}
    write("b", {"subject_consistency": [0.5, [fused]]})
    with pytest.raises(ValueError, match="VBench and of VBench-Long, which differ"):
        read_vbench(tmp_path)
    write("b", [1, 2])
    with pytest.raises(ValueError, match="b_eval_results.json: no result file of VBench"):
        read_vbench(tmp_path)


def test_a_student_is_fine_tuned_under_a_guard_that_measures(walked, capsys):
    line = "finetune reward --prompts 1 --updates 1 --every 1 --validation 1 --device cpu --stack stack.toml"
    assert "heldout on validation prompts" in command(capsys, f"{line} --judge measures --out tuned")
    (end,) = [row for row in json.loads(Path("tuned/results.json").read_text())["rows"] if row["kind"] == "spent"]
    assert end["kept"] in (0, 1) and Path("tuned/student/transformer").is_dir()


def test_who_judges(walked, tmp_path, monkeypatch):
    stack = Stack.load(walked)
    assert judge_for(stack) == "heldout" and judge_for(Stack.load("tiny")) == "oracle"
    bare = Stack.load(walked.with_name("bare.toml"))
    assert judge_for(bare) == "measures"
    (walked.parent / "mine.py").write_text(
        "def redness(video, prompts):\n"
        "    return {'red': video[:, :, 0].mean((1, 2, 3)), 'said': [float(len(text)) for text in prompts]}\n"
    )
    monkeypatch.setattr(sys, "path", [str(walked.parent), *sys.path])
    video = torch.rand(2, 5, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    found = open_judge("mine:redness", bare)(video, ROWS)
    assert found["said"].tolist() == [8, 8] and torch.allclose(found["total"], (found["red"] + 8) / 2)
    scores = open_judge("heldout", stack)(video, ROWS)
    assert list(scores) == ["VQ", "MQ", "TA", "total"] and scores["total"].shape == (2,)
    real = open_judge("measures", bare)(video, ROWS)
    assert 0 < float(real["total"].min()) and float(real["total"].max()) < 1
    guard = judge_reward(open_judge("measures", bare)).windowed(bare.layout, bare.codec)
    assert guard.axes == ("measures",) and guard.min_frames == 2


def test_who_trains_does_not_judge(walked):
    folder, text = walked.parent, walked.read_text()
    (folder / "same.toml").write_text(text.replace('"other/reward"', '"judge/reward"'))
    same = Stack.load(folder / "same.toml")
    (folder / "mean.py").write_text("def mean(video, prompts):\n    return video.mean((1, 2, 3, 4))\n")
    mine = StackSpec(str(walked), "mean:mean").load()
    for stack, name in ((same, "heldout"), (mine, "mean:mean")):
        with pytest.raises(ValueError, match="who trains does not judge"):
            open_judge(name, stack)
    with pytest.raises(ValueError, match="who trains does not judge"):
        open_judge("measures", Stack.load(walked).with_parts(reward=MeasureReward(("sharpness",))))
    for name, toml, words in (
        ("heldout", "bare.toml", "no held-out reward"),
        ("nobody", "bare.toml", "no 'nobody' among"),
    ):
        with pytest.raises(ValueError, match=words):
            open_judge(name, Stack.load(folder / toml))


def test_measures_by_hand():
    still = torch.rand(1, 1, 3, 8, 8).expand(1, 9, 3, 8, 8)
    fades = still * torch.linspace(1, 0.5, 9)[None, :, None, None, None]
    found, other = clip_measures(still), clip_measures(fades)
    assert [axis for axis in found if axis.startswith("sim")] == [f"similarity {n}" for n in (1, 2, 4, 8)]
    assert found["drift"] == 0 < other["drift"] and found["motion"] == 0 < other["motion"]
    assert all(float(found[axis]) == pytest.approx(1) for axis in found if axis.startswith("sim"))
    noise = clip_measures(torch.rand(1, 9, 3, 8, 8))
    assert abs(float(noise["similarity 1"])) < 0.3


SMALL = Budget(
    rounds=1, generator_updates=1, detector_updates=1, clips=2, streams=2, reals=4, fakes=4, heldout_reals=4,
    heldout_fakes=2, panel=1, panel_updates=1, response=1, prompts=1,
)  # fmt: skip


def test_a_detector_learns_from_videos(walked, capsys, monkeypatch):
    short = {"real": 4, "made": 2, "slow": 1, "calibrated": 4, "measured": 4, "judged": 2}
    recipes = {name: replace(recipe, **short) for name, recipe in pretraining.DETECTOR_RECIPES.items()}
    monkeypatch.setattr(pretraining, "DETECTOR_RECIPES", recipes)
    out = command(capsys, "train rival --stack stack.toml --steps 1 --batch 2 --threads 1 --out rival")
    assert "auc_student=" in out and load_tiny("rival", walked.parent / "rival" / "weights").size == (24, 40)


def test_a_generator_and_a_detector_play(walked, capsys, monkeypatch):
    torch.manual_seed(0)
    save_tiny(Path("weak/weights"), ClipDetector(8, (24, 40)), {})
    toml = walked.with_name("played.toml")
    toml.write_text('base = "stack.toml"\n[parts]\nrival = "weak/weights"\n')
    monkeypatch.setitem(selfplay.SELFPLAY_PRESETS, "quick", replace(selfplay.SELFPLAY_PRESETS["quick"], size=SMALL))
    for module in (build, league):
        monkeypatch.setattr(module, "DETECTION", replace(module.DETECTION, batch=2))
    monkeypatch.setitem(FINETUNE, "reward", FINETUNE["reward"].with_batch(1))
    FamilyClips.load.cache_clear()
    out = command(capsys, "selfplay --stack played.toml --workers 1 --arms newest --out played")
    assert "newest against newest" in out and "scripted, held out: ghosting" in out and "energy gain" not in out
    assert "judged by the held-out reward" in out and "oracle" not in out
    rows = json.loads(Path("played/results.json").read_text())["rows"]
    (end,) = [row for row in rows if row["kind"] == "generator" and row["arm"] == "newest"]
    assert end["total"] is not None and 0 <= end["panel_wins"] <= 1
    assert load_tiny("rival", walked.parent / "played" / "detectors" / "newest-0").size == (24, 40)
