import gc
import sys
import tracemalloc
from types import ModuleType

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import RecordVideo
from gymnasium.wrappers.vector import RecordVideo as VectorRecordVideo

from reelgym.envs.recording import RecordClips
from reelgym.envs.single import SingleEnv
from reelgym.envs.stream_denoise import StreamDenoiseVectorEnv
from reelgym.envs.stream_gen import StreamGenVectorEnv
from reelgym.envs.stream_steer import StreamSteerVectorEnv
from reelgym.video import mark, provenance, read_video, write_video

GROWTH = 200_000
"""Bytes; a clip's canvases are far more."""


@pytest.fixture
def make(codec, reward, prompts, layout):
    def made(mode, kind=StreamGenVectorEnv, **others):
        vector = kind(1, codec, reward, prompts, layout=layout, autoreset_mode="Disabled", render_mode=mode, **others)
        return SingleEnv(vector)

    return made


@pytest.fixture
def moviepy(monkeypatch):
    """A stand-in for the one class of moviepy that RecordVideo uses, since moviepy's Pillow is not ours: it writes
    through write_video. So what is tested is everything up to the encoder."""

    class ImageSequenceClip:
        def __init__(self, frames, fps):
            self.frames, self.fps = frames, fps

        def write_videofile(self, path, logger=None):
            write_video(path, np.stack(self.frames), self.fps, made_by=None)

    names = ("moviepy", "moviepy.video", "moviepy.video.io", "moviepy.video.io.ImageSequenceClip")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[-1]].ImageSequenceClip = ImageSequenceClip


def play(env, episodes=1, seed=0):
    env.action_space.seed(seed)
    for episode in range(episodes):
        env.reset(seed=seed + episode)
        done = False
        while not done:
            _, _, done, _, _ = env.step(env.action_space.sample())


def test_a_file_an_episode_with_every_frame(make, tmp_path):
    env = RecordClips(make("rgb_array_list"), tmp_path / "new")
    play(env, 2)
    assert [path.name for path in sorted((tmp_path / "new").iterdir())] == ["clip-000000.mp4", "clip-000001.mp4"]
    frames, fps = read_video(env.path)
    shown = env.render()
    assert provenance(env.path) == mark("an agent in an environment")
    assert len(frames) == 4 * 3 and fps == 8 and frames.shape[1:] == shown[0].shape
    assert (frames[-1].int() - torch.from_numpy(shown[-1]).int()).abs().float().mean() < 8


@pytest.mark.parametrize(("mode", "count"), [("rgb_array_list", 17 * 3), ("rgb_array", 17)])
def test_of_denoising_every_step(make, tmp_path, mode, count):
    env = RecordClips(make(mode, StreamDenoiseVectorEnv), tmp_path)
    play(env)
    frames, fps = read_video(env.path)
    assert len(frames) == count and fps == env.metadata["render_fps"]


def test_of_steering(make, tmp_path, generator):
    env = RecordClips(make("rgb_array_list", StreamSteerVectorEnv, generator=generator), tmp_path, fps=4)
    play(env)
    frames, fps = read_video(env.path)
    assert len(frames) == 12 and fps == 4


def test_an_episode_that_is_cut_off_is_written(make, tmp_path):
    env = RecordClips(make("rgb_array_list"), tmp_path, name="cut")
    for steps in (1, 2):
        env.reset(seed=0)
        for _ in range(steps):
            env.step(env.action_space.sample())
    env.close()
    assert [len(read_video(tmp_path / f"cut-00000{episode}.mp4")[0]) for episode in range(2)] == [3, 6]


def test_only_the_episodes_that_were_asked_for(make, tmp_path):
    play(RecordClips(make("rgb_array"), tmp_path, trigger=lambda episode: episode == 1), 3)
    assert [path.name for path in tmp_path.iterdir()] == ["clip-000001.mp4"]


def test_an_environment_that_shows_nothing_is_refused(make, tmp_path):
    with pytest.raises(ValueError, match="nothing to record"):
        RecordClips(make(None), tmp_path)


@pytest.mark.parametrize("kind", [StreamGenVectorEnv, StreamDenoiseVectorEnv])
def test_gymnasiums_record_video_takes_one_frame_a_step(make, tmp_path, moviepy, kind):
    env = RecordVideo(make("rgb_array", kind), str(tmp_path / "videos"), episode_trigger=lambda episode: episode < 2)
    play(env, 2)
    env.close()
    steps = 4 if kind is StreamGenVectorEnv else 16
    for episode in range(2):
        frames, fps = read_video(tmp_path / "videos" / f"rl-video-episode-{episode}.mp4")
        assert len(frames) == steps + 1 and fps == 3


def test_gymnasiums_record_video_of_vectors_puts_them_side_by_side(codec, reward, prompts, layout, tmp_path, moviepy):
    vector = StreamGenVectorEnv(4, codec, reward, prompts, layout=layout, autoreset_mode="Disabled",
                                render_mode="rgb_array")  # fmt: skip
    env = VectorRecordVideo(vector, str(tmp_path / "videos"), episode_trigger=lambda episode: True)
    env.reset(seed=0)
    for _ in range(layout.chunks):
        env.step(torch.zeros(env.action_space.shape))
    height, width, _ = env.render()[0].shape
    env.close()
    frames, _ = read_video(tmp_path / "videos" / "rl-video-episode-0.mp4")
    assert len(frames) == layout.chunks + 1 and frames[0].numel() == 4 * height * width * 3


@pytest.mark.parametrize("kind", ["RecordClips", "RecordVideo"])
def test_memory_does_not_grow_over_episodes(make, tmp_path, moviepy, kind):
    if kind == "RecordClips":
        env = RecordClips(make("rgb_array_list"), tmp_path)
    else:
        env = RecordVideo(make("rgb_array"), str(tmp_path / "videos"), episode_trigger=lambda episode: True)
    play(env, 2)
    tracemalloc.start()
    sizes = []
    for _ in range(3):
        play(env, 2)
        gc.collect()
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    env.close()
    assert sizes[-1] - sizes[0] < GROWTH


def test_made_by_name_and_wrapped_it_can_be_made_again(tmp_path):
    env = RecordClips(gymnasium.make("reelgym/StreamGen-v0", render_mode="rgb_array_list"), str(tmp_path))
    assert env.spec.additional_wrappers[-1].name == "RecordClips"
    again = gymnasium.make(env.spec)
    play(again)
    assert len(read_video(tmp_path / "clip-000000.mp4")[0]) == 12
