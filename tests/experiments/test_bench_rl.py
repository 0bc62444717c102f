"""`reelgym bench rl`: from end to end on a stack with random weights, and its arithmetic by hand."""

import json
from dataclasses import replace

import pytest

from reelgym.envs.stack import StackSpec
from reelgym.experiments import cli, jobs
from reelgym.experiments.bench import rl, rl_tables
from reelgym.experiments.bench.rl import Config, apart, core_seconds, target_of, winning_recipes
from reelgym.experiments.bench.rl_runs import RL_SETTINGS, eval_schedule, setting_of
from reelgym.experiments.bench.rl_tables import ratio_rows, report, rl_times
from reelgym.experiments.evaluate import EvalConfig
from reelgym.experiments.readme import filled


def a_run(oracle, chunks=(64, 128), diverged=False):
    looks = [{"rung": at, "chunks": at, "seconds": at / 10, "oracle": x} for at, x in zip(chunks, oracle, strict=True)]
    return {"looks": looks, "chunks": chunks[-1], "seconds": chunks[-1] / 10, "diverged": diverged}


def test_end_to_end_and_again(weights, tmp_path, monkeypatch, capsys):
    size = ["--settings", "reward", "raven", "--seeds", "1", "--chunks", "64", "--prompts", "2", "--exam-prompts", "2"]
    size += ["--search", "1", "3"]
    small = replace(RL_SETTINGS["raven"].recipe, prompts=1)
    monkeypatch.setitem(RL_SETTINGS, "raven", replace(RL_SETTINGS["raven"], recipe=small))
    args = ["bench", "rl", *size, "--gain", "0.9", "--workers", "1", "--weights", str(weights), "--out", str(tmp_path)]
    assert cli.main(args) == 0, capsys.readouterr().err
    shown = capsys.readouterr()
    written = json.loads((tmp_path / "results.json").read_text())
    rows = {kind: [row for row in written["rows"] if row["kind"] == kind] for kind in ("setting", "run", "curve")}
    assert [row["setting"] for row in rows["setting"]] == ["reward", "raven"]
    assert [(row["arrived"], row["chunks"], row["chunks_at_least"]) for row in rows["setting"]] == [(0, None, 64)] * 2
    assert [row["updates"] for row in rows["run"]] == [4, 2] and not any(row["diverged"] for row in rows["run"])
    assert all(row["rung"] == row["chunks"] == 64 and row["seconds"] > 0 for row in rows["curve"])
    assert all(row["heldout"] is None and row["reward"] is not None for row in rows["curve"])
    assert "--settings reward raven --seeds 1 --chunks 64" in written["command"]
    assert "minutes on 1 idle cores" in shown.err and "> 64" in shown.out and "Not run, for want of time" in shown.out
    assert (tmp_path / "bench-rl.svg").read_text().startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    page = filled("<!-- measured: results.json -->\n<!-- end -->", tmp_path)
    assert report(written["rows"]) in page and "| – |" in page

    monkeypatch.setattr(jobs, "_do", None)
    assert cli.main(args) == 0, capsys.readouterr().err
    assert capsys.readouterr().out == shown.out


def test_a_run_stops_where_it_arrives_or_diverges(weights, tmp_path, monkeypatch, capsys):
    from reelgym.agents.finetune import FineTune
    from reelgym.experiments.bench import rl_runs
    from reelgym.training.learner import NonFiniteError

    exam = EvalConfig(prompts=2, clips=2, long_prompts=0)
    recipe = replace(RL_SETTINGS["reward"].recipe, prompts=16)
    task = rl_runs.RunTask(recipe, 0, -1.0, 256, exam, exam, StackSpec(str(weights)))
    found = rl_runs.work(task)[1]
    assert [look["chunks"] for look in found["looks"]] == [64] and found["updates"] == 1
    assert len(found["exam"]["total"]) == len(found["exam"]["diversity"]) == 2
    assert found["looks"] == [rl_runs.work(task)[1]["looks"][0] | {"seconds": found["seconds"]}]

    def fails(trainer):
        if trainer.counts.updates:
            raise NonFiniteError("no")
        return updated(trainer)

    updated = FineTune.update
    monkeypatch.setattr(FineTune, "update", fails)
    found = rl_runs.work(replace(task, target=2.0))[1]
    assert found["diverged"] and found["chunks"] == 64 and len(found["looks"]) == 1


def test_a_variant_changes_one_thing(differences):
    base = RL_SETTINGS["forward"].recipe
    own = {"forward-clip": "forward-own"}
    for name, setting in RL_SETTINGS.items():
        if name.startswith("forward-"):
            one = RL_SETTINGS[own[name]].recipe if name in own else base
            assert len(differences(one, setting.recipe)) == 1, name


def test_a_recipe_of_ones_own(tmp_path, monkeypatch):
    text = "from reelgym.agents.finetune_recipes import FINETUNE as ALL\nmine = ALL['raven'].with_batch(2)\n"
    (tmp_path / "a_recipe_of_mine.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "a_recipe_of_mine:mine"
    assert setting_of(name).recipe.prompts == 2 and setting_of(name).label == name
    assert core_seconds(Config(settings=(name,))) > 0
    run = a_run([1, 1])
    assert [row["against"] for row in ratio_rows({name: [run], "ddpo": [run], "reward": [run]}, 0.5, 0.1)] == [
        "reward",
        name,
    ]


def test_a_diverged_search_takes_the_lowest_rate():
    lost = {"diverged": True, "looks": []}
    recipes = winning_recipes(Config(settings=("raven",)), {f"search-raven-{place}": ({}, lost) for place in range(3)})
    assert recipes["raven"].learning_rate == pytest.approx(RL_SETTINGS["raven"].recipe.learning_rate / 3)


def test_eval_schedule():
    assert eval_schedule(2048) == [64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048]
    assert eval_schedule(64) == [64] and eval_schedule(10) == [10]
    assert eval_schedule(100) == [64, 96, 100] and eval_schedule(65) == [64, 65]


def test_times_and_censoring():
    late, early, never = a_run([0.1, 0.6]), a_run([0.5, 0.4]), a_run([0.1, 0.2])
    assert rl_times([late, early, never], 0.5, "chunks") == (((128, True),), ((64, True),), ((128, False),))
    half = a_run([0.3, 0.2], (64, 256), diverged=True)
    assert rl_times([half, late], 0.3, "chunks") == (((64, True),), ((128, True),))
    assert rl_times([half, late], 0.5, "chunks") == (((256, False),), ((128, True),))
    broken = {"looks": [], "chunks": 16, "seconds": 1.6, "diverged": True}
    assert rl_times([broken, late], 0.5, "chunks") == (((128, False),), ((128, True),))


def test_ratio_rows_and_how_they_are_shown():
    fast, slow, never = a_run([1, 1]), a_run([0, 1]), a_run([0, 0])
    found = {"forward": [fast] * 3, "policy": [never] * 3, "raven": [slow] * 3, "ddpo": [never] * 3}
    rows = ratio_rows(found, 0.5, 0.1)
    assert [(row["setting"], row["against"]) for row in rows] == [
        ("raven", "forward"), ("raven", "policy"), ("ddpo", "forward"), ("ddpo", "policy")
    ]  # fmt: skip
    assert [rl_tables.RATIO_COLUMNS[2].show(row) for row in rows] == ["2.0 [2.0, 2.0]", "<= 1.0", ">= 2.0", "–"]
    assert rows[0]["seconds"] == pytest.approx(2) and rows[2]["chunks_high"] is None and rows[2]["chunks_low"] == 2
    mixed = ratio_rows({"forward": [fast] * 3, "raven": [slow, slow, never]}, 0.5, 0.1)[0]
    assert rl_tables.RATIO_COLUMNS[2].show(mixed) == "2.0 [2.0, open]"


def test_half_of_the_gain_is_timed_too(monkeypatch):
    start = {"looks": [a_run([0.5], (0,))["looks"][0] | {"reward": 0.0, "heldout": None}]}
    exam = {"total": [0.5, 0.5], "diversity": [1.0, 1.0]}
    runs = [a_run([0.6, 0.7]) | {"exam": exam, "updates": 2} for _ in range(3)]
    for run in runs:
        run["looks"] = [look | {"reward": 0.1, "heldout": None} for look in run["looks"]]
    recipes = {name: RL_SETTINGS[name].recipe for name in ("reward", "raven")}
    rows = rl_tables.rl_rows(
        {"reward": runs, "raven": runs}, recipes, {"start": start | {"exams": [exam] * 3}}, [0, 1, 2], 0.7
    )
    setting = next(row for row in rows if row["kind"] == "setting")
    assert (setting["chunks"], setting["half_chunks"], setting["half_seconds"]) == (128, 64, 6.4)
    assert (setting["arrived"], setting["half_arrived"]) == (3, 3)
    ratios = [row for row in rows if row["kind"] == "ratio"]
    assert [row["gain"] for row in ratios] == pytest.approx([0.2, 0.1]) and [row["chunks"] for row in ratios] == [1, 1]


def test_looks_and_exam_share_no_prompt(monkeypatch):
    exam = EvalConfig(prompts=32, long_prompts=0)
    look = apart(EvalConfig(prompts=24, long_prompts=0, scripts_seed=2), exam)
    assert not set(look.texts()) & set(exam.texts())
    monkeypatch.setattr(rl, "DRAWS", 3)
    with pytest.raises(ValueError, match="too many to lie apart"):
        apart(exam, exam)


def test_the_target():
    def found(start, teacher):
        return {name: ({}, {"looks": [{"oracle": x}]}) for name, x in (("start", start), ("teacher", teacher))}

    assert target_of(Config(), found(0.8, 0.9)) == pytest.approx(0.85)
    assert target_of(Config(gain=0.02), found(0.8, 0.7)) == 0.8 + 0.02
    with pytest.raises(ValueError, match=r"the teacher \(0.700\) is not above the start"):
        target_of(Config(), found(0.8, 0.7))


def test_the_default_is_within_its_budget():
    assert core_seconds(Config()) / 2 <= 45 * 60 and Config().seeds == 10


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--settings", "mystery"], "unknown setting mystery; choose from reward, forward"),
        (["--settings", "no.such:recipe"], "or give a recipe module:name"),
        (["--seeds", "0"], "are at least 1"),
        (["--gain", "0"], "a gain is positive"),
    ],
)
def test_wrong_arguments(args, words, tmp_path, capsys):
    assert cli.main(["bench", "rl", *args, "--out", str(tmp_path)]) == 1
    assert words in capsys.readouterr().err
