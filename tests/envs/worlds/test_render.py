"""The renderer: areas, places, lights and the bar."""

from dataclasses import replace

import pytest
import torch

from reelgym.envs.worlds.grammar import GRAMMARS, SHAPES, chunk_clauses, parse, sample_scripts
from reelgym.envs.worlds.render import BAR_GREY, cover, coverage, render
from reelgym.envs.worlds.scene import BACKGROUND, LIGHT_GAIN, RGB, SIDE, roll


def still(text, *, seed=0):
    return roll([chunk_clauses(parse(text), 1)], 3, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_every_shape_has_nearly_the_area_of_its_circle(shape):
    radius = torch.tensor([3.2, 4.6, 6.0])
    area = cover(shape, torch.full((3, 2), SIDE / 2), radius).sum((1, 2))
    assert ((area / (torch.pi * radius**2) - 1).abs() < 0.1).all()


def test_each_frame_gets_its_own_shape():
    position = 10 + 10 * torch.rand(7, 2, generator=torch.Generator().manual_seed(0))
    radius = torch.linspace(3, 6, 7)
    shape = torch.tensor([0, 1, 2, 3, 2, 1, 0])
    masks = coverage(position, radius, shape)
    for frame in range(7):
        assert torch.equal(masks[frame], cover(int(shape[frame]), position[frame], radius[frame]))


def test_colours_of_object_and_background():
    scene = replace(still("a large green square rests"), position=torch.full((1, 3, 2), 12.0))
    video = render(scene)
    assert video.shape == (1, 3, 3, SIDE, SIDE) and video.min() >= 0 and video.max() <= 1
    assert torch.allclose(video[0, 0, :, 12, 12], torch.tensor(RGB[1]))
    assert torch.allclose(video[0, 0, :, 30, 30], torch.full((3,), BACKGROUND))


def test_light_falls_on_everything():
    scene = still("a red circle rests")
    dimmed = replace(scene, light=scene.light * torch.tensor(LIGHT_GAIN[1]))
    torch.testing.assert_close(render(dimmed), render(scene) * LIGHT_GAIN[1][0])


def test_the_bar_stands_before_the_object():
    video = render(replace(still("a large red circle rests behind a bar"), position=torch.full((1, 3, 2), 16.0)))
    assert torch.allclose(video[..., 14:18], torch.tensor(BAR_GREY))
    assert not torch.allclose(video[..., 13], torch.tensor(BAR_GREY))


def test_a_clip_does_not_depend_on_its_neighbours():
    scripts = sample_scripts(40, split="train", seed=0, grammar=GRAMMARS["full"])
    scene = roll([chunk_clauses(script, 4) for script in scripts], 3, torch.Generator().manual_seed(0))
    last = replace(scene, **{name: getattr(scene, name)[-1:] for name in scene.__dataclass_fields__})
    assert torch.equal(render(scene)[-1:], render(last))
