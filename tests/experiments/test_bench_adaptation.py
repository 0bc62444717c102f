"""`reelgym bench adaptation`: from end to end on a stack with random weights, and its arithmetic by hand."""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
import torch

from reelgym.envs.stack import Stack, StackSpec
from reelgym.envs.worlds.grammar import GRAMMARS, sample_scripts
from reelgym.experiments import cli, jobs
from reelgym.experiments.bench import adaptation, adaptation_tables
from reelgym.experiments.bench.adaptation import Config, adaptation_core_seconds
from reelgym.experiments.bench.adaptation_clips import FAMILIES, ClipsTask, sampler_of
from reelgym.experiments.bench.adaptation_runs import (
    ADAPTATIONS,
    ORDERS,
    DetectorSchedule,
    DomainSequence,
    OrderClips,
    detector_eval_schedule,
    work,
)
from reelgym.experiments.bench.adaptation_tables import adaptation_rows, adaptation_times, arrival, auc_target, report
from reelgym.experiments.evaluation.time_to_target import resampled
from reelgym.experiments.readme import filled
from reelgym.models.detector import ClipDetector
from reelgym.models.tiny import save_tiny

SMALL = ["--orders", "tiny", "--seeds", "2", "--fakes", "12", "--test", "6", "--scratch", "5", "--rung", "2"]
SMALL += ["--last", "3", "--every", "1", "--batch", "2", "--workers", "1"]


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(ORDERS, "tiny", DomainSequence(("flicker", "student"), "ghosting", "student-1"))


def rows_of(folder, kind):
    return [row for row in json.loads((folder / "results.json").read_text())["rows"] if row["kind"] == kind]


def test_end_to_end_and_again(tiny, weights, tmp_path, monkeypatch, capsys):
    for seed in range(2):
        torch.manual_seed(seed)
        save_tiny(tmp_path / f"league-{seed}", ClipDetector(width=32), {})
    out = tmp_path / "out"
    paths = ["--detectors", str(tmp_path), "--weights", str(weights), "--out", str(out)]
    args = ["bench", "adaptation", *SMALL, *paths]
    assert cli.main(args) == 0, capsys.readouterr().err
    shown = capsys.readouterr()
    assert "minutes on 1 idle cores" in shown.err and "Orders not run: " in shown.out
    runs, curve = rows_of(out, "run"), rows_of(out, "curve")
    assert [(row["method"], row["seed"]) for row in runs] == [
        (method, seed) for method in ADAPTATIONS for seed in (0, 1)
    ]
    assert all(row["sampling"] > 0 for row in runs)

    def looks(method, key, seed=0):
        return [row[key] for row in curve if row["method"] == method and row["seed"] == seed]

    assert looks("frozen", "fakes") == [0] and looks("retrain", "fakes") == [12] * 5
    for method in ("finetune", "replay", "selfplay"):
        assert looks(method, "fakes") == [0, 8, 8, 12, 12, 12]
        assert looks(method, "seconds") == sorted(looks(method, "seconds"))
        assert looks(method, "seconds")[3] > 12 * runs[0]["sampling"]
    assert looks("retrain", "seconds")[0] > 12 * runs[0]["sampling"]
    start = looks("frozen", "new")[0]
    assert looks("finetune", "new")[0] == looks("replay", "new")[0] == start != looks("selfplay", "new")[0]
    assert looks("finetune", "known")[1:] != looks("replay", "known")[1:]
    picture = ElementTree.fromstring((out / "bench-adaptation.svg").read_text())
    titles = [part.text for part in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert titles.count("replay, seed 1") == titles.count("replay") == 2 and titles.count("frozen") == 2
    written = json.loads((out / "results.json").read_text())
    assert "--orders tiny --seeds 2" in written["command"]
    page = filled("<!-- measured: results.json -->\n<!-- end -->", out)
    assert report(written["rows"]) in page

    monkeypatch.setattr(jobs, "_do", None)
    assert cli.main(args) == 0, capsys.readouterr().err
    assert capsys.readouterr().out == shown.out


def test_known_families_are_replayed_whole_and_the_new_one_in_part():
    clips = {name: torch.full((12, 1), value) for value, name in enumerate(("real", "flicker", "swap", "teleport"))}
    reel = OrderClips(DomainSequence(("flicker", "swap"), "teleport", "student"), clips, {}, {})
    pool = reel.pool(True, 8).families
    assert {name: found.unique().tolist() for name, found in pool.items()} == {"known": [1, 2], "new": [3]}
    assert {name: len(found) for name, found in pool.items()} == {"known": 24, "new": 8}
    assert list(reel.pool(False, 8).families) == ["new"] and list(reel.pool(True, 0).families) == ["known"]
    assert reel.real(5, 1).shape == (5, 1) and not reel.real(5, 1).any()


@pytest.mark.parametrize("family", ["real", "hue_drift", "student-2", "tuned", "teacher"])
def test_clips_of_every_kind_of_family(family, weights, monkeypatch):
    monkeypatch.setitem(FAMILIES, "tuned", replace(FAMILIES["tuned"], updates=1))
    groups, meta = work(ClipsTask(family, 3, 2, StackSpec(str(weights))))
    train, test = groups["clips"]["train"], groups["clips"]["test"]
    assert train.shape == (3, 12, 3, 32, 32) and test.shape == (2, 12, 3, 32, 32) and train.dtype == torch.uint8
    assert not torch.equal(train[:2], test) and meta["seconds"] > 0


def test_who_only_tests_makes_no_clips_to_train_on(weights):
    assert list(work(ClipsTask("blank", 0, 2, StackSpec(str(weights))))[0]["clips"]) == ["test"]
    config = Config(orders=("student",), fakes=10, test=4)
    assert adaptation._counts(config, "tuned") == (0, 4) and adaptation._counts(config, "student") == (10, 4)


def test_families_are_made_as_they_say(weights):
    clips = {
        name: work(ClipsTask(name, 2, 1, StackSpec(str(weights))))[0]["clips"]["train"] for name in ("real", "blank")
    }
    assert (clips["real"] != clips["blank"]).any()
    stack = Stack.load(weights)
    scripts = sample_scripts(2, split="train", seed=0, grammar=GRAMMARS["plain"])
    made = {name: sampler_of(stack, name)(scripts, 5) for name in ("student", "student-2", "student-1")}
    assert not torch.equal(made["student"], made["student-2"]) and not torch.equal(made["student-2"], made["student-1"])
    assert torch.equal(made["student-1"], sampler_of(stack, "student-1")(scripts, 5))


def test_eval_schedule():
    assert detector_eval_schedule(256) == [8, 16, 32, 64, 128, 256] and detector_eval_schedule(100) == [
        8,
        16,
        32,
        64,
        100,
    ]
    assert detector_eval_schedule(8) == [8] and detector_eval_schedule(5) == [5]
    plan = DetectorSchedule(fakes=16, rung=4, last=6, every=2)
    assert plan.eval_points == [(8, 2), (8, 4), (16, 2), (16, 4), (16, 6)]


def test_orders_are_of_families_that_are_there_and_never_the_same_twice():
    for order in ORDERS.values():
        assert len(set(order.families)) == len(order.families) and set(order.families) <= set(FAMILIES)
    assert len({name for order in ORDERS.values() for name in order.families}) >= 6


def a_run(new, known=None, seconds=None, sampling=0.1):
    known, seconds = known or [1.0] * len(new), seconds or list(range(len(new)))
    looks = [
        {"fakes": 8 * place, "seconds": second, "new": x, "known": y, "later": 0.5}
        for place, (x, y, second) in enumerate(zip(new, known, seconds, strict=True))
    ]
    return {"looks": looks, "sampling": sampling}


def test_goal_and_arrival_by_hand():
    assert auc_target(a_run([0.5, 0.9])) == pytest.approx(0.88) and auc_target(a_run([0.9, 0.79])) is None
    at, whether = arrival(a_run([0.5, 0.9, 0.6]), 0.88)
    assert (at["fakes"], whether) == (8, True)
    at, whether = arrival(a_run([0.5, 0.6, 0.7]), 0.88)
    assert (at["fakes"], whether) == (16, False)
    assert arrival(a_run([0.5, 0.6]), None)[1] is False


def runs_of(retrained):
    """Two seeds of an order; replay is four times faster than retraining, fine-tuning never arrives."""
    return {("student", method, seed): run for seed in (0, 1) for method, run in one_seed(retrained, seed).items()}


def one_seed(retrained, seed):
    return {
        "frozen": a_run([0.5]),
        "retrain": a_run([0.6, retrained], [0.5, 0.9 + 0.1 * seed], [30, 40]),
        "finetune": a_run([0.5, 0.6, 0.7], [1.0, 0.9, 0.8]),
        "replay": a_run([0.5, 0.9, 0.9], [1.0, 0.99, 0.98], [0, 10, 20]),
    }


def test_rows_by_hand():
    rows = adaptation_rows(runs_of(0.9), ["student"], list(ADAPTATIONS)[:4], [0, 1])
    found = {row["method"]: row for row in rows if row["kind"] == "method"}
    assert (found["replay"]["fakes"], found["replay"]["seconds"], found["replay"]["arrived"]) == (8, 10, 2)
    assert found["replay"]["forgotten"] == pytest.approx(0.02)
    assert found["replay"]["forgotten_then"] == pytest.approx(0.01)
    kept = next(column for column in adaptation_tables.ADAPTATION_COLUMNS if column.title == "kept")
    assert [kept.show(found[name]) for name in ("frozen", "retrain", "finetune")] == ["yes", "unclear", "no"]
    assert kept.show(found["replay"] | {"forgotten_low": 0.01, "forgotten_high": 0.03}) == "unclear"
    assert found["retrain"]["forgotten"] == pytest.approx(0.05)
    assert found["finetune"]["seconds"] is None and found["finetune"]["seconds_at_least"] == 2
    assert found["finetune"]["forgotten_high"] == pytest.approx(0.2) and found["finetune"]["forgotten_then"] is None
    assert found["frozen"]["seconds_at_least"] is None
    ratios = {(row["against"], row["method"]): row for row in rows if row["kind"] == "ratio"}
    assert (ratios["retrain", "replay"]["seconds"], ratios["retrain", "replay"]["seconds_low"]) == (4, 4)
    assert ratios["finetune", "replay"]["seconds"] is None
    shown = report(rows)
    assert "| 4.0 [4.0, 4.0] |" in shown and "| never |" in shown and "| > 2 |" in shown
    assert "detectors are left out" in shown and "do not count" not in shown


def test_what_a_retrain_cannot_tell_does_not_count():
    rows = adaptation_rows(runs_of(0.7), ["student"], list(ADAPTATIONS)[:4], [0, 1])
    assert not [row for row in rows if row["kind"] in ("method", "ratio")]
    assert "Seeds whose full retrain stays below 0.8 do not count: student (0 of 2)." in report(rows)


def test_seeds_are_drawn_with_all_their_orders():
    arrived = {seed: [({"seconds": seconds}, True)] * 3 for seed, seconds in ((0, 1.0), (1, 9.0))}
    drawn = [span[0] for span in resampled(adaptation_times(arrived, "seconds"))]
    assert set(drawn) == {1.0, 9.0} and 0.15 < drawn.count(9.0) / len(drawn) < 0.35


def test_the_default_is_within_its_budget():
    assert adaptation_core_seconds(Config()) / 2 <= 40 * 60 and Config().seeds == 5
    assert adaptation_core_seconds(replace(Config(), detectors="somewhere")) / 2 <= 40 * 60


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--orders", "mystery"], "unknown order mystery; choose from"),
        (["--seeds", "0"], "are at least 1"),
        (["--rung", "2"], "rung and last are no less than every"),
        (["--camera", "pinhole"], "unknown camera 'pinhole'"),
        (["--detectors", "nowhere"], "nowhere/league-0: no rival weights here"),
    ],
)
def test_wrong_arguments(args, words, tmp_path, capsys):
    assert cli.main(["bench", "adaptation", *args, "--out", str(tmp_path)]) == 1
    assert words in capsys.readouterr().err


def test_detectors_of_another_size_are_refused(tmp_path, capsys):
    save_tiny(tmp_path / "league-0", ClipDetector(width=16, size=8), {})
    args = ["--seeds", "1", "--detectors", str(tmp_path), "--out", str(tmp_path / "out")]
    assert cli.main(["bench", "adaptation", *args]) == 1
    assert "it looks at 8 pixels a side, not 16" in capsys.readouterr().err


def test_who_goes_on_has_as_many_updates_as_who_begins_anew():
    plan = DetectorSchedule()
    assert len(plan.eval_points) * plan.every == plan.scratch and plan.eval_points[-1] == (plan.fakes, plan.last)
