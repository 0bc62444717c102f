"""Noise: a pure function of (key, chunk, step), the same for a stream in any batch."""

from itertools import pairwise

import pytest
import torch

from reelgym.noise import Domain, GameDomain, SeedDomain, fold, normal, stream_keys, uniform, update_seed

SHAPE = (3, 8, 8, 8)


def test_splitmix_matches_the_published_generator():
    from reelgym.noise import GOLDEN, _mixed, _signed

    first = [_mixed(torch.tensor([_signed(1234567 + i * GOLDEN)])).item() % 2**64 for i in (1, 2, 3)]
    assert first == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("shape", [(1,), (5,), (3, 7), SHAPE])
def test_a_row_is_the_same_in_any_batch(shape):
    keys = stream_keys(3, 7)
    for draw in (normal, uniform):
        batch = draw(keys, 2, 1, shape)
        assert batch.shape == (7, *shape) and batch.dtype == torch.float32
        for i in range(7):
            assert torch.equal(batch[i], draw(keys[i : i + 1], 2, 1, shape)[0])
    assert torch.equal(stream_keys(3, 2), keys[:2])


def test_normal_is_standard_normal():
    x = normal(stream_keys(0, 64), 0, 0, (64, 64)).double()
    count = x.numel()
    assert abs(x.mean()) < 5 / count**0.5
    assert abs(x.var() - 1) < 5 * (2 / count) ** 0.5
    assert abs((x**4).mean() - 3) < 5 * (96 / count) ** 0.5
    ordered, _ = x.flatten().sort()
    gap = torch.distributions.Normal(0.0, 1.0).cdf(ordered) - (torch.arange(count) + 0.5) / count
    assert gap.abs().max() < 2 / count**0.5
    assert abs((x[:, 1:] * x[:, :-1]).mean()) < 5 / count**0.5
    assert abs((x[1:] * x[:-1]).mean()) < 5 / count**0.5


def test_uniform_fills_the_unit_interval():
    x = uniform(stream_keys(0, 64), 0, 0, (1000,))
    assert x.min() >= 0 and x.max() < 1
    counts = torch.histc(x, 10, 0, 1)
    assert ((counts - 6400) / 80).abs().max() < 5


def test_key_chunk_step_and_kind_change_everything():
    key = stream_keys(1, 1)
    draws = [normal(key, 0, 0, (512,)), normal(key, 1, 0, (512,)), normal(key, 0, 1, (512,)), normal(key, 1, 1, (512,))]
    draws += [normal(stream_keys(2, 1), 0, 0, (512,)), normal(fold(key, 0), 0, 0, (512,))]
    draws += [normal(fold(key, 1), 0, 0, (512,)), uniform(key, 0, 0, (512,))]
    correlation = torch.corrcoef(torch.cat(draws)) - torch.eye(len(draws))
    assert correlation.abs().max() < 5 / 512**0.5


def test_keys_are_distinct_and_resume_as_integers():
    keys = stream_keys(7, 1000)
    branches = torch.cat([keys, fold(keys, 0), fold(keys, 1), stream_keys(8, 1000)])
    assert branches.unique().numel() == 4000
    again = torch.tensor(keys.tolist())
    assert torch.equal(normal(again, 5, 3, (4,)), normal(keys, 5, 3, (4,)))
    assert torch.equal(fold(keys, torch.full((1000,), 6)), fold(keys, 6))


def test_arguments_stay_as_they_were():
    keys = stream_keys(7, 4)
    before = keys.clone()
    fold(keys, 1), normal(keys, 0, 0, (9,)), uniform(keys, 0, 0, (9,))
    assert torch.equal(keys, before)


def test_keys_of_another_type_are_refused():
    with pytest.raises(ValueError, match="stream_keys"):
        normal(torch.zeros(3), 0, 0, (2,))
    with pytest.raises(ValueError, match="int64"):
        fold(torch.zeros(3, 1, dtype=torch.int64), 0)


def test_domains_lie_apart():
    """Alone ones differ; where a seed is added there is room for a thousand of them."""
    assert {name for name, member in Domain.__members__.items() if name != member.name} == {"EXAM"}
    assert {name for name, member in SeedDomain.__members__.items() if name != member.name} == {"RESPONSES", "GOES_ON"}
    alone = {SeedDomain.VALIDATION, SeedDomain.POINTS, SeedDomain.POINT_FILMS}
    for first, second in pairwise(sorted(SeedDomain)):
        assert second - first >= 1_000 or first in alone
    assert all(2**20 <= domain for domain in (*Domain, *GameDomain) if domain != Domain.UPDATE)


def test_update_seeds_of_two_trainings_never_meet():
    seeds = {update_seed(seed, update) for seed in range(3) for update in (0, 1, 1_000_002)}
    assert len(seeds) == 9 and update_seed(2, 5) == 2_000_011
