"""One study: a record of functions, and the one way to run it.

The smallest study asks for all of its jobs at once and ignores the results so far:

    STUDY = Study("agents", work, lambda config, results: [Job(...), ...], rows, lambda found: report(found["rows"]))

    def run(config: Config) -> None:
        done = run_study(STUDY, config)
        (done.out / "curves.svg").write_text(...)   # what is this study's own comes after

A study in phases asks again. `jobs` is called with the results so far until it wants nothing new, so that a search,
then trainings at what it found, need no more than an `if`:

    def jobs(config, results):
        tries = search_jobs(config)
        return training_jobs(config, winners(config, results)) if finished(tries, results) else tries

Jobs that read what earlier ones wrote find it in `job_folder(config) / NAME`: their configs hold that path, and they
are asked for once those are finished. One `work` may do several kinds of task; it looks at the task's class.

Kill it anywhere: finished jobs are kept, and found again where config, code, plug-ins and weights are the same
(`Job.digest`); no study says itself what it is made from. Its task's config holds a `StackSpec` for the weights, and
recipes and other plug-ins as objects, or as strings `module:name`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from .console import progress, worker_count
from .jobs import Job, Result, Work, one_thread, run_jobs
from .results import command_line, pick_device, write_results
from .tables import Row

Results = Mapping[str, Result]
"""Of jobs, by name: groups of tensors, and what JSON holds."""


def seeds_of(config: Any) -> list[int]:
    """As many as config's `seeds` says, from its `seed` on."""
    return list(range(config.seed, config.seed + config.seeds))


def settings_of(config: Any, results: Results) -> dict[str, Any]:
    """The config itself."""
    return asdict(config)


@dataclass(frozen=True)
class Study:
    """What a study is. All its functions are of the module, none keeps anything; `config` is the command's, with `out`,
    `workers` and `device` made definite. ValueError from `jobs` is how a config is refused.

    Example:
        >>> STUDY = Study("audit credit", work, jobs, rows, tables)
    """

    name: str
    """The command's words, such as "bench rl"."""
    work: Work
    """task -> (groups of tensors, what JSON holds); importable by name, runs in a worker process."""
    jobs: Callable[[Any, Results], Iterable[Job]]
    """(config, results so far) -> the jobs that are wanted now; those that are finished may be among them."""
    rows: Callable[[Any, Results], Sequence[Row]]
    """(config, all results) -> flat rows of results.json."""
    tables: Callable[[Mapping[str, Any]], str]
    """What results.json holds -> the text that is printed."""
    settings: Callable[[Any, Results], Mapping[str, Any]] = settings_of
    """(config, all results) -> what results.json keeps as "config"."""
    seeds: Callable[[Any], Sequence[int]] = seeds_of
    """config -> the seeds that results.json names."""

    @property
    def words(self) -> list[str]:
        """What is typed before the options."""
        return ["reelgym", *self.name.split()]


@dataclass(frozen=True)
class _Done:
    """What a study came to. config: definite. found: what results.json holds."""

    config: Any
    results: Results
    found: Mapping[str, Any]

    @property
    def out(self) -> Path:
        """The folder of results.json."""
        return Path(self.config.out)

    @property
    def rows(self) -> list[Row]:
        """Those of results.json."""
        return list(self.found["rows"])


def run_study(study: Study, config: Any) -> _Done:
    """Run every job that is wanted and not there yet, write results.json, print its tables and where it is.

    config: a dataclass with `seed`, `device`, `out` and `workers`; where the last two are None they become runs/NAME
    (with the config's `preset`, where it has one) and what the device bears.
    """
    chosen = definite(study.name, config)
    results = finish(study, chosen)
    with one_thread():
        rows = study.rows(chosen, results)
        command = command_line(study.words, config)
        settings = study.settings(chosen, results)
        path = write_results(chosen.out, command, study.seeds(chosen), settings, rows, chosen.device)
    found = json.loads(path.read_text())
    print(f"{study.tables(found)}\n\nresults: {path}")
    return _Done(chosen, results, found)


def definite(name: str, config: Any) -> Any:
    """The config with its device, workers and folder; ValueError for a device or a number of workers that cannot be."""
    device = pick_device(config.device)
    if config.workers is not None and config.workers < 1:
        raise ValueError(f"workers are at least 1, not {config.workers}")
    words = [*name.split(), *([config.preset] if "preset" in {field.name for field in fields(config)} else [])]
    out = config.out or Path("runs") / "-".join(words)
    return replace(config, device=str(device), workers=worker_count(device, config.workers), out=out)


def finish(study: Study, config: Any) -> dict[str, Result]:
    """The results of all jobs by name, those that are there already and those that are run now."""
    results: dict[str, Result] = {}
    wanted = list(study.jobs(config, results))  # a config that is refused shows no bar
    with progress(0, study.name) as bar:

        def done(name: str) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update()

        while wanted:
            bar.total += len(wanted)
            bar.refresh()
            how: dict[str, Any] = {"workers": config.workers, "done": done, "tick": bar.refresh}
            results |= run_jobs(wanted, study.work, job_folder(config), **how)
            wanted = [job for job in study.jobs(config, results) if job.name not in results]
    return results


def job_folder(config: Any) -> Path:
    """Where the jobs of a definite config are kept, each in a folder of its name."""
    return Path(config.out) / "jobs"


def in_turn(phases: Iterable[Sequence[Job]], results: Results) -> list[Job]:
    """The jobs of every phase up to the first that is not finished: for `Study.jobs` whose phases are known before."""
    wanted: list[Job] = []
    for phase in phases:
        wanted += phase
        if not finished(phase, results):
            break
    return wanted


def finished(jobs: Iterable[Job], results: Results) -> bool:
    """Whether all of these have results."""
    return all(job.name in results for job in jobs)
