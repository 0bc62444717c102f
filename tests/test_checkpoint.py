import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from reelgym import checkpoint
from reelgym.checkpoint import (
    CheckpointError,
    has_checkpoint,
    load_checkpoint,
    pack_optimizer,
    rng_state,
    save_checkpoint,
    set_rng_state,
    unpack_optimizer,
    write_json,
)


def step_of(folder):
    tensors, meta = load_checkpoint(folder)
    assert (tensors["model"]["w"] == meta["step"]).all()
    return meta["step"]


def save_step(folder, step):
    save_checkpoint(folder, {"model": {"w": torch.full((64,), step)}}, {"step": step})


def test_round_trip_keeps_every_bit(tmp_path):
    tied = torch.randn(3, 4)
    tensors = {
        "model": {"a": tied, "b": tied, "view": tied.t(), "scalar": torch.tensor(2.5), "half": tied.bfloat16()},
        "ints": {"i": torch.arange(5), "empty": torch.empty(0, 3), "flag": torch.tensor([True, False])},
        "none": {},
    }
    meta = {"step": 3, "best": float("inf"), "nested": {"names": ["x", "y"], "lr": 0.1}}
    save_checkpoint(tmp_path / "ck", tensors, meta)
    loaded, loaded_meta = load_checkpoint(tmp_path / "ck")
    assert loaded_meta == meta and loaded.keys() == tensors.keys()
    for group, named in tensors.items():
        assert loaded[group].keys() == named.keys()
        for name, tensor in named.items():
            assert loaded[group][name].dtype == tensor.dtype and torch.equal(loaded[group][name], tensor)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ck"]


def test_damage_and_absence_are_named_in_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        load_checkpoint(tmp_path / "absent")
    folder = tmp_path / "ck"
    save_step(folder, 1)
    weights = folder / "model.safetensors"
    good = weights.read_bytes()
    for bad in (good[:-8], good[:-1] + bytes([good[-1] ^ 1])):
        weights.write_bytes(bad)
        with pytest.raises(CheckpointError, match="damaged") as caught:
            load_checkpoint(folder)
        assert "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        load_checkpoint(folder)
    (folder / "checkpoint.json").write_text('{"files": {')
    with pytest.raises(CheckpointError, match="not a checkpoint manifest"):
        load_checkpoint(folder)
    (folder / "checkpoint.json").write_text(json.dumps({"files": {"../x.safetensors": ""}, "meta": {}}))
    with pytest.raises(CheckpointError, match="outside"):
        load_checkpoint(folder)


def test_a_folder_with_other_things_in_it_is_not_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="notes.txt"):
        save_step(tmp_path, 1)
    with pytest.raises(CheckpointError, match="in the way"):
        save_step(tmp_path / "notes.txt", 1)
    with pytest.raises(CheckpointError, match="group name"):
        save_checkpoint(tmp_path / "ck", {"a/b": {}}, {})
    assert (tmp_path / "notes.txt").read_text() == "mine"


class Killed(BaseException):
    pass


def test_stopped_before_any_file_operation_a_whole_checkpoint_is_there(tmp_path, monkeypatch):
    """Stop at the n-th rename, replace, sync, unlink or removal, for every n, then load and save again."""
    calls = {"left": 0}

    def guarded(function):
        def call(*args, **kwargs):
            calls["left"] -= 1
            if calls["left"] < 0:
                raise Killed
            return function(*args, **kwargs)

        return call

    for module, name in ((os, "rename"), (os, "replace"), (os, "fsync"), (os, "unlink"), (os, "rmdir")):
        monkeypatch.setattr(module, name, guarded(getattr(module, name)))
    seen = set()
    for point in range(1000):
        folder, step = tmp_path / f"run{point}" / "ck", 0
        calls["left"] = 10**9
        save_step(folder, 1)
        calls["left"] = point
        try:
            save_step(folder, 2)
            finished = True
        except Killed:
            finished = False
        calls["left"] = 10**9
        step = step_of(folder)
        assert has_checkpoint(folder) and step in (1, 2) and (step == 2 or not finished)
        seen.add((step, folder.exists()))
        save_step(folder, 3)
        assert step_of(folder) == 3 and [p.name for p in folder.parent.iterdir()] == ["ck"]
        if finished:
            break
    assert seen == {(1, True), (2, False), (2, True)}


WRITER = """
import sys, torch
from reelgym.checkpoint import save_checkpoint
for step in range(10**6):
    save_checkpoint(sys.argv[1], {"model": {"w": torch.full((64,), step)}}, {"step": step})
    if step == 0:
        print("ready", flush=True)
"""


def test_killed_writer_leaves_a_whole_checkpoint(tmp_path):
    folder = tmp_path / "ck"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE)
    assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
    time.sleep(0.1)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    step = step_of(folder)
    save_step(folder, step + 1)
    assert step_of(folder) == step + 1


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW([{"params": p[:1], "lr": 0.03}, {"params": p[1:]}], lr=0.1, betas=(0.5, 0.9)),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1), capturable=False, foreach=False),
    ],
)
def test_resumed_optimiser_and_rng_continue_bit_for_bit(make, tmp_path):
    def train(net, opt, steps):
        for _ in range(steps):
            opt.zero_grad()
            net(torch.randn(8, 3)).square().mean().backward()
            opt.step()

    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)
    opt = make(list(net.parameters()))
    train(net, opt, 3)
    tensors, meta = pack_optimizer(opt)
    save_checkpoint(tmp_path / "ck", {"model": net.state_dict(), "opt": tensors, "rng": rng_state()}, {"opt": meta})
    train(net, opt, 3)

    torch.manual_seed(99)
    again = torch.nn.Linear(3, 2)
    opt_again = make(list(again.parameters()))
    loaded, loaded_meta = load_checkpoint(tmp_path / "ck")
    again.load_state_dict(loaded["model"])
    unpack_optimizer(opt_again, loaded["opt"], loaded_meta["opt"])
    set_rng_state(loaded["rng"])
    train(again, opt_again, 3)
    for a, b in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert opt_again.param_groups[0].get("betas") == opt.param_groups[0].get("betas")


def test_optimiser_of_another_model_is_refused():
    def adam(*sizes):
        params = [torch.nn.Parameter(torch.ones(size)) for size in sizes]
        opt = torch.optim.Adam(params)
        sum(p.sum() for p in params).backward()
        opt.step()
        return opt

    tensors, meta = pack_optimizer(adam(2, 3))
    with pytest.raises(CheckpointError, match="does not fit"):
        unpack_optimizer(adam(2), tensors, meta)
    with pytest.raises(CheckpointError, match="shape"):
        unpack_optimizer(adam(2, 4), tensors, meta)


def test_write_json_replaces_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert json.loads(path.read_text()) == {"x": 1} and [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert checkpoint.sha256_file(path) == checkpoint.sha256_file(path)
