"""Abstaining in an evaluation: what is scored, risk against coverage, the threshold, and answers of
earlier releases.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lyrics.core.abstaining import ABSTENTION, Abstaining
from lyrics.core.answers import Answer, Confidence
from lyrics.core.errors import LyricsError, SpecError
from lyrics.core.evaluation import selective
from lyrics.core.evaluation.benchmark import Prediction
from lyrics.core.evaluation.metrics.risk import risk_curve
from lyrics.core.evaluation.runner import evaluate
from lyrics.core.geometry import Box
from tests.core.evaluation.toys import COLORS, Colors, Model, box_answer

NAME = "colors"


class Sure(Model):
    """Sure of what it says by the number of its letters; of gray it points at what nobody saw."""

    def generate(self, pictures: Sequence[Any], instructions: Sequence[str], *, max_new_tokens: int) -> list[Answer]:
        found = []
        for picture, one in zip(
            pictures, super().generate(pictures, instructions, max_new_tokens=max_new_tokens), strict=True
        ):
            name = self.names[picture.getpixel((0, 0))]
            if name == "gray":
                one = box_answer(one.plain_text, Box(0.1, 0.2, 0.5, 0.9), supported=False)
            sure = -len(name) / 10
            found.append(replace(one, confidence=Confidence(sure, 2 * sure)))
        return found


def run(out: Path, model: Any, abstaining: Abstaining | None = None) -> Any:
    (result,) = evaluate(model, {NAME: Colors()}, out, abstaining=abstaining)
    return result


def test_risk_against_coverage_is_part_of_every_result(tmp_path: Path) -> None:
    result = run(tmp_path, Sure(wrong=("white", "black", "gray")))
    found = result.details["confidence"]
    # red (3), blue and pink (4), then green, black and white (5), and gray, which nobody saw.
    assert [round(point["coverage"] * 7) for point in found["points"]] == [1, 3, 6, 7]
    assert [point["threshold"] for point in found["points"]] == [-0.3, -0.4, -0.5, None]
    assert [point["risk"] for point in found["points"]] == pytest.approx([0, 0, 2 / 6, 3 / 7])
    assert found["risk"] == pytest.approx(3 / 7)
    assert result.scores == {"accuracy": pytest.approx(400 / 7)}
    line = json.loads((tmp_path / NAME / "predictions.jsonl").read_text().splitlines()[0])
    assert line["confidence"] == {"mean_log_prob": -0.3, "min_log_prob": -0.6}
    assert (tmp_path / NAME / "risk.svg").read_text().startswith("<svg")


def test_what_is_withheld_is_scored_as_an_abstention_and_kept(tmp_path: Path) -> None:
    plain = run(tmp_path, Sure(wrong=("white", "gray")))
    before = (tmp_path / NAME / "predictions.jsonl").read_bytes()
    nobody = run(tmp_path, None, Abstaining())
    assert nobody.scores["abstaining: coverage"] == pytest.approx(600 / 7)
    assert nobody.scores["abstaining: risk"] == pytest.approx(100 / 6)
    assert nobody.scores["accuracy"] == plain.scores["accuracy"]
    sure = run(tmp_path, None, Abstaining(-0.45))
    assert sure.scores["abstaining: coverage"] == pytest.approx(300 / 7)
    assert sure.scores["abstaining: risk"] == pytest.approx(0)
    assert sure.scores["accuracy"] == pytest.approx(300 / 7)
    assert sure.details["abstaining"] == {"threshold": -0.45}
    assert sure.details["confidence"] == plain.details["confidence"], "the curve is of what was said"
    assert ABSTENTION in (tmp_path / NAME / "worst.html").read_text()
    assert (tmp_path / NAME / "predictions.jsonl").read_bytes() == before
    none = run(tmp_path, None, Abstaining(-0.1))
    assert none.scores["abstaining: coverage"] == 0
    assert "abstaining: risk" not in none.scores


def test_answers_without_a_confidence(tmp_path: Path) -> None:
    result = run(tmp_path, Model())
    assert "confidence" not in result.details
    assert not (tmp_path / NAME / "risk.svg").exists()
    run(tmp_path, None, Abstaining())
    with pytest.raises(SpecError, match="a threshold for abstaining needs a language model that says how probable"):
        run(tmp_path, None, Abstaining(-0.5))
    file = tmp_path / NAME / "predictions.jsonl"
    file.write_text(file.read_text().replace('"objects"', '"confidence": {"mean_log_prob": "x"}, "objects"', 1))
    with pytest.raises(LyricsError, match="line 1: is no prediction"):
        run(tmp_path, None)


def test_the_threshold_of_the_greatest_coverage_within_a_risk(tmp_path: Path) -> None:
    data = selective.details(risk_curve([-0.1, -0.2, -0.3, float("-inf")], [1, 0, 1, 1]))
    assert selective.choose_threshold(data, 0.4, "toy") == {
        "threshold": -0.3,
        "coverage": 0.75,
        "risk": pytest.approx(1 / 3),
        "risk_asked": 0.4,
        "aurc": data["aurc"],
    }
    assert selective.choose_threshold(data, 0.1, "toy")["threshold"] == -0.1
    bad = selective.details(risk_curve([-0.1, -0.2], [0, 1]))
    with pytest.raises(LyricsError, match=r"toy: no threshold has a risk of 0\.1 or less .*the least is 0\.5000"):
        selective.choose_threshold(bad, 0.1, "toy")
    selective.write_threshold(tmp_path, selective.choose_threshold(data, 0.4, "toy"))
    assert selective.read_threshold(tmp_path / selective.FILE) == Abstaining(-0.3)
    (tmp_path / "other.json").write_text('{"threshold": true}')
    with pytest.raises(SpecError, match=r"other\.json: has no threshold; lyrics evaluate --choose-threshold"):
        selective.read_threshold(tmp_path / "other.json")


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    data = selective.details(risk_curve([-n / 1000 for n in range(900)], [1] * 900))
    assert len(data["points"]) == selective.MOST_POINTS
    assert (data["points"][0]["coverage"], data["points"][-1]["coverage"]) == (1 / 900, 1.0)


def test_an_abstention_points_at_nothing() -> None:
    said = Prediction("x", "x", (), Confidence(-0.1, -0.2))
    assert selective.as_abstention(said) == Prediction(ABSTENTION, ABSTENTION, (), said.confidence)
    assert len(COLORS) == 7
