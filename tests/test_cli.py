import subprocess
import sys
import types
from dataclasses import dataclass

import pytest
import tyro

from reelgym.experiments import cli


@dataclass(frozen=True)
class Config:
    word: tyro.conf.Positional[str]
    """What to do."""
    seed: int = 0
    """Seed."""


FAILURES = {
    "value": ValueError("two\nlines   of text"),
    "missing": FileNotFoundError(2, "No such file or directory", "a.mp4"),
    "bug": KeyError("step"),
    "stop": KeyboardInterrupt(),
}


def work(config):
    if config.word in FAILURES:
        raise FAILURES[config.word]
    print(f"did {config.word} with {config.seed}")


@pytest.fixture(autouse=True)
def command(monkeypatch):
    module = types.SimpleNamespace(Config=Config, run=work)
    monkeypatch.setitem(sys.modules, "reelgym.experiments.generate", module)


def call(capsys, *args):
    status = cli.main(["generate", *args])
    out, err = capsys.readouterr()
    return status, out, err


def test_runs_a_command(capsys):
    assert call(capsys, "this", "--seed", "3") == (0, "did this with 3\n", "")


@pytest.mark.parametrize(
    ("word", "status", "line"),
    [
        ("value", 1, "reelgym: error: two lines of text"),
        ("missing", 1, "reelgym: error: a.mp4: No such file or directory"),
        ("bug", 1, "reelgym: error: KeyError: 'step' (--debug shows where)"),
        ("stop", 130, "reelgym: interrupted"),
    ],
)
def test_a_failure_is_one_line_on_stderr(capsys, word, status, line):
    assert call(capsys, word) == (status, "", line + "\n")


def test_debug_adds_the_traceback(capsys):
    status, _, err = call(capsys, "--debug", "bug")
    assert status == 1 and "Traceback" in err and err.splitlines()[-1].startswith("reelgym: error: KeyError: 'step'")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "Missing from reelgym generate"),
        (["x", "--seed", "y"], "invalid literal for int"),
        (["x", "--sed", "1"], "--sed"),
        (
            ["x", "and a much longer argument that no frame of a terminal could ever hold in one line " * 3],
            "much longer",
        ),
    ],
)
def test_wrong_arguments_are_one_line_and_status_2(capsys, args, words):
    status, out, err = call(capsys, *args)
    assert (status, out) == (2, "") and words in err and err.count("\n") == 1
    assert err.startswith("reelgym: error: ") and err.endswith("(see reelgym generate --help)\n")
    assert not set(err) & set("│╭╰─")


def test_unknown_and_missing_commands(capsys):
    assert cli.main(["generat"]) == 2
    assert "choose from generate, score" in capsys.readouterr().err
    assert cli.main([]) == 2
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in cli.COMMANDS)


def test_a_group_lists_its_commands(capsys):
    assert cli.main(["audit"]) == 2 and cli.main(["audit", "--help"]) == 0
    out = capsys.readouterr().out
    assert "reelgym audit probe" in out and "reelgym audit reward" in out and "compare" not in out
    assert cli.main(["audit", "nothing"]) == 2
    assert "unknown command 'audit nothing'" in capsys.readouterr().err


def test_help_of_a_command_goes_to_stdout(capsys):
    status, out, err = call(capsys, "--help")
    assert (status, err) == (0, "") and "What to do." in out and "usage: reelgym generate" in out


def test_python_dash_m_is_the_same_command():
    def answer(*program):
        done = subprocess.run([*program, "nothing"], capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    script = "from reelgym.experiments.cli import main; import sys; sys.exit(main())"
    as_module = answer(sys.executable, "-m", "reelgym")
    assert as_module == answer(sys.executable, "-c", script) and as_module[0] == 2


def test_a_closed_pipe_ends_quietly():
    code = (
        "import sys, types\n"
        "from dataclasses import make_dataclass\n"
        "from reelgym.experiments import cli\n"
        "run = lambda config: [print('x' * 1000) for _ in range(1000)]\n"
        "sys.modules['reelgym.experiments.generate'] = types.SimpleNamespace(Config=make_dataclass('C', []), run=run)\n"
        "sys.exit(cli.main(['generate']))\n"
    )
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    program.stdout.readline()
    program.stdout.close()
    assert program.wait() == 1 and program.stderr.read() == ""
    program.stderr.close()


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name != "stack init"])
def test_every_listed_command_takes_seed_device_and_out(name, monkeypatch, capsys):
    """All that compute; `stack init` writes one text file."""
    monkeypatch.delitem(sys.modules, f"reelgym.experiments.{name}", raising=False)
    assert cli.main([*name.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert all(option in out for option in ("--seed", "--device", "--out"))
