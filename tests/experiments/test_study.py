"""A study runs in phases and goes on where it stopped; two plug-ins are never taken for each other."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from reelgym.checkpoint import has_checkpoint
from reelgym.envs.stack import StackSpec
from reelgym.experiments import identity, runs
from reelgym.experiments import jobs as runner
from reelgym.experiments.identity import code_of, described, files_of, made_from
from reelgym.experiments.jobs import Job, digests_of, run_jobs
from reelgym.experiments.study import Study, definite, finished, in_turn, job_folder, run_study
from reelgym.plugins import resolve


@dataclass(frozen=True)
class Config:
    seeds: int = 2
    seed: int = 3
    device: str = "cpu"
    workers: int | None = 1
    out: Path | None = None
    preset: str = "quick"


@dataclass(frozen=True)
class Try:
    rate: float


@dataclass(frozen=True)
class Training:
    rate: float
    seed: int
    tries: str


def work(task):
    if isinstance(task, Try):
        return {}, {"score": -abs(task.rate - 2.0)}
    assert has_checkpoint(task.tries)
    return {"out": {"seed": torch.tensor([task.seed])}}, {"score": task.rate + task.seed}


def wanted(config, results):
    tries = [Job(f"try-{rate:g}", Try(rate)) for rate in (1.0, 2.0, 4.0)]
    if not finished(tries, results):
        return tries
    best = max((1.0, 2.0, 4.0), key=lambda rate: results[f"try-{rate:g}"][1]["score"])
    folder = str(job_folder(config) / f"try-{best:g}")
    return [*tries, *(Job(f"run-{seed}", Training(best, seed, folder)) for seed in (3, 4))]


def rows(config, results):
    return [{"kind": "run", "name": name, "score": found["score"]} for name, (_, found) in results.items()]


STUDY = Study("bench nothing", work, wanted, rows, lambda found: f"{len(found['rows'])} rows")


def test_search_then_training_then_report(tmp_path, capsys, monkeypatch):
    done = run_study(STUDY, Config(out=tmp_path))
    assert capsys.readouterr().out == f"5 rows\n\nresults: {tmp_path / 'results.json'}\n"
    assert {row["name"]: row["score"] for row in done.rows if "run" in row["name"]} == {"run-3": 5.0, "run-4": 6.0}
    assert int(done.results["run-4"][0]["out"]["seed"]) == 4 and done.out == tmp_path
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["command"] == "reelgym bench nothing"
    assert written["seeds"] == [3, 4] and written["config"]["workers"] == 1 and "out" not in written["config"]

    monkeypatch.setattr(runner, "_do", None)
    assert run_study(STUDY, Config(out=tmp_path)).rows == done.rows


def test_phases_in_turn():
    phases = [[Job("a", Try(1.0)), Job("b", Try(2.0))], [Job("c", Try(3.0))]]
    assert [job.name for job in in_turn(phases, {"a": None})] == ["a", "b"]
    assert [job.name for job in in_turn(phases, {"a": None, "b": None})] == ["a", "b", "c"]


def test_a_config_is_made_definite():
    assert definite("bench nothing", Config()).out == Path("runs/bench-nothing-quick")
    assert definite("x", Config(workers=None)).workers in (1, 2)
    with pytest.raises(ValueError, match="workers are at least 1"):
        definite("x", Config(workers=0))


PLUGIN = '''"""{doc}"""
from dataclasses import dataclass

from .shared import FACTOR


@dataclass(frozen=True)
class Recipe:
    """Equal fields in both."""

    x: int = 2

    def value(self):
        return {sign}self.x * FACTOR
'''
WORKER = """from pathlib import Path

HERE = Path(__file__).parent


def work(recipe):
    with open(HERE / "log.txt", "a") as log:
        log.write(f"{type(recipe).__module__}\\n")
    return {}, {"value": recipe.value()}
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Two plug-ins of equal fields, what they share, and a worker that knows neither."""
    folder = tmp_path / "a_users_package"
    folder.mkdir()
    for name, sign in (("up", "+"), ("down", "-")):
        (folder / f"{name}.py").write_text(PLUGIN.format(doc=name, sign=sign))
    for name, text in {"__init__": "", "shared": "FACTOR = 10\n", "apart": "UNUSED = 1\n", "worker": WORKER}.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    forget()


def forget():
    for name in [name for name in sys.modules if name.split(".")[0] == "a_users_package"]:
        del sys.modules[name]


def ran(package, workers=1):
    """The results of both plug-ins, and the modules of those that ran now."""
    log = package / "log.txt"
    log.write_text("")
    recipes = {name: resolve(f"a_users_package.{name}:Recipe")() for name in ("up", "down")}
    do = resolve("a_users_package.worker:work")
    found = run_jobs([Job(*pair) for pair in recipes.items()], do, package.parent / "jobs", workers=workers)
    values = {name: result["value"] for name, (_, result) in found.items()}
    return values, sorted(line.split(".")[1] for line in log.read_text().split())


def edit(package, name, old, new):
    file = package / f"{name}.py"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def test_plugins_with_equal_fields_share_no_job_and_an_edited_one_runs_again(package):
    assert ran(package) == ({"up": 20, "down": -20}, ["down", "up"])
    edit(package, "up", '"""up"""', '"""Other words."""\n# a remark')
    edit(package, "up", "Equal fields", "The same fields")
    edit(package, "apart", "1", "2")
    assert ran(package)[1] == []
    edit(package, "up", "self.x *", "3 * self.x *")
    # what this process has loaded is old; a worker begins anew
    assert ran(package, workers=2) == ({"up": 60, "down": -20}, ["up"])
    edit(package, "shared", "10", "100")
    forget()
    assert ran(package) == ({"up": 600, "down": -200}, ["down", "up"])


def test_what_a_string_imports_counts_too(package):
    def code():
        return digests_of([Job("a", Named("a_users_package.up:Recipe"))], work)

    first = code()
    edit(package, "down", "-self", "+self")
    assert code() == first
    edit(package, "up", "self.x", "2 * self.x")
    assert code() != first


@dataclass(frozen=True)
class Named:
    recipe: str


def test_the_config_says_classes_and_refuses_what_it_cannot_tell_apart():
    assert described(Try(1.0)) == {"class": f"{__name__}.Try", "rate": 1.0}
    assert described({"f": work, "p": Path("a"), "t": (1, None)}) == {"f": f"{__name__}.work", "p": "a", "t": [1, None]}
    with pytest.raises(ValueError, match="a job's config holds"):
        described(Named(object()))
    assert code_of(Named("no import path")) == {__name__}


def test_weights_are_part_of_a_job(weights, tmp_path):
    folder = tmp_path / "stack"
    shutil.copytree(weights, folder)
    before = files_of(StackSpec(str(folder)))
    assert before == files_of(StackSpec(str(folder)))
    manifest = next(folder.glob("codec/*.json"))
    manifest.write_text(manifest.read_text() + " ")
    assert files_of(StackSpec(str(folder))) != before


def test_all_of_reelgym_that_a_worker_reaches_counts(monkeypatch):
    read = []
    original = identity._read
    monkeypatch.setattr(identity, "_read", lambda name, *rest: read.append(name) or original(name, *rest))
    made_from(runs.work)
    found = {"checkpoint", "noise", "models.wan", "training.loop", "rewards.windows", "envs", "experiments.jobs"}
    assert {f"reelgym.{name}" for name in found} | {"reelgym"} <= set(read)
    assert not any(name.split(".")[0] in ("torch", "numpy", "json") for name in read)
