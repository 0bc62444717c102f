import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from reelgym.experiments import jobs as runner
from reelgym.experiments.jobs import Job, JobError, run_jobs


@dataclass(frozen=True)
class Square:
    x: int
    mark: Path | None = None


@dataclass(frozen=True)
class Linger:
    wait: int


def square(config):
    if config.x < 0:
        raise ValueError("negative")
    if config.mark:
        with open(config.mark, "a") as file:
            file.write(f"{config.x}\n")
    value = torch.tensor([config.x**2])
    return {"out": {"value": value}}, {"threads": torch.get_num_threads(), "pid": os.getpid()}


def stored(job, folder, work=square):
    return runner.stored(job, job.digest(work), folder)


def jobs(mark, count=3):
    return [Job(f"job-{x}", Square(x, mark)) for x in range(count)]


def test_finished_jobs_are_not_redone(tmp_path):
    mark, seen = tmp_path / "mark", []
    first = run_jobs(jobs(mark), square, tmp_path, done=seen.append)
    again = run_jobs(jobs(mark), square, tmp_path)
    assert mark.read_text() == "0\n1\n2\n"
    assert seen == list(first) == list(again)
    assert int(again["job-2"][0]["out"]["value"]) == 4
    assert again["job-2"][1] == first["job-2"][1] and first["job-2"][1]["threads"] == 1


def test_a_changed_config_or_a_damaged_file_is_redone(tmp_path):
    mark = tmp_path / "mark"
    run_jobs(jobs(mark), square, tmp_path)
    (tmp_path / "job-1" / "out.safetensors").write_bytes(b"half")
    changed = [*jobs(mark)[:2], Job("job-2", Square(5, mark))]
    assert stored(changed[0], tmp_path) is not None and stored(changed[1], tmp_path) is None
    results = run_jobs(changed, square, tmp_path)
    assert mark.read_text() == "0\n1\n2\n1\n5\n"
    assert int(results["job-2"][0]["out"]["value"]) == 25


def test_a_failure_names_its_job_and_keeps_the_others(tmp_path):
    work = [Job("good", Square(1), cost=2), Job("bad", Square(-1))]
    with pytest.raises(JobError, match="bad: ValueError: negative"):
        run_jobs(work, square, tmp_path)
    assert stored(work[0], tmp_path) is not None


LINGER = """
import os, time
from dataclasses import dataclass
from pathlib import Path
import torch
from reelgym.experiments import jobs
from reelgym.experiments.jobs import Job, run_jobs

jobs.digests_of = lambda jobs, work: {job.name: "the same" for job in jobs}

@dataclass(frozen=True)
class Linger:
    wait: int

HERE = Path(__file__).parent
JOBS = [Job("quick", Linger(0), cost=2), Job("slow", Linger(60))]

def linger(config):
    (HERE / f"{config.wait}.pid").write_text(str(os.getpid()))
    time.sleep(config.wait)
    return {"out": {"value": torch.zeros(1)}}, {"threads": torch.get_num_threads(), "pid": os.getpid()}

if __name__ == "__main__":
    run_jobs(JOBS, linger, HERE / "jobs", workers=2)
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "\nState:\tZ" not in status.read_text()


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_kill_9_keeps_what_is_finished_and_leaves_no_worker(tmp_path, monkeypatch):
    script = tmp_path / "linger.py"
    script.write_text(LINGER)
    monkeypatch.setattr(runner, "digests_of", lambda jobs, work: {job.name: "the same" for job in jobs})
    quick, slow = Job("quick", Linger(0)), Job("slow", Linger(60))
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        until(lambda: runner.stored(quick, "the same", tmp_path / "jobs") and (tmp_path / "60.pid").exists())
        worker = int((tmp_path / "60.pid").read_text())
        assert alive(worker)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    until(lambda: not alive(worker), 20)
    meta = runner.stored(quick, "the same", tmp_path / "jobs")[1]
    assert runner.stored(slow, "the same", tmp_path / "jobs") is None
    assert meta["threads"] == 1 and meta["pid"] not in (os.getpid(), process.pid)
    redone = run_jobs([quick, slow], lambda config: ({}, {"again": True}), tmp_path / "jobs")
    assert redone["quick"][1] == meta and redone["slow"][1] == {"again": True}
