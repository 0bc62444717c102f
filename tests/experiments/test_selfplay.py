"""`reelgym selfplay`: from end to end on a stack with random weights, killed and resumed, and its tables by hand."""

import json
import shutil
from dataclasses import replace

import pytest

from reelgym.agents.finetune_recipes import FINETUNE
from reelgym.agents.league import build
from reelgym.agents.league.league import League
from reelgym.checkpoint import has_checkpoint
from reelgym.experiments import cli, jobs, selfplay
from reelgym.experiments.league import runs
from reelgym.experiments.league.dataset import SEEN, UNSEEN, Budget, FamilyClips
from reelgym.experiments.league.rows import all_rows
from reelgym.experiments.league.tables import VARIANT_LABELS, report, sentences
from reelgym.experiments.readme import filled
from reelgym.models.tiny import load_tiny

SMALL = Budget(
    rounds=2,
    generator_updates=1,
    detector_updates=2,
    clips=4,
    streams=6,
    reals=8,
    fakes=4,
    heldout_reals=16,
    heldout_fakes=6,
    panel=1,
    panel_updates=1,
    response=1,
    prompts=2,
)


@pytest.fixture
def small(weights, tmp_path, monkeypatch):
    monkeypatch.setitem(selfplay.SELFPLAY_PRESETS, "quick", replace(selfplay.SELFPLAY_PRESETS["quick"], size=SMALL))
    monkeypatch.setattr(jobs, "made_from", lambda work, *modules: "one state of the code")
    for module in (build, runs):
        monkeypatch.setattr(module, "DETECTION", replace(module.DETECTION, batch=4))
    monkeypatch.setitem(FINETUNE, "reward", FINETUNE["reward"].with_batch(2))
    FamilyClips.load.cache_clear()
    return ["selfplay", "--workers", "1", "--stack", str(weights), "--out", str(tmp_path / "run")]


def test_end_to_end_and_again(small, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    assert cli.main(small) == 0, capsys.readouterr().err
    shown = capsys.readouterr()
    written = json.loads((out / "results.json").read_text())
    rows = {kind: [row for row in written["rows"] if row["kind"] == kind] for kind in ("detector", "game", "across")}
    assert [row["arm"] for row in rows["detector"]] == ["start", "league", "newest", "d3", "restrav"]
    assert all(row["reals"] == 16 and 0 <= row["unseen_low"] <= row["unseen_high"] <= 1 for row in rows["detector"])
    assert [row["arm"] for row in rows["game"]] == ["league", "newest"] and len(rows["across"]) == 4
    names = {row["generator"] for row in written["rows"] if row["kind"] == "payoff" and row["arm"] == "league"}
    assert {"scripted", "generator-0"} < names and any("x2" in name for name in names)
    assert all((out / name).stat().st_size > 500 for name in selfplay.PICTURES)
    assert load_tiny("rival", out / "detectors" / "league-0").width == 8
    assert not (out / "leagues").exists(), "finished leagues leave no checkpoint"
    page = filled("<!-- measured: run/results.json -->\n<!-- end -->", tmp_path)
    assert report(written["rows"]) in page

    monkeypatch.setattr(jobs, "_do", None)
    assert cli.main(small) == 0, capsys.readouterr().err
    assert capsys.readouterr().out == shown.out


def test_a_killed_league_goes_on_and_a_damaged_one_says_so(small, tmp_path, monkeypatch, capsys):
    small += ["--arms", "newest"]
    out, whole = tmp_path / "run", League.play_round
    played = []

    def dies(league):
        if len(played) == 1:
            raise KeyboardInterrupt
        played.append(league.rounds)
        return whole(league)

    monkeypatch.setattr(League, "play_round", dies)
    assert cli.main(small) == 130
    place = out / "leagues" / "newest-0"
    assert has_checkpoint(place)
    shutil.copytree(place, tmp_path / "kept")
    monkeypatch.setattr(League, "play_round", lambda league: played.append(league.rounds) or whole(league))
    capsys.readouterr()
    assert cli.main(small) == 0, capsys.readouterr().err
    assert played == [0, 1]
    broken = json.loads((out / "results.json").read_text())["rows"]

    def edited(*given, **how):
        monkeypatch.setattr(jobs, "made_from", lambda work, *modules: "another state of the code")
        return built(*given, **how)

    built = runs.league_of
    shutil.rmtree(out / "jobs" / "newest-0")
    shutil.copytree(tmp_path / "kept", place)
    played.clear()
    with monkeypatch.context() as patch:
        patch.setattr(runs, "league_of", edited)
        assert cli.main(small) == 0 and played == [0, 1], "what other code began is not gone on with"
    unbroken = json.loads((out / "results.json").read_text())["rows"]
    assert [row | {"seconds": 0} for row in broken] == [row | {"seconds": 0} for row in unbroken]

    monkeypatch.setattr(jobs, "made_from", lambda work, *modules: "one state of the code")
    shutil.rmtree(out / "jobs" / "newest-0")
    shutil.copytree(tmp_path / "kept", place)
    (place / "fakes.safetensors").write_bytes(b"no")
    capsys.readouterr()
    assert cli.main(small) == 1
    assert "newest-0" in (error := capsys.readouterr().err) and "fakes.safetensors: damaged" in error
    assert f"delete {place} to begin this league anew" in error
    assert {path.name for path in place.iterdir()} == {path.name for path in (tmp_path / "kept").iterdir()}


def test_bad_input(small, weights, tmp_path, capsys):
    assert cli.main([*small, "--rounds", "0"]) == 1 and "at least 1" in capsys.readouterr().err
    bare = tmp_path / "bare"
    shutil.copytree(weights, bare)
    shutil.rmtree(bare / "rival")
    assert cli.main(["selfplay", "--stack", str(bare), "--out", str(tmp_path / "run")]) == 1
    assert "self-play needs rival" in capsys.readouterr().err


def test_one_seed_and_one_detector_tell_nothing_apart():
    run = a_run(0.9, 0.6, 0.7)
    for end, told in (("start", 0.8), ("end", 0.6)):
        run["generators"][end]["panel_auc"] = [told]
    rows = all_rows({"league": [run]}, [0], [], {})
    found = next(row for row in rows if row["kind"] == "contrast" and row["question"] == "fooled")
    assert found["difference_low"] == found["difference_high"] < 0 and found["better"] == "unclear"


def a_run(unseen, fooled, total):
    detector = {
        "auc": {name: [0.5, unseen] for name in (*SEEN, *UNSEEN)},
        "tpr": dict.fromkeys((*SEEN, *UNSEEN), 0.1),
        **dict.fromkeys(("floor_same", "floor_other", "false_alarms", "chunks", "calibration_error"), 0.5),
        "reals": 9,
    }
    generator = {
        "panel_auc": [fooled, fooled],
        "panel_wins": [0.5],
        "scores": {axis: [total] * 3 for axis in ("total", "VQ", "MQ", "TA")},
        **dict.fromkeys(("diversity", "quality", "below_floor"), 0.1),
    }
    begun = json.loads(json.dumps({"detectors": detector, "generators": generator}))
    begun["detectors"]["auc"] = {name: [0.5, 0.7] for name in detector["auc"]}
    begun["generators"]["panel_auc"] = [0.8, 0.8]
    begun["generators"]["scores"]["total"] = [0.5] * 3
    return {
        "detectors": {"start": begun["detectors"], "end": detector},
        "generators": {"start": begun["generators"], "end": generator},
        "newest": {"generator": "generator-1", "detector": "detector-1"},
        "league": {
            "generators": ["generator-0", "generator-1"],
            "detectors": ["detector-0", "detector-1"],
            "payoffs": [[0.5, 0.05], [0.6, 0.2]],
            "roles": dict.fromkeys(("generator-0", "generator-1", "detector-0", "detector-1"), "past"),
            "ratings": {
                name: [25.0 + place, 1.0]
                for place, name in enumerate(("generator-0", "generator-1", "detector-0", "detector-1"))
            },
            "contested": 0.75,
            "intransitive": 0,
            "pairs": 1,
        },
        "responses": dict.fromkeys(("generator", "generator_wins", "detector", "detector_auc", "auc"), 0.1),
        "paused": {"generator": 0, "detector": 1},
        "seconds": 9.0,
    }


def test_tables_by_hand():
    found = {"league": [a_run(0.9, 0.6, 0.7), a_run(0.8, 0.6, 0.7)], "newest": [a_run(0.7, 0.6, 0.9)] * 2}
    rows = all_rows(found, [0, 1], [], {})
    contrasts = {(r["question"], r["arm"], r["against"]): r for r in rows if r["kind"] == "contrast"}
    assert contrasts["detector", "league", "start"]["difference"] == pytest.approx(0.15)
    assert contrasts["fooled", "league", "start"]["difference"] == pytest.approx(-0.2)
    assert contrasts["fooled", "league", "start"]["better"] == "yes"
    assert contrasts["oracle", "league", "newest"]["better"] == "no"
    assert contrasts["fooled", "league", "newest"]["better"] == "unclear"
    game = next(row for row in rows if row["kind"] == "game")
    assert game["rise_generator"] == 1 and game["contested"] == 0.75 and game["paused_detector"] == 1
    said = sentences(rows)
    assert "0.700, inside [.6, .95]" in said[0] and "75% are contested" in said[1]
    assert any("the league is worse than newest against newest (-0.200" in line for line in said)
    assert VARIANT_LABELS["newest"] in report(rows)
