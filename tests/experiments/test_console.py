"""What every command does alike."""

from dataclasses import dataclass
from pathlib import Path

from reelgym.experiments.console import progress, publish, worker_count
from reelgym.experiments.tables import Column, number, sections

COLUMNS = (Column("n", "", number("n", "d")),)


@dataclass(frozen=True)
class Config:
    out: Path


def test_workers_are_those_asked_for_else_one_on_a_gpu_and_at_most_two_on_a_cpu():
    assert worker_count("cpu", 5) == 5
    assert worker_count("cuda") == 1
    assert worker_count() in (1, 2)


def test_the_bar_says_what_goes_on(capsys):
    with progress(3, "compare", "clip") as bar:
        bar.update(3)
    shown = capsys.readouterr()
    assert not shown.out and "compare: 100%" in shown.err


def test_results_are_written_and_printed_with_tables_that_have_rows(tmp_path, capsys):
    rows = [{"n": 1}]
    text = sections(("Some.", COLUMNS, rows), ("None.", COLUMNS, []))
    assert text == "Some.\n\n| n |\n| :-- |\n| 1 |"
    publish(["reelgym", "x"], Config(tmp_path), [0], rows, text)
    assert capsys.readouterr().out == f"{text}\n\nresults: {tmp_path / 'results.json'}\n"
