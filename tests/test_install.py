""".ci/install with a stand-in for Python that writes down what it is asked to do."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

INSTALL = Path(__file__).parent.parent / ".ci" / "install"
PYTHON = """#!/bin/sh
echo "$@" >>log
case "$*" in
-c*) [ ! -e old ] ;;
"-m venv --clear "*) rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
*torch*) while [ -e slow ]; do sleep 0.02; done ;;
*dev*) [ ! -e offline ] ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    folder = tmp_path / "reel-gym"
    (folder / ".ci").mkdir(parents=True)
    shutil.copy(INSTALL, folder / ".ci")
    for name in ("pyproject.toml", "constraints.txt"):
        (folder / name).touch()
        os.utime(folder / name, (1, 1))
    (folder / "python").write_text(PYTHON)
    (folder / "python").chmod(0o755)
    return folder


def start(clone):
    return subprocess.Popen([".ci/install", "./python", ".venv"], cwd=clone, stderr=subprocess.PIPE, text=True)


def install(clone):
    """Exit status, and what Python was asked to do: venv, torch, dev."""
    (clone / "log").unlink(missing_ok=True)
    process = start(clone)
    process.communicate(timeout=30)
    log = (clone / "log").read_text().splitlines() if (clone / "log").exists() else []
    words = [word for line in log for word in ("venv --clear", "torch", "[dev]") if word in line]
    return process.returncode, words


WHOLE = (0, ["venv --clear", "torch", "[dev]"])


def test_installs_once(clone):
    assert install(clone) == WHOLE
    assert install(clone) == (0, [])


def test_changed_requirements_are_installed_into_the_same_environment(clone):
    install(clone)
    ahead = time.time() + 60
    os.utime(clone / "constraints.txt", (ahead, ahead))
    assert install(clone) == (0, ["torch", "[dev]"])


def test_an_update_that_failed_starts_afresh(clone):
    install(clone)
    ahead = time.time() + 60
    os.utime(clone / "pyproject.toml", (ahead, ahead))
    (clone / "offline").touch()
    assert install(clone)[0] != 0
    (clone / "offline").unlink()
    os.utime(clone / "pyproject.toml", (1, 1))
    assert install(clone) == WHOLE
    assert install(clone) == (0, [])


def wait_for_torch(clone):
    while not ((clone / "log").exists() and "torch" in (clone / "log").read_text()):
        time.sleep(0.01)


def test_killed_with_its_children_it_starts_afresh(clone):
    (clone / "slow").touch()
    process = subprocess.Popen([".ci/install", "./python", ".venv"], cwd=clone, start_new_session=True)
    wait_for_torch(clone)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (clone / "slow").unlink()
    assert install(clone) == WHOLE


@pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock")
def test_after_the_script_alone_was_killed_the_next_waits_for_its_pip(clone):
    (clone / "slow").touch()
    first = start(clone)
    wait_for_torch(clone)
    first.kill()
    first.wait()
    second = start(clone)
    time.sleep(0.1)
    assert second.poll() is None and "venv" in (clone / "log").read_text().splitlines()[1]
    (clone / "slow").unlink()
    second.communicate(timeout=30)
    assert second.returncode == 0 and (clone / ".venv" / ".installed").exists()
    assert len([line for line in (clone / "log").read_text().splitlines() if "dev" in line]) == 1


def test_an_old_python_is_named(clone):
    (clone / "old").touch()
    process = start(clone)
    _, message = process.communicate(timeout=30)
    assert process.returncode == 1 and "reelgym needs Python 3.11 or newer" in message
