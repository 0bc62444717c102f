"""The reward from preference pairs: from video files and a table to weights that score, and every complaint between."""

import csv
import json
import re

import numpy as np
import pytest
import torch

from reelgym.envs.worlds.clips import make_clips
from reelgym.envs.worlds.fakes import FAKES
from reelgym.experiments.cli import main
from reelgym.experiments.pretrain import pairs as trainer
from reelgym.experiments.pretrain import pairs_accuracy as measures
from reelgym.experiments.pretrain import pairs_data as data
from reelgym.models.reward_net import TinyReward
from reelgym.models.tiny import build_reward, load_encoder, load_manifest, load_tiny
from reelgym.video import read_video, write_video

HEADER = ["path_A", "path_B", "prompt", "VQ", "MQ", "TA"]
PROMPTS = ("a red circle moves left", "a blue square moves up, then it rests for a while; so it does")


def save(path, video):
    write_video(path, (video * 255).round().to(torch.uint8).movedim(1, -1), 8, made_by=None)


def write_table(path, rows, header=HEADER):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve true clips, each beside one fake of its own, all axes judged or not in every way there is."""
    folder = tmp_path_factory.mktemp("pairs")
    clips, rows = make_clips(12, split="train", seed=3, grammar="plain"), []
    draws = torch.Generator().manual_seed(0)
    fakes = [FAKES[name](clips.scene, torch.full((12,), 0.8), draws) for name in ("texture_noise", "jitter", "flicker")]
    for i in range(12):
        prompt = str(clips.clauses[i][-1]) if i else PROMPTS[1]
        save(folder / f"true_{i}.mp4", clips.frames(torch.tensor([i]))[0][: 5 if i == 1 else 12])
        save(folder / f"fake_{i}.mp4", fakes[i % 3][i])
        labels = [("A", "same", "same"), ("same", "A", ""), ("same", "invalid", "A")][i % 3]
        given = [f"true_{i}.mp4", f"fake_{i}.mp4"]
        turned = ["B" if label == "A" else label for label in labels]
        rows.append(["x", *given, prompt, *labels] if i % 2 else ["x", *given[::-1], prompt, *turned])
    write_table(folder / "pairs.csv", [*rows, ["x", "absent.mp4", "gone.mp4", "", "", "invalid", ""]], ["id", *HEADER])
    return folder


def table_of(folder, tmp_path, rows):
    """A table in another folder, with the videos' full paths."""
    return write_table(tmp_path / "t.csv", [[*(f"{folder / name}" for name in row[:2]), *row[2:]] for row in rows])


def train(table, out, *more):
    args = ["--pairs", str(table), "--steps", "2", "--threads", "1", "--out", str(out), *map(str, more)]
    return main(["train", "reward", *args])


def test_from_files_to_weights(folder, tmp_path, capsys):
    assert train(folder / "pairs.csv", tmp_path / "run") == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "split by videos" in out and re.search(r"^VQ +[123]  ", out, re.MULTILINE)
    weights = tmp_path / "run" / "weights"
    manifest, model, encoder = (load(*("reward", weights)) for load in (load_manifest, load_tiny, load_encoder))
    assert manifest["pairs"] is True and manifest["split"] == "videos" and manifest["fps"] == 8
    assert manifest["size"] == 32 and manifest["recipe"]["validation"] == 0.2 and manifest["judged"]["VQ"] > 0
    quality = manifest["quality"]
    assert quality["pairs_VQ"] == 2 and 0 <= quality["accuracy_ties_VQ"] <= 1 and quality["tie_threshold_VQ"] >= 0
    assert encoder.text_len == manifest["text_len"] == 16 and encoder.vocab == tuple(manifest["vocab"])
    video = read_video(folder / "true_0.mp4")[0].movedim(-1, 1)[None, :6].float() / 255
    scores = model(video, encoder.encode([PROMPTS[1]]))
    assert scores.shape == (1, 3) and scores.isfinite().all() and (model.mean != 0).all() and (model.std != 1).all()


def test_a_resumed_run_is_the_run_and_other_data_do_not_resume(folder, tmp_path, capsys):
    rows = [["true_0.mp4", "fake_0.mp4", PROMPTS[0], "A", "", ""], ["true_2.mp4", "fake_2.mp4", "", "", "same", ""]]
    table = table_of(folder, tmp_path, rows)
    assert train(table, tmp_path / "whole", "--size", 16) == 0
    assert "split by pairs" in (out := capsys.readouterr().out) and "judged on TA: its scores mean nothing" in out
    assert train(table, tmp_path / "parts", "--size", 16, "--stop", 1) == train(table, tmp_path / "parts", "--size", 16)
    whole, parts = (load_tiny("reward", tmp_path / name / "weights") for name in ("whole", "parts"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    manifest = load_manifest("reward", tmp_path / "parts" / "weights")
    assert manifest["split"] == "pairs" and manifest["quality"]["pairs_TA"] == 0 and manifest["size"] == 16
    assert not {"accuracy_TA", "floor_TA", "accuracy_ties_TA", "tie_threshold_TA"} & set(manifest["quality"])
    assert "NaN" not in (tmp_path / "parts" / "weights" / "checkpoint.json").read_text()
    capsys.readouterr()
    assert train(table, tmp_path / "parts", "--size", 24) == 1
    table_of(folder, tmp_path, [*rows, ["true_3.mp4", "fake_3.mp4", "", "A", "", ""]])
    assert train(table, tmp_path / "parts", "--size", 16) == 1
    errors = capsys.readouterr().err.splitlines()
    errors = [line for line in errors if line.startswith("reelgym: error")]
    assert len(errors) == 2 and "differ in data.size: " in errors[0] and "differ in data.pairs: " in errors[1]
    assert all("go on with that one, or give another --out" in error for error in errors)


def test_a_single_pair_is_trained_on(folder, tmp_path, capsys):
    table = table_of(folder, tmp_path, [["true_0.mp4", "fake_0.mp4", PROMPTS[0], "A", "A", "A"]])
    assert train(table, tmp_path / "run", "--size", 8) == 0, capsys.readouterr().err
    assert load_manifest("reward", tmp_path / "run" / "weights")["quality"]["pairs_VQ"] == 0


def test_a_file_is_read_once_at_its_size_and_rate(folder, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(data, "read_video", lambda path, *a, **k: read.append(path) or read_video(path, *a, **k))
    rows = [["true_0.mp4", f"fake_{i}.mp4", PROMPTS[0], "A", "B", "same"] for i in range(3)]
    table = table_of(folder, tmp_path, rows)
    pairs = data.load_pairs(table, data.read_table(table), 4.0, 16)
    assert len(read) == len(set(read)) == len(pairs.videos) == 4
    assert pairs.videos[0].shape == (6, 3, 16, 16) and pairs.videos[0].dtype == torch.uint8
    assert pairs.places.tolist() == [[0, 1], [0, 2], [0, 3]] and pairs.labels[0].tolist() == [1, -1, 0]
    whole = read_video(folder / "true_0.mp4")[0][::2].float()
    area = whole.reshape(6, 16, 2, 16, 2, 3).mean((2, 4)).movedim(-1, 1)
    assert (pairs.videos[0] - area).abs().max() <= 0.51


def test_the_split_shares_no_video():
    draws = torch.Generator().manual_seed(0)
    places = torch.randint(90, (40, 2), generator=draws)
    for seed in range(10):
        split = data.split_pairs(places, 0.25, seed)
        sides = [set(places[rows].flatten().tolist()) for rows in (split.train, split.validation)]
        assert split.kind == "videos" and not sides[0] & sides[1] and split.validation
        assert sorted(split.train + split.validation) == list(range(40)) and len(split.validation) <= 10
    assert data.split_pairs(places, 0.25, 0) == data.split_pairs(places, 0.25, 0) != data.split_pairs(places, 0.25, 1)


def test_groups_are_found_through_other_pairs():
    places = torch.tensor([[0, 1], [2, 3], [3, 1], [4, 5]])
    assert data.groups(places) == [[0, 1, 2], [3]]
    assert data.split_pairs(places, 0.25, 0).kind == "pairs"
    big = torch.tensor([[2 * group, 2 * group + side] for group in range(5) for side in (1, 1, 1)])
    split = data.split_pairs(big, 0.01, 0)
    assert split.kind == "videos" and len(split.validation) == 3
    assert data.split_pairs(torch.tensor([[0, 1]]), 0.2, 0) == data.Split([0], [], "pairs")
    assert len(data.split_pairs(torch.tensor([[0, 1], [0, 2]]), 0.9, 0).train) == 1


def test_the_vocabulary_is_what_the_encoder_reads():
    encoder = data.encoder_of_prompts(["A red, round ball; it rolls", ""])
    assert encoder.vocab == (",", ";", "a", "ball", "it", "red", "rolls", "round") and encoder.text_len == 8
    assert encoder.encode(["a RED, round ball; it rolls"]).any(-1).all()
    assert data.encoder_of_prompts(["word " * 11]).text_len == 11


@pytest.mark.parametrize("frames", [3, 5, 6, 7, 9, 12, 200])
def test_windows_cover_a_video_evenly(frames):
    starts, length = trainer.window_starts(frames), min(6, frames)
    assert starts[0] == 0 and starts[-1] + length == frames and len(starts) == len(set(starts)) <= 8
    if frames <= 27:
        assert {start + i for start in starts for i in range(length)} == set(range(frames))
    assert max(np.diff(starts), default=0) - min(np.diff(starts), default=0) <= 1


def test_a_score_is_the_mean_over_windows_whatever_the_company(monkeypatch):
    torch.manual_seed(0)
    encoder = data.encoder_of_prompts(PROMPTS)
    model = TinyReward(encoder.dim).eval()
    videos = [torch.randint(256, (frames, 3, 16, 16)).byte() for frames in (4, 9, 30)]
    wanted = [(2, PROMPTS[0]), (0, PROMPTS[1]), (1, PROMPTS[0])]
    scores = trainer.score_looks(model, encoder, videos, wanted)
    alone = model(videos[1][None, :6] / 255, encoder.encode(PROMPTS[:1]))
    after = model(videos[1][None, 3:] / 255, encoder.encode(PROMPTS[:1]))
    torch.testing.assert_close(scores[2], (alone + after)[0] / 2, atol=1e-5, rtol=1e-4)
    monkeypatch.setattr(trainer, "_BATCH", 2)
    torch.testing.assert_close(trainer.score_looks(model, encoder, videos, wanted), scores, atol=1e-5, rtol=1e-4)


def test_what_is_not_judged_teaches_nothing():
    torch.manual_seed(0)
    encoder = data.encoder_of_prompts(PROMPTS)
    model = build_reward(encoder.dim)
    videos = tuple(torch.randint(256, (8, 3, 16, 16)).byte() for _ in range(2))
    judged = torch.tensor([[True, False, False]])
    pairs = data.Pairs(videos, torch.tensor([[0, 1]]), PROMPTS[:1], torch.tensor([[1, 0, 0]]), judged)
    trainer._pair_loss(model, encoder, pairs, torch.tensor([0]), torch.tensor([[0.0, 0.99]])).backward()
    assert model.heads[0][-1].weight.grad.abs().sum() > 0 and model.heads[1][-1].weight.grad.abs().sum() == 0
    assert model.words.weight.grad.abs().sum() == 0


def test_accuracies_on_numbers():
    d, label = np.array([3.0, -2.0, 0.1, -0.2, 1.0, 0.0]), np.array([1, -1, 0, 0, -1, 1])
    assert measures.accuracy(d, label) == 0.5
    # of 0, .1, .2, 1, 2, 3 the first three (or four) are said to be the same: two ties and two sides are right
    best, threshold = measures.accuracy_with_ties(d, label)
    assert best == pytest.approx(4 / 6) and threshold == pytest.approx(0.6)
    best, threshold = measures.accuracy_with_ties(d[:2], label[:2])
    assert (best, threshold) == (1, 0)
    best, threshold = measures.accuracy_with_ties(np.array([1.0, 1.0, -1.0]), np.array([0, 0, 1]))
    assert best == pytest.approx(2 / 3) and 1 < threshold < 1.001
    best, threshold = measures.accuracy_with_ties(np.zeros(3), np.array([1, 0, -1]))
    assert best == pytest.approx(1 / 3) and 0 < threshold < 1e-9


def test_the_threshold_is_the_best_of_all():
    draws = np.random.default_rng(0)
    for count in (1, 2, 7, 20):
        d = draws.integers(-4, 5, (5, count)) / 2
        label = draws.integers(-1, 2, count)
        best, threshold = measures.accuracy_with_ties(d, label)

        def reached(row, t, d=d, label=label):
            said = np.where(np.abs(d[row]) < t, 0, np.where(d[row] == 0, 2, np.sign(d[row])))
            return (said == label).mean()

        for row in range(5):
            assert best[row] == pytest.approx(max(reached(row, t) for t in np.arange(0, 3, 0.25)))
            assert reached(row, threshold[row]) == pytest.approx(best[row])


def test_the_floor_is_what_chance_reaches():
    label = np.array([1, -1] * 50 + [0] * 100)
    d = np.where(label == 0, 0.01, label) * np.linspace(1, 2, 200)
    good = measures.agreement(d, label)
    assert good["accuracy"] == good["accuracy_ties"] == 1 and good["pairs"] == 200
    assert good["floor"] == pytest.approx(0.5, abs=0.02) and 0.5 <= good["floor_ties"] < 0.6
    assert measures.agreement(d, label) == good
    assert np.array_equal(np.sort(np.abs(measures.shuffled(d, 4)), axis=1), np.tile(np.sort(np.abs(d)), (4, 1)))
    assert measures.agreement(np.where(label == 0, 0, d), label)["floor"] == pytest.approx(0.5, abs=0.02)
    ties = measures.agreement(np.array([0.5, -0.25]), np.array([0, 0]))
    assert "accuracy" not in ties and "floor" not in ties and ties["accuracy_ties"] == ties["floor_ties"] == 1
    assert measures.agreement(d[:0], label[:0]) == {"pairs": 0}
    lines = measures.table({"pairs_VQ": 2, "accuracy_VQ": 0.5, "pairs_TA": 0}, ("VQ", "TA")).splitlines()
    assert lines[1].split() == ["VQ", "2", "0.500", "-", "-", "-", "-"] and lines[2].split() == ["TA", "0", *"-----"]
    json.dumps(good, allow_nan=False)


GOOD = ["true_0.mp4", "fake_0.mp4", "a red circle", "A", "", ""]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([GOOD, ["absent.mp4", *GOOD[1:]]], r"t.csv row 3, path_A: .*absent.mp4: no such file"),
        ([["true_0.mp4", "cut.mp4", *GOOD[2:]]], r"row 2, path_B: .*cut.mp4: not a video"),
        ([["true_0.mp4", "short.mp4", *GOOD[2:]]], r"path_B: .*short.mp4: 2 frames at 8 fps are too few, .* needs 3"),
        ([GOOD, [], [*GOOD[:3], "A", "better", ""]], r"row 4: 'better' under MQ; use A, B, same, invalid or nothing"),
        ([[*GOOD[:2], "a red", " circle", "A", "A", "B"]], r"row 2: 7 cells under 6 columns; put a prompt"),
        ([["", *GOOD[1:]]], r"row 2: no file under path_A"),
        ([GOOD[:1]], r"row 2: no file under path_B"),
        ([["x.mp4", "./x.mp4", *GOOD[2:]]], r"row 2: path_A and path_B are the same video"),
        ([[*GOOD[:3], "", "invalid", ""]], r"t.csv: no usable pair"),
        ([], r"t.csv: no usable pair"),
    ],
)
def test_a_table_says_what_is_wrong_with_it(folder, tmp_path, capsys, rows, words):
    for name in GOOD[:2]:
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "cut.mp4").write_bytes((folder / "true_0.mp4").read_bytes()[:900])
    write_video(tmp_path / "short.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8, made_by=None)
    assert train(write_table(tmp_path / "t.csv", rows), tmp_path / "run") == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("reelgym: error: ") and re.search(words, err), err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "t.csv: no such file"),
        (b"", "t.csv: no column path_A; the first row has to name path_A, path_B, prompt, VQ, MQ, TA"),
        (b"path_A,path_B,prompt,VQ,MQ\n", "t.csv: no column TA"),
        (b"path_A,path_B,prompt,VQ,MQ,TA\n\xff\xfe,b,c,A,A,A\n", "t.csv: not a CSV file in UTF-8"),
    ],
)
def test_a_file_that_is_no_table(tmp_path, capsys, content, words):
    if content is not None:
        (tmp_path / "t.csv").write_bytes(content)
    assert train(tmp_path / "t.csv", tmp_path / "run") == 1
    assert words in capsys.readouterr().err


def test_a_table_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "t.csv").write_bytes("\ufeffpath_A,path_B,prompt,VQ,MQ,TA\na,b,,A,,\n".encode())
    (row,) = data.read_table(tmp_path / "t.csv")
    assert row.number == 2 and row.labels == (1, None, None) and row.paths[0] == (tmp_path / "a").resolve()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["codec", "--pairs", "t.csv"], "--pairs trains the reward, not the codec"),
        (["reward", "--pairs", "t.csv", "--install"], "--install would put a reward with the vocabulary of your pairs"),
        (["reward", "--fps", "4"], "--fps, --size and --validation say how to read --pairs"),
        (["reward", "--pairs", "t.csv", "--size", "20"], "size must be a multiple of 8, not 20"),
        (
            ["reward", "--pairs", "t.csv", "--validation", "1"],
            "validation is a share of the pairs between 0 and 1, not 1",
        ),
        (["reward", "--pairs", "t.csv", "--fps", "0"], "fps must be a positive number, not 0"),
    ],
)
def test_options_that_do_not_fit(tmp_path, capsys, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *args]) == 1
    assert words in capsys.readouterr().err
