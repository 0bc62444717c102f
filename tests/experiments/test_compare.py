import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from reelgym.checkpoint import load_checkpoint
from reelgym.envs.stack import Stack
from reelgym.envs.worlds.slices import SLICES
from reelgym.experiments import ablate, compare, evaluate, runs
from reelgym.experiments.compare import (
    STUDY,
    Config,
    plans_of,
    preset_of,
    reference_jobs,
    run,
    search_jobs,
    training_jobs,
    winners,
)
from reelgym.experiments.jobs import digests_of, stored
from reelgym.experiments.presets import ABLATION, FOUR_STEPS, METHODS, PRESETS, SEQUENCES, chain, kind_of
from reelgym.experiments.rows import curve_rows, table_rows
from reelgym.experiments.runs import Task, work
from reelgym.experiments.systems import REFERENCES
from reelgym.training.learner import NonFiniteError
from reelgym.training.loop import fit

SMOKE = [*PRESETS["smoke"].updates, *SEQUENCES]
OWN_STEPS = [name for name in REFERENCES if name != "four-steps"]


@pytest.fixture(autouse=True)
def short_exams(monkeypatch):
    """All slices are examined in test_slices.py, streams of the full length in test_evaluate.py."""
    monkeypatch.setattr(evaluate, "LONG", 2)
    for name in list(SLICES)[2:]:
        monkeypatch.delitem(SLICES, name)


def test_methods_learn_from_the_teacher_from_rewards_or_from_both():
    kinds = {
        name: kind_of(name) for name in ("dmd", "reward", "dmd&reward", "reward+dmd", "on-policy+dmd", "continued")
    }
    assert list(kinds.values()) == ["distillation", "rl", "both", "both", "distillation", "start"]


def test_few_step_rungs_stand_beside_the_four_step_start(weights):
    config = Config("two-steps", stack=str(weights), device="cpu")
    references = [job for job in reference_jobs(config) if job.config.seed == 0]
    assert [job.config.row for job in references] == [*REFERENCES]
    steps = {
        len(job.config.stack.load().generator.sigmas) for job in [*references, *training_jobs(config, plans_of(config))]
    }
    assert steps == {2}
    assert len(training_jobs(replace(config, student_steps=3), {})) == 0
    exam = replace(preset_of(config).exam, prompts=1, clips=2, long_prompts=0)
    four = work(replace(references[-1].config, shown=0, exam=exam, validation=replace(exam, split="validation")))[1]
    two = work(replace(references[-2].config, shown=0, exam=exam, validation=exam))[1]
    assert four["scores"] != two["scores"] and four["curve"][0]["scores"] and "curve" not in two


def test_the_ablation_is_a_comparison_of_its_rows(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(compare, "run", asked.append)
    ablate.run(ablate.Config(seeds=2, out=tmp_path))
    assert asked == [Config("ablation", seeds=2, out=tmp_path)]
    plans = plans_of(asked[0])
    assert list(plans) == ["dmd", *ABLATION] and len({plan.updates for plan in plans.values()}) == 1


def kill_at(job):
    def interrupted(task):
        if task.row == job:
            raise KeyboardInterrupt
        return work(task)

    return interrupted


def test_smoke_from_end_to_end_and_again_after_a_kill(weights, tmp_path, monkeypatch, capsys):
    config = Config("smoke", out=tmp_path, stack=str(weights), workers=1, device="cpu")
    monkeypatch.setattr(compare, "STUDY", replace(STUDY, work=kill_at("policy")))
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert not (tmp_path / "results.json").exists()
    before = training_jobs(config, plans_of(config))
    digests = digests_of(before, compare.STUDY.work)
    there = [stored(job, digests[job.name], tmp_path / "jobs") is not None for job in before]
    assert there == [True] * 3 + [False] * (len(SMOKE) - 3)

    done = []
    monkeypatch.setattr(compare, "STUDY", replace(STUDY, work=lambda task: done.append(task.row) or work(task)))
    run(config)
    assert done == SMOKE[3:]

    shown = capsys.readouterr()
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) == {"command", "commit", "versions", "device", "seeds", "config", "rows"}
    methods = [row for row in results["rows"] if row["kind"] == "method"]
    assert [row["method"] for row in methods] == [*OWN_STEPS, *SMOKE]
    assert all(row["label"] in shown.out for row in methods)
    assert str(tmp_path / "report.html") in shown.out and "compare: " in shown.err
    spent = {row["method"]: row for row in methods}
    assert spent["start"].get("updates") is None and spent["dmd"]["updates"] == 1
    assert spent["dmd"]["teacher_calls"] > 0 == spent["dmd"]["reward_calls"] and spent["policy"]["reward_calls"] > 0
    assert spent["dmd+forward"]["updates"] == 2 and spent["dmd+forward"]["learning_rate"] is None
    for part in ("teacher_calls", "critic_calls"):
        assert spent["dmd+forward"][part] == spent["dmd"][part]
    assert spent["dmd+forward"]["reward_calls"] == spent["forward"]["reward_calls"]
    assert spent["dmd+forward"]["chunks"] == spent["dmd"]["chunks"] + spent["forward"]["chunks"]
    assert spent["truth"]["diversity"] == 1 and spent["teacher"]["late"] is None
    edges = [(row["method"], row["slice"]) for row in results["rows"] if row["kind"] == "slice"]
    assert edges == [(name, edge) for name in (*OWN_STEPS, *SMOKE) if name != "teacher" for edge in SLICES]
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img") == 3 and "Learning curves" in page
    assert "Edge slices" in page and "Edge slices" in shown.out
    events = {path.parent.name for path in tmp_path.glob("tensorboard/*/events*")}
    assert {"clips", "dmd-0", "reward-0"} <= events
    changed = load_checkpoint(tmp_path / "jobs" / "reward-0")[0]["weights"]
    start = load_checkpoint(weights / "student")[0]["weights"]
    assert any(not torch.equal(changed[name], start[name]) for name in start)

    run(replace(config, seeds=1))
    assert done == SMOKE[3:]


def test_other_weights_or_another_size_are_other_jobs(weights, tmp_path, monkeypatch):
    config = Config("smoke", out=tmp_path, stack=str(weights), device="cpu")

    def digests(config):
        return digests_of(reference_jobs(config), work)

    jobs, more = digests(config), digests(replace(config, seeds=2))
    assert jobs.items() <= more.items() and len(more) == 2 * len(jobs)
    monkeypatch.setitem(PRESETS, "smoke", replace(PRESETS["smoke"], teacher_prompts=2))
    resized = digests(config)
    assert [name for name in jobs if jobs[name] != resized[name]] == ["teacher-0"]
    manifest = weights / "reward" / "checkpoint.json"
    text = manifest.read_text()
    manifest.write_text(text.replace("plain", "full"))
    assert not jobs.items() & digests(config).items()
    manifest.write_text(text)


def test_every_method_gets_the_same_search(weights, monkeypatch):
    monkeypatch.setitem(PRESETS, "smoke", replace(PRESETS["smoke"], search=(0.5, 2.0)))
    config = Config("smoke", stack=str(weights), device="cpu")
    plans = plans_of(config)
    tries = search_jobs(config, plans)
    assert {row: sum(job.config.row == row for job in tries) for row in FOUR_STEPS} == dict.fromkeys(FOUR_STEPS, 2)
    assert not any(job.config.row in (*SEQUENCES, "dmd&reward") for job in tries)
    assert all(job.config.exam is None and job.config.validation.split == "validation" for job in tries)
    assert not {job.config.seed for job in tries} & {config.seed}
    ends = {}
    for number, job in enumerate(tries):
        curve = [{"oracle": 0.9}, {"oracle": number}]
        ends[job.name] = ({}, {"curve": curve, "learning_rate": job.config.plan.recipe.learning_rate})
    found = winners(plans, tries, ends)
    for name in FOUR_STEPS:
        assert found[name].recipe.learning_rate == 2 * plans[name].recipe.learning_rate
    rates = [stage.recipe.learning_rate for stage in found["stream-r1+reward"].recipe.stages]
    assert rates == [found[name].recipe.learning_rate for name in ("stream-r1", "reward")]
    assert found["dmd"].recipe.critic.learning_rate == pytest.approx(2 * plans["dmd"].recipe.critic.learning_rate)
    assert winners(plans, [], {}) == plans


def test_presets_have_whole_plans_and_test_scripts_are_test_scripts():
    for name, preset in PRESETS.items():
        plans = preset.plans()
        assert set(plans) <= set(METHODS) and "dmd" in plans
        assert preset.exam.split == "test" and preset.validation.split == "validation"
        assert preset.seeds >= 2 or name == "smoke"
        for name in FOUR_STEPS:
            assert name not in plans or plans[name].recipe.with_learning_rate(0.5).learning_rate == 0.5
    with pytest.raises(ValueError, match="of its parts"):
        plans["dmd+forward"].recipe.with_learning_rate(0.5)


def test_a_sequence_has_the_budget_of_one_method():
    plans = PRESETS["standard"].plans()
    for name in SEQUENCES:
        first, second = plans[name].recipe.stages
        one, other = (plans[part] for part in name.split("+"))
        assert (first.recipe, second.recipe) == (one.recipe, other.recipe)
        assert [2 * first.updates - one.updates, 2 * second.updates - other.updates] in ([0, 0], [1, 0])
        assert plans[name].updates == first.updates + second.updates
    recipe = plans["dmd+forward"].recipe
    assert [stage.recipe.seed for stage in recipe.with_seed(7).stages] == [7, 7]
    smaller = recipe.with_batch(1).stages
    assert smaller[0].recipe.batch == smaller[1].recipe.prompts == 1


def test_the_second_part_starts_from_what_the_first_left_and_goes_on_after_a_checkpoint(weights):
    stack = Stack.load(weights)
    plan = chain("dmd+reward", {name: replace(PRESETS["smoke"].plans()[name], updates=3) for name in ("dmd", "reward")})

    def begin():
        student = stack.student()
        return student, plan.recipe.trainer(stack, student)

    def copied(state):
        return {group: {key: value.clone() for key, value in found.items()} for group, found in state[0].items()}

    student, trainer = begin()
    fit(trainer, 2)
    left = {name: value.clone() for name, value in student.model.state_dict().items()}
    assert any(not torch.equal(left[name], value) for name, value in stack.generator.model.state_dict().items())
    fit(trainer, 3)
    frozen = trainer.trainer.reference.state_dict()
    assert all(torch.equal(frozen[name], value) for name, value in left.items())
    groups, meta = copied(trainer.state()), json.loads(json.dumps(trainer.state()[1]))
    fit(trainer, 5)
    assert (trainer.counts.updates, trainer.ended[0].updates, trainer.trainer.counts.updates) == (5, 2, 3)
    assert trainer.counts.teacher_calls > 0 < trainer.counts.reward_calls

    other, again = begin()
    again.load_state(groups, meta)
    assert again.counts.updates == 3
    fit(again, 5)
    ends = student.model.state_dict()
    assert all(torch.equal(ends[name], value) for name, value in other.model.state_dict().items())
    assert replace(again.counts, seconds=0) == replace(trainer.counts, seconds=0)


def test_wrong_arguments_are_refused(weights):
    for wrong in ({"seeds": 0}, {"workers": -1}):
        with pytest.raises(ValueError, match="at least 1"):
            run(Config("smoke", stack=str(weights), device="cpu", **wrong))
    with pytest.raises(ValueError, match="neither a folder"):
        preset_of(Config("smoke", stack=str(weights / "nowhere"), device="cpu"))


def test_rows_by_hand():
    def result(total, spread, seed):
        axes = dict.fromkeys(("VQ", "MQ", "TA", "physics"), [0.5, 0.5]) | {"total": total}
        return {"seed": seed, "scores": axes, "diversity": spread, "late": [0.4], "drift": [0.1], "fps": 10.0}

    counts = {"updates": 3, "chunks": 8, "generator_calls": 1, "teacher_calls": 2, "critic_calls": 0}
    counts |= {"reference_calls": 0, "reward_calls": 5, "seconds": 1.5}
    table = {name: [result([0.2, 0.4], [0.2, 0.2], seed) for seed in (0, 1)] for name in REFERENCES}
    trained = {"counts": counts, "learning_rate": 1e-4}
    table |= {name: [result([0.3, 0.6], [0.1, 0.2], seed) | trained for seed in (0, 1)] for name in METHODS}
    rows = table_rows(table)
    dmd = next(row for row in rows if row["kind"] == "method" and row["method"] == "dmd")
    assert dmd["total"] == pytest.approx(0.45) and dmd["low"] < 0.45 < dmd["high"]
    assert dmd["diversity"] == pytest.approx(0.75) and dmd["late"] == 0.4 and dmd["seconds"] == 1.5
    contrasts = {(row["ours"], row["theirs"]): row for row in rows if row["kind"] == "contrast"}
    declared = [("stream-r1", "dmd"), ("forward", "start"), ("reward", "start"), ("dmd", "start")]
    declared += [("dmd&reward", other) for other in ("dmd", "reward", "four-steps")]
    assert list(contrasts)[:7] == declared == [pair for pair, row in contrasts.items() if row["declared"]]
    described = {("forward", "raven"), ("forward", "dmd"), ("reward", "stream-r1")}
    described |= {("dmd+forward", "forward"), ("stream-r1+reward", "reward"), *((name, "start") for name in METHODS)}
    described |= {("dmd&forward", "dmd"), ("dmd&forward", "forward"), ("dmd&reward", "reward+dmd")}
    described |= {("consistency&reward", "consistency"), ("consistency&reward", "reward"), ("dmd", "consistency")}
    described |= {*((name, "four-steps") for name in METHODS), *((name, "dmd") for name in ABLATION)}
    chosen = {("continued", "dmd")}
    assert set(contrasts) == {*declared, *described, *chosen}
    assert contrasts["stream-r1", "dmd"]["verdict"] == "unclear"
    assert contrasts["policy", "start"]["difference"] == pytest.approx(0.15)
    assert contrasts["policy", "start"]["diversity_ratio"] == pytest.approx(0.75)
    few = table_rows({name: found for name, found in table.items() if name in (*OWN_STEPS, "reward", "stream-r1")})
    asked = [(row["ours"], row["theirs"]) for row in few if row["kind"] == "contrast"]
    assert asked[:3] == [("reward", "start"), ("stream-r1", "start"), ("reward", "stream-r1")]
    assert asked[3:] == [("stream-r1", "reward")]
    curve = {"seed": 0, "curve": [{"update": 0, "oracle": 0.1}, {"update": 4, "oracle": 0.2}]}
    assert [row["share"] for row in curve_rows("dmd", curve)] == [0, 1]
    assert np.isclose(sum(row["kind"] == "run" for row in rows), 2 * (len(REFERENCES) + len(METHODS)))


def test_a_curve_begins_at_the_start_and_ends_at_the_last_update(weights):
    config = Config("smoke", stack=str(weights), device="cpu")
    plan = replace(plans_of(config)["continued"], updates=5)
    groups, result = work(Task("continued", 0, None, preset_of(config).validation, plan, 2, stack=config.spec))
    assert [point["update"] for point in result["curve"]] == [0, 3, 5] and not groups
    assert [row["update"] for row in result["log"]] == [1, 2, 3, 4, 5] and "oracle" not in result["log"][2]


def test_a_try_that_diverges_loses_and_a_run_that_diverges_counts_as_it_stood(weights, monkeypatch):
    def diverge(trainer, updates, **options):
        raise NonFiniteError("the gradient norm is inf: lower the learning rate")

    monkeypatch.setattr(runs, "fit", diverge)
    config = Config("smoke", stack=str(weights), device="cpu")
    preset, plan = preset_of(config), plans_of(config)["continued"]
    lost = work(Task("continued", 0, None, preset.validation, plan, stack=config.spec))[1]
    assert lost["curve"][-1] == {**lost["curve"][0], "update": 1, "oracle": 0.0}
    stood = work(Task("continued", 0, preset.exam, preset.validation, plan, stack=config.spec))[1]
    assert stood["scores"] == work(Task("start", 0, preset.exam, preset.validation, stack=config.spec))[1]["scores"]
    (line,) = compare.diverged({"continued": [{"seed": 0, **stood}]})
    assert "seed 0, diverged at update 0" in line


def test_one_method_for_longer(weights, tmp_path, capsys):
    config = Config("smoke", only=("dmd",), times=2, out=tmp_path, stack=str(weights), device="cpu")
    assert {name: plan.updates for name, plan in plans_of(config).items()} == {"dmd": 2}
    for wrong in (("ppo",), ("dmd", "dmd+forward")):
        with pytest.raises(ValueError, match=r"--only lacks (ppo|forward): choose from continued, dmd"):
            plans_of(replace(config, only=wrong))
    run(replace(config, student_steps=2, workers=1))
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    curve = [row for row in rows if row["kind"] == "curve" and row["method"] == "dmd"]
    assert [row["update"] for row in curve] == [0, 2] and curve[1]["seconds"] > 0
    asked = [(row["ours"], row["theirs"]) for row in rows if row["kind"] == "contrast"]
    assert asked == [("dmd", "start"), ("dmd", "four-steps")] and "DMD - start" in capsys.readouterr().out
