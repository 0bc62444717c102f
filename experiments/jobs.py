"""Independent jobs in worker processes; a finished job is a checkpoint folder that a rerun finds and does not redo."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import CheckpointError, has_checkpoint, load_checkpoint, save_checkpoint

Result = tuple[dict[str, dict[str, Tensor]], dict[str, Any]]
"""Groups of tensors, and what JSON holds."""
Work = Callable[[Any], Result]


class JobError(RuntimeError):
    """A job failed; the message says which one and why."""


@dataclass(frozen=True)
class Job:
    """name: its folder too. config: a dataclass, all that the result depends on. cost: longer ones start first."""

    name: str
    config: Any
    cost: float = 1.0

    @property
    def settings(self) -> dict[str, Any]:
        """The config as JSON holds it."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self.config), sort_keys=True, default=str))
        return plain

    @property
    def digest(self) -> str:
        """Hash of the settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()


def stored(job: Job, folder: Path) -> Result | None:
    """The job's result where `folder` holds it, whole and made by the same config; else None."""
    place = folder / job.name
    if not has_checkpoint(place):
        return None
    try:
        groups, meta = load_checkpoint(place)
    except CheckpointError:
        return None
    return (groups, meta["result"]) if meta.get("digest") == job.digest else None


def _ignore(*_: object) -> None:
    """Nobody wants to know."""


def run_jobs(
    jobs: Sequence[Job],
    work: Work,
    folder: Path,
    *,
    workers: int = 1,
    done: Callable[[str], None] = _ignore,
    tick: Callable[[], object] = _ignore,
) -> dict[str, Result]:
    """Results by name. What `folder` holds already is not redone; a job is written to it as soon as it ends.

    work: a function of a job's config, importable by name. workers: processes of one torch thread each; with 1 the jobs
    run in this process. done: called with the name of each job that ended or was found. tick: called every second while
    workers work.
    Raises JobError for the first job that fails, after the jobs that were running have ended.
    """
    results = {job.name: result for job in jobs if (result := stored(job, folder)) is not None}
    missing = sorted((job for job in jobs if job.name not in results), key=lambda job: -job.cost)
    for name in results:
        done(name)
    for name in _here(missing, work, folder) if workers <= 1 else _elsewhere(missing, work, folder, workers, tick):
        done(name)
    for job in missing:
        result = stored(job, folder)
        if result is None:
            raise JobError(f"{job.name}: its result in {folder} is gone or damaged; run the command again")
        results[job.name] = result
    return {job.name: results[job.name] for job in jobs}


def _here(jobs: Sequence[Job], work: Work, folder: Path) -> Iterator[str]:
    with one_thread():
        for job in jobs:
            try:
                yield _do(job, work, folder)
            except Exception as error:
                raise _failure(job, error) from error


def _elsewhere(
    jobs: Sequence[Job], work: Work, folder: Path, workers: int, tick: Callable[[], object]
) -> Iterator[str]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, max(1, len(jobs))), mp_context=context, initializer=_settle_worker)
    pending: dict[Future[str], Job] = {pool.submit(_do, job, work, folder): job for job in jobs}
    try:
        while pending:
            tick()
            for future in wait(pending, timeout=1, return_when=FIRST_COMPLETED).done:
                job = pending.pop(future)
                try:
                    yield future.result()
                except Exception as error:
                    raise _failure(job, error) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _do(job: Job, work: Work, folder: Path) -> str:
    groups, result = work(job.config)
    save_checkpoint(folder / job.name, groups, {"digest": job.digest, "config": job.settings, "result": result})
    return job.name


def _failure(job: Job, error: Exception) -> JobError:
    if isinstance(error, BrokenProcessPool):
        return JobError(f"{job.name}: a worker process died (out of memory?); finished jobs are kept, run it again")
    return JobError(f"{job.name}: {type(error).__name__}: {error}")


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """torch on so many threads, and afterwards on as many as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def one_thread() -> AbstractContextManager[None]:
    """torch on one thread: on several, small tensors under contention run many times slower."""
    return on_threads(1)


def _settle_worker() -> None:
    """One thread, a quiet end on Ctrl-C, and no life after the process that started this one, however that ends."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_leave_after, args=(parent,), daemon=True).start()


def _leave_after(parent: Any) -> None:
    parent.join()
    os._exit(1)
