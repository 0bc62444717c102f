"""Several processes, real ones: what they learn, write and go on from is what one process would."""

import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reelgym.checkpoint import open_checkpoint
from reelgym.models.shards import shard
from reelgym.training.ranks import RankError, Ranks, join

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT))
from tests.training import rank_session as session  # noqa: E402

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of what two processes of torchrun did, and then three."""
    folder = tmp_path_factory.mktemp("ran")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    run = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.training.rank_session"]
    there = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = [sys.executable, "-m", *run, str(folder), port]
    told = subprocess.run(whole, cwd=ROOT, env=there, capture_output=True, text=True, timeout=300)
    assert told.returncode == 0, told.stderr
    return folder


def part(found, begin):
    return {key.removeprefix(begin): value for key, value in found.items() if key.startswith(begin)}


def same(found, wanted, where):
    assert found.keys() == wanted.keys() and len(wanted) > 1
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, **CLOSE, msg=partial("{}{}: {}".format, where, key))


@pytest.mark.parametrize("name", session.WAYS)
def test_gradients_are_those_of_one_process(ran, name):
    found, alone = load_file(ran / "two.safetensors"), part(session.gradients(name), f"{name} ")
    for way in session.WAYS[name]:
        same(part(found, f"{way}{name} "), alone, f"{way}{name} ")


@pytest.mark.parametrize("way", ["", "sharded "])
def test_a_checkpoint_of_two_goes_on_with_three_and_with_one(ran, way):
    """Compared is all that there is after the second update from there: weights, means, optimisers, guard, balance."""
    unbroken = part(load_file(ran / "two.safetensors"), f"{way}trained ")
    roles = {"generator", "critic", "discriminator"}
    assert {f"1-{role}-{what}" for role in roles for what in ("model", "mean", "optimizer")} <= {
        key.split("/")[0] for key in unbroken
    }
    same(part(load_file(ran / "three.safetensors"), "trained " if way else "sharded trained "), unbroken, "three: ")
    place = session.copy_of(ran / (way.strip() or "plain"), Ranks())
    flat, meta, logged = session.trained(3, place)
    same(flat, unbroken, "one: ")
    assert logged == [2, 3] and meta["counts"]["updates"] == 3
    assert meta["counts"]["chunks"] == open_checkpoint(ran / "plain-3")[2]["counts"]["chunks"]


def test_a_killed_process_ends_all_in_one_line_and_leaves_the_last_checkpoint(ran):
    (line,) = (ran / "killed.txt").read_text().splitlines()
    assert "another process of this training has ended" in line
    assert open_checkpoint(ran / "sharded")[2]["counts"]["updates"] == 1 and (ran / "sharded.partial").exists()


def test_what_does_not_go_is_told():
    with pytest.raises(RankError, match="4 prompts do not go round 3 processes"):
        Ranks(0, 3).rows(4, "prompts")
    assert [Ranks(index, 3).rows(6) for index in range(3)] == [slice(0, 2), slice(2, 4), slice(4, 6)]
    with pytest.raises(RankError, match="torchrun"):
        join(shard=True)
    with pytest.raises(ValueError, match="Linear names nothing to shard"):
        shard(torch.nn.Linear(2, 2))
    mixed = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).bfloat16()])
    mixed.shard_blocks = lambda: [mixed]
    with pytest.raises(ValueError, match="one dtype alone train in shards, not bfloat16 and float32"):
        shard(mixed)
