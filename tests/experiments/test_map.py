import json
import re

import numpy as np
import pytest
from numpy.testing import assert_allclose

from reelgym.experiments import readme
from reelgym.experiments.map import MAP_PICTURE, Rung, map_block, map_svg
from reelgym.experiments.presets import METHODS, kind_of, label_of
from reelgym.experiments.results import write_results
from reelgym.experiments.rows import curve_rows

SEEDS = (0, 1, 2)
PROMPTS = np.linspace(-0.1, 0.1, 6)
RUNS = {"reward": ((0, 0.6), (20, 0.7), (40, 0.72)), "dmd": ((0, 0.6), (50, 0.65), (100, 0.8))}
"""Seconds and totals."""


def point(update, seconds, total, seed):
    scores = total + PROMPTS + 0.001 * seed
    return {"update": update, "seconds": seconds, "oracle": float(scores.mean()), "reward": 0.0, "scores": list(scores)}


def rung(steps, runs, four=None, tmp_path=None):
    """results.json of a comparison as it is written, with seeds that differ by a thousandth."""
    runs = runs | ({"four-steps": ((0, four),)} if four else {})
    rows = [{"kind": "method", "method": name, "label": label_of(name)} for name in runs]
    for name, points in runs.items():
        for seed in SEEDS:
            curve = [point(place, *at, seed) for place, at in enumerate(points)]
            rows += curve_rows(name, {"seed": seed, "curve": curve})
    path = write_results(tmp_path / str(steps), "reelgym compare", SEEDS, {"steps": steps, "workers": 2}, rows)
    return json.loads(path.read_text())


def cells(text, head):
    """A table's rows, by their first cell."""
    lines = text[text.index(head) :].split("\n\n")[0].splitlines()
    return {line.split(" | ")[0][2:]: line.removesuffix(" |").split(" | ")[1:] for line in lines}


def test_every_method_has_a_kind():
    assert {kind_of(name) for name in METHODS} == {"start", "distillation", "rl", "both"}
    assert kind_of("dmd&reward") == kind_of("stream-r1+reward") == "both" and kind_of("mine:own") == "mine:own"
    assert kind_of("continued") == kind_of("start") == "start" and kind_of("consistency+dmd") == "distillation"


def test_curves_go_straight_and_stay(tmp_path):
    found = Rung.of(rung(2, RUNS, 0.7, tmp_path))
    reward, dmd = found.trained
    assert (found.steps, found.start.kind, reward.kind, dmd.kind) == (2, "start", "rl", "distillation")
    assert found.target == pytest.approx(0.701)
    assert reward.at(10).shape == (3, 6)
    assert_allclose(reward.at(10)[0], 0.65 + PROMPTS, atol=1e-4)
    assert_allclose(reward.at(1e6), reward.at(40))
    assert_allclose(dmd.at([0, 50, 75])[:, 0], [0.5, 0.551, 0.627], atol=1e-4)
    assert reward.told(40) == "reward gradient" and reward.told(41) == "reward gradient (ended at 40 s)"
    assert found.start.told(1e6) == "starting student"


def test_time_to_the_target_lies_between_two_looks_or_is_open(tmp_path):
    reward, dmd = Rung.of(rung(2, RUNS, tmp_path=tmp_path)).trained
    assert [run for (run,) in dmd.reached(0.725)][0] == (pytest.approx(75), True)
    assert [run for (run,) in reward.reached(0.7215)] == [(40, False), (40, False), (pytest.approx(39.5, abs=1), True)]
    assert [run for (run,) in reward.reached(0.5)] == [(0, True)] * 3


def test_the_map_says_what_leads_by_how_much_and_how_surely(tmp_path):
    both = {"dmd+forward": ((0, 0.8), (40, 0.85)), "mine:own": ((0, 0.8), (40, 0.8501))}
    text = map_block(rung(4, both, tmp_path=tmp_path), rung(2, RUNS, 0.7, tmp_path))
    leads = cells(text, "| sec. | 2 steps | 4 steps |")
    assert list(leads) == ["sec.", ":--", "15", "30", "60"]
    assert leads["15"][0] == "reward gradient 0.676; +0.060 [+0.060, +0.060] above DMD: yes"
    assert leads["60"][0].startswith("reward gradient (ended at 40 s) 0.721; +0.040 [") and leads["60"][1] == "–"
    assert (
        leads["15"][1].startswith("mine:own 0.820; +0.000 [") and "above DMD, then forward process:" in leads["15"][1]
    )
    duels = cells(text[text.index("The best of RL") :], "| sec. | 2 steps | 4 steps |")
    assert duels["15"] == [leads["15"][0], "–"]
    ends = {row.split(" | ")[1]: row.split(" | ") for row in text.splitlines() if row.startswith("| 2 steps | ")}
    assert ends["reward gradient"][2:6] == ["RL", "0.721", "40", "20"] and ends["reward gradient"][-1] == "yes |"
    assert ends["DMD"][2:6] == ["distillation", "0.801", "100", "67"]
    assert "2 steps: the start has 0.601, a start of four steps 0.701. 3 seeds." in text
    assert text.index("2 steps:") < text.index("4 steps:")


def test_a_lead_of_chance_is_unclear_and_the_start_may_lead(tmp_path):
    results = rung(1, {"reward": ((0, 0.4), (20, 0.4)), "dmd": ((0, 0.4), (20, 0.3))}, tmp_path=tmp_path)
    for row in results["rows"]:
        if row["kind"] == "curve" and row["method"] == "reward" and row["update"]:
            row["scores"] = " ".join(str(0.4 + (-1) ** place / 10 + 0.01) for place in range(6))
    found = cells(map_block(results), "| sec. | 1 step |")
    assert found["15"][0].startswith("reward gradient 0.4") and found["15"][0].endswith(
        "above starting student: unclear"
    )
    lower = rung(1, {"reward": ((0, 0.4), (20, 0.3)), "dmd": ((0, 0.4), (20, 0.2))}, tmp_path=tmp_path)
    assert cells(map_block(lower), "| sec. | 1 step |")["15"][0].startswith("starting student 0.401; +0.075 [")


def test_older_results_share_their_seconds_out_and_count_seeds_alone(tmp_path):
    results = rung(4, RUNS, tmp_path=tmp_path)
    del results["config"]["steps"]
    for row in results["rows"]:
        for key in ("seconds", "scores"):
            row.pop(key, None)
    spent = {"reward": {"seconds": 40}, "dmd": {"seconds": 90, "cpu_seconds": 80}}
    results["rows"] += [{"kind": "run", "method": name, "seed": s, **spent[name]} for name in spent for s in SEEDS]
    found = Rung.of(results)
    assert found.steps == 4 and [curve.ends.tolist() for curve in found.trained] == [[40.0] * 3, [80.0] * 3]
    assert_allclose(found.trained[1].at(60), [[0.725], [0.726], [0.727]])
    assert "above DMD: yes" in map_block(results)


def test_a_map_needs_curves(tmp_path):
    with pytest.raises(ValueError, match="reelgym compare: .* it has none"):
        map_block(rung(4, {}, tmp_path=tmp_path))


def test_the_picture_has_a_chart_for_every_rung_and_one_colour_for_a_method(tmp_path):
    fewer = {name: RUNS[name] for name in ("dmd",)}
    picture = map_svg(rung(4, fewer, tmp_path=tmp_path), rung(2, RUNS, 0.7, tmp_path))
    assert picture.count("<svg") == 3 and picture.count(" band") == 3 and picture.count(">start<") == 2
    assert picture.count(">start of four steps<") == 1
    assert re.findall(r'class="c(\d) dashed"', picture) == ["1", "1"]


def test_a_block_of_several_paths_is_filled_and_drawn(tmp_path, capsys):
    paths = [f"experiments/results/{name}/results.json" for name in ("one", "two", "four")]
    (tmp_path / readme.IMAGES).mkdir(parents=True)
    page = tmp_path / "README.md"
    page.write_text(f"before\n<!-- map: {' '.join(paths)} -->\nold\n<!-- end -->\nafter\n")
    readme.run(readme.Config(), tmp_path)
    assert page.read_text().count("No results are committed yet") == 3
    for steps, name in ((2, "two"), (4, "four")):
        readme.run(readme.Config(rung_folder(steps, tmp_path), name), tmp_path)
    text = page.read_text()
    assert text.count("No results are committed yet: `experiments/results/one") == 1 and "| 2 steps | 4 steps |" in text
    assert text.startswith("before\n") and text.endswith("<!-- end -->\nafter\n") and "old" not in text
    assert (tmp_path / readme.IMAGES / MAP_PICTURE).read_text().count("<svg") == 3
    assert [file.name for file in (tmp_path / readme.IMAGES).iterdir()] == [MAP_PICTURE]


def rung_folder(steps, tmp_path):
    rung(steps, RUNS, tmp_path=tmp_path / "runs")
    return tmp_path / "runs" / str(steps)
