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
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import CheckpointError, has_checkpoint, load_checkpoint, save_checkpoint
from .identity import code_of, described, files_of, made_from

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
        """The config as JSON holds it, every dataclass with its class."""
        plain: dict[str, Any] = described(self.config)
        return plain

    def digest(self, work: Work) -> str:
        """Hash of all that the result depends on: the settings, the code of `work` and of the config's own classes and
        import paths with all that it imports, and the files that the config's parts name (`depends_on`)."""
        return digests_of([self], work)[self.name]


def digests_of(jobs: Sequence[Job], work: Work) -> dict[str, str]:
    """`Job.digest` of each by name, with the code read once."""
    code = cache(lambda modules: made_from(work, *modules))
    parts = {
        job.name: (json.dumps(job.settings, sort_keys=True), code(frozenset(code_of(job.config))), files_of(job.config))
        for job in jobs
    }
    return {name: hashlib.sha256("\n".join(part).encode()).hexdigest() for name, part in parts.items()}


def stored(job: Job, digest: str, folder: Path) -> Result | None:
    """The job's result where `folder` holds it, whole and with that digest; else None."""
    place = folder / job.name
    if not has_checkpoint(place):
        return None
    try:
        groups, meta = load_checkpoint(place)
    except CheckpointError:
        return None
    return (groups, meta["result"]) if meta.get("digest") == digest else None


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

    A result is found where its digest is the same (`Job.digest`): an edited plug-in's jobs run again, others do not.
    work: a function of a job's config, importable by name. workers: processes of one torch thread each; with 1 the jobs
    run in this process. done: called with the name of each job that ended or was found. tick: called every second while
    workers work.
    Raises JobError for the first job that fails, after the jobs that were running have ended.
    """
    digests = digests_of(jobs, work)

    def found(job: Job) -> Result | None:
        return stored(job, digests[job.name], folder)

    results = {job.name: result for job in jobs if (result := found(job)) is not None}
    missing = sorted((job for job in jobs if job.name not in results), key=lambda job: -job.cost)
    for name in results:
        done(name)
    orders = [(job, digests[job.name], work, folder) for job in missing]
    for name in _here(orders) if workers <= 1 else _elsewhere(orders, workers, tick):
        done(name)
    for job in missing:
        result = found(job)
        if result is None:
            raise JobError(f"{job.name}: its result in {folder} is gone or damaged; run the command again")
        results[job.name] = result
    return {job.name: results[job.name] for job in jobs}


_Order = tuple[Job, str, Work, Path]
"""A job, its digest, who does it, and where its result goes."""


def _here(orders: Sequence[_Order]) -> Iterator[str]:
    with one_thread():
        for order in orders:
            try:
                yield _do(*order)
            except Exception as error:
                raise _failure(order[0], error) from error


def _elsewhere(orders: Sequence[_Order], workers: int, tick: Callable[[], object]) -> Iterator[str]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, max(1, len(orders))), mp_context=context, initializer=_settle_worker)
    pending: dict[Future[str], Job] = {pool.submit(_do, *order): order[0] for order in orders}
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


def _do(job: Job, digest: str, work: Work, folder: Path) -> str:
    groups, result = work(job.config)
    save_checkpoint(folder / job.name, groups, {"digest": digest, "config": job.settings, "result": result})
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
