import json
from pathlib import Path

import numpy as np
import pytest
import torch

from reelgym.envs.registration import ENVS
from reelgym.envs.stack import STACKS
from reelgym.experiments import cli
from reelgym.experiments.bench import envs
from reelgym.experiments.bench.chunks import NoCodec, NoReward
from reelgym.experiments.bench.overhead import SUBJECTS, CounterEnv, CounterVectorEnv, Subject, measured
from reelgym.experiments.readme import filled

CPU = torch.device("cpu")


def test_bench_envs_end_to_end(capsys, tmp_path, stack, monkeypatch):
    monkeypatch.setitem(STACKS, "tiny", Path(stack))
    size = ["--envs", "2", "--rounds", "1", "--seconds", "0", "--steps", "20", "--many", "2"]
    assert cli.main(["bench", "envs", *size, "--device", "cpu", "--out", str(tmp_path)]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert all(name in out for name in (*ENVS, *(subject.name for subject in SUBJECTS)))
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    chunks, steps, overhead = ([row for row in rows if row["kind"] == kind] for kind in ("chunks", "steps", "overhead"))
    (row,) = chunks
    assert row["envs"] == 2 and row["difference"] == 0 and row["ratio"] == row["generator"] / row["bare"]
    assert min(row[key] for key in ("step", "inference", "training")) > 0
    assert [(row["id"], row["envs"]) for row in steps] == [(name, 2) for name in ENVS]
    assert [row["subject"] for row in overhead] == [subject.name for subject in SUBJECTS]
    assert all(row["us_more"] == row["us_many"] - row["us_1"] for row in overhead if row["us_1"] is not None)
    assert overhead[0]["target_us"] == 10 and overhead[0]["us_1"] > 0


def test_a_page_shows_the_tables(tmp_path):
    row = {"kind": "overhead", "subject": "ours", "envs": 64, "us_1": 6.0, "us_many": 9.0, "us_more": 3.0}
    rows = [row | {"target_us": 10, "target_us_more": 4}, row | {"us_more": 5.0, "target_us": 10, "target_us_more": 4}]
    rows.append(row | {"subject": "theirs", "us_1": None, "us_many": None, "target_us": None, "target_us_more": None})
    written = {"command": "reelgym bench envs", "commit": "0123456789abcdef", "device": "a machine", "rows": rows}
    (tmp_path / "results.json").write_text(json.dumps(written))
    page = filled("<!-- measured: results.json -->\n<!-- end -->", tmp_path)
    assert "| ours | 6.0 | 9.0 | 1.0 | +3.0 | 10, +4 | yes |\n| ours | 6.0 | 9.0 | 1.0 | +5.0 | 10, +4 | no |" in page
    assert "| theirs | – | – | – | +3.0 | – | – |" in page and "with 1 and with 64 environments" in page
    assert envs.report([]) == ""


def test_all_subjects_make_the_same_transition():
    ours = CounterVectorEnv(2)
    actions = np.random.default_rng(0).integers(4, size=(200, 2))
    first, _ = ours.reset(seed=0)
    singles = [CounterEnv(), CounterEnv()]
    assert all(np.array_equal(first[row], env.reset(seed=0)[0]) for row, env in enumerate(singles))
    before = None
    for action in actions:
        observation, reward, terminated, *_ = ours.step(torch.from_numpy(action))
        for row, env in enumerate(singles):
            seen, gained, ended, *_ = env.step(action[row])
            assert np.array_equal(observation[row], seen) and reward[row] == gained and terminated[row] == ended
        assert before is None or observation.data_ptr() != before.data_ptr()
        before = observation


def test_what_is_not_installed_is_left_out():
    def missing(num_envs, device):
        raise ModuleNotFoundError("no such package")

    closed = []

    class Closing(CounterVectorEnv):
        def close(self, **kwargs):
            closed.append(self.num_envs)

    subjects = [Subject("missing", missing), Subject("ours", lambda count, device: Closing(count), True)]
    found = measured(subjects, 2, 5, 1, CPU)
    assert found["missing"] is None and found["ours"] > 0 and closed == [2]


def test_closed_even_when_a_step_fails():
    closed = []

    class Failing(CounterVectorEnv):
        def step(self, actions):
            raise RuntimeError("broken")

        def close(self, **kwargs):
            closed.append(True)

    with pytest.raises(RuntimeError, match="broken"):
        measured([Subject("failing", lambda count, device: Failing(count), True)], 1, 5, 1, CPU)
    assert closed == [True]


def test_stand_ins_have_the_shapes_of_what_they_stand_for(codec, reward, prompts, layout):
    latents = torch.randn(2, 3, 4, 4, 4)
    stub = NoCodec(codec, CPU)
    video, _ = stub.decode_stream(latents, stub.open())
    assert video.shape == codec.decode(latents).shape and stub.channels == codec.channels
    signal = NoReward()(video, prompts(2, 0), need={"scores"})
    assert signal.reward.tolist() == [0, 0] and signal.scores.shape == (2, 1)
