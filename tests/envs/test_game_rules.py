"""The rule of the game, once, by a table: what a move of the detector pays both."""

import pytest
import torch

from reelgym.envs.game_rules import GameRules
from reelgym.envs.stream_detect import FAKE, REAL, WAIT

TABLE = [
    # real, action, chunks shown of 4, quality: verdict, generator, detector, waited before
    (False, WAIT, 0, 1.0, WAIT, 0.0, 0.0, 0.0),
    (False, WAIT, 1, 1.0, WAIT, 0.0, -0.5, 0.0),
    (True, WAIT, 3, 1.0, WAIT, 0.0, -0.5, 1.0),
    (False, WAIT, 4, 1.0, REAL, 1.0, -1.0, 1.5),
    (True, WAIT, 4, 1.0, REAL, 0.0, 1.0, 1.5),
    (False, REAL, 0, 1.0, REAL, 1.0, -1.0, 0.0),
    (False, REAL, 2, 1.0, REAL, 1.0, -1.0, 0.5),
    (False, REAL, 2, -1.0, REAL, 0.0, -1.0, 0.5),
    (False, FAKE, 2, 1.0, FAKE, -1.0, 1.0, 0.5),
    (False, FAKE, 4, -1.0, FAKE, -1.0, 1.0, 1.5),
    (True, FAKE, 1, 1.0, FAKE, 0.0, -1.0, 0.0),
    (True, REAL, 1, -1.0, REAL, 0.0, 1.0, 0.0),
]


@pytest.mark.parametrize("given", [slice(None), *range(len(TABLE))])
def test_what_moves_pay(given):
    rows = TABLE[given] if isinstance(given, slice) else [TABLE[given]]
    real, action, shown, quality, verdict, *paid = map(torch.tensor, zip(*rows, strict=True))
    came = GameRules(wait_cost=0.5, floor=0.0).outcome(real, action, shown, quality, chunks=4)
    assert torch.equal(came.verdict, verdict) and torch.equal(came.real, real) and torch.equal(came.shown, shown)
    assert all(map(torch.equal, (came.generator, came.detector, came.waited), paid))
    assert torch.equal(came.returns, torch.stack((paid[0], paid[1] - paid[2]), 1))
    assert came.games == int((~real).sum()) and came.wins == int((~real & (verdict == REAL)).sum())
