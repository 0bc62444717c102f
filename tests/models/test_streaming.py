"""Streams as users drive them: any length, prompts that change, forks, starts, save and restore."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL, WanTransformer3DModel

from reelgym.checkpoint import CheckpointError
from reelgym.models.codec import FrameCodec, WanCodec
from reelgym.models.generator import Generator, stream
from reelgym.models.prompts import UnknownWordError, WordEncoder
from reelgym.models.sampler import FlowSDE, step_sigmas
from reelgym.models.streaming import StreamingGenerator
from reelgym.models.wan import CacheConfig, CausalWan
from reelgym.noise import stream_keys

WORDS = ("a", "red", "blue", "circle", "square", "moves", "left")
RED, BLUE = "a red circle moves left", "a blue square"
CACHE = CacheConfig(2, 9, positions="relative")


def build(codec, cache=CACHE):
    encoder = WordEncoder(WORDS, 6)
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=encoder.dim, freq_dim=16,
        ffn_dim=32, num_layers=2,
    )  # fmt: skip
    model = CausalWan(transformer, 3, 6, cache)
    generator = Generator(model, step_sigmas(2, 5.0), (4, 4, 4), 3)
    return StreamingGenerator(generator, codec, encoder, 8.0, (16, 16))


def frame_codec():
    torch.manual_seed(0)
    kinds = {
        f"{way}_block_types": (f"{name}Block2D",) * 3 for way, name in (("down", "DownEncoder"), ("up", "UpDecoder"))
    }
    vae = AutoencoderKL(**kinds, block_out_channels=(4, 4, 8), norm_num_groups=2, latent_channels=4, sample_size=16)
    codec = FrameCodec(vae).eval()
    codec.calibrate(torch.rand(2, 3, 3, 16, 16))
    return codec


def wan_codec():
    torch.manual_seed(0)
    config = {
        "base_dim": 4,
        "z_dim": 4,
        "dim_mult": [1, 1, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [True, True],
    }
    return WanCodec.from_config((16, 16), **config, latents_mean=[0.0] * 4, latents_std=[1.0] * 4).eval()


@pytest.fixture(scope="module", params=[frame_codec, wan_codec])
def generator(request):
    return build(request.param())


def test_chunks_come_as_they_are_made(generator):
    made, chunks = generator.open(RED, seed=4), []
    for chunk in made:
        chunks.append(chunk)
        if len(chunks) == 5:
            break
    video = torch.cat(chunks, 1)
    embeds = generator.encode([RED])[:, None].expand(-1, 5, -1, -1)
    with torch.no_grad():
        expected = generator.codec.decode(stream(generator.generator, embeds, stream_keys(4, 1)))
    torch.testing.assert_close(video, expected, atol=1e-5, rtol=0)
    assert made.frames == video.shape[1] and made.prompt == RED and not video.requires_grad
    assert len(made.state.cache.frames) == 6


def test_batches_of_streams_are_the_streams_alone(generator):
    together = generator.open([RED, BLUE], seed=[7, 3])
    alone = [generator.open(RED, seed=[7]), generator.open([BLUE], seed=[3])]
    for _ in range(4):
        both = next(together)
        for row, one in enumerate(alone):
            torch.testing.assert_close(both[row : row + 1], next(one), atol=1e-4, rtol=0)
    assert together.prompt == (RED, BLUE) and alone[0].prompt == RED and alone[1].prompt == (BLUE,)
    one_seed = generator.open([RED, RED], seed=7)
    first = next(one_seed)
    assert (first[0] - first[1]).abs().max() > 1e-3


@pytest.mark.parametrize("how", ["keep", "recache"])
def test_a_prompt_changes_what_follows(generator, how):
    generator = generator.with_cache(replace(CACHE, on_prompt_switch=how))
    made, other = generator.open([RED, RED], seed=0), generator.open([RED, RED], seed=0)
    for _ in range(2):
        assert torch.equal(next(made), next(other))
    made.prompt = [RED, BLUE]
    here, there = next(made), next(other)
    torch.testing.assert_close(here[0], there[0], atol=1e-5, rtol=0)
    assert (here[1] - there[1]).abs().max() > 1e-4 and made.prompt == (RED, BLUE)
    made.prompt = BLUE
    assert made.prompt == (BLUE, BLUE)


def test_forks_go_on_alike_until_told_apart(generator):
    made = generator.open([RED, BLUE], seed=0)
    next(made)
    fork = made.take([1, 1, 0])
    assert fork.prompt == (BLUE, BLUE, RED) and fork.frames == made.frames
    ours, theirs = next(made), next(fork)
    torch.testing.assert_close(theirs, ours[[1, 1, 0]], atol=1e-5, rtol=0)
    fork.prompt = [BLUE, RED, RED]
    split = next(fork)
    assert (split[0] - split[1]).abs().max() > 1e-4
    assert generator.open(RED).take([0]).prompt == RED and generator.open(RED).take([0, 0]).prompt == (RED, RED)


@pytest.mark.parametrize("cache", [CACHE, CacheConfig(1, 7, "ema", on_prompt_switch="recache")])
@pytest.mark.parametrize("chunks", [0, 1, 5])
def test_a_restored_stream_goes_on_bit_for_bit(generator, cache, chunks, tmp_path):
    generator = generator.with_cache(cache)
    made = generator.open([RED, BLUE], seed=[1, 2])
    for _ in range(chunks):
        next(made)
    made.prompt = [BLUE, RED]
    made.save(tmp_path / "stream")
    again = generator.restore(tmp_path / "stream")
    assert again.frames == made.frames and again.prompt == made.prompt
    for _ in range(3):
        assert torch.equal(next(made), next(again))
    made.save(tmp_path / "stream")
    assert torch.equal(next(generator.restore(tmp_path / "stream")), next(made))


def test_a_stream_of_another_generator_is_refused(tmp_path):
    generator = build(frame_codec())
    generator.open(RED).save(tmp_path / "stream")
    other = build(frame_codec())
    with torch.no_grad():
        other.generator.model.transformer.proj_out.weight.add_(1)
    for wrong in (other, generator.with_cache(CacheConfig())):
        with pytest.raises(CheckpointError, match="other weights or another cache"):
            wrong.restore(tmp_path / "stream")
    (tmp_path / "stream" / "stream.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="damaged"):
        generator.restore(tmp_path / "stream")


def test_a_start_enters_the_cache(generator):
    torch.manual_seed(3)
    frames = 9 if isinstance(generator.codec, WanCodec) else 4
    clip = torch.rand(2, frames, 3, 16, 16)
    made = generator.open([RED, BLUE], seed=0, start=clip)
    latents = generator.codec.encode(clip)
    assert made.state.cache.frames == tuple(range(latents.shape[1])) and made.frames == 0
    assert torch.equal(made.state.cache.latents, latents)
    video = next(made)
    plain = next(generator.open([RED, BLUE], seed=0))
    frames = 12 if isinstance(generator.codec, WanCodec) else 3
    assert video.shape == (2, frames, 3, 16, 16) and (video[:, -3:] - plain[:, -3:]).abs().max() > 1e-4
    whole = generator.codec.decode(made.state.cache.latents)
    if made.state.cache.evicted == 0:
        torch.testing.assert_close(video, whole[:, -frames:], atol=1e-4, rtol=0)
    picture = generator.open(RED, start=clip[0, 0])
    assert picture.state.cache.frames == (0,) and next(picture).shape[1] == frames


def test_bad_input_is_one_clear_line(generator):
    picture = torch.rand(3, 16, 16)
    wrong = [
        ("the prompt is empty", lambda: generator.open(" ")),
        ("prompt 1 is empty", lambda: generator.open([RED, ""])),
        ("no prompt", lambda: generator.open([])),
        ("longer than 6", lambda: generator.open("a red circle moves left left left")),
        ("2 seeds for 1 prompts", lambda: generator.open(RED, seed=[1, 2])),
        ("3 prompts for 1 streams", lambda: setattr(generator.open(RED), "prompt", [RED] * 3)),
        ("24x16 pixels, this generator makes 16x16", lambda: generator.open(RED, start=torch.rand(3, 16, 24))),
        (r"not \[2, 1, 3, 16, 16\]", lambda: generator.open(RED, start=torch.rand(2, 1, 3, 16, 16))),
        ("divide bytes by 255", lambda: generator.open(RED, start=picture * 255)),
        ("divide bytes by 255", lambda: generator.open(RED, start=(picture * 255).byte())),
        ("divide bytes by 255", lambda: generator.open(RED, start=picture * torch.nan)),
    ]
    for words, call in wrong:
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(UnknownWordError, match="green"):
        generator.open("a green circle")
    made = generator.open(RED)
    with pytest.raises(UnknownWordError):
        made.prompt = "a green circle"
    assert made.prompt == RED and next(made).isfinite().all()


@pytest.mark.parametrize("codec", [frame_codec, wan_codec])
def test_what_is_saved_is_loaded(codec, tmp_path):
    generator = build(codec())
    generator.save_pretrained(tmp_path / "mine")
    generator.save_pretrained(tmp_path / "mine")
    again = StreamingGenerator.from_pretrained(tmp_path / "mine")
    assert again.generator.model.cache_config == CACHE and again.fps == 8 and again.size == (16, 16)
    ours, theirs = generator.open(RED, seed=1), again.open(RED, seed=1)
    for _ in range(4):
        torch.testing.assert_close(next(ours), next(theirs), atol=1e-5, rtol=0)
    assert not any(p.requires_grad for p in again.generator.model.parameters())
    narrow = StreamingGenerator.from_pretrained(tmp_path / "mine", cache=CacheConfig(0, 6))
    assert narrow.generator.model.cache_config == CacheConfig(0, 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
    WanTransformer3DModel.from_pretrained(tmp_path / "mine" / "transformer")


def test_folders_that_are_none(tmp_path):
    generator = build(frame_codec())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    (tmp_path / "file.pt").touch()
    generator.save_pretrained(tmp_path / "mine")
    load = StreamingGenerator.from_pretrained
    wrong = [
        ("holds something else", lambda: generator.save_pretrained(tmp_path / "full")),
        ("holds no generator that is known", lambda: load(tmp_path / "full")),
        ("no such folder", lambda: load(tmp_path / "absent")),
        ("as checkpoint=", lambda: load(tmp_path / "file.pt")),
        ("16x16 pixels and of no other size, not 24x16", lambda: load(tmp_path / "mine", size=(16, 24))),
        ("too small", lambda: load(tmp_path / "mine", cache=CacheConfig(3, 4))),
        ("consistency sampler", lambda: altered(generator, kernel=FlowSDE()).save_pretrained(tmp_path / "sde")),
    ]
    for words, call in wrong:
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    (tmp_path / "mine" / "streaming.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not what save_pretrained writes"):
        load(tmp_path / "mine")


def altered(generator, **changes):
    return replace(generator, generator=replace(generator.generator, **changes))


def test_the_shipped_generator_streams():
    generator = StreamingGenerator.from_pretrained("tiny")
    video = next(generator.open(["a red circle moves left", "a blue square rests"]))
    assert video.shape == (2, 3, 3, 32, 32) and video.isfinite().all() and generator.fps == 8


def test_hub_ids_that_are_not_given_are_one_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="the hub does not give it") as caught:
        StreamingGenerator.from_pretrained("nobody/no-such-model-as-this")
    assert "\n" not in str(caught.value)
