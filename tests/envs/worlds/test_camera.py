"""The camera: identity, determinism, parameters within their ranges."""

import pytest
import torch

from reelgym.envs.worlds.camera import CAMERAS, Camera, blurred, shoot

VIDEO = torch.rand(6, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_clean_camera_only_rounds():
    film = shoot(VIDEO, CAMERAS["clean"])
    assert (film - VIDEO).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(film, (film * 255).round() / 255)


def test_one_seed_one_film():
    films = [shoot(VIDEO, CAMERAS["phone"], torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(films[0], films[1]) and not torch.equal(films[0], films[2])


def test_every_clip_has_its_own_gain_within_the_range():
    film = shoot(torch.full((64, 1, 3, 8, 8), 0.5), Camera(gain=(0.8, 1.2), bits=16), torch.Generator().manual_seed(0))
    gain = film.mean((1, 2, 3, 4)) / 0.5
    assert 0.79 < gain.min() < 0.85 and 1.15 < gain.max() < 1.21


def test_every_clip_and_channel_has_its_own_tint():
    camera = Camera(tint=(0.4, 0.8), bits=16)
    film = shoot(torch.ones(64, 2, 3, 8, 8), camera, torch.Generator().manual_seed(0))
    tint = film.mean((-1, -2))
    assert torch.equal(tint[:, 0], tint[:, 1]) and tint.std((0, 1)).min() > 0.1 and tint[:, 0].std(1).mean() > 0.05
    assert 0.39 < tint.min() < 0.42 and 0.78 < tint.max() < 0.81


def test_a_camera_without_tint_draws_what_it_always_drew():
    camera = Camera(blur=(0.1, 0.4), gain=(0.9, 1.1), noise=(0.01, 0.02))
    random = torch.Generator().manual_seed(0)
    film = shoot(VIDEO, camera, random)
    again = torch.Generator().manual_seed(0)
    draw = torch.rand(3, len(VIDEO), generator=again)
    ranges = torch.tensor([camera.blur, camera.gain, camera.noise])
    blur, gain, noise = ranges[:, :1] + (ranges[:, 1:] - ranges[:, :1]) * draw
    exposed = blurred(VIDEO, blur[:, None].expand(6, 4)) * gain[:, None, None, None, None]
    exposed = exposed + torch.randn(VIDEO.shape, generator=again) * noise[:, None, None, None, None]
    assert torch.equal(film, (exposed.clamp(0, 1) * 255).round() / 255)
    assert torch.equal(random.get_state(), again.get_state())


def test_noise_has_the_named_strength():
    film = shoot(torch.full((8, 4, 3, 32, 32), 0.5), Camera(noise=(0.02, 0.02), bits=16))
    assert film.std().item() == pytest.approx(0.02, rel=0.05)


def test_blur_keeps_brightness_and_spares_what_has_sigma_zero():
    sigma = torch.zeros(6, 4)
    sigma[1] = 1.0
    soft = blurred(VIDEO, sigma)
    torch.testing.assert_close(soft[0], VIDEO[0])
    assert soft[1].std() < 0.6 * VIDEO[1].std()
    assert abs(soft[1].mean() - VIDEO[1].mean()) < 0.01


@pytest.mark.parametrize("wrong", [{"blur": (1.0, 0.0)}, {"noise": (-1.0, 0.0)}, {"bits": 0}])
def test_impossible_cameras_are_refused(wrong):
    with pytest.raises(ValueError, match="camera"):
        Camera(**wrong)
