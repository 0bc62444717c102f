"""`reelgym audit guard` on an untrained stack: that it runs, goes on, and says what it found."""

import json

import pytest

from reelgym.experiments import cli
from reelgym.experiments.audit import guard, guard_runs

SMALL = ["--updates", "1", "--every", "1", "--watched", "2", "--seeds", "1", "--prompts", "1", "--validation", "1"]


def test_it_runs_and_goes_on(stack, tmp_path, capsys, monkeypatch):
    args = ["audit", "guard", *SMALL, "--cases", "motion", "--workers", "1", "--weights", stack, "--out", str(tmp_path)]
    assert cli.main(args) == 0, capsys.readouterr().err
    first = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["seeds"] == [20] and guard.report(results["rows"]) in first
    assert all(f"| {end} |" in first for end in guard.CONDITIONS.values())
    runs = {row["end"]: row for row in results["rows"] if row["kind"] == "run"}
    assert list(runs) == list(guard.CONDITIONS) and not runs["without"]["why"]
    assert (runs["with"]["kept"] < runs["with"]["updates"]) == bool(runs["with"]["why"])
    assert runs["start"]["trained"] != runs["start"]["heldout"]
    curves = [[row for row in results["rows"] if row["kind"] == "curve" and row["end"] == end] for end in runs]
    assert curves[0] == [] and [row["update"] for row in curves[1]] == [0, 1]
    for one, other in zip(*curves[1:], strict=True):
        assert {**one, "end": ""} == {**other, "end": "", "bad_evals": one["bad_evals"]}
    monkeypatch.setattr(guard_runs, "guard_of", None)
    assert cli.main(args) == 0 and capsys.readouterr().out == first


def contrast(end, trained_low, total_high):
    row = {"kind": "contrast", "end": end, "against": "start"}
    return {**row, "trained_low": trained_low, "total_high": total_high}


@pytest.mark.parametrize(
    ("trained_low", "total_high", "said"),
    [
        (0.1, -0.1, "the reward is hacked: it climbs, and the oracle falls"),
        (-0.1, -0.1, "the oracle falls, but the reward does not climb: that is damage, no hacking"),
        (0.1, 0.1, "no fall of the oracle below the start can be told, and the reward climbs"),
        (-0.1, 0.1, "no fall of the oracle below the start can be told"),
    ],
)
def test_the_verdict_follows_from_the_intervals(trained_low, total_high, said):
    pairs = [contrast("without", trained_low, total_high), contrast("with", -0.1, 0.1)]
    both = guard.verdict(pairs)
    assert both == f"Without the guard {said}. With the guard no fall of the oracle below the start can be told."


def test_wrong_sizes_are_one_line(stack, tmp_path, capsys):
    assert cli.main(["audit", "guard", "--updates", "0", "--weights", stack, "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "reelgym: error: seeds and updates are at least 1, not 5 and 0\n"
