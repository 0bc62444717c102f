"""The command line: finds the subcommand's module, reads its Config, runs it, and turns failures into one line."""

import contextlib
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

COMMANDS = {
    "generate": "make a video clip from a prompt",
    "score": "score any video file against a prompt, or tell by a detector whether it was made",
    "train": "train a part of the tiny stack (codec, teacher, student, reward, heldout, detector, rival) or an agent",
    "finetune": "fine-tune the student by RL, watched by a guard against reward hacking",
    "distill": "distil the student from its teacher (DMD, Stream-R1), watched by the same guard",
    "stack init": "write a commented stack.toml for the weights that you have",
    "stack check": "load every part of a stack of your own, see whether they fit, and make a chunk, a score, an update",
    "stack cache": "encode the prompts and clips of a stack of your own, ahead of its first training",
    "plan": "forecast memory and hours of a training on cards that nobody has rented yet",
    "compare": "compare RL fine-tuning with distillation, in a table and a report",
    "ablate": "add the parts of Stream-R1 to DMD one by one, on a student of two steps",
    "selfplay": "play a generator against a detector, both learning, beside baselines that play otherwise",
    "agents": "train SB3 and Tianshou agents in the environments, against fixed settings and an informed planner",
    "audit probe": "damage clips in a known place and see whether saliency finds it",
    "audit reward": "rank gaming clips against real ones, and climb the reward's own gradient",
    "audit credit": "hold the gradient of every RL setting against the reward's own",
    "audit cache": "stream ten times longer under several cache policies, and switch prompts on the way",
    "audit guard": "let a training hack its reward without the guard, and stop it with it",
    "bench reward": "time scores and saliency against the published procedure",
    "bench envs": "time the environments: alone, with inference, with training, and doing nothing",
    "bench streaming": "time chunks of a stream: early and late, against full recomputation, compiled, in batches",
    "bench distill": "time the parts of an update of distillation, by recipe",
    "bench rl": "time to a real gain: chunks and seconds of every way to fine-tune, against published ones",
    "bench adaptation": "time until a detector knows a new family of fakes, and what it forgets, by method",
}
GROUPS = {name.split()[0] for name in COMMANDS if " " in name}

USAGE = "\n".join(
    [
        "usage: reelgym COMMAND ...    (reelgym COMMAND --help for its options)",
        "",
        *(f"  {name:<16} {help_line}" for name, help_line in COMMANDS.items()),
        "",
        "All that compute take --seed, --device and --out, and all --debug for a traceback where an error is one line.",
    ]
)


class UsageError(Exception):
    """Arguments that no subcommand accepts: exit status 2."""


def main(args: Sequence[str] | None = None) -> int:
    """Run `reelgym ARGS`. Returns the exit status: 0, 1 (it failed) or 2 (wrong arguments).

    A subcommand is the module of its name beside this one ("audit probe": audit/probe.py), with a frozen dataclass
    `Config`, which tyro reads, and `run(config)`. It is imported only when it is called.
    """
    given = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in given
    given = [arg for arg in given if arg != "--debug"]
    try:
        if not given or given[0] in ("-h", "--help"):
            print(USAGE)
            return 0 if given else 2
        if given[0] in GROUPS and given[1:] in ([], ["-h"], ["--help"]):
            members = [name for name in COMMANDS if name.split()[0] == given[0]]
            print("\n".join(f"reelgym {name:<16} {COMMANDS[name]}" for name in members))
            return 0 if given[1:] else 2
        words = 2 if given[0] in GROUPS else 1
        module, config = _read(" ".join(given[:words]), given[words:])
        if module is not None:
            module.run(config)
            sys.stdout.flush()
        return 0
    except UsageError as error:
        if _speaks():
            print(f"reelgym: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # keeps Python from complaining again at exit
        return 1
    except KeyboardInterrupt as interrupt:
        kept = f"; {interrupt}" if interrupt.args else ""
        print(f"reelgym: interrupted{kept}", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        if _speaks():
            print(f"reelgym: error: {_one_line(error)}", file=sys.stderr)
        return 1


def _speaks() -> bool:
    """Of several processes one says why they end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    from ..training.ranks import speaks

    return speaks()


def _read(command: str, args: Sequence[str]) -> tuple[Any, Any]:
    """The command's module and its Config; (None, None) when it printed its help."""
    import tyro

    if command not in COMMANDS:
        raise UsageError(f"unknown command {command!r}; choose from {', '.join(COMMANDS)}")
    module = importlib.import_module("." + command.replace(" ", "."), __package__)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return module, tyro.cli(
                module.Config, prog=f"reelgym {command}", description=_sentence(COMMANDS[command]), args=args
            )
    except SystemExit as stop:
        if not stop.code:
            return None, None
        raise UsageError(f"{_unboxed(complaint.getvalue())} (see reelgym {command} --help)") from None


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _unboxed(text: str) -> str:
    """The sentence in the frame that tyro draws around an error, without the help that follows it."""
    lines = []
    for line in (line.strip("│╭╮╰╯─ ") for line in text.splitlines()[1:]):
        if not line:
            break
        lines.append(line)
    return " ".join(lines) or "wrong arguments"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, ValueError) and text:
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"
