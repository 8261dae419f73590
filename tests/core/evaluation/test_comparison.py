"""The report of several conditions, from answers to tables, curves and a page."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lyrics.core.conditions import CLEAR, Condition
from lyrics.core.evaluation import comparison
from lyrics.core.evaluation.answering import BenchmarkRun, open_run
from lyrics.core.evaluation.benchmark import Prediction, Verdict, group_of
from lyrics.core.evaluation.predictions import Line
from lyrics.core.reports.plots import Bars, Lines
from lyrics.core.types import Sample, Turn
from tests.core.evaluation.toys import Plain

BLUR, ZERO = Condition(blur_px=4), Condition(soft="zero")


class Words:
    """Four questions of two groups."""

    def samples(self) -> list[Sample]:
        return [Sample(f"{n}.png", turns=(Turn("?", "yes"),), extra={"group": "<L>" if n else "T"}) for n in range(4)]

    def prompt(self, sample: Sample) -> str:
        return f"{sample.image}?"

    def judge(self, said: Sequence[Prediction], samples: Sequence[Sample]) -> Verdict:
        right = tuple(float(one.text == "yes") for one in said)
        return Verdict({"right": 100 * sum(right) / len(right)}, tuple(one / 2 for one in right), points=right)

    def score(self, said: Sequence[str], samples: Sequence[Sample]) -> Mapping[str, float]:
        return {}


def answered(run: BenchmarkRun, texts: Sequence[str]) -> BenchmarkRun:
    found = zip(run.ids, texts, strict=True)
    return replace(run, lines={id: Line(id, run.prompts[id], Prediction(text, text), "") for id, text in found})


def compared(folder: Path) -> comparison.ConditionReport:
    run = open_run("words", Words(), folder)
    runs = {
        CLEAR: answered(run, ["yes", "yes", "yes", "no"]),
        ZERO: answered(run, ["yes", "no", "yes ", "perhaps"]),
        BLUR: answered(run, ["no", "no", "no", "no"]),
    }
    verdicts = {
        one: run.benchmark.judge([each.lines[id].prediction for id in each.ids], each.samples)  # type: ignore[attr-defined]
        for one, each in runs.items()
    }
    return comparison.compare(runs, verdicts)


def test_scores_losses_and_answers_that_stay(tmp_path: Path) -> None:
    found = compared(tmp_path)
    assert found.groups == ("all", "<L>", "T")
    scores = {one.name: [round(cell.score or 0, 1) for cell in found.cells[one].values()] for one in found.conditions}
    assert scores == {"own": [75, 66.7, 100], "soft-zero": [25, 0, 100], "blur-4": [0, 0, 0]}
    same = {one.name: [round(cell.same, 1) for cell in found.cells[one].values()] for one in found.conditions}
    assert same == {"own": [100, 100, 100], "soft-zero": [50, 33.3, 100], "blur-4": [25, 33.3, 0]}
    assert found.lost(ZERO, "all") == 50
    data = comparison.as_json(found)
    assert data["conditions"][1]["groups"]["<L>"] == {"samples": 3, "score": 0.0, "lost": 66.6667, "same": 33.3333}
    assert data["conditions"][2]["scores"] == {"right": 0.0}
    assert json.loads(json.dumps(data)) == data


def test_the_files(tmp_path: Path) -> None:
    found = compared(tmp_path)
    comparison.write(found)
    folder = tmp_path / "words"
    table = (folder / "conditions.md").read_text()
    assert "| <L> | 3 | 66.7 | 0.0 (33 % same) | 0.0 (33 % same) |" in table
    assert "soft-zero: soft tokens of zeros" in table
    page = (folder / "conditions.html").read_text()
    assert "<L>" not in page
    assert "&lt;L&gt;" in page
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert 'class="changed">perhaps' in page
    ElementTree.fromstring((folder / "conditions.svg").read_text())


def test_curves_over_blur_begin_without_it(tmp_path: Path) -> None:
    score, same, *bars = comparison.panels(compared(tmp_path))
    assert isinstance(score, Lines)
    assert [(point.x, point.y) for point in score.lines["T"]] == [(0, 100), (4, 0)]
    assert isinstance(same, Lines)
    assert [point.y for point in same.lines["all"]] == [100, 25]
    assert [list(one.bars) for one in bars if isinstance(one, Bars)] == [["own", "soft-zero"]] * 3


def test_a_benchmark_without_marks_has_its_own_scores_alone(tmp_path: Path) -> None:
    run = open_run("plain", Plain(), tmp_path)
    runs = {CLEAR: answered(run, ["a", "b"]), ZERO: answered(run, ["a", "c"])}
    found = comparison.compare(runs, {one: Verdict({"length": 2.0}) for one in runs})
    assert found.cells[ZERO]["all"] == comparison.Cell(2, None, 50.0)
    assert "| all | 2 | - | - (50 % same) |" in comparison.markdown(found)
    assert "gives single answers no mark" in comparison.markdown(found)
    assert comparison.as_json(found)["conditions"][1]["scores"] == {"length": 2.0}
    comparison.write(found)


def test_groups() -> None:
    class Own:
        def group(self, sample: Sample) -> str:
            return "own"

    def sample(**extra: object) -> Sample:
        return Sample(None, extra=extra)

    assert group_of(Own(), sample(group="T", task="vqa")) == "T"
    assert group_of(Own(), sample(task="vqa")) == "own"
    assert group_of(object(), sample(question_types=("count",), task="vqa")) == "count"
    assert group_of(object(), sample(answer_type="yes/no")) == "yes/no"
    assert group_of(object(), sample(task="rec")) == "rec"
    assert group_of(object(), sample()) == ""
