import pytest
import torch

from reelgym.models.codec import FrameCodec

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
    codec = FrameCodec.from_config(**CONFIG).requires_grad_(False).eval()
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
    loss = FrameCodec.from_config(**CONFIG).loss(torch.rand(1, 2, 3, 32, 32))
    assert loss.shape == () and loss.requires_grad and loss.isfinite()
    with pytest.raises(ValueError, match=r"\[B, F, 3, H, W\]"):
        codec.encode(torch.rand(2, 3, 32, 32))
