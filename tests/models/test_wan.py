"""The causal Wan transformer against diffusers' own, and against itself chunk by chunk."""

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import WanTransformer3DModel

from reelgym.models.cache import appended, blocks, evicted
from reelgym.models.causal_attention import SelfAttention
from reelgym.models.wan import CacheConfig, CausalWan, KVCache

TEXT = 5
WINDOWS = [CacheConfig(), CacheConfig(3, 9), CacheConfig(1, 6), CacheConfig(2, 5), CacheConfig(0, 7)]


def stock(heads=2, dim=24):
    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=dim,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=64,
        num_layers=2,
    ).eval()


def causal(cache=WINDOWS[0], size=3):
    return CausalWan(stock(), size, TEXT, cache)


def clip(chunks=4, batch=2, size=3):
    generator = torch.Generator().manual_seed(1)
    draw = [torch.randn(batch, size * chunks, 4, 6, 4, generator=generator) for _ in range(2)]
    return *draw, torch.randn(batch, chunks, TEXT, 8, generator=generator)


def by_chunk(model, noisy, clean, sigma, embeds):
    """Velocities of noisy, chunk by chunk, with the cache written from clean; and the last cache."""
    cache, out, size = None, [], model.frames_per_chunk
    for i in range(embeds.shape[1]):
        part = slice(size * i, size * (i + 1))
        out.append(model(noisy[:, part], sigma[:, part], embeds[:, i], cache=cache))
        cache = model.write(clean[:, part], embeds[:, i], cache)
    return torch.cat(out, 1), cache


def assert_close(a, b, tolerance=1e-5):
    assert a.shape == b.shape
    assert (a - b).abs().max() < tolerance


@pytest.mark.parametrize("heads, dim", [(2, 24), (1, 32), (3, 10)])
@pytest.mark.parametrize("grad", [False, True])
@torch.no_grad()
def test_bidirectional_is_exactly_diffusers(heads, dim, grad):
    transformer = stock(heads, dim)
    model = CausalWan(copy.deepcopy(transformer), 3, TEXT)
    x, _, embeds = clip()
    sigma = torch.tensor([0.3, 1.0])
    with torch.set_grad_enabled(grad):
        expected = transformer(x.transpose(1, 2), sigma * 1000, embeds[:, 0], return_dict=False)[0].transpose(1, 2)
        assert torch.equal(model(x, sigma, embeds[:, 0]), expected)
        assert torch.equal(model(x, sigma, embeds[:, :1]), expected)
        inner = model.transformer(x.transpose(1, 2), sigma * 1000, embeds[:, 0]).sample
        assert torch.equal(inner.transpose(1, 2), expected)


@torch.no_grad()
def test_levels_per_frame_are_diffusers_levels_per_token():
    transformer = stock()
    model = CausalWan(copy.deepcopy(transformer), 3, TEXT)
    x, _, embeds = clip()
    sigma = torch.rand(2, 12)
    tokens = (sigma * 1000).repeat_interleave(6, 1)
    expected = transformer(x.transpose(1, 2), tokens, embeds[:, 0], return_dict=False)[0].transpose(1, 2)
    assert_close(model(x, sigma, embeds[:, 0]), expected, 1e-6)
    assert_close(model(x, 0.5, embeds[:, 0]), model(x, torch.full((2, 12), 0.5), embeds[:, 0]), 1e-6)


def test_parameters_keep_their_names():
    assert list(causal().transformer.state_dict()) == list(stock().state_dict())
    copied = copy.deepcopy(causal())
    x, _, embeds = clip()
    assert torch.equal(copied(x, 0.5, embeds), causal()(x, 0.5, embeds))


@pytest.mark.parametrize("cache", WINDOWS)
@torch.no_grad()
def test_chunks_with_cache_are_one_causal_pass(cache):
    model = causal(cache)
    x, _, embeds = clip()
    expected, state = by_chunk(model, x, x, torch.zeros(2, 12), embeds)
    assert_close(model(x, 0.0, embeds, mask="causal"), expected)
    assert state.next_frame == 12
    if cache.window_frames >= 0:
        assert len(state.frames) == cache.window_frames - 3


@pytest.mark.parametrize("cache", WINDOWS)
@torch.no_grad()
def test_teacher_forcing_is_chunk_by_chunk(cache):
    model = causal(cache)
    noisy, clean, embeds = clip()
    sigma = torch.rand(2, 4).repeat_interleave(3, 1)
    expected, _ = by_chunk(model, noisy, clean, sigma, embeds)
    assert_close(model.teacher_forcing(noisy, clean, sigma, embeds), expected)
    level = torch.tensor([0.2, 0.9])
    expected, _ = by_chunk(model, noisy, clean, level.view(2, 1).expand(2, 12), embeds[:, :1].expand(2, 4, -1, -1))
    assert_close(model.teacher_forcing(noisy, clean, level, embeds[:, 0]), expected)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("sink, past", [(0, 1), (1, 1), (2, 3), (0, 0), (3, 0), (0, None)])
@torch.no_grad()
def test_any_chunk_size_window_and_sink(size, sink, past):
    """past: recent frames that the window holds beside sink and chunk; None keeps everything."""
    model = causal(CacheConfig(sink, -1 if past is None else sink + past + size), size)
    noisy, clean, embeds = clip(5, size=size)
    expected, cache = by_chunk(model, clean, clean, torch.zeros(2, 5 * size), embeds)
    assert_close(model(clean, 0.0, embeds, mask="causal"), expected)
    assert past is None or len(cache.frames) == sink + past
    sigma = torch.rand(2, 5).repeat_interleave(size, 1)
    expected, _ = by_chunk(model, noisy, clean, sigma, embeds)
    assert_close(model.teacher_forcing(noisy, clean, sigma, embeds), expected)


@pytest.mark.parametrize(
    "cache", [CacheConfig(), CacheConfig(1, 7, "ema", 0.5), CacheConfig(1, 7, positions="relative")]
)
@torch.no_grad()
def test_a_recalled_cache_is_the_same_cache(cache):
    model = causal(cache)
    x, _, embeds = clip()
    _, kept = by_chunk(model, x[:, :9], x[:, :9], torch.zeros(2, 9), embeds[:, :3])
    before = [tensor.clone() for tensor in kept.keys]
    recall, part = model.recall(kept), x[:, 9:]
    for sigma in (1.0, 0.5):
        assert torch.equal(model(part, sigma, embeds[:, 3], cache=recall), model(part, sigma, embeds[:, 3], cache=kept))
    one = model(part[:, :1], 0.5, embeds[:, 3], cache=kept)
    assert torch.equal(model(part[:, :1], 0.5, embeds[:, 3], cache=recall), one)
    written, expected = model.write(part, embeds[:, 3], recall), model.write(part, embeds[:, 3], kept)
    assert all(torch.equal(a, b) for a, b in zip(written.keys, expected.keys, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(kept.keys, before, strict=True)) and model.recall(None) is None


def test_gradient_with_a_cache_is_that_of_the_uncached_pass(monkeypatch):
    """One pass over all frames, nothing cached, whose clean frames hand on their keys and values without gradient."""
    noisy, clean, embeds = clip(3)
    model = causal(CacheConfig(1, 7))
    weight = torch.randn(2, 3, 4, 6, 4)
    with torch.no_grad():
        _, cache = by_chunk(model, clean[:, :6], clean[:, :6], torch.zeros(2, 6), embeds[:, :2])
    (model(noisy[:, 6:], 0.5, embeds[:, 2], cache=cache) * weight).sum().backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    plain = SelfAttention.attend

    def attend(self, query, key, value, bias):
        past = 6 * 6
        key, value = (torch.cat((part[:, :past].detach(), part[:, past:]), 1) for part in (key, value))
        return plain(self, query, key, value, bias)

    monkeypatch.setattr(SelfAttention, "attend", attend)
    levels = torch.tensor([0.0] * 6 + [0.5] * 3).expand(2, 9)
    x = torch.cat((clean[:, :6], noisy[:, 6:]), 1)
    (model(x, levels, embeds, mask="causal")[:, 6:] * weight).sum().backward()
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(found) == len(expected) > 40
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cache", [CacheConfig(), CacheConfig(3, 12), CacheConfig(3, 12, positions="relative")])
@torch.no_grad()
def test_reading_anew_under_the_same_prompt_changes_nothing(cache):
    model = causal(cache)
    x, other, embeds = clip()
    same = embeds[:, :1].expand(2, 3, -1, -1)
    _, kept = by_chunk(model, x[:, :9], x[:, :9], torch.zeros(2, 9), same)
    again = model.recache(kept, embeds[:, 0])
    assert again.frames == kept.frames and again.next_frame == 9 and torch.equal(again.latents, x[:, :9])
    for ours, theirs in zip(again.keys + again.values, kept.keys + kept.values, strict=True):
        assert_close(ours, theirs)
    _, switched = by_chunk(model, x[:, :9], x[:, :9], torch.zeros(2, 9), embeds[:, 3:].expand(2, 3, -1, -1))
    for ours, theirs in zip(model.recache(kept, embeds[:, 3]).values, switched.values, strict=True):
        assert_close(ours, theirs)


@torch.no_grad()
def test_reading_anew_after_eviction_reads_what_is_kept():
    x, _, embeds = clip(6)
    for cache in (CacheConfig(3, 9), CacheConfig(1, 9, positions="relative")):
        model = causal(cache)
        _, kept = by_chunk(model, x, x, torch.zeros(2, 18), embeds)
        again = model.recache(kept, embeds[:, 0])
        assert again.frames == kept.frames and torch.equal(again.latents, x[:, list(kept.frames)])
        assert (again.values[1] - kept.values[1]).abs().max() > 1e-3
    blended = causal(CacheConfig(3, 9, "ema", 0.5))
    _, kept = by_chunk(blended, x, x, torch.zeros(2, 18), embeds)
    again = blended.recache(kept, embeds[:, 0])
    assert torch.equal(again.keys[1][:, : 3 * 6], kept.keys[1][:, : 3 * 6]) and again.frames == kept.frames
    assert (again.values[1][:, 3 * 6 :] - kept.values[1][:, 3 * 6 :]).abs().max() > 1e-3


def test_blocks_are_runs_cut_from_their_end():
    assert blocks((0, 1, 2, 3, 4, 5), 3) == [3, 3] and blocks((0, 1, 2, 3), 3) == [1, 3]
    assert blocks((0, 1, 7, 8, 9, 10), 3) == [2, 1, 3] and blocks((), 3) == []


@torch.no_grad()
def test_a_blended_sink_moves_in_half_precision():
    model = causal(CacheConfig(1, 7, "ema")).bfloat16()
    x, _, embeds = clip(6)
    _, kept = by_chunk(model, x, x, torch.zeros(2, 18), embeds)
    first = model.write(x[:, :3], embeds[:, 0], None)
    assert kept.keys[0].dtype == torch.float32
    assert 0 < (kept.keys[0][:, :6] - first.keys[0][:, :6]).abs().max() < 0.1


@torch.no_grad()
def test_another_cache_shares_the_weights():
    model = causal()
    twin = model.with_cache(CacheConfig(1, 7))
    assert twin.transformer is model.transformer and model.cache_config == CacheConfig()
    assert twin.cache_config == CacheConfig(1, 7)
    with pytest.raises(ValueError, match="too small"):
        model.with_cache(CacheConfig(6, 7))


@torch.no_grad()
def test_attention_backends_are_the_dispatchers():
    model = causal()
    x, _, embeds = clip(1)
    expected = model(x, 0.5, embeds[:, 0])
    model.transformer.set_attention_backend("_native_math")
    assert all(block.attn1.processor._attention_backend == "_native_math" for block in model.transformer.blocks)
    assert_close(model(x, 0.5, embeds[:, 0]), expected)


@torch.no_grad()
def test_prompts_and_frames_do_not_reach_back():
    model = causal()
    x, other, embeds = clip()
    changed, edited = x.clone(), embeds.clone()
    changed[:, 6:9], edited[:, 2] = other[:, 6:9], embeds[:, 3]
    before = model(x, 0.0, embeds, mask="causal")
    for after in (model(changed, 0.0, embeds, mask="causal"), model(x, 0.0, edited, mask="causal")):
        assert torch.equal(after[:, :6], before[:, :6])
        assert (after[:, 6:9] - before[:, 6:9]).abs().max() > 1e-3
        assert (after[:, 9:] - before[:, 9:]).abs().max() > 1e-5


@torch.no_grad()
def test_short_prompts_are_padded_with_zeros():
    x, _, embeds = clip()
    padded = embeds.clone()
    padded[:, :, 3:] = 0
    assert torch.equal(causal()(x, 0.5, embeds[:, :, :3]), causal()(x, 0.5, padded))


@torch.no_grad()
def test_rotation_depends_on_distance_alone_and_never_ends():
    model = causal()
    x, _, embeds = clip()
    assert_close(model(x, 0.5, embeds, start_frame=5000), model(x, 0.5, embeds), 1e-4)
    cache = model.write(x[:, :3], embeds[:, 0], None)
    near, far = (model(x[:, 3:6], 0.5, embeds[:, 1], cache=cache, start_frame=start) for start in (3, 3000))
    assert (near - far).abs().max() > 1e-4


@torch.no_grad()
def test_relative_positions_close_the_gap_of_eviction():
    model, relative = causal(CacheConfig(3, 9)), causal(CacheConfig(3, 9, positions="relative"))
    x, _, embeds = clip(6)
    _, cache = by_chunk(model, x[:, :6], x[:, :6], torch.zeros(2, 6), embeds[:, :2])
    assert_close(relative(x[:, 6:9], 0.5, embeds[:, 2], cache=cache), model(x[:, 6:9], 0.5, embeds[:, 2], cache=cache))
    _, cache = by_chunk(relative, x[:, :15], x[:, :15], torch.zeros(2, 15), embeds[:, :5])
    assert cache.frames == (0, 1, 2, 12, 13, 14)
    closed = replace(cache, frames=tuple(range(6)), next_frame=6)
    out = relative(x[:, 15:], 0.5, embeds[:, 5], cache=cache)
    assert_close(out, model(x[:, 15:], 0.5, embeds[:, 5], cache=closed))
    assert (out - model(x[:, 15:], 0.5, embeds[:, 5], cache=cache)).abs().max() > 1e-4


def test_eviction_by_hand():
    def frames(*values):
        return torch.tensor(values, dtype=torch.float).repeat_interleave(2).view(1, -1, 1, 1)

    def latents(*values):
        return torch.tensor(values, dtype=torch.float).view(1, -1, 1, 1, 1)

    cache = appended(None, [(frames(1, 2, 3), frames(10, 20, 30))], (0, 1, 2), latents(1, 2, 3))
    cache = appended(cache, [(frames(4, 5, 6), frames(40, 50, 60))], (3, 4, 5), latents(4, 5, 6))
    dropped = evicted(cache, CacheConfig(1, 7), 3)
    assert dropped.frames == (0, 3, 4, 5) and dropped.next_frame == 6
    assert torch.equal(dropped.keys[0], frames(1, 4, 5, 6)) and torch.equal(dropped.values[0], frames(10, 40, 50, 60))
    assert torch.equal(dropped.latents, latents(1, 4, 5, 6)) and dropped.evicted == 2 and cache.evicted == 0
    blended = evicted(cache, CacheConfig(1, 7, "ema", 0.9), 3)
    assert torch.equal(blended.latents, dropped.latents)
    assert torch.allclose(blended.keys[0], frames(0.9 * 1 + 0.1 * 2.5, 4, 5, 6))
    paired = evicted(cache, CacheConfig(2, 7, "ema", 0.9), 3)
    assert torch.allclose(paired.values[0], frames(0.9 * 10 + 0.1 * 30, 0.9 * 20 + 0.1 * 40, 50, 60))
    assert evicted(cache, CacheConfig(), 3) is cache and evicted(cache, CacheConfig(3, 9, "ema"), 3) is cache
    only_sink = evicted(cache, CacheConfig(2, 5), 3)
    assert only_sink.frames == (0, 1) and only_sink.next_frame == 6


@pytest.mark.parametrize("mode", ["plain", "cache", "forcing"])
def test_gradient_checkpointing_changes_nothing(mode):
    noisy, clean, embeds = clip(2)
    model = causal()
    cache = model.write(clean[:, :3], embeds[:, 0], None)

    def run():
        model.zero_grad()
        if mode == "forcing":
            out = model.teacher_forcing(noisy, clean, 0.5, embeds)
        elif mode == "cache":
            out = model(noisy[:, 3:], 0.5, embeds[:, 1], cache=cache)
        else:
            out = model(noisy, 0.5, embeds)
        out.square().mean().backward()
        return out.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    out, grads = run()
    model.transformer.enable_gradient_checkpointing()
    again, regrads = run()
    assert torch.equal(out, again) and len(grads) == len(regrads) > 40
    assert all(torch.equal(a, b) for a, b in zip(grads, regrads, strict=True))
    after = model.write(clean[:, :3], embeds[:, 0], None)
    assert all(torch.equal(a, b) for a, b in zip(after.keys + after.values, cache.keys + cache.values, strict=True))


def test_the_cache_carries_no_gradient_and_is_never_overwritten():
    model = causal(CacheConfig(1, 7, "ema", 0.5))
    x, _, embeds = clip()
    cache = model.write(x[:, :3].requires_grad_(), embeds[:, 0], None)
    before = [t.clone() for t in cache.keys + cache.values]
    later = model.write(x[:, 3:6], embeds[:, 1], cache)
    assert not any(t.requires_grad for t in later.keys + later.values)
    assert all(torch.equal(a, b) for a, b in zip(before, cache.keys + cache.values, strict=True))


@torch.no_grad()
def test_taken_rows_are_exact_forks():
    model = causal()
    x, _, embeds = clip(3, batch=3)
    rows = torch.tensor([2, 0, 0, 1])
    _, cache = by_chunk(model, x[:, :6], x[:, :6], torch.zeros(3, 6), embeds[:, :2])
    fork = cache.take(rows)
    for layer in range(2):
        assert torch.equal(fork.keys[layer], cache.keys[layer][rows])
        assert torch.equal(fork.values[layer], cache.values[layer][rows])
    assert (fork.frames, fork.next_frame) == (cache.frames, cache.next_frame)
    expected = model(x[:, 6:], 0.5, embeds[:, 2], cache=cache)[rows]
    assert_close(model(x[rows, 6:], 0.5, embeds[rows, 2], cache=fork), expected)


def test_half_precision_follows_single():
    model = causal()
    x, _, embeds = clip(2)
    with torch.no_grad():
        cache = model.write(x[:, :3], embeds[:, 0], None)
        expected = model(x[:, 3:], 0.5, embeds[:, 1], cache=cache)
        half = model.bfloat16()
        cache = half.write(x[:, :3], embeds[:, 0], None)
        out = half(x[:, 3:], 0.5, embeds[:, 1], cache=cache)
        forced = half.teacher_forcing(x, x, 0.5, embeds)[:, 3:]
    assert cache.keys[0].dtype == torch.bfloat16 and out.dtype == forced.dtype == torch.float32
    assert (forced - expected).abs().mean() < 0.05 * expected.abs().mean()
    assert (out - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_misuse_is_named():
    model, (x, _, embeds) = causal(), clip()
    cache = KVCache((), (), (0, 1, 2), 3, x[:, :3])
    wrong = [
        ("3 prompts for 12 frames", lambda: model(x, 0.5, embeds[:, :3])),
        ("this model reads 5", lambda: model(x, 0.5, embeds.repeat(1, 1, 2, 1))),
        ("without a cache", lambda: model(x, 0.0, embeds, mask="causal", cache=cache)),
        ("not whole chunks", lambda: model(x[:, :4], 0.0, embeds[:, 0], mask="causal")),
        ("too small", lambda: causal(CacheConfig(3, 5))),
        ("sink_frames", lambda: CacheConfig(0, 9, "ema")),
        ("'lru'", lambda: CacheConfig(eviction="lru")),
        ("'near'", lambda: CacheConfig(positions="near")),
        ("'flush'", lambda: CacheConfig(on_prompt_switch="flush")),
        ("-1 keeps everything", lambda: CacheConfig(-1)),
        ("-1 keeps everything", lambda: CacheConfig(0, -3)),
        ("0 .. 1, not 2", lambda: CacheConfig(3, 9, "ema", 2.0)),
        ("chunk by chunk", lambda: causal(CacheConfig(3, 9, "ema"))(x, 0.0, embeds, mask="causal")),
        ("chunk by chunk", lambda: causal(CacheConfig(3, 9, positions="relative")).teacher_forcing(x, x, 0.5, embeds)),
        ("text-to-video", lambda: CausalWan(WanTransformer3DModel(**small(image_dim=8)), 3, TEXT)),
        ("span 2", lambda: CausalWan(WanTransformer3DModel(**small(patch_size=(2, 2, 2))), 3, TEXT)),
    ]
    for part, call in wrong:
        with pytest.raises(ValueError, match=part):
            call()


def small(**changes):
    return {"num_attention_heads": 1, "attention_head_dim": 12, "num_layers": 1, "ffn_dim": 8, "text_dim": 8} | changes
