"""Means, spreads, and the three files."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from lyrics.core.evaluation.runner import Result
from lyrics.core.reports.plots import Bars, Lines, Point
from lyrics.workflows.ablations.tables import (
    Ablation,
    Curve,
    ScoreRow,
    as_json,
    markdown,
    mean_and_spread,
    panels,
    rows_of,
    shown,
    table,
    write,
)


def test_mean_and_spread_by_hand() -> None:
    mean, spread = mean_and_spread([10.0, 12.0, 17.0])
    assert mean == 13.0
    # (9 + 1 + 16) / 2
    assert spread is not None
    assert math.isclose(spread, math.sqrt(13))
    assert mean_and_spread([3.0]) == (3.0, None)


@pytest.mark.parametrize(
    ("values", "seeds", "text"),
    [
        ((), 1, "-"),
        ((12.345,), 1, "12.35"),
        ((1234,), 1, "1,234"),
        ((1.0, 3.0), 2, "2.00 +/- 1.41"),
        ((1, 3), 2, "2.00 +/- 1.41"),
        ((2.0,), 2, "2.00 (1 of 2 seeds)"),
    ],
)
def test_cells(values: tuple[float, ...], seeds: int, text: str) -> None:
    assert shown(values, seeds) == text


def found() -> Ablation:
    rows = []
    for variant, base in (("Lyrics", 80.0), ("w/o ViT", 70.0)):
        for seed in (0, 1):
            scores = {"VQA accuracy (official)": base + seed, "unparsed": 3, "number: a": base / 2}
            if variant == "w/o ViT":
                scores["only here"] = 1.5
            result = Result("vqav2-val", 40, None, scores, ())
            rows += rows_of(variant, "removed", seed, [result])
        rows += rows_of(variant, "blank", None, [Result("vqav2-val", 40, None, {"VQA accuracy (official)": base}, ())])
    return Ablation(
        "table-5",
        "Table 5",
        rows,
        {"seeds": "0, 1"},
        ["A note."],
        {("vqav2", "", "Lyrics"): 81.2, ("refcocog", "test", "Lyrics"): 88.26},
        {"vqav2-val": {"benchmark": "vqav2", "split": "val"}},
    )


def test_rows_become_a_table_with_the_papers_figures() -> None:
    columns, lines = table(found(), "removed")
    assert columns == ["benchmark", "samples", "score", "Lyrics", "w/o ViT"]
    assert lines == [
        ["vqav2-val", "40", "VQA accuracy (official)", "80.50 +/- 0.71", "70.50 +/- 0.71"],
        ["vqav2-val", "", "(the paper)", "81.2", "-"],
        ["vqav2-val", "40", "unparsed", "3.00 +/- 0.00", "3.00 +/- 0.00"],
        ["vqav2-val", "40", "number: a", "40.00 +/- 0.00", "35.00 +/- 0.00"],
        ["vqav2-val", "40", "only here", "-", "1.50 +/- 0.00"],
    ]
    assert table(found(), "blank")[1][0][3:] == ["80.00", "70.00"]


def test_the_papers_figures_are_of_their_split() -> None:
    of = {
        "refcocog-val": {"benchmark": "refcocog", "split": "val"},
        "refcocog-test": {"benchmark": "lyrics-vl/refcocog", "split": "test"},
    }
    rows = [ScoreRow("Lyrics", None, None, folder, "accuracy", 1.0, 2) for folder in of]
    given = replace(found(), rows=rows, about=of)
    assert [line[3] for line in table(given, None)[1] if line[2] == "(the paper)"] == ["88.26"]
    assert as_json(given, "c")["published"] == [{"benchmark": "refcocog-test", "variant": "Lyrics", "value": 88.26}]


def test_the_files(tmp_path: Path) -> None:
    write(found(), tmp_path, "lyrics ablate --table 5")
    page = (tmp_path / "table-5.md").read_text()
    assert "`lyrics ablate --table 5`" in page
    assert "| seeds | 0, 1 |" in page
    assert page.index("Reading: removed") < page.index("Reading: blank")
    assert "- A note." in page
    data = json.loads((tmp_path / "table-5.json").read_text())
    assert data["rows"][0] == {
        "variant": "Lyrics",
        "reading": "removed",
        "seed": 0,
        "benchmark": "vqav2-val",
        "score": "VQA accuracy (official)",
        "value": 80.0,
        "samples": 40,
    }
    assert len(data["rows"]) == 2 * (3 + 4) + 2
    assert "curves" not in data
    ElementTree.parse(tmp_path / "table-5.svg")


def test_main_scores_are_drawn() -> None:
    blank, removed, numbers = sorted(panels(found()), key=lambda one: one.title)
    assert [one.title for one in (blank, removed, numbers)] == [
        "blank, vqav2-val, VQA accuracy (official)",
        "removed, vqav2-val, VQA accuracy (official)",
        "removed, vqav2-val, number: a",
    ]
    assert isinstance(removed, Bars)
    assert removed.bars["w/o ViT"] == Point(0.0, 70.5, pytest.approx(math.sqrt(0.5)))
    on_an_axis = panels(replace(found(), x={"Lyrics": 4.0, "w/o ViT": 1.0}, x_name="shots"))
    line = on_an_axis[0]
    assert isinstance(line, Lines)
    (points,) = line.lines.values()
    assert [(point.x, point.y) for point in points] == [(1.0, 70.5), (4.0, 80.5)]


def test_curves_are_means_over_seeds() -> None:
    curves = [
        Curve("frozen", 0, "REC", ((10, 0.2), (20, 0.4))),
        Curve("frozen", 1, "REC", ((10, 0.4), (20, 0.4))),
        Curve("full", 0, "REC", ((10, 1.0),)),
    ]
    given = replace(found(), rows=(), curves=curves)
    (panel,) = panels(given)
    assert isinstance(panel, Lines)
    assert panel.title == "held-out: REC"
    first, second = panel.lines["frozen"]
    assert (first.x, first.y, first.spread) == (10, pytest.approx(0.3), pytest.approx(math.sqrt(0.02)))
    assert (second.x, second.y, second.spread) == (20, pytest.approx(0.4), pytest.approx(0.0))
    assert list(panel.lines) == ["frozen", "full"]
    assert as_json(given, "")["curves"][2] == {"variant": "full", "seed": 0, "name": "REC", "points": [[10, 1.0]]}
    assert "Scores" not in markdown(given, "")
