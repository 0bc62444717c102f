import gymnasium
import numpy as np
import pytest
import torch

import reelgym  # noqa: F401
from reelgym.envs.clips import Clips
from reelgym.envs.draw import MARGIN, View, all_canvases, font, newest_canvases, to_pixels, wrapped
from reelgym.envs.game_rules import ThresholdPolicy
from reelgym.envs.registration import ENVS
from reelgym.envs.stream_gen import StreamGenVectorEnv
from reelgym.models.codec import Grid
from reelgym.models.detector import ClipDetector
from reelgym.rewards.windows import ChunkLayout

LONG = "a red circle that nobody has ever seen before moves left " * 5


def view(frames=2, size=(8, 8), panels=("frame", "map"), rows=2, text="a red circle", note="x", bar=0.0):
    pixels = np.full((rows, frames, *size, 3), 200, np.uint8)
    bars = {"VQ": torch.full((rows,), bar), "an axis with a long name": torch.zeros(rows)}
    return View(dict.fromkeys(panels, pixels), bars, ([note] * rows,), [text] * rows)


@pytest.mark.parametrize("size", [(8, 8), (33, 47), (240, 320)])
@pytest.mark.parametrize("panels", [("frame",), ("frame", "map", "noisy")])
def test_a_canvas_has_one_even_size_whatever_is_on_it(size, panels):
    views = [
        view(frames, size, panels, text=text, note=note, bar=bar)
        for frames, text, note, bar in ((0, "", "", 0.0), (1, LONG, LONG, 9.0), (3, "pneumono" * 30, "y", -9.0))
    ]
    shapes = {canvas.shape for seen in views for canvas in newest_canvases(seen)}
    shapes |= {canvas.shape for seen in views for row in all_canvases(seen) for canvas in row}
    ((height, width, depth),) = shapes
    assert depth == 3 and not height % 2 and not width % 2
    assert [[len(row) for row in all_canvases(seen)] for seen in views] == [[0, 0], [1, 1], [3, 3]]


def test_pixels_are_enlarged_and_nothing_else_is_drawn_over_them():
    pixels = np.arange(2 * 2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 2, 4, 4, 3)
    for row, canvas in enumerate(newest_canvases(View({"frame": pixels}, notes=(["x", "y"],)))):
        picture = canvas[MARGIN + 15 : MARGIN + 15 + 160, MARGIN : MARGIN + 160]
        assert (picture == pixels[row, -1].repeat(40, 0).repeat(40, 1)).all()


def test_a_panel_with_fewer_frames_keeps_its_last_and_one_without_is_black():
    few, many, none = (np.full((1, count, 4, 4, 3), count, np.uint8) for count in (1, 3, 0))
    (canvases,) = all_canvases(View({"few": few, "many": many, "none": none}))
    assert [[int(canvas[100, x, 0]) for x in (50, 220, 390)] for canvas in canvases] == [[1, 3, 0]] * 3


def test_bars_go_to_the_right_above_zero_and_to_the_left_below():
    up, down, full = (newest_canvases(view(bar=bar))[0].astype(int) for bar in (1.0, -1.0, 50.0))
    differ = np.flatnonzero((up != down).any((0, 2)))
    middle = (differ.min() + differ[differ < 280].max()) / 2
    assert (up[:, int(middle) + 10] != down[:, int(middle) + 10]).any()
    assert (full != up).any() and full.shape == up.shape


def test_words_are_wrapped_and_cut_where_there_is_no_room():
    assert wrapped("a red circle", 300, 2) == ["a red circle"] and wrapped("", 300, 2) == [""]
    for text in (LONG, "pneumono" * 30):
        lines = wrapped(text, 200, 2)
        assert len(lines) <= 2 and lines[-1].endswith("...")
        assert all(font().getlength(line) <= 200 for line in lines)


def test_pixels_are_rounded():
    assert to_pixels(torch.tensor([-1.0, 0.5, 2.0]).view(3, 1, 1)).tolist() == [[[0, 128, 255]]]


@pytest.mark.parametrize("name", ENVS)
def test_every_environment_is_drawn_with_one_size_and_no_step_changes(name):
    given = {
        "reelgym/StreamDetect-v0": {"clips": 4, "generated": 0.0},
        "reelgym/SelfPlayGenerator-v0": {"opponent": ThresholdPolicy(ClipDetector())},
        "reelgym/SelfPlayDetector-v0": {"clips": 2},
    }.get(name, {})
    env = gymnasium.make_vec(name, num_envs=2, render_mode="rgb_array", autoreset_mode="Disabled", **given)
    env.reset(seed=0)
    env.action_space.seed(0)
    made = [env, *(env.fork(torch.arange(2)) for _ in range(2))]
    made[1].render_mode, made[2].render_mode = "rgb_array_list", None
    shapes, over = set(), False
    while not over:
        frames, lists, nothing = [env.render() for env in made]
        shapes |= {canvas.shape for canvas in (*frames, *(canvas for row in lists for canvas in row))}
        assert nothing is None and len(frames) == len(lists) == 2
        assert all(not row or np.array_equal(row[-1], frame) for row, frame in zip(lists, frames, strict=True))
        action = torch.as_tensor(made[0].action_space.sample())
        steps = [env.step(action) for env in made]
        assert torch.equal(steps[0][1], steps[2][1]) and torch.equal(steps[1][1], steps[2][1])
        over = bool(steps[0][2].any())
    assert len(shapes) == 1


def test_steering_is_written_below(codec, reward, prompts, layout, generator):
    from reelgym.envs.stream_steer import StreamSteerVectorEnv

    env = StreamSteerVectorEnv(2, codec, reward, prompts, generator, layout=layout, autoreset_mode="Disabled")
    env.reset(seed=0)
    assert env._view(env.state).notes == (("", ""), ("", ""))
    action = torch.tensor([[0.5, 0, 0, 0, 1.0, 1.0, 1.0], [0, 0, -1.0, 0, -1.0, -1.0, -1.0]])
    env.step(action)
    how, led = env._view(env.state).notes
    assert how[0].startswith("9 passes: 4 steps") and how[1].startswith("2 passes: 1 steps, past 3, guidance 1.00")
    assert led == ("noise led by +0.50 +0.00 +0.00 +0.00", "noise led by +0.00 +0.00 -1.00 +0.00")


def test_a_causal_codecs_window_lies_on_its_own_grid(codec, reward, prompts):
    class Causal(type(codec)):
        def grid(self, frames, start=0):
            latent = (torch.arange(start, start + frames) + 3) // 4
            return Grid(latent - latent[0], 4, 4)

    clips = Clips(Causal(), reward, prompts, ChunkLayout(), torch.device("cpu"))
    assert clips._window_grid(9, 3).latent_of_frame.tolist() == [0, *[1] * 4, *[2] * 4]
    assert clips._window_grid(24, 6).latent_of_frame.tolist() == [frame // 4 for frame in range(24)]
    assert clips._window_grid(10, 9) is None


def test_a_fault_of_the_reward_is_not_drawn_over(codec, reward, prompts, layout, monkeypatch):
    env = StreamGenVectorEnv(2, codec, reward, prompts, layout=layout, render_mode="rgb_array")
    env.reset(seed=0)
    env.step(torch.zeros(2, 3, 4, 4, 4))

    def broken(*args, **kwargs):
        raise ValueError("the reward is broken")

    monkeypatch.setattr(type(reward), "weights", broken)
    with pytest.raises(ValueError, match="the reward is broken"):
        env.render()
