import io
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from reelgym.checkpoint import save_checkpoint
from reelgym.envs.draw import overlay
from reelgym.envs.worlds.slices import SLICES
from reelgym.experiments.findings import METHOD_COLUMNS, SLICE_COLUMNS, findings, slice_table_rows
from reelgym.experiments.plots import Line, animation, curve_lines, film_strip, line_chart, side_by_side, ticks
from reelgym.experiments.report import report_html, summary_text, write_picture, write_report
from reelgym.experiments.tables import NOTHING, markdown_table, rows_of
from reelgym.video import mark

METHODS = {"truth": "ground truth", "start": "starting student", "dmd": "DMD <b>"}
PROMPTS = ["a red circle moves left fast", "a blue cross rests"]


def method_row(name: str, label: str, total: float) -> dict:
    oracle = {axis: total for axis in ("vq", "mq", "ta", "total", "late")}
    row = {"kind": "method", "method": name, "label": label, "low": total - 0.1, "high": total + 0.1, **oracle}
    return row | {"drift": 0.01, "diversity": 1.0, "updates": 12345 if name == "dmd" else None}


@pytest.fixture
def results() -> dict:
    rows = [method_row(name, label, 0.9 - 0.2 * place) for place, (name, label) in enumerate(METHODS.items())]
    rows += [
        {"kind": "curve", "method": "dmd", "seed": seed, "share": share, "oracle": 0.5 + 0.1 * share, "reward": share}
        for seed in (0, 1)
        for share in (0.0, 0.5, 1.0)
    ]
    rows.append(
        {"kind": "contrast", "label": "DMD - start", "question": "DMD beats the start:", "verdict": "yes"}
        | {"difference": 0.1, "low": 0.05, "high": 0.15, "diversity_ratio": 0.8, "sign_p": 0.5}
    )
    rows += [{"kind": "clip", "of": of, "prompt": prompt} for of in ("clips", "long", "map") for prompt in PROMPTS]
    facts = {"command": "reelgym compare", "commit": "0" * 40, "versions": {"torch": "2"}, "device": "a machine"}
    return {**facts, "seeds": [0, 1], "config": {"prompts": 2, "clips": 4, "notes": ["a note"]}, "rows": rows}


@pytest.fixture
def media() -> dict:
    random = np.random.default_rng(0)
    clip = random.integers(0, 256, (2, 5, 8, 8, 3), dtype=np.uint8)
    weights = random.random((2, 5, 2, 2)).astype(np.float32)
    return {f"clips/{name}": clip for name in METHODS} | {"long/dmd": clip, "map/frames": clip, "map/weights": weights}


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.images: list[str] = []
        self.foreign: list[str] = []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "href", "srcset") and not value.startswith("data:"):
                self.foreign.append(value)
            if tag == "img" and name == "src":
                self.images.append(value)


def test_the_page_needs_nothing_from_outside(results, media):
    page = report_html(results, media)
    links = Links()
    links.feed(page)
    assert not links.foreign and "<script" not in page and "url(" not in page and "@import" not in page
    assert len(links.images) == 6


def test_the_page_shows_every_row_and_escapes(results, media):
    page = report_html(results, media)
    assert "DMD &lt;b&gt;" in page and "DMD <b>" not in page
    assert "12,345" in page and "0.900 [0.800, 1.000]" in page
    assert "DMD beats the start: yes (+0.100 [+0.050, +0.150]); diversity lost (0.80 of it)." in page
    assert page.count("<polyline") == 2 * 3 + 1
    assert all(prompt in page for prompt in PROMPTS)


def test_moving_pictures_hold_the_clips(media):
    frames, drawn = side_by_side([media["clips/truth"][0], media["clips/start"][0]])
    picture = Image.open(io.BytesIO(animation(frames, 8, drawn, made_by=None)))
    assert picture.n_frames == 5 and picture.size == (18, 8)
    picture.seek(3)
    shown = np.asarray(picture.convert("RGBA"))
    assert (shown[:, :8, :3] == media["clips/truth"][0, 3]).all()
    assert (shown[:, 8:10, 3] == 0).all()
    assert "xmp" not in picture.info


def test_moving_pictures_say_who_made_them(media):
    frames = media["clips/start"][0]
    pictures = [Image.open(io.BytesIO(animation(frames, 8, made_by=who))) for who in (None, "A & <B>")]
    assert b"trainedAlgorithmicMedia" in pictures[1].info["xmp"]
    (said,) = ElementTree.fromstring(pictures[1].info["xmp"]).itertext()
    assert said == mark("A & <B>")
    for place in range(pictures[0].n_frames):
        for picture in pictures:
            picture.seek(place)
        assert pictures[0].tobytes() == pictures[1].tobytes()


def test_a_report_without_media_or_curves_is_still_a_report(results):
    results["rows"] = [row for row in results["rows"] if row["kind"] in ("method", "contrast")]
    page = report_html(results, {})
    assert "<img" not in page and "Learning curves" not in page and "starting student" in page


def test_write_report_reads_the_folder(results, media, tmp_path):
    with pytest.raises(ValueError, match="no results.json"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(results))
    save_checkpoint(tmp_path / "media", {"media": {name: torch.from_numpy(value) for name, value in media.items()}}, {})
    page = write_report(tmp_path)
    assert page.read_text() == report_html(results, media)
    assert not list(tmp_path.glob(".*"))


def test_a_picture_for_the_readme(results, media, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match="no clips"):
        write_picture(tmp_path, tmp_path / "clips.webp")
    save_checkpoint(tmp_path / "media", {"media": {name: torch.from_numpy(value) for name, value in media.items()}}, {})
    write_picture(tmp_path, tmp_path / "clips.webp")
    picture = Image.open(tmp_path / "clips.webp")
    assert picture.n_frames == 5 and picture.size == (3 * 24 + 4 * 6, 6 + 48 + 2 * (24 + 6))
    assert b"made by a model" in picture.info["xmp"]
    sheet = np.asarray(picture.convert("RGB"))
    assert (sheet[54:78:3, 6:30:3] == media["clips/truth"][0, 0]).all()


def test_tables_align_and_agree(results):
    text = summary_text(results).splitlines()
    assert len(text[0]) == len(text[1]) == len(text[2])
    cells = [re.split(r" {2,}", line) for line in text[2:5]]
    markdown = markdown_table(METHOD_COLUMNS, rows_of(results, "method")).splitlines()[2:5]
    assert [line[0] for line in cells] == list(METHODS.values())
    for plain, marked in zip(cells, markdown, strict=True):
        assert plain == [cell.strip() for cell in marked.strip("|").split("|")]


def test_edge_slices_are_shown_where_there_are_any(results):
    bare = (summary_text(results), report_html(results, {}))
    assert not any("Edge slices" in text for text in bare)
    results["rows"] += [
        {"kind": "slice", "method": name, "slice": edge, "total": 0.5, "low": 0.25, "high": 0.75}
        for name in ("truth", "dmd")
        for edge in SLICES
    ]
    plain, page = summary_text(results), report_html(results, {})
    for text in (plain, page):
        assert "cannot go on" in text and text.count("0.50 [0.25, 0.75]") == 2 * len(SLICES)
    table = markdown_table(SLICE_COLUMNS, slice_table_rows(results)).splitlines()[-3:]
    assert [line.split(" | ")[0][2:] for line in table] == list(METHODS.values())
    assert table[1].count(NOTHING) == len(SLICES) and "odd light" in page


def contrast(ours: str, theirs: str, by: tuple[float, float, float], ratio: float, declared: bool = False) -> dict:
    verdict = "yes" if by[1] > 0 else "no" if by[2] < 0 else "unclear"
    row = {"kind": "contrast", "ours": ours, "theirs": theirs, "label": "", "question": f"{ours} above {theirs}:"}
    row |= dict(zip(("difference", "low", "high"), by, strict=True))
    return row | {"verdict": verdict, "diversity_ratio": ratio, "declared": declared, "sign_p": 0.5}


def compared() -> dict:
    """Three trained rows, of which the sequence is first; every kind of answer is among the contrasts."""
    totals = {"codec": 1.0, "start": 0.5, "dmd": 0.49, "forward": 0.6, "dmd+forward": 0.7}
    rows = [method_row(name, name.upper(), total) | {"updates": None} for name, total in totals.items()]
    for row in rows[2:]:
        row |= {"updates": 12, "chunks": 1024, "teacher_calls": 0, "reward_calls": 7, "seconds": 40.0}
    rows[-1]["diversity"] = 0.8
    rows += [
        contrast("forward", "start", (0.1, 0.05, 0.15), 1.0, declared=True),
        contrast("dmd", "start", (-0.01, -0.04, 0.02), 1.0),
        contrast("dmd+forward", "start", (0.2, 0.1, 0.3), 0.8),
        contrast("dmd+forward", "forward", (0.1, -0.01, 0.2), 0.8),
        contrast("dmd", "forward", (-0.11, -0.2, -0.1), 1.0),
    ]
    rows += [
        {"kind": "run", "method": name, "seed": seed, "total": total - 0.25 * seed * (name == "forward")}
        for name, total in totals.items()
        for seed in (0, 1)
    ]
    rows += [
        {"kind": "search", "try": f"search-{name}-{place}", "learning_rate": rate, "oracle": oracle}
        for name, scores in (("dmd", (3, 2, 1)), ("forward", (1, 3, 2)))
        for place, (rate, oracle) in enumerate(zip((0.1, 0.3, 0.9), scores, strict=True))
    ]
    return {"seeds": [0, 1], "rows": rows}


def test_findings_say_what_the_numbers_say():
    found = dict(findings(compared()))
    won, asked, diversity, sequence, others, spent, unclear = map("\n".join, found.values())
    assert "total: DMD+FORWARD 0.700 [0.600, 0.800]; FORWARD 0.600" in won and won.index("START") < won.index("; DMD 0")
    assert "against the start: +0.200 [+0.100, +0.300], above in 2 of 2 seeds. The whole interval lies above" in won
    assert "the next, FORWARD: +0.100 [-0.010, +0.200], above in 2 of 2 seeds. The interval holds zero" in won
    assert "40% of the way from the start (0.500)" in won
    assert (
        asked
        == "Forward above start? Yes: +0.100 [+0.050, +0.150], above in 1 of 2 seeds. Diversity kept (1.00 of it)."
    )
    assert diversity == "Lost, below 0.9 of the start's: DMD+FORWARD (0.80). All others kept it."
    assert sequence.splitlines()[1].startswith("Dmd+forward above forward? This cannot be told")
    assert "Dmd above forward? No, it lies below: -0.110" in others
    assert spent.splitlines()[0] == "DMD+FORWARD (0.700): 12 updates, 1,024 chunks made, 7 windows scored; 40 s."
    assert "Dmd above start: a difference beyond 0.040 either way is unlikely." in unclear
    assert unclear.count("either way") == 2 and "may lie beyond: DMD." in unclear and "p = 0.5 at best" in unclear


def test_findings_of_little(results):
    assert findings({"rows": [], "seeds": [0]}) == [("What won", ["Nothing was trained."])]
    few = compared()
    few["rows"] = [row for row in few["rows"] if row["kind"] == "method"]
    heads = dict(findings(few))
    assert "What two together added" not in heads and "The questions asked before the run" not in heads
    assert "against the start: +0.200. No interval was taken of it." in "\n".join(heads["What won"])


@pytest.mark.parametrize("low, high", [(0, 1), (0.531, 0.559), (-3, 17), (0.5, 0.5), (-1e-3, 2e-3)])
def test_ticks_enclose_and_are_round(low, high):
    found = ticks(low, high)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 8
    assert len({round(b - a, 9) for a, b in zip(found[:-1], found[1:], strict=True)}) == 1


def test_a_chart_stays_inside_its_box():
    lines = [Line("a", ((0, 0.2), (1, 0.9)), 0), Line("b", ((0, 0.4), (0.5, -2)), 1)]
    chart = line_chart(lines, "t", "x", [("level", 0.3)])
    points = [float(n) for line in re.findall(r'points="([^"]*)"', chart) for n in re.split("[ ,]", line)]
    assert all(0 <= x <= 560 for x in points[::2]) and all(0 <= y <= 300 for y in points[1::2])
    assert line_chart([], "t", "x") == ""


def test_the_mean_of_curves_begins_with_the_last_and_a_run_that_stopped_stays():
    runs = {0: ((0, 1.0), (2, 2.0)), 1: ((1, 3.0), (4, 6.0), (5, None))}
    rows = [{"of": "a", "seed": seed, "x": x, "y": y} for seed, run in runs.items() for x, y in run]
    first, second, mean = curve_lines([*rows, rows[0] | {"of": "b"}], "of", {"none": "-", "a": "A"}, "x", "y")
    assert first == Line("A, seed 0", runs[0], 1, "faint") and second.points == runs[1][:2]
    assert mean == Line("A", ((1, 2.25), (2, 3.0), (4, 4.0)), 1)
    band, again = curve_lines(rows, "of", {"a": "A"}, "x", "y", band=True)
    assert band.points == ((1, 3.0), (2, 4.0), (4, 6.0), (4, 2.0), (2, 2.0), (1, 1.5)) and again.points == mean.points
    assert (
        'class="c0 band"' in line_chart([band, again], "t", "x") and curve_lines([], "of", {"a": "A"}, "x", "y") == []
    )


def test_film_strip_and_overlay_shapes(media):
    frames, weights = media["map/frames"][0], media["map/weights"][0]
    assert film_strip(frames).shape == (8, 5 * 9 - 1, 3)
    heat = overlay(frames, weights).astype(int)
    hot = np.unravel_index(weights[0].argmax(), (2, 2))
    block = heat[0, hot[0] * 4 : hot[0] * 4 + 4, hot[1] * 4 : hot[1] * 4 + 4]
    assert (block[..., 0] > block[..., 2]).all()
