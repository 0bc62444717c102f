"""Real encoded files, built with FFmpeg's own test sources through PyAV."""

import os
import resource
import struct
import wave
from fractions import Fraction
from itertools import product

import av
import numpy as np
import pytest
import torch
from PIL import Image

from reelgym.video import VideoError, VideoWriter, mark, provenance, read_video, write_video

SOURCE = "testsrc=duration=2:size=64x48:rate=25"


def encode(path, source=SOURCE, codec="libx264", options=None, pix_fmt="yuv420p", container_options=None):
    """Encode an FFmpeg test source, as the ffmpeg command would."""
    with av.open(source, format="lavfi") as given, av.open(str(path), "w", options=container_options) as out:
        video = given.streams.video[0]
        stream = out.add_stream(codec, rate=video.average_rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = video.width, video.height, pix_fmt
        for index, frame in enumerate(given.decode(video)):
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = index, 1 / Fraction(video.average_rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def source_frames(source):
    with av.open(source, format="lavfi") as given:
        return torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in given.decode(video=0)])


def blocks(frames=12, size=32):
    """Coloured squares that move on dark grey: uint8 [F, H, W, 3]."""
    video = np.full((frames, size, size, 3), 40, np.uint8)
    for f in range(frames):
        video[f, 4:12, f : f + 8] = (230, 40, 40)
        video[f, 18:28, 20 - f : 30 - f] = (40, 80, 230)
    return video


def test_colours_survive_the_round_trip(tmp_path):
    video = blocks()
    write_video(tmp_path / "a.mp4", video, 8, made_by=None)
    frames, fps = read_video(tmp_path / "a.mp4")
    assert frames.dtype == torch.uint8 and frames.shape == (12, 32, 32, 3) and fps == 8
    assert (frames.float() - torch.from_numpy(video).float()).abs().mean() < 6
    big = np.kron(video, np.ones((1, 4, 4, 1), np.uint8))
    write_video(tmp_path / "b.mkv", torch.from_numpy(big), 8, made_by=None)
    frames, fps = read_video(tmp_path / "b.mkv")
    small = frames.float().reshape(12, 32, 4, 32, 4, 3).mean((2, 4))
    assert fps == 8 and (small - torch.from_numpy(video).float()).abs().mean() < 2


@pytest.mark.parametrize("fps", [8, 29.97, 0.5, Fraction(24000, 1001)])
def test_frame_rate_and_count_survive(tmp_path, fps):
    write_video(tmp_path / "a.mp4", blocks(7), float(fps), made_by=None)
    frames, source = read_video(tmp_path / "a.mp4")
    assert len(frames) == 7 and source == pytest.approx(float(fps), rel=1e-4)


def test_odd_sizes_are_padded_by_repeating_the_edge(tmp_path):
    video = blocks(3, 33)[:, :, :31]
    write_video(tmp_path / "a.mp4", video, 8, made_by=None)
    frames, _ = read_video(tmp_path / "a.mp4")
    assert frames.shape == (3, 34, 32, 3)
    assert (frames[:, 33].float() - frames[:, 32].float()).abs().max() < 16


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"crf": "1"}),
        ("a.mkv", "libx264", {"crf": "1"}),
        ("a.ts", "mpeg2video", {"qscale": "1", "b": "20M"}),
        ("a.avi", "mpeg4", {"b": "20M"}),
        ("a.webm", "libvpx-vp9", {"crf": "2", "b": "0", "cpu-used": "8"}),
        ("a.mov", "mjpeg", {"b": "20M"}),
    ],
)
def test_reads_what_ffmpeg_makes(tmp_path, name, codec, options):
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    frames, fps = read_video(encode(tmp_path / name, SOURCE, codec, options, pix_fmt))
    assert frames.shape == (50, 48, 64, 3) and fps == pytest.approx(25)
    assert (frames.float() - source_frames(SOURCE).float()).abs().mean() < 12
    sampled, fps = read_video(tmp_path / name, fps=8)
    nearest = [0, 3, 6, 9, 12, 16, 19, 22, 25, 28, 31, 34, 37, 41, 44, 47]
    assert fps == pytest.approx(25) and torch.equal(sampled, frames[nearest])


def test_sampling_up_repeats_and_max_frames_stops(tmp_path):
    write_video(tmp_path / "a.mp4", blocks(4), 4, made_by=None)
    frames, _ = read_video(tmp_path / "a.mp4")
    assert torch.equal(read_video(tmp_path / "a.mp4", fps=8)[0], frames[[0, 0, 1, 1, 2, 2, 3, 3]])
    assert torch.equal(read_video(tmp_path / "a.mp4", fps=4)[0], frames)
    assert torch.equal(read_video(tmp_path / "a.mp4", max_frames=3)[0], frames[:3])
    means, _ = read_video(tmp_path / "a.mp4", each=lambda frame: frame.float().mean((0, 1)))
    torch.testing.assert_close(means, frames.float().mean((1, 2)))


@pytest.mark.parametrize(("turned", "one", "two"), list(product((False, True), (1, -1), (1, -1))))
def test_every_display_matrix_is_applied(tmp_path, turned, one, two):
    path = encode(tmp_path / "a.mp4", "testsrc=duration=0.2:size=64x48:rate=25", options={"crf": "1"})
    stored, _ = read_video(path)
    a, b, c, d = (0, one, two, 0) if turned else (one, 0, 0, two)
    head, tkhd, rest = path.read_bytes().partition(b"tkhd")
    identity, matrix = (
        struct.pack(">9i", p << 16, q << 16, 0, r << 16, s << 16, 0, 0, 0, 1 << 30)
        for p, q, r, s in ((1, 0, 0, 1), (a, b, c, d))
    )
    assert identity in rest
    path.write_bytes(head + tkhd + rest.replace(identity, matrix, 1))
    shown, _ = read_video(path)
    assert shown.shape == ((5, 64, 48, 3) if turned else (5, 48, 64, 3))
    y, x = torch.meshgrid(torch.arange(48), torch.arange(64), indexing="ij")
    height, width = shown.shape[1:3]
    right, down = (a * x + c * y - int(a + c < 0)) % width, (b * x + d * y - int(b + d < 0)) % height
    assert torch.equal(shown[:, down, right], stored)


def refuses(path, words, **kwargs):
    with pytest.raises(VideoError, match=words) as caught:
        read_video(path, **kwargs)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_what_is_no_file_is_named(tmp_path):
    refuses(tmp_path / "absent.mp4", "no such file")
    refuses(tmp_path, "is a folder")
    (tmp_path / "empty.mp4").touch()
    refuses(tmp_path / "empty.mp4", "is empty")


@pytest.mark.parametrize("name", ["a.txt", "a.mp4", "a.py", "a"])
def test_text_is_no_video(tmp_path, name):
    (tmp_path / name).write_text("a red circle moves left fast\n" * 200)
    refuses(tmp_path / name, "not a video")


def test_noise_is_no_video(tmp_path):
    (tmp_path / "a.mp4").write_bytes(np.random.default_rng(0).bytes(20_000))
    refuses(tmp_path / "a.mp4", "not a video")


def test_sound_alone_is_no_video(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(8000))
    refuses(tmp_path / "a.wav", "no video in it .found: audio")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {}),
        ("a.mp4", {"movflags": "faststart"}),
        ("a.mkv", {}),
        ("a.avi", {}),
    ],
)
@pytest.mark.parametrize("keep", [0.02, 0.3, 0.7])
def test_truncated_files_are_refused(tmp_path, name, options, keep):
    codec = "mpeg4" if name == "a.avi" else "libx264"
    path = encode(tmp_path / name, "testsrc=duration=6:size=64x48:rate=25", codec, container_options=options)
    whole = path.read_bytes()
    assert len(read_video(path)[0]) == 150
    path.write_bytes(whole[: int(keep * len(whole))])
    refuses(path, "cut short|no video")
    refuses(path, "cut short|no video", fps=8)


def test_a_last_frame_that_is_held_is_no_missing_end(tmp_path):
    pictures = [Image.new("RGB", (32, 32), (shade, 0, 0)) for shade in (0, 90, 180, 250)]
    lasts = [200, 200, 200, 3000]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=lasts)
    assert len(read_video(tmp_path / "a.gif")[0]) == 4


@pytest.mark.parametrize("where", ["file.txt/a.mp4", "folder.mp4", "/proc/a.mp4", "/dev/null/a.mp4"])
def test_unwritable_output_is_named(tmp_path, where):
    (tmp_path / "file.txt").touch()
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(VideoError, match="cannot be written|is a folder") as caught:
        write_video(tmp_path / where, blocks(3), 8, made_by=None)
    assert "\n" not in str(caught.value) and where in str(caught.value)


def test_wrong_frames_are_named(tmp_path):
    good = blocks(3)
    for bad in (good[0], good[:0], good.astype(np.float32), good[..., :1]):
        with pytest.raises(VideoError, match="uint8"):
            write_video(tmp_path / "a.mp4", bad, 8, made_by=None)
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(VideoError, match="fps"):
            write_video(tmp_path / "a.mp4", good, fps, made_by=None)
    with pytest.raises(VideoError, match=".mp4"):
        write_video(tmp_path / "a.txt", good, 8, made_by=None)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", blocks(3), 8, made_by=None)
    before = (tmp_path / "a.mp4").read_bytes()

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reelgym.video.write.os.replace", full_disk)
    with pytest.raises(VideoError, match="No space left"):
        write_video(tmp_path / "a.mp4", blocks(5), 8, made_by=None)
    assert (tmp_path / "a.mp4").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".MOV", ".mkv"])
def test_a_made_video_says_so(tmp_path, suffix):
    path, plain = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    write_video(path, blocks(3), 8, made_by="the\nstudent")
    write_video(plain, blocks(3), 8, made_by=None)
    assert provenance(path) == mark("the student") and provenance(plain) is None
    assert mark("the student").startswith("made by a model: the student; written by reelgym ")
    with av.open(str(path)) as container:
        tags = {name.lower(): value for name, value in container.metadata.items()}
    assert tags["comment"] == tags["reelgym_provenance"] == provenance(path)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_the_mark_is_in_no_pixel(tmp_path, suffix):
    marked, plain = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    for path, made_by in ((marked, "the student"), (plain, None)):
        write_video(path, blocks(), 8, made_by=made_by)
    assert marked.read_bytes() != plain.read_bytes()
    one, two = read_video(marked)[0], read_video(plain)[0]
    assert one.numpy().tobytes() == two.numpy().tobytes()


def test_the_comment_outlives_a_copy_and_a_new_encoding_loses_all(tmp_path):
    write_video(tmp_path / "a.mp4", blocks(3), 8, made_by="the student")
    with av.open(str(tmp_path / "a.mp4")) as given, av.open(str(tmp_path / "b.mp4"), "w") as out:
        out.metadata.update(given.metadata)
        stream = out.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    with av.open(str(tmp_path / "b.mp4")) as copy:
        assert "reelgym_provenance" not in copy.metadata
    assert provenance(tmp_path / "b.mp4") == mark("the student")
    write_video(tmp_path / "c.mp4", read_video(tmp_path / "a.mp4")[0], 8, made_by=None)
    assert provenance(tmp_path / "c.mp4") is None


def test_whoever_made_it_has_a_name(tmp_path):
    with pytest.raises(ValueError, match="made_by names who made the video"):
        write_video(tmp_path / "a.mp4", blocks(3), 8, made_by=" ")
    with pytest.raises(VideoError, match="no such file"):
        provenance(tmp_path / "a.mp4")
    (tmp_path / "a.mp4").write_text("a red circle moves left fast\n" * 200)
    with pytest.raises(VideoError, match="not a video that can be read"):
        provenance(tmp_path / "a.mp4")


def noise_into(path, how):
    """Write noise, and stop as `how` says; what there is to say of it."""
    random = np.random.default_rng(0)
    try:
        with VideoWriter(path, 8, made_by="a test") as writer:
            for part in range(50):
                writer.write(random.integers(0, 255, (4, 64, 64, 3), dtype=np.uint8))
                if how == "killed" and part == 25:
                    os._exit(9)
                if how == "interrupted" and part == 25:
                    raise KeyboardInterrupt
    except VideoError as error:
        return str(error)
    except KeyboardInterrupt:
        return f"{writer.left} {writer.frames}"
    return ""


def in_another_process(path, how, tmp_path):
    """The same in a process that may write no more than 600,000 bytes, or that is killed."""
    child = os.fork()
    if child == 0:
        if how == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
        (tmp_path / "said").write_text(noise_into(path, how))
        os._exit(0)
    os.waitpid(child, 0)
    return (tmp_path / "said").read_text() if (tmp_path / "said").exists() else ""


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_what_was_written_before_the_end_plays(tmp_path, suffix):
    path, part = tmp_path / f"a{suffix}", tmp_path / f"a.part{suffix}"
    said = in_another_process(path, "full", tmp_path)
    frames, fps = read_video(path)
    assert f"cannot be written (File too large); {path} holds the first {len(frames)} frames and plays" in said
    assert 20 < len(frames) < 200 and fps == 8 and provenance(path) == mark("a test") and not part.exists()
    path.unlink()
    assert noise_into(path, "interrupted") == f"{path} 104" and len(read_video(path)[0]) == 104
    whole = path.read_bytes()
    assert noise_into(path, "interrupted") == f"{part} 104" and path.read_bytes() == whole
    part.unlink()
    path.unlink()
    in_another_process(path, "killed", tmp_path)
    assert not path.exists()
    assert 80 < len(read_video(part)[0]) <= 104 and provenance(part) == mark("a test")
    assert noise_into(path, "none") == "" and len(read_video(path)[0]) == 200 and not part.exists()


def test_parts_are_the_whole(tmp_path):
    video = blocks(20)
    with VideoWriter(tmp_path / "new" / "a.mp4", 29.97, made_by=None) as writer:
        for part in (video[:1], torch.from_numpy(video[1:9]), video[9:]):
            writer.write(part)
            assert (tmp_path / "new" / "a.part.mp4").stat().st_size > 0 and not (tmp_path / "new" / "a.mp4").exists()
    write_video(tmp_path / "b.mp4", video, 29.97, made_by=None)
    (ours, fps), (theirs, _) = read_video(tmp_path / "new" / "a.mp4"), read_video(tmp_path / "b.mp4")
    assert torch.equal(ours, theirs) and fps == pytest.approx(29.97, rel=1e-4) and writer.frames == 20
    assert writer.left is None


def test_a_writer_says_what_is_wrong_before_a_frame_is_made(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "b.part.mp4").mkdir()
    for name, fps, words in [
        ("a.gif", 8, "name the file with one of"),
        ("a.mp4", 0, "fps must be"),
        ("a.mp4", 1e-6, "fps must be"),
        ("a.mp4", float("nan"), "fps must be"),
        ("b.mp4", 8, "b.part.mp4: is a folder"),
        ("folder.mp4", 8, "is a folder"),
        ("file/a.mp4", 8, "cannot be written"),
    ]:
        with pytest.raises(VideoError, match=words) as caught, VideoWriter(tmp_path / name, fps, made_by=None):
            raise AssertionError("the block was entered")
        assert "\n" not in str(caught.value)
    for crf in (-1, 52):
        with pytest.raises(VideoError, match="crf must be"):
            VideoWriter(tmp_path / "a.mp4", 8, made_by=None, crf=crf)
    with VideoWriter(tmp_path / "a.mp4", 8, made_by=None):
        pass
    with pytest.raises(VideoError, match="frames are 32x32, these are not"):
        with VideoWriter(tmp_path / "a.mp4", 8, made_by=None) as writer:
            writer.write(blocks(3))
            writer.write(blocks(3, 16))
    assert writer.left == tmp_path / "a.mp4" and len(read_video(writer.left)[0]) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.part.mp4", "file", "folder.mp4"]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_no_more_than_two_seconds_wait_for_the_disk(tmp_path, suffix):
    path, part = tmp_path / f"a{suffix}", tmp_path / f"a.part{suffix}"
    sizes = []
    with VideoWriter(path, 4, made_by="a test") as writer:
        for _ in range(12):
            writer.write(np.full((4, 32, 32, 3), 90, np.uint8))  # a scene without a cut
            sizes.append(part.stat().st_size)
            if writer.frames > 8:
                assert writer.frames - len(read_video(part)[0]) <= 9
    assert sizes[-1] > sizes[len(sizes) // 2] > sizes[0] and len(read_video(path)[0]) == 48
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 4 and container.duration == 12_000_000


def test_a_part_that_was_left_outlives_a_run_without_frames(tmp_path):
    part = tmp_path / "a.part.mp4"
    write_video(part, blocks(3), 8, made_by=None)
    before = part.read_bytes()
    with VideoWriter(tmp_path / "a.mp4", 8, made_by=None):
        pass
    assert part.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["a.part.mp4"]
