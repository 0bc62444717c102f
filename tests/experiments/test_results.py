import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from reelgym.experiments import results
from reelgym.experiments.results import pick_device, write_results


@dataclass(frozen=True)
class Config:
    folder: Path = Path("a")
    rates: tuple[float, ...] = (0.1, 0.2)


def test_results_hold_what_the_schema_names(tmp_path):
    rows = [{"name": "dmd", "total": np.float32(0.5), "updates": torch.tensor(3), "drift": float("nan"), "note": None}]
    path = write_results(tmp_path / "new" / "run", "reelgym compare", [0, 1], Config(), rows, device="cpu")
    read = json.loads(path.read_text())
    assert list(read) == ["command", "commit", "versions", "device", "seeds", "config", "rows"]
    assert read["rows"] == [{"name": "dmd", "total": 0.5, "updates": 3, "drift": None, "note": None}]
    assert read["config"] == {"folder": "a", "rates": [0.1, 0.2]} and read["seeds"] == [0, 1]
    assert {"python", "torch", "diffusers"} <= read["versions"].keys() and "cores" in read["device"]


def test_rows_must_be_flat(tmp_path):
    with pytest.raises(ValueError, match="curve is a list"):
        write_results(tmp_path, "x", [0], {}, [{"curve": [1, 2]}])
    assert not (tmp_path / "results.json").exists()


def test_commit_is_that_of_the_package_and_no_others(tmp_path, monkeypatch):
    def git(*args):
        done = subprocess.run(["git", "-C", str(tmp_path), *args], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    inner = tmp_path / "site-packages"
    inner.mkdir()
    monkeypatch.setattr(results, "_ROOT", tmp_path)
    assert results.commit() is None
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "x")
    assert results.commit() == git("rev-parse", "HEAD")
    (tmp_path / "a").write_text("2")
    assert results.commit() == git("rev-parse", "HEAD") + "-dirty"
    monkeypatch.setattr(results, "_ROOT", inner)
    assert results.commit() is None


def test_device_that_is_not_there_is_named():
    assert pick_device("cpu").type == "cpu" and pick_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ValueError, match="gpu.*try auto"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="try auto"):
            pick_device("cuda")
