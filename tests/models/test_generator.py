"""The denoising loop: batches, forks, denoising_steps and gradients."""

from dataclasses import replace

import pytest
import torch
from diffusers import WanTransformer3DModel

from reelgym.models.generator import (
    Generator,
    StreamState,
    at_prompt,
    chunks,
    denoise_chunk,
    generate_chunk,
    prefill,
    stream,
    update_cache,
)
from reelgym.models.sampler import kernel_log_prob, renoise, step_sigmas, x0_from_v
from reelgym.models.wan import CacheConfig, CausalWan
from reelgym.noise import fold, normal, stream_keys

SHAPE = (3, 4, 6, 4)


def generator(cache=None):
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
    )
    model = CausalWan(transformer.eval(), 3, 5, cache or CacheConfig(3, 9))
    return Generator(model, step_sigmas(4, 5.0), SHAPE[1:], 3)


def prompts(batch=3, length=4):
    return torch.randn(batch, length, 5, 8, generator=torch.Generator().manual_seed(1))


def after(gen, keys, embeds, count=2):
    state = StreamState.start(keys)
    for i in range(count):
        _, _, state = generate_chunk(gen, state, embeds[:, i])
    return state


@torch.no_grad()
def test_a_stream_is_the_same_in_any_batch():
    gen, keys, embeds = generator(), stream_keys(0, 3), prompts()
    together = stream(gen, embeds, keys)
    assert together.shape == (3, 12, 4, 6, 4)
    for i in range(3):
        alone = stream(gen, embeds[i : i + 1], keys[i : i + 1])
        assert torch.allclose(alone[0], together[i], atol=1e-5)
    backwards = stream(gen, embeds.flip(0), keys.flip(0)).flip(0)
    assert torch.allclose(backwards, together, atol=1e-5)


@torch.no_grad()
def test_chunks_are_those_of_generate_chunk_and_go_on_from_given_ones():
    gen, keys, embeds = generator(), stream_keys(0, 3), prompts()
    made = list(chunks(gen, embeds, keys))
    x0, denoising_steps, state = generate_chunk(gen, after(gen, keys, embeds), embeds[:, 2])
    assert torch.equal(made[2][0], x0) and torch.equal(made[2][1][0].x, denoising_steps[0].x) and made[2][2].chunk == 3
    opening = torch.cat((made[0][0], made[1][0]), 1)
    again = list(chunks(gen, embeds, keys, given=opening.split(3, 1)))
    assert [len(steps) for _, steps, _ in again] == [0, 0, 4, 4]
    assert all(torch.equal(one[0], other[0]) for one, other in zip(made, again, strict=True))
    read = prefill(gen, StreamState.start(keys), opening, embeds)
    assert read.chunk == 2 and torch.equal(read.cache.keys[1], made[1][2].cache.keys[1])
    assert prefill(gen, state, opening[:, :0], embeds) is state


@torch.no_grad()
def test_transitions_tell_the_whole_story():
    gen, keys, embeds = generator(), stream_keys(0, 3), prompts()
    state = after(gen, keys, embeds)
    x0, denoising_steps, following = generate_chunk(gen, state, embeds[:, 2])
    assert [t.sigma for t in denoising_steps] == list(gen.sigmas)
    assert [t.next_sigma for t in denoising_steps] == [*gen.sigmas[1:], 0.0]
    x = normal(keys, 2, 0, SHAPE)
    for step, t in enumerate(denoising_steps):
        assert torch.equal(t.x, x) and t.context is state.cache
        v = gen.model(x, t.sigma, embeds[:, 2], cache=t.context)
        assert torch.equal(t.x0, x0_from_v(x, v, t.sigma))
        assert torch.equal(t.x0, gen.denoise(x, t.sigma, embeds[:, 2], t.context))
        if t.next_sigma:
            assert torch.equal(t.x_next, renoise(t.x0, normal(keys, 2, step + 1, SHAPE), t.next_sigma))
            assert kernel_log_prob(t.x_next, t.x0, t.next_sigma).isfinite().all()
        x = t.x_next
    assert torch.equal(x, x0) and torch.equal(denoising_steps[-1].x0, x0)
    assert following.chunk == 3 and following.cache.next_frame == 9 and following.keys is keys
    written = gen.model.write(x0, embeds[:, 2], state.cache)
    assert torch.equal(written.keys[1], following.cache.keys[1])


@torch.no_grad()
def test_forks_continue_exactly_and_branches_differ():
    gen, embeds = generator(), prompts()
    state = after(gen, stream_keys(0, 3), embeds)
    rows = torch.tensor([1, 1, 0])
    forked = state.take(rows)
    expected, _, _ = generate_chunk(gen, state, embeds[:, 2])
    same, _, _ = generate_chunk(gen, forked, embeds[rows, 2])
    assert torch.allclose(same, expected[rows], atol=1e-5)
    branched = replace(forked, keys=fold(forked.keys, torch.arange(3)))
    other, _, _ = generate_chunk(gen, branched, embeds[rows, 2])
    assert (other[0] - other[1]).abs().max() > 1e-2
    assert StreamState.start(state.keys).take(rows).cache is None


@torch.no_grad()
def test_noise_may_be_handed_in():
    gen, keys, embeds = generator(), stream_keys(0, 3), prompts()
    noise = torch.stack([normal(keys, 0, step, SHAPE) for step in range(4)], 1)
    state = StreamState.start(keys)
    given, _, _ = generate_chunk(gen, state, embeds[:, 0], noise=noise)
    assert torch.equal(given, generate_chunk(gen, state, embeds[:, 0])[0])
    assert torch.equal(given, generate_chunk(gen, StreamState.start(stream_keys(9, 3)), embeds[:, 0], noise=noise)[0])


@pytest.mark.parametrize("exit_step", [0, 2, 3])
def test_only_the_exit_step_carries_gradient(exit_step):
    gen, keys, embeds = generator(), stream_keys(0, 3), prompts()
    state = after(gen, keys, embeds)
    x0, denoising_steps, following = generate_chunk(gen, state, embeds[:, 2], exit_step=exit_step, grad=True)
    assert len(denoising_steps) == exit_step + 1 and denoising_steps[-1].x0 is x0 and x0.requires_grad
    free = [t for step in denoising_steps for t in (step.x, step.x_next)] + [t.x0 for t in denoising_steps[:-1]]
    free += [*following.cache.keys, *following.cache.values]
    assert not any(t.requires_grad for t in free)
    with torch.no_grad():
        expected, plain, _ = generate_chunk(gen, state, embeds[:, 2])
    assert torch.equal(x0, plain[exit_step].x0)
    weight = torch.randn_like(x0)
    (x0 * weight).sum().backward()
    found = [p.grad.clone() for p in gen.model.parameters()]
    gen.model.zero_grad()
    t = denoising_steps[-1]
    again = x0_from_v(t.x, gen.model(t.x, t.sigma, embeds[:, 2], cache=t.context), t.sigma)
    (again * weight).sum().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(found, gen.model.parameters(), strict=True))
    assert torch.equal(expected, plain[-1].x0)


def test_by_default_nothing_carries_gradient():
    gen, embeds = generator(), prompts()
    x0, denoising_steps, _ = generate_chunk(gen, StreamState.start(stream_keys(0, 3)), embeds[:, 0])
    assert not x0.requires_grad and not any(t.x0.requires_grad for t in denoising_steps)


def test_the_window_bounds_the_cache():
    state = after(generator(), stream_keys(0, 1), prompts(1, 6), count=6)
    assert state.cache.frames == (0, 1, 2, 15, 16, 17)


def test_exit_steps_outside_the_schedule_are_refused():
    gen = generator()
    with pytest.raises(ValueError, match=r"0 \.\. 3, not 4"):
        generate_chunk(gen, StreamState.start(stream_keys(0, 1)), prompts(1)[:, 0], exit_step=4)


@torch.no_grad()
def test_a_switched_prompt_is_read_into_the_window_where_the_cache_says_so():
    embeds, keys = prompts(), stream_keys(0, 3)
    kept, read = (generator(CacheConfig(3, 12, on_prompt_switch=how)) for how in ("keep", "recache"))
    state = after(kept, keys, embeds[:, :1].expand(-1, 2, -1, -1))
    new = embeds[:, 3].clone()
    new[1] = embeds[1, 0]
    plain, _, _ = generate_chunk(kept, state, new)
    switched, denoising_steps, following = generate_chunk(read, state, new)
    cache = read.model.recache(state.cache, new)
    assert torch.equal(switched[1], plain[1]) and (switched[0] - plain[0]).abs().max() > 1e-4
    assert torch.equal(denoising_steps[0].context.keys[1][0], cache.keys[1][0])
    assert torch.equal(denoising_steps[0].context.keys[1][1], state.cache.keys[1][1])
    assert torch.equal(following.cache.keys[1][0, : 6 * 6], cache.keys[1][0]) and following.prompt is new
    assert at_prompt(read, following, new) is following and at_prompt(kept, state, new) is state
    same, _, _ = generate_chunk(read, state, state.prompt)
    assert torch.equal(same, generate_chunk(kept, state, state.prompt)[0])
    latents, steps = denoise_chunk(read, at_prompt(read, state, new), new)
    assert torch.equal(latents, switched) and len(steps) == 4
    assert torch.equal(update_cache(read, state, latents, new).cache.keys[1], following.cache.keys[1])
    rows = torch.tensor([2, 0])
    assert torch.equal(following.take(rows).prompt, new[rows])


@torch.no_grad()
def test_half_precision_does_not_drift_in_the_cache():
    """200 chunks of one stream, read by a bfloat16 model: its error at the end is that at the beginning."""
    single, half = (replace(generator(CacheConfig(3, 9)), sigmas=step_sigmas(2, 5.0)) for _ in range(2))
    half.model.bfloat16()
    embeds, keys = prompts(1)[:, 0], stream_keys(0, 1)
    states, errors = [StreamState.start(keys)] * 2, []
    for _ in range(200):
        x0, _ = denoise_chunk(single, states[0], embeds)
        other, _ = denoise_chunk(half, states[1], embeds)
        errors.append(float((other - x0).norm() / x0.norm()))
        states = [update_cache(gen, state, x0, embeds) for gen, state in zip((single, half), states, strict=True)]
    assert max(errors) < 0.05 and sum(errors[-50:]) < 1.5 * sum(errors[:50])
