from dataclasses import replace

import pytest
import torch

from reelgym.models import steering
from reelgym.models.generator import StreamState, generate_chunk
from reelgym.models.steering import Steering, led_noise, noise_basis, schedules, steered_chunk
from reelgym.noise import normal, stream_keys

SHAPE = (3, 4, 4, 4)
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def noise_of(keys, chunk, steps=4):
    return torch.stack([normal(keys, chunk, step, SHAPE) for step in range(steps)], 1)


def same(count, steps=4, past=99, guidance=1.0):
    return Steering(torch.full((count,), steps), torch.full((count,), past), torch.full((count,), guidance))


@pytest.fixture
def embeds(prompts):
    return prompts(5, 0)[0]


def played(generator, embeds, keys, steerings):
    state, chunks = StreamState.start(keys), []
    for chunk, how in enumerate(steerings):
        x0, state = steered_chunk(generator, state, embeds[:, chunk], noise_of(keys, chunk), how)
        chunks.append(x0)
    return torch.stack(chunks, 1)


def mixed(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    guidance = torch.tensor([1.0, 1.5, 2.0])[torch.randint(3, (count,), generator=draw)]
    steps, chunks = torch.randint(1, 5, (count,), generator=draw), torch.randint(1, 4, (count,), generator=draw)
    return Steering(steps, 3 * chunks, guidance)


def test_the_basis_is_orthonormal_and_smoothest_first():
    basis = noise_basis(40, SHAPE)
    gram = basis.flatten(1) @ basis.flatten(1).T
    torch.testing.assert_close(gram, torch.eye(40), atol=1e-5, rtol=0)
    assert all((basis[k, :, k] == basis[k, 0, k, 0, 0]).all() and basis[k].count_nonzero() == 48 for k in range(4))
    rough = (basis[..., 1:] - basis[..., :-1]).square().sum((1, 2, 3, 4))
    assert rough[:4].max() == 0 and rough[4:].max() > 0
    full = noise_basis(192, SHAPE).flatten(1)
    torch.testing.assert_close(full @ full.T, torch.eye(192), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="0 to 192 directions, not 193"):
        noise_basis(193, SHAPE)


def test_leads_set_components_and_leave_the_rest():
    noise, basis = noise_of(stream_keys(0, 2), 0), noise_basis(3, SHAPE)
    lead = torch.tensor([[0.0, 1.0, -1.0], [0.0, 0.6, 0.0]])
    led = led_noise(noise, basis, lead, 2.0)
    before, after = (x.flatten(2) @ basis.flatten(1).T for x in (noise, led))
    torch.testing.assert_close(after[0, :, 1:], torch.tensor([2.0, -2.0]).expand(4, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(after[1, :, 1], 0.8 * before[1, :, 1] + 1.2, atol=1e-4, rtol=0)
    torch.testing.assert_close(after[:, :, 0], before[:, :, 0], atol=1e-5, rtol=0)
    change = (led - noise).flatten(2)
    torch.testing.assert_close(change, (change @ basis.flatten(1).T) @ basis.flatten(1), atol=1e-4, rtol=0)


def test_schedules_of_fewer_steps():
    table = schedules((1.0, 0.9, 0.6, 0.2))
    assert table[3].tolist() == pytest.approx([1.0, 0.9, 0.6, 0.2, 0.0])
    assert table[1].tolist() == pytest.approx([1.0, 0.6, 0, 0, 0]) and table[0].tolist() == [1, 0, 0, 0, 0]
    assert table[2].tolist() == pytest.approx([1.0, 0.8, 0.6 - 0.4 * 2 / 3, 0, 0])


def test_neutral_steering_is_the_generator(generator, embeds):
    keys = stream_keys(1, 5)
    found = played(generator, embeds, keys, [same(5)] * 3)
    state = StreamState.start(keys)
    for chunk in range(3):
        with torch.no_grad():
            x0, _, state = generate_chunk(generator, state, embeds[:, chunk])
        torch.testing.assert_close(found[:, chunk], x0, **CLOSE)


def test_rows_do_not_depend_on_each_other(generator, embeds):
    keys, how = stream_keys(2, 5), [mixed(5, chunk) for chunk in range(3)]
    together = played(generator, embeds, keys, how)
    for row in range(5):
        at = torch.tensor([row])
        alone = played(generator, embeds[at], keys[at], [one.take(at) for one in how])
        torch.testing.assert_close(together[at], alone, **CLOSE)


def test_where_nobody_may_look_the_result_is_the_same(generator, embeds, monkeypatch):
    keys, how = stream_keys(2, 5), [mixed(5, chunk) for chunk in range(3)]
    looked = played(generator, embeds, keys, how)
    monkeypatch.setattr(steering._Rows, "of", classmethod(lambda cls, mask: cls(mask, None)))
    torch.testing.assert_close(played(generator, embeds, keys, how), looked, **CLOSE)


def test_a_short_past_is_a_shorter_cache(generator, embeds):
    keys = stream_keys(3, 5)
    state = StreamState.start(keys)
    for chunk in range(2):
        x0, state = steered_chunk(generator, state, embeds[:, chunk], noise_of(keys, chunk), same(5))
    x, whole = noise_of(keys, 2)[:, 0], state.cache
    tokens = whole.keys[0].shape[1] // len(whole.frames)
    newest = replace(
        whole,
        keys=tuple(k[:, -3 * tokens :] for k in whole.keys),
        values=tuple(v[:, -3 * tokens :] for v in whole.values),
        frames=whole.frames[-3:],
    )
    with torch.no_grad():
        masked = generator.model(x, 1.0, embeds[:, 2], cache=whole, past=torch.full((5,), 3))
        cut = generator.model(x, 1.0, embeds[:, 2], cache=newest)
        seen = generator.model(x, 1.0, embeds[:, 2], cache=whole)
    torch.testing.assert_close(masked, cut, **CLOSE)
    assert (masked - seen).abs().max() > 1e-4


def test_guidance_is_the_formula(generator, embeds):
    keys, one = stream_keys(4, 5), Steering(*(torch.full((5,), value) for value in (1, 3, 1.7)))
    x0, _ = steered_chunk(generator, StreamState.start(keys), embeds[:, 0], noise_of(keys, 0), one)
    x = noise_of(keys, 0)[:, 0]
    with torch.no_grad():
        with_prompt, without = (generator.model(x, 1.0, e) for e in (embeds[:, 0], torch.zeros_like(embeds[:, 0])))
    torch.testing.assert_close(x0, x - (without + 1.7 * (with_prompt - without)), **CLOSE)


def test_what_a_chunk_costs():
    how = Steering(torch.tensor([1, 4, 4]), torch.tensor([3, 3, 3]), torch.tensor([1.0, 1.0, 1.5]))
    assert how.evaluations.tolist() == [2, 5, 9]
