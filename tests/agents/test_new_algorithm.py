"""The new algorithm of docs/agents.md is the file that docs/examples holds, and it runs."""

import importlib.util
import math
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
FILE = DOCS / "examples" / "new_algorithm.py"


def test_the_page_shows_the_file():
    section = (DOCS / "agents.md").read_text().split("## A new algorithm\n")[1].split("\n## ")[0]
    assert re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE) == [FILE.read_text()]
    assert len(FILE.read_text().splitlines()) < 60


def test_it_runs(stack, capsys):
    spec = importlib.util.spec_from_file_location("new_algorithm", FILE)
    script = importlib.util.module_from_spec(spec)
    sys.modules["new_algorithm"] = script
    spec.loader.exec_module(script)
    history = script.main(script.Args(updates=2, prompts=2, group=3, stack=Path(stack)))
    assert len(history) == 2 and all(math.isfinite(value) for value in history)
    said = [f"update {number}: return {value:.4f}\n" for number, value in enumerate(history, 1)]
    assert capsys.readouterr().out == "".join(said)
