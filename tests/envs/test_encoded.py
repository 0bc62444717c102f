"""Prompts and clips of one's own, encoded once: what is read, kept, split, left out and said."""

import errno
import json
import os
import signal
import time

import pytest
import torch

from reelgym.envs.data_files import DataFileError, read_clip_folder, read_prompts, split_by_hash
from reelgym.envs.encoded import EncodedData
from reelgym.envs.tensor_cache import FileDigests, TensorCache, TensorCacheError, cache_key, digest_of
from reelgym.models.codec import WanCodec
from reelgym.models.prompts import WordEncoder
from reelgym.video import write_video

WORDS = ("a", "red", "blue", "circle", "square", "moves", "left", "right", ";", "then")
VAE = {
    "base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 2, 2], "num_res_blocks": 1,
    "temperal_downsample": [False, True, True], "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4,
}  # fmt: skip
FRAMES = 5
"""Of a clip of two chunks of one latent."""


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    return WanCodec.from_config((48, 80), **VAE).eval()


class Cells:
    """Latents are the means of cells of 8x8 pixels, one frame in four."""

    size, channels = (48, 80), 3

    def encode(self, video):
        return video.unflatten(-1, (10, 8)).unflatten(-3, (6, 8)).mean((-1, -3))[:, ::4]

    def frames_of(self, latents):
        return 4 * latents - 3


@pytest.fixture
def cells():
    return Cells()


@pytest.fixture(autouse=True)
def said(monkeypatch):
    """Lines that were said."""
    lines = []
    for module in ("cached_encoder", "encoded"):
        monkeypatch.setattr(f"reelgym.envs.{module}.tell", lines.append)
    return lines


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Five clips that fit; one of another size and rate, one too short, one broken."""
    folder = tmp_path_factory.mktemp("clips")
    random = torch.Generator().manual_seed(0)
    rows = []

    def add(name, frames, size=(48, 80), fps=16, **more):
        start = torch.randint(256, (1, *size, 3), generator=random)
        moved = torch.cat([start.roll(place, 2) for place in range(frames)]).to(torch.uint8)
        write_video(folder / name, moved, fps, made_by=None)
        rows.append({"file_name": name, "text": "a red circle moves left", **more})

    for number in range(5):
        add(f"clip{number}.mp4", FRAMES + number, split="train")
    add("other.mp4", 2 * FRAMES + 2, (64, 128), 32, split="test")
    add("short.mp4", FRAMES - 2)
    (folder / "broken.mp4").write_bytes((folder / "clip0.mp4").read_bytes()[:900])
    rows.append({"file_name": "broken.mp4", "text": "a blue square moves right ; then a red circle moves left"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


class Counted:
    """Makes a part, and counts how often, and how often it encodes."""

    def __init__(self, part):
        self.part, self.made, self.encoded, self.channels = part, 0, 0, getattr(part, "channels", None)

    def __call__(self):
        self.made += 1
        return self

    def encode(self, given):
        self.encoded += len(given)
        return self.part.encode(given)

    def __getattr__(self, name):
        return getattr(self.part, name)


def data(codec, cache, places, **files):
    """What is encoded, and the two parts that count."""
    parts = Counted(WordEncoder(WORDS, 12)), Counted(codec)
    return EncodedData(files, cache, *parts, places, 2, 1, 16.0), *parts


@pytest.fixture
def places(tmp_path):
    """Where the parts would be read from: their digest asks for no loading."""
    for name in ("encoder", "codec"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_text(name)
    return {name: ([tmp_path / name / "weights.safetensors"], []) for name in ("encoder", "codec")}


def test_clips_are_encoded_once_and_then_nothing_is_loaded(codec, clips, places, tmp_path, said):
    first, encoder, counted = data(codec, tmp_path / "cache", places, clips=clips)
    found = first.clips("train", seed=3)
    latents, embeds = found(4, 0)
    assert latents.shape == (4, 2, 4, 6, 10) and embeds.shape == (4, 2, 12, 22)
    assert counted.encoded == 6 and encoder.encoded > 0 and len(found.keys) == 5
    whole = [line for line in said if "left out" in line]
    assert len(whole) == 1 and "2 (" in whole[0] and "broken.mp4: " in whole[0]
    assert "short.mp4: 3 frames at 16 a second, and a clip of this stack has 5" in whole[0]
    assert [line for line in said if "resampled" in line] == [
        f"{clips}: resampled, and cut at the centre: 1 (other.mp4: 128x64 pixels and 32 frames a second)"
    ]
    again, encoder, counted = data(codec, tmp_path / "cache", places, clips=clips)
    once_more = again.clips("train", seed=3)(4, 0)
    assert torch.equal(latents, once_more[0]) and torch.equal(embeds, once_more[1])
    assert (encoder.made, counted.made) == (0, 0)
    assert not torch.equal(latents, again.clips("train", seed=3)(4, 1)[0])


def test_another_codec_is_encoded_anew(cells, clips, places, tmp_path):
    one = data(cells, tmp_path / "cache", places, clips=clips)[0].clips("train")
    places["codec"][0][0].write_text("another")
    other, _, counted = data(cells, tmp_path / "cache", places, clips=clips)
    assert not set(other.clips("train").keys) & set(one.keys) and counted.encoded == 6


def forked(work):
    """The number of a process that does the work."""
    process = os.fork()
    if not process:
        try:
            work()
        finally:
            os._exit(0)
    return process


def slow_fill(codec, cache, places, clips, encoder):
    """Fills the cache, one shard a clip."""
    found, *_, counted = data(codec, cache, places, clips=clips)
    found.store.shard_bytes = 1
    found.text_encoder.make = encoder
    encode = counted.encode
    counted.encode = lambda video: (time.sleep(0.05), encode(video))[1]
    found.fill()


def shards(cache):
    return len(list(cache.glob("*.safetensors")))


def test_a_kill_loses_one_clip_at_most(cells, clips, places, tmp_path):
    cache, encoder = tmp_path / "cache", WordEncoder(WORDS, 12)
    data(cells, cache, places, clips=clips)[0].text_encoder.fill(["a red circle moves left", "a blue square"])
    texts = shards(cache)
    process = forked(lambda: slow_fill(cells, cache, places, clips, lambda: encoder))
    until = time.monotonic() + 20  # one text and two clips that cannot be used have shards too
    while shards(cache) < texts + 4 and time.monotonic() < until:
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    (cache / f".{os.uname().nodename}.{process}.x.safetensors.tmp").write_text("half a shard")
    before = TensorCache(cache)
    kept = sum(before.get(key).ndim == 4 for key in before)
    again, _, counted = data(cells, cache, places, clips=clips)
    assert again.fill() == {"clips": {"train": 5, "validation": 0, "test": 1}}
    assert 1 <= kept < 6 and counted.encoded == 6 - kept
    assert not list(cache.glob(".*.tmp"))


def test_two_writers_at_once(cells, clips, places, tmp_path):
    cache, encoder = tmp_path / "cache", WordEncoder(WORDS, 12)
    work = [forked(lambda: slow_fill(cells, cache, places, clips, lambda: encoder)) for _ in range(2)]
    assert [os.waitpid(process, 0)[1] for process in work] == [0, 0]
    both, words, counted = data(cells, cache, places, clips=clips)
    alone = data(cells, tmp_path / "alone", places, clips=clips)[0]
    found, expected = (one.clips("train", seed=1)(5, 2) for one in (both, alone))
    assert (counted.made, words.made) == (0, 0) and all(map(torch.equal, found, expected))


def test_adding_a_clip_moves_no_other(tmp_path):
    texts = [f"prompt {number}" for number in range(200)]
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(texts))
    before = {row.text: row.split for row in read_prompts(file)}
    file.write_text("\n".join(["another", *reversed(texts)]))
    after = {row.text: row.split for row in read_prompts(file)}
    assert before.items() <= after.items() and len(after) == 201
    counts = [list(before.values()).count(split) for split in ("train", "validation", "test")]
    assert 130 < counts[0] < 190 and min(counts) > 5
    assert split_by_hash("prompt 7") == before["prompt 7"]


def test_three_formats_say_the_same(tmp_path):
    (tmp_path / "a.txt").write_text("a cat\n\na dog, running ; then a cat\n")
    (tmp_path / "a.csv").write_text('prompt\na cat\n"a dog, running ; then a cat"\n')
    (tmp_path / "a.jsonl").write_text('"a cat"\n{"caption": "a dog, running ; then a cat"}\n')
    read = [[(row.text, row.split) for row in read_prompts(tmp_path / f"a.{kind}")] for kind in ("txt", "csv", "jsonl")]
    assert read[0] == read[1] == read[2] and len(read[0]) == 2
    row = read_prompts(tmp_path / "a.txt")[1]
    assert row.chunks(4) == ("a dog, running",) * 2 + ("a cat",) * 2
    with pytest.raises(ValueError, match="2 prompts do not fit into a clip of 1 chunks"):
        row.chunks(1)


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": }\n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", '{"words": "x"}\n', "line 1: has none of text, prompt, caption, but words"),
        ("a.jsonl", '{"text": ""}\n', "line 1: text is a text, or a list of one for each chunk, not ''"),
        ("a.csv", "text,split\nx,valid\n", "line 2: split is one of train, validation, test, not 'valid'"),
        ("a.txt", "\n", "holds no prompt"),
        ("a.md", "x", "prompts are in a .txt, .csv or .jsonl file"),
        ("a.txt", b"\xff\xfe", "cannot be read .not UTF-8"),
    ],
)
def test_bad_prompt_files_are_refused_in_one_line(tmp_path, name, text, complaint):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataFileError, match=complaint) as refused:
        read_prompts(tmp_path / name)
    assert "\n" not in str(refused.value)


def test_captions_and_files_that_lack_each_other(tmp_path):
    for name in ("a.mp4", "b.mp4", "deep/c.mov", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with pytest.raises(DataFileError, match="has neither metadata.jsonl or metadata.csv"):
        read_clip_folder(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\na.mp4,one\na.mp4,two\nlost.mp4,three\n../b.mp4,four\n")
    clips, notes = read_clip_folder(tmp_path)
    assert [(clip.path.name, clip.text) for clip in clips] == [("a.mp4", "one")]
    assert notes == {
        "captions without a file": ["lost.mp4", "../b.mp4"],
        "files without a caption": ["b.mp4", "deep/c.mov"],
        "captions given twice": ["a.mp4"],
    }
    (tmp_path / "metadata.csv").write_text("name,text\na.mp4,one\n")
    with pytest.raises(DataFileError, match="line 2: says no file_name"):
        read_clip_folder(tmp_path)


def test_prompts_are_drawn_by_split_and_those_that_the_encoder_refuses_are_left_out(codec, places, tmp_path, said):
    file = tmp_path / "prompts.csv"
    rows = ["a red circle moves left,train", "a blue square moves right,train", "a green circle,train", "a circle,test"]
    file.write_text("\n".join(["text,split", *rows]))
    found, encoder, _ = data(codec, tmp_path / "cache", places, prompts=file)
    prompts = found.prompts("train")
    embeds, texts = prompts(3, 5)
    assert embeds.shape == (3, 2, 12, 22) and {row[0] for row in texts} == {rows[0][:-6], rows[1][:-6]}
    assert prompts(3, 5)[1] == texts and prompts.encode(["a circle ; then a square"])[1] == (("a circle", "a square"),)
    assert torch.equal(embeds, WordEncoder(WORDS, 12).encode([row[0] for row in texts])[:, None].repeat(1, 2, 1, 1))
    assert len(said) == 1 and "left out of 4 prompts 1 (" in said[0] and "line 4: unknown word 'green'" in said[0]
    again, encoder, _ = data(codec, tmp_path / "cache", places, prompts=file)
    assert again.prompts("train")(3, 5)[1] == texts and encoder.made == 0
    with pytest.raises(DataFileError, match="none of 3 prompts is in the split 'validation'; give more, or a column"):
        found.prompts("validation")
    file.write_text("text\na green cow\n")
    with pytest.raises(DataFileError, match="none of its prompts can be used"):
        data(codec, tmp_path / "cache", places, prompts=file)[0].prompts("train")


def test_a_full_disk_loses_nothing_that_was_written(tmp_path, monkeypatch):
    sync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    cache = TensorCache(tmp_path / "cache", shard_bytes=1)
    with pytest.raises(TensorCacheError, match="No space left on device; 2 tensors are kept in this cache, 1 are not"):
        with cache:
            for number in range(9):
                cache.put(str(number), torch.full((4,), number))
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".safetensors"] * 2
    again = TensorCache(tmp_path / "cache")
    assert [str(number) in again for number in range(4)] == [True, True, False, False]
    assert again.get("1").tolist() == [1] * 4


def test_a_damaged_shard_counts_as_not_there(tmp_path):
    with TensorCache(tmp_path) as cache:
        cache.put("one", torch.zeros(100))
    (shard,) = tmp_path.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-8])
    assert "one" not in TensorCache(tmp_path)


def test_files_are_read_again_when_they_change(tmp_path):
    (tmp_path / "a").write_text("one")
    first = FileDigests(tmp_path / "cache")
    one = first.of(tmp_path / "a")
    first.save()
    (tmp_path / "a").write_text("two")
    os.utime(tmp_path / "a", ns=(1, 1))
    assert FileDigests(tmp_path / "cache").of(tmp_path / "a") != one
    with pytest.raises(ValueError, match="name its folder"):
        digest_of(object())
    assert cache_key("a", 1, None) != cache_key("a", 1, 0)
