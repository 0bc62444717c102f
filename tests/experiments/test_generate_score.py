"""`reelgym generate` and `reelgym score` on real files, with an untrained stack in a temporary folder."""

import json
import re
import wave

import av
import numpy as np
import pytest
import torch
from PIL import Image

from reelgym.envs.worlds.grammar import GRAMMARS
from reelgym.experiments import score_reward
from reelgym.experiments.cli import main
from reelgym.experiments.score_reward import TinyScorer
from reelgym.experiments.scorer import windows
from reelgym.models.prompts import PromptBatch, WordEncoder
from reelgym.models.streaming import Stream
from reelgym.models.tiny import TEXT_LEN, build_codec, build_reward, build_wan, load_encoder, load_tiny, save_tiny
from reelgym.models.videoreward import VideoReward
from reelgym.models.wan_files import load_transformer
from reelgym.rewards.stream_reward import StreamReward
from reelgym.rewards.windows import TINY_LAYOUT
from reelgym.video import mark, provenance, read_video

PROMPT = "a red circle moves left fast"
SCRIPT = f"{PROMPT} ; then a blue square moves up"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    vocab = GRAMMARS["plain"].vocabulary()
    width = WordEncoder(vocab, TEXT_LEN).dim
    torch.manual_seed(0)
    transformers = {"student": build_wan(width), "teacher": build_wan(width)}
    for name, part in {"codec": build_codec(), "reward": build_reward(width), **transformers}.items():
        save_tiny(folder / name, part, {"vocab": vocab})
    return folder


@pytest.fixture
def call(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*args):
        status = main([args[0], "--weights", str(weights), "--device", "cpu", *map(str, args[1:])])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_generate_streams_any_length_and_repeats_itself(call):
    assert call("generate", SCRIPT)[:2] == (0, "clip.mp4: 12 frames, 1.5 s, by the student, seed 0\n")
    frames, fps = read_video("clip.mp4")
    assert frames.shape == (12, 128, 128, 3) and fps == 8
    assert provenance("clip.mp4") == mark("the student")
    call("generate", SCRIPT, "--out", "again.mp4")
    call("generate", SCRIPT, "--out", "other.mp4", "--seed", 1)
    assert torch.equal(read_video("again.mp4")[0], frames) and not torch.equal(read_video("other.mp4")[0], frames)
    assert call("generate", PROMPT, "--chunks", 6, "--scale", 1, "--fps", 4, "--out", "new/long.mkv")[0] == 0
    frames, fps = read_video("new/long.mkv")
    assert frames.shape == (18, 32, 32, 3) and fps == 4


def test_generate_writes_as_many_seconds_as_asked(call, tmp_path):
    status, out, err = call("generate", SCRIPT, "--seconds", 2.1, "--out", "a.mp4")
    assert (status, out) == (0, "a.mp4: 17 frames, 2.125 s, by the student, seed 0\n")
    assert re.search(r"^\d+\.\d frames a second, made, decoded and written \(shown at 8\)$", err, re.MULTILINE)
    frames, fps = read_video("a.mp4")
    assert len(frames) == 17 and fps == 8
    call("generate", SCRIPT, "--chunks", 6, "--out", "b.mp4")
    assert torch.equal(read_video("b.mp4")[0][:9], frames[:9]) and len(read_video("b.mp4")[0]) == 18
    assert call("generate", PROMPT, "--seconds", 0.01, "--out", "c.mp4")[0] == 0 and len(read_video("c.mp4")[0]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "c.mp4"]


def test_generate_goes_on_from_a_picture_or_a_clip(call):
    call("generate", PROMPT, "--out", "a.mp4", "--chunks", 2)
    last = read_video("a.mp4")[0][-1].numpy()
    Image.fromarray(last).save("last.png")
    Image.fromarray(last[:60]).save("odd.png")
    made = [("b", "a.mp4"), ("c", "last.png"), ("d", None)]
    for name, start in made:
        assert (
            call("generate", PROMPT, "--chunks", 2, "--out", f"{name}.mp4", *(("--start", start) if start else ()))[0]
            == 0
        )
    from_clip, from_picture, plain = (read_video(f"{name}.mp4")[0].float() for name, _ in made)
    assert len(from_clip) == len(from_picture) == 6
    assert not torch.equal(from_clip, plain) and not torch.equal(from_picture, from_clip)
    for start, words in [
        ("odd.png", "odd.png: 128x60 pixels; the generator goes on from 32x32, or a whole multiple"),
        ("absent.png", "not a picture that can be read"),
        ("absent.mp4", "no such file"),
    ]:
        status, _, err = call("generate", PROMPT, "--start", start, "--out", "e.mp4")
        assert status == 1 and words in err and err.count("\n") == 1


def test_generate_under_other_caches(call):
    call("generate", PROMPT, "--chunks", 6, "--out", "a.mp4")
    ways = ["--window-frames 6", "--window-frames 6 --sink-frames 3", "--window-frames -1 --positions absolute"]
    ways += ["--window-frames 6 --sink-frames 3 --eviction ema --on-prompt-switch recache"]
    for way in ways:
        assert call("generate", PROMPT, "--chunks", 6, "--out", "b.mp4", *way.split())[0] == 0
        assert not torch.equal(read_video("a.mp4")[0], read_video("b.mp4")[0])


def test_an_interrupted_video_plays(call, monkeypatch):
    ordinary, made = Stream.__next__, []

    def interrupted(self):
        made.append(ordinary(self))
        if len(made) == 3:
            raise KeyboardInterrupt
        return made[-1]

    monkeypatch.setattr(Stream, "__next__", interrupted)
    status, out, err = call("generate", PROMPT, "--seconds", 60, "--out", "a.mp4")
    assert (status, out) == (130, "") and err == "reelgym: interrupted; a.mp4 holds 6 frames and plays\n"
    assert len(read_video("a.mp4")[0]) == 6 and provenance("a.mp4") == mark("the student")


def test_generate_with_wan(call, wan_folder, tmp_path, capsys):
    given = [
        "a red circle ; then a blue square",
        "--size",
        "32x16",
        "--scale",
        "1",
        "--weights",
        str(wan_folder),
        "--device",
        "cpu",
    ]
    assert main(["generate", *given, "--seconds", "1.5"]) == 0
    assert capsys.readouterr().out == f"clip.mp4: 24 frames, 1.5 s, by {wan_folder}, seed 0\n"
    frames, fps = read_video("clip.mp4")
    assert frames.shape == (24, 16, 32, 3) and fps == 16
    tensors = load_transformer(wan_folder).state_dict()
    torch.save({"generator_ema": {name: tensor * 1.2 for name, tensor in tensors.items()}}, "student.pt")
    call_again = ["generate", *given, "--chunks", "2", "--checkpoint", "student.pt", "--start", "clip.mp4"]
    assert main(call_again) == 0
    assert capsys.readouterr().out == "clip.mp4: 24 frames, 1.5 s, by student.pt, seed 0\n"
    for args, words in [
        (["--size", "30x16"], "multiples of 16x16 pixels; the nearest is 32x16"),
        (["--size", "wide"], "write WIDTHxHEIGHT"),
        (["--checkpoint", "absent.pt"], "absent.pt: no such file"),
        (["--chunks", "1"], "2 clauses do not fit into 1 chunks"),
        (["--attention", "telepathy"], "telepathy"),
    ]:
        assert main(["generate", *given, *args]) == 1
        said = capsys.readouterr().err.splitlines()  # transformers may show how far its loading is
        assert words in said[-1] and sum("error" in line for line in said) == 1, said
    for prompt, words in [(" ", "the prompt is empty"), ("a ; then", "a clause of the prompt is empty")]:
        assert main(["generate", prompt, *given[1:]]) == 1 and words in capsys.readouterr().err
    assert main(["generate", "a " * 600, *given[1:]]) == 1 and "longer than 512" in capsys.readouterr().err


def test_generate_by_the_teacher(call):
    assert call("generate", PROMPT, "--model", "teacher")[0] == 0
    assert read_video("clip.mp4")[0].shape == (12, 128, 128, 3)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["a red cirle moves left"], "unknown word 'cirle'.*nearest words: circle"),
        (["a small red circle moves left"], "unknown word 'small'"),
        ([""], "prompt is empty"),
        ([SCRIPT, "--chunks", 1], "do not fit into 1 chunks"),
        ([PROMPT, "--chunks", 5, "--model", "teacher"], "use --model student"),
        ([PROMPT, "--out", "folder.mp4"], "folder.mp4: is a folder"),
        ([PROMPT, "--out", "/dev/null/clip.mp4"], "cannot be written"),
        ([PROMPT, "--out", "clip.gif"], "name the file with one of .mp4"),
        ([PROMPT, "--scale", 0], "scale must be"),
        ([PROMPT, "--fps", 0], "fps must be"),
        ([PROMPT, "--seconds", 0], "seconds must be a positive number, not 0"),
        ([PROMPT, "--seconds", -3], "seconds must be a positive number, not -3"),
        ([PROMPT, "--seconds", "nan"], "seconds must be a positive number"),
        ([PROMPT, "--seconds", 3, "--chunks", 3], "both say how long"),
        ([PROMPT, "--chunks", 0], "chunks must be at least 1"),
        ([PROMPT, "--size", "64x64"], "makes videos of 32x32 pixels and of no other size"),
        ([PROMPT, "--window-frames", 2], "window_frames=2 is too small"),
        ([PROMPT, "--eviction", "ema"], "set sink_frames to at least 1"),
        ([PROMPT, "--checkpoint", "a.pt"], "go with --stack of a Wan2.1 folder"),
        ([PROMPT, "--seconds", 3, "--model", "teacher"], "--seconds is for streams"),
        ([PROMPT, "--device", "gpu"], "device 'gpu'"),
    ],
)
def test_generate_says_what_is_wrong(call, tmp_path, args, words):
    (tmp_path / "folder.mp4").mkdir()
    status, out, err = call("generate", *args)
    assert (status, out) == (1, "") and err.startswith("reelgym: error: ") and err.count("\n") == 1
    assert re.search(words, err), err


def make_clip(path, seconds=2, fps=25, codec="libx264", size="96x64"):
    with av.open(f"testsrc2=duration={seconds}:size={size}:rate={fps}", format="lavfi") as given:
        with av.open(str(path), "w") as out:
            stream = out.add_stream(codec, rate=fps)
            stream.width, stream.height, stream.pix_fmt = *map(int, size.split("x")), "yuv420p"
            for index, frame in enumerate(given.decode(video=0)):
                frame = frame.reformat(format="yuv420p")
                frame.pts = index
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    return path


def test_score_of_a_generated_clip(call, weights):
    call("generate", SCRIPT)
    status, out, err = call("score", "clip.mp4", "--prompt", SCRIPT)
    assert (status, err) == (0, "") and "12 frames at 8 fps (the file has 8), 32 x 32 pixels, 3 windows" in out
    results = json.loads(open("runs/score/results.json").read())
    kinds = [row["kind"] for row in results["rows"]]
    assert kinds == ["clip"] + ["window"] * 3 + ["frame"] * 12
    assert results["command"].startswith(f"reelgym score clip.mp4 --prompt '{SCRIPT}' --device cpu --stack ")
    clip, *_ = results["rows"]
    prompts = [row["prompt"] for row in results["rows"] if row["kind"] == "window"]
    assert prompts == [PROMPT, "a blue square moves up", "a blue square moves up"]
    assert clip["reward"] == pytest.approx((clip["VQ"] + clip["MQ"] + clip["TA"]) / 3)
    assert np.mean([row["weight"] for row in results["rows"] if row["kind"] == "frame"]) == pytest.approx(1)
    video = read_video("clip.mp4")[0].float().div(255).reshape(12, 32, 4, 32, 4, 3).mean((2, 4)).movedim(-1, 1)
    reward, encoder = StreamReward(load_tiny("reward", weights / "reward")), load_encoder("reward", weights / "reward")
    direct = reward(video[None, 3:9], PromptBatch((prompts[1],), encoder.encode(prompts[1:2]))).scores[0]
    row = results["rows"][2]
    torch.testing.assert_close(torch.tensor([row["VQ"], row["MQ"], row["TA"]]), direct, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "codec", "seconds", "fps", "sampled", "frames"),
    [
        ("a.mp4", "libx264", 2, 25, 8, 16),
        ("a.avi", "mpeg4", 1, 30, 8, 8),
        ("a.webm", "libvpx", 1, 10, 4, 4),
        ("a.mkv", "libx264", 9, 5, 8, 72),
    ],
)
def test_score_takes_any_video(call, tmp_path, name, codec, seconds, fps, sampled, frames):
    make_clip(tmp_path / name, seconds, fps, codec)
    status, out, _ = call("score", name, "--prompt", PROMPT, "--fps", sampled, "--out", "elsewhere")
    assert status == 0 and f"{name}: {frames} frames at {sampled} fps (the file has {fps})" in out
    assert (tmp_path / "elsewhere" / "results.json").exists()


def test_score_says_what_is_wrong(call, tmp_path):
    good = make_clip(tmp_path / "good.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(good[: len(good) // 2])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video at all\n" * 99)
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    (tmp_path / "taken").touch()
    for args, words in [
        (["absent.mp4", "--prompt", PROMPT], "absent.mp4: no such file"),
        ([".", "--prompt", PROMPT], "is a folder"),
        (["empty.mp4", "--prompt", PROMPT], "is empty"),
        (["cut.mp4", "--prompt", PROMPT], "cut short"),
        (["text.mp4", "--prompt", PROMPT], "not a video"),
        (["sound.wav", "--prompt", PROMPT], "has no video in it"),
        (["good.mp4", "--prompt", "a rad circle moves left"], "nearest words: red"),
        (["good.mp4", "--prompt", PROMPT, "--fps", 1], "2 frames at 1 fps are too few"),
        (["good.mp4", "--prompt", PROMPT, "--fps", -1], "fps must be a positive number"),
        (["good.mp4", "--prompt", PROMPT, "--out", "taken"], "taken: File exists"),
        (["good.mp4", "--prompt", " ; then ".join([PROMPT, "a blue square moves up"] * 9)], "do not fit"),
    ]:
        status, _, err = call("score", *args)
        assert status == 1 and err.startswith("reelgym: error: ") and err.count("\n") == 1 and words in err, err


def test_weights_that_are_not_there_are_named(tmp_path, capsys):
    assert main(["generate", PROMPT, "--weights", str(tmp_path)]) == 1
    assert "holds no generator that is known" in capsys.readouterr().err


@pytest.mark.parametrize("frames", [3, 5, 6, 7, 12, 14])
def test_windows_cover_every_frame_and_end_with_the_last(frames):
    length = min(TINY_LAYOUT.window_frames, frames)
    starts = windows(frames, length, TINY_LAYOUT.frames_per_chunk)
    assert {start + i for start in starts for i in range(length)} == set(range(frames))
    assert starts == sorted(set(starts)) and starts[-1] + length == frames


def test_more_windows_than_a_batch_change_nothing(weights, monkeypatch):
    reward, encoder = StreamReward(load_tiny("reward", weights / "reward")), load_encoder("reward", weights / "reward")
    video = torch.rand(30, 3, 32, 32)
    scorer = TinyScorer(reward, encoder, load_tiny("codec", weights / "codec"), 32)
    whole = scorer.score_windows(video, SCRIPT)
    monkeypatch.setattr(score_reward, "_BATCH", 2)
    parts = scorer.score_windows(video, SCRIPT)
    torch.testing.assert_close(whole.scores, parts.scores, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(whole.weights, parts.weights, atol=1e-4, rtol=1e-4)


def reward_files(files):
    return ["--reward", files.reward, "--backbone", files.backbone, "--prompt-template", files.template]


def test_score_by_videoreward(call, tmp_path, qwen_files):
    make_clip(tmp_path / "a.mp4", seconds=3, fps=10, size="160x96")
    args = ["score", "a.mp4", "--prompt", "anything a user writes", *reward_files(qwen_files)]
    status, out, err = call(*args)
    assert (status, err) == (0, "")
    assert "a.mp4: 6 frames of 30 (the file has 10 fps), 420 x 252 pixels, 1 windows" in out
    rows = json.loads(open("runs/score/results.json").read())["rows"]
    assert [row["kind"] for row in rows] == ["clip", "window"] + ["frame"] * 6
    assert [row["seconds"] for row in rows[2:]] == [0, 0.6, 1.2, 1.7, 2.3, 2.9]
    assert np.mean([row["weight"] for row in rows[2:]]) == pytest.approx(1) and rows[1]["last_frame"] == 5
    model = VideoReward.from_pretrained(qwen_files.reward, qwen_files.backbone, qwen_files.template, source_fps=10)
    clip = read_video("a.mp4")[0].movedim(-1, 1).float() / 255
    logits = model.score_clips([clip], ["anything a user writes"])[0]
    found = torch.tensor([rows[0][axis] for axis in model.axes])
    torch.testing.assert_close(found, (logits - model.mean) / model.std, atol=1e-4, rtol=1e-4)
    assert rows[0]["reward"] == pytest.approx(float(found.mean()))
    assert call(*args, "--no-frame-weights", "--fps", 4, "--out", "plain")[0] == 0
    plain = json.loads(open("plain/results.json").read())
    assert [row["kind"] for row in plain["rows"]] == ["clip", "window"] and plain["rows"][1]["last_frame"] == 11


def test_score_by_videoreward_says_what_is_wrong(call, tmp_path, qwen_files):
    make_clip(tmp_path / "a.mp4", seconds=1)
    make_clip(tmp_path / "short.mp4", seconds=1, fps=3)
    given = reward_files(qwen_files)
    for args, words in [
        (["absent.mp4", *given], "absent.mp4: no such file"),
        (["short.mp4", *given], "short.mp4: 3 frames are too few, the reward model needs 4"),
        (["a.mp4", *given[:4]], "template: not given; pass template= (--prompt-template)"),
        (["a.mp4", *given[:5], "none.txt"], "none.txt: no such file; pass template="),
        (["a.mp4", *given[:2], *given[4:]], "no backbone.json in it; pass backbone= (--backbone)"),
        (["a.mp4", *given, "--fps", 0], "fps must be a positive number"),
        (["a.mp4", "--reward", tmp_path], "no reward weights here"),
    ]:
        status, _, err = call("score", *args, "--prompt", "a")
        assert status == 1 and err.startswith("reelgym: error: ") and err.count("\n") == 1 and words in err, err


def test_score_by_a_reward_of_ones_own_pairs(call, tmp_path):
    vocab = ["cat", "dog", "runs", "sleeps"]
    manifest = {"vocab": vocab, "text_len": 3, "pairs": True, "fps": 4.0, "size": 40}
    torch.manual_seed(0)
    save_tiny(tmp_path / "own", build_reward(WordEncoder(vocab, 3).dim), manifest)
    make_clip(tmp_path / "a.mp4", seconds=2, fps=10)
    status, out, _ = call("score", "a.mp4", "--prompt", "dog sleeps", "--reward", "own")
    assert status == 0 and "a.mp4: 8 frames at 4 fps (the file has 10), 40 x 40 pixels, 2 windows" in out
    rows = json.loads(open("runs/score/results.json").read())["rows"]
    assert {row["prompt"] for row in rows if row["kind"] == "window"} == {"dog sleeps"}
    assert [row["seconds"] for row in rows if row["kind"] == "frame"] == [frame / 4 for frame in range(8)]
    status, out, _ = call("score", "a.mp4", "--prompt", "dog sleeps", "--reward", "own", "--fps", 5)
    assert status == 0 and "10 frames at 5 fps" in out
    assert "unknown word 'bird'" in call("score", "a.mp4", "--prompt", "bird sleeps", "--reward", "own")[2]
