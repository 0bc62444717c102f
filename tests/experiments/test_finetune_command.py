"""`reelgym finetune`: from the shipped kind of stack to a student that streams, through a kill, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from reelgym.agents.finetune_recipes import RECIPES
from reelgym.checkpoint import sha256_file
from reelgym.distill.recipes import DISTILL
from reelgym.envs.stack import Stack, StackSpec
from reelgym.experiments import cli
from reelgym.experiments.finetune import Config
from reelgym.experiments.train_student import changed
from reelgym.models.tiny import load_manifest, load_tiny, save_tiny
from reelgym.video import read_video, write_video

SIZE = ["--every", "1", "--validation", "2", "--device", "cpu"]


def finetune(stack, out, *more):
    return cli.main(["finetune", "reward", "--stack", str(stack), "--out", str(out), *SIZE, *more])


def test_to_a_student_that_streams(stack, tmp_path, capsys):
    assert finetune(stack, tmp_path / "at", "--updates", "2") == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "before" in said and "32 chunks" in said
    manifest = load_manifest("student", tmp_path / "at" / "student")
    assert manifest["steps"] == 2 and manifest["recipe"]["grammar"] == "plain"
    assert manifest["made_from"] == sha256_file(Path(stack) / "student" / "weights.safetensors")
    written = json.loads((tmp_path / "at" / "results.json").read_text())
    start, tuned, spent = written["rows"]
    assert (start["weights"], tuned["weights"]) == ("start", "fine-tuned")
    assert (spent["kept"], spent["updates"], spent["chunks"]) == (2, 2, 32)
    assert written["config"]["recipe"]["prompts"] == manifest["recipe"]["prompts"] == 4
    assert written["command"].startswith("reelgym finetune reward --") and "--updates 2" in written["command"]
    clip, student = tmp_path / "clip.mp4", tmp_path / "at" / "student"
    prompt = ["generate", "a red circle rests", "--weights", str(stack), "--out", str(clip)]
    assert cli.main([*prompt, "--student", str(student)]) == 0 and clip.exists()
    assert cli.main([*prompt, "--student", str(student), "--model", "teacher"]) == 1


def test_it_goes_on_where_it_was(stack, tmp_path, capsys):
    assert finetune(stack, tmp_path / "whole", "--updates", "3", "--no-guard") == 0
    for updates in ("1", "3"):
        assert finetune(stack, tmp_path / "parts", "--updates", updates, "--no-guard") == 0
    assert "going on from" in capsys.readouterr().err
    whole, parts = (sha256_file(tmp_path / run / "student" / "weights.safetensors") for run in ("whole", "parts"))
    assert whole == parts


def test_a_run_from_other_weights_is_not_gone_on_with(stack, tmp_path, capsys):
    assert finetune(stack, tmp_path / "at", "--updates", "1", "--no-guard") == 0
    other = shutil.copytree(stack, tmp_path / "other")
    codec = load_tiny("codec", other / "codec")
    next(codec.parameters()).data.add_(1e-3)
    save_tiny(other / "codec", codec, load_manifest("codec", other / "codec"))
    assert finetune(other, tmp_path / "at", "--updates", "2", "--no-guard") == 1
    assert "from other weights than those of" in capsys.readouterr().err


def test_the_cache_that_it_trains_with_is_kept_and_held_to(stack, tmp_path, capsys):
    short = ["--no-guard", "--window-frames", "6", "--sink-frames", "3", "--eviction", "ema"]
    assert finetune(stack, tmp_path / "at", "--updates", "1", *short) == 0, capsys.readouterr().err
    cache = load_tiny("student", tmp_path / "at" / "student").cache_config
    assert (cache.window_frames, cache.sink_frames, cache.eviction) == (6, 3, "ema")
    assert finetune(stack, tmp_path / "at", "--updates", "2", "--no-guard") == 1
    assert "or another cache" in capsys.readouterr().err


def test_on_prompts_and_clips_of_ones_own(stack, tmp_path, capsys):
    said = [("a red circle moves left", "train"), ("a blue square moves up ; then a red circle rests", "train")]
    rows = [{"text": text, "split": split} for text, split in [*said, ("a red square rests", "validation")]]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "clips").mkdir()
    for number in range(2):
        frames = torch.randint(256, (12, 32, 32, 3), generator=torch.Generator().manual_seed(number))
        write_video(tmp_path / "clips" / f"{number}.mp4", frames.to(torch.uint8), 8, made_by=None)
    lines = [json.dumps({"file_name": f"{n}.mp4", **row}) + "\n" for n, row in enumerate(rows[:2])]
    (tmp_path / "clips" / "metadata.jsonl").write_text("".join(lines))
    toml = tmp_path / "stack.toml"
    toml.write_text(f'base = "{stack}"\nprompts = "prompts.jsonl"\nclips = "clips"\n')
    mine = Stack.load(toml)
    played = {text for row in mine.prompts()(8, 0)[1] for text in row}
    assert played == {"a red circle moves left", "a blue square moves up", "a red circle rests"}
    assert finetune(toml, tmp_path / "at", "--updates", "1") == 0, capsys.readouterr().err
    trainer = DISTILL["continued"].with_batch(3).trainer(mine, mine.student())
    x0, embeds = trainer.clips(3, 0)
    assert x0.shape[:2] == (3, 12) and embeds.shape[:2] == (3, 4) and trainer.update()["grad_norm"] > 0
    clean = mine.codec.encode(read_video(tmp_path / "clips" / "0.mp4")[0].permute(0, 3, 1, 2)[None] / 255)
    assert (x0 - clean).abs().flatten(1).amax(1).min() < 1e-5
    assert (tmp_path / "clips" / "0.mp4") in StackSpec(str(toml)).depends_on


def test_recipes_can_be_changed_and_wrong_ones_are_told(stack, tmp_path, capsys):
    recipe = changed(RECIPES["forward"], Config("forward", learning_rate=1e-5, seed=3), group=4)
    assert (recipe.learner.learning_rate, recipe.group, recipe.prompts, recipe.seed) == (1e-5, 4, 2, 3)
    assert finetune(stack, tmp_path, "--updates", "0") == 1 and "at least 1" in capsys.readouterr().err
    with pytest.raises(ValueError, match="at least 1"):
        changed(RECIPES["forward"], Config("forward"), group=0)
    with pytest.raises(ValueError, match="no group to change"):
        changed(DISTILL["dmd"], Config("dmd"), group=2)
