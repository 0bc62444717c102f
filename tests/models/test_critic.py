"""The critic: neutral before it learns, blind to nothing that it is shown, and able to learn."""

import pytest
import torch

from reelgym.models.critic import critic_for


def observation(count=32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {
        "latents": torch.randn(count, 6, 4, 5, 4, generator=draw),
        "prompt": torch.randn(count, 8, 18, generator=draw),
        "position": torch.randint(5, (count,), generator=draw),
    }


def learned(seen, target, steps=80):
    critic = critic_for(seen, 5)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = (critic(seen) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return critic, loss.item()


def test_untrained_it_says_nothing_and_is_the_same_everywhere():
    seen, before = observation(), torch.random.get_rng_state()
    one, two = critic_for(seen, 5), critic_for(seen, 5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one(seen).shape == (32,) and not one(seen).any()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize(
    "target",
    [
        lambda seen: seen["latents"][:, -1].mean((1, 2, 3)) * 4,
        lambda seen: seen["prompt"].mean((1, 2)) * 12,
        lambda seen: seen["position"] / 2.0,
    ],
    ids=["latents", "prompt", "position"],
)
def test_it_learns_from_each_part_of_what_is_seen(target):
    seen = observation()
    _, loss = learned(seen, target(seen))
    assert loss < 0.05 * target(seen).var()


def test_rows_do_not_depend_on_each_other():
    seen = observation()
    critic, _ = learned(seen, seen["position"] / 2.0, 5)
    values = critic(seen)
    assert values.unique().numel() == 32
    torch.testing.assert_close(critic({name: part[3:7] for name, part in seen.items()}), values[3:7])
