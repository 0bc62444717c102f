import pytest
import torch

from reelgym.models.codec import FrameCodec, WanCodec

CONFIG = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (8, 8, 16),
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 32,
    "mid_block_add_attention": False,
}


@pytest.fixture(scope="module")
def codec() -> FrameCodec:
    torch.manual_seed(0)
    codec = FrameCodec.from_config(CONFIG).requires_grad_(False).eval()
    codec.calibrate(torch.rand(4, 3, 3, 32, 32))
    return codec


def test_shapes_and_unit_variance(codec: FrameCodec) -> None:
    torch.manual_seed(0)
    video = torch.rand(4, 3, 3, 32, 32)
    latents = codec.encode(video)
    assert latents.shape == (4, 3, 4, 8, 8)
    assert torch.allclose(latents.mean(dim=(0, 1, 3, 4)), torch.zeros(4), atol=0.2)
    assert torch.allclose(latents.std(dim=(0, 1, 3, 4)), torch.ones(4), atol=0.2)
    decoded = codec.decode(latents)
    assert decoded.shape == video.shape and decoded.min() >= 0 and decoded.max() <= 1


def test_rows_and_frames_are_independent(codec: FrameCodec) -> None:
    video = torch.rand(3, 2, 3, 32, 32)
    latents = codec.encode(video)
    for i in range(3):
        assert torch.allclose(codec.encode(video[i : i + 1]), latents[i : i + 1], atol=1e-5)
        assert torch.allclose(codec.decode(latents[i : i + 1]), codec.decode(latents)[i : i + 1], atol=1e-5)
    assert torch.allclose(codec.encode(video[:, 1:]), latents[:, 1:], atol=1e-5)


def test_decode_keeps_the_gradient_outside_the_unit_range(codec: FrameCodec) -> None:
    latents = (torch.randn(1, 1, 4, 8, 8) * 50).requires_grad_()
    video = codec.decode(latents)
    assert video.min() < 0 or video.max() > 1
    (gradient,) = torch.autograd.grad(video.sum(), latents)
    assert gradient.abs().sum() > 0
    clamped = codec.decode(latents, clamp=True)
    assert clamped.min() >= 0 and clamped.max() <= 1


def test_streaming_decode_equals_whole_clip(codec: FrameCodec) -> None:
    latents = torch.randn(2, 6, 4, 8, 8)
    state = codec.open()
    first, state = codec.decode_stream(latents[:, :3], state)
    rows = torch.tensor([1, 1, 0])
    second, state = codec.decode_stream(latents[rows, 3:], state.take(rows))
    whole = codec.decode(latents)
    assert torch.allclose(first, whole[:, :3], atol=1e-5)
    assert torch.allclose(second, whole[rows, 3:], atol=1e-5)


def test_frame_grid_and_loss(codec: FrameCodec) -> None:
    grid = codec.grid(5)
    assert grid.latent_of_frame.tolist() == [0, 1, 2, 3, 4] and (grid.h, grid.w, grid.latent_frames) == (8, 8, 5)
    loss = FrameCodec.from_config(CONFIG).loss(torch.rand(1, 2, 3, 32, 32))
    assert loss.shape == () and loss.requires_grad and loss.isfinite()
    with pytest.raises(ValueError, match=r"\[B, F, 3, H, W\]"):
        codec.encode(torch.rand(2, 3, 32, 32))


WAN = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "latents_mean": [0.1, -0.2, 0.3, 0.0],
    "latents_std": [1.0, 0.5, 2.0, 1.5],
}


@pytest.fixture(scope="module")
def wan() -> WanCodec:
    torch.manual_seed(0)
    return WanCodec.from_config((16, 16), **WAN).requires_grad_(False).eval()


def test_wan_equals_diffusers(wan: WanCodec) -> None:
    video = torch.rand(2, 9, 3, 16, 16)
    latents = wan.encode(video)
    assert latents.shape == (2, 3, 4, 4, 4)
    mean, std = (torch.tensor(WAN[k]).view(1, 4, 1, 1, 1) for k in ("latents_mean", "latents_std"))
    z = latents.transpose(1, 2) * std + mean
    assert torch.allclose(wan.vae.encode(video.transpose(1, 2) * 2 - 1).latent_dist.mode(), z, atol=1e-5)
    decoded = wan.decode(latents)
    assert decoded.shape == video.shape
    assert torch.allclose(decoded, (wan.vae.decode(z).sample.transpose(1, 2) + 1) / 2, atol=1e-5)


@pytest.mark.parametrize("cuts", [(1, 2, 2), (3, 1, 1), (1, 1, 1, 1, 1)])
def test_wan_streaming_decode_equals_whole_clip(wan: WanCodec, cuts: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    latents = torch.randn(2, 5, 4, 4, 4)
    state, parts = wan.open(), []
    for chunk in latents.split(cuts, dim=1):
        video, state = wan.decode_stream(chunk, state)
        parts.append(video)
    assert torch.allclose(torch.cat(parts, dim=1), wan.decode(latents), atol=1e-5)


def test_wan_state_is_pure_and_forks_by_take(wan: WanCodec) -> None:
    torch.manual_seed(2)
    latents = torch.randn(3, 4, 4, 4, 4)
    _, state = wan.decode_stream(latents[:, :2], wan.open())
    rows = torch.tensor([2, 0, 0])
    forked, _ = wan.decode_stream(latents[rows, 2:], state.take(rows))
    rest, _ = wan.decode_stream(latents[:, 2:], state)
    assert torch.allclose(forked, rest[rows], atol=1e-5)
    alone, _ = wan.decode_stream(latents[1:2, 2:], state.take(torch.tensor([1])))
    assert torch.allclose(alone, rest[1:2], atol=1e-5)


def test_wan_gradient_stays_inside_a_chunk(wan: WanCodec) -> None:
    latents = torch.randn(1, 3, 4, 4, 4, requires_grad=True)
    _, state = wan.decode_stream(latents[:, :2], wan.open())
    video, _ = wan.decode_stream(latents[:, 2:], state)
    (gradient,) = torch.autograd.grad(video.sum(), latents)
    assert not gradient[:, :2].any() and gradient[:, 2].any()
    (through,) = torch.autograd.grad(wan.decode(latents)[:, -1].sum(), latents)
    assert through[:, 0].any()


def test_wan_grid_maps_one_frame_then_four_each(wan: WanCodec) -> None:
    grid = wan.grid(9)
    assert grid.latent_of_frame.tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert (grid.h, grid.w, grid.latent_frames) == (4, 4, 3)
    assert wan.grid(8, start=5).latent_of_frame.tolist() == [0] * 4 + [1] * 4
    with pytest.raises(ValueError, match="1, 5, 9, ... frames, not 8"):
        wan.encode(torch.rand(1, 8, 3, 16, 16))
