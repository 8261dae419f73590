"""Evidence as a ranking of boxes, on cases worked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lyrics.core.answers import Answer, AnswerObject
from lyrics.core.evaluation import predictions
from lyrics.core.evaluation.benchmark import PredictedObject, Prediction
from lyrics.core.evaluation.curves import precision_recall_svg
from lyrics.core.evaluation.metrics.evidence import EvidencePoint, SupportShares, evidence_curve, support_shares
from lyrics.core.evaluation.pointing import MOST_POINTS, Real, evidence_scores, is_real, plain_name
from lyrics.core.geometry import Box
from lyrics.core.types import DetectedObject

BOX, OTHER = Box(0.0, 0.0, 0.5, 0.5), Box(0.5, 0.5, 1.0, 1.0)


def test_a_ranking_by_hand() -> None:
    # Ranked 0.9 real, 0.8 invented, 0.5 real, 0 real: precision 1/1, 1/2, 2/3, 3/4 at recall 1/3, 1/3, 2/3, 1.
    curve = evidence_curve([0.5, 0.9, 0.0, 0.8], [True, True, True, False])
    assert curve.points == (
        EvidencePoint(0.9, 1, 1.0, pytest.approx(1 / 3)),
        EvidencePoint(0.8, 2, 0.5, pytest.approx(1 / 3)),
        EvidencePoint(0.5, 3, pytest.approx(2 / 3), pytest.approx(2 / 3)),
        EvidencePoint(0.0, 4, 0.75, 1.0),
    )
    assert curve.average_precision == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_ties_are_one_point_whatever_their_order() -> None:
    # Ranked {0.7: real, invented}, {0.2: invented, real, invented}: precision 1/2 and 2/5.
    one = evidence_curve([0.7, 0.7, 0.2, 0.2, 0.2], [True, False, False, True, False])
    other = evidence_curve([0.2, 0.7, 0.2, 0.7, 0.2], [True, False, False, True, False])
    assert one == other
    assert [(point.taken, point.precision, point.recall) for point in one.points] == [(2, 0.5, 0.5), (5, 0.4, 1.0)]
    assert one.average_precision == pytest.approx((0.5 + 0.4) / 2)


def test_a_ranking_that_says_nothing_has_the_share_of_real_boxes() -> None:
    assert evidence_curve([0.0] * 4, [True, False, False, False]).average_precision == 0.25


@pytest.mark.parametrize(
    ("evidence", "real", "points", "average"),
    [
        ([], [], 0, None),
        ([0.5, 0.5], [False, False], 0, None),  # nothing is real, so nothing can be recalled
        ([0.1, 0.9], [True, True], 2, 1.0),
        ([0.9, 0.1], [True, False], 2, 1.0),
        ([0.1, 0.9], [True, False], 2, 0.5),
    ],
)
def test_edges(evidence: list[float], real: list[bool], points: int, average: float | None) -> None:
    curve = evidence_curve(evidence, real)
    assert (len(curve.points), curve.average_precision) == (points, average)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        evidence_curve([0.1], [])


@pytest.mark.parametrize(
    ("supported", "real", "expected"),
    [
        ([], [], SupportShares(None, None)),
        ([True, True], [True, True], SupportShares(1.0, 1.0)),
        ([False, False], [True, False], SupportShares(None, 0.0)),  # none supported
        ([True, True, False, False], [True, False, True, True], SupportShares(0.5, pytest.approx(1 / 3))),
        ([True], [False], SupportShares(0.0, None)),  # none real
    ],
)
def test_supported_as_real(supported: list[bool], real: list[bool], expected: SupportShares) -> None:
    assert support_shares(supported, real) == expected


# --- boxes of answers
# --------------------------------------------------------------------------------------------------


def test_names() -> None:
    assert plain_name("The  Red dog.") == "red dog"
    assert plain_name("theatre") == "theatre"
    assert plain_name("a") == "a"
    assert plain_name("") == ""


def test_a_box_is_real_by_name_and_place() -> None:
    there = [Real("dog", BOX), Real("A cat", OTHER)]
    assert is_real(PredictedObject("Dog", BOX), there)
    assert is_real(PredictedObject("cat", OTHER), there)
    assert not is_real(PredictedObject("dog", OTHER), there)
    assert not is_real(PredictedObject("cow", BOX), there)
    assert is_real(PredictedObject("", OTHER), there)
    assert not is_real(PredictedObject("dog", BOX), [])
    half = Box(0.0, 0.0, 0.5, 0.25)
    assert BOX.iou(half) == 0.5
    assert is_real(PredictedObject("dog", half), there)


def said(*objects: PredictedObject) -> Prediction:
    return Prediction("", "", objects)


def test_scores_of_answers() -> None:
    there = [[Real("dog", BOX)], [Real("cat", OTHER)]]
    predictions_ = [
        said(PredictedObject("dog", BOX, True, 0.8, 1.0, 0.8), PredictedObject("dog", OTHER, False, None, 0.3, 0.27)),
        said(PredictedObject("dog", OTHER, True, 0.9, 0.6, 0.54)),
    ]
    scores, details = evidence_scores(predictions_, there)
    assert scores == {
        "evidence: boxes": 3,
        "evidence: real": pytest.approx(100 / 3),
        "evidence: average precision": 100.0,
        "evidence: supported, precision": 50.0,
        "evidence: supported, recall": 100.0,
    }
    assert details["evidence"]["average_precision"] == 1.0
    assert [point["threshold"] for point in details["evidence"]["points"]] == [0.8, 0.54, 0.27]
    assert evidence_scores([said()], [[]]) == ({}, {})
    nothing, _ = evidence_scores(predictions_, [[], []])
    assert nothing == {"evidence: boxes": 3, "evidence: real": 0.0, "evidence: supported, precision": 0.0}


def test_a_long_curve_is_thinned_to_its_ends() -> None:
    many = [said(PredictedObject("", BOX, True, 1.0, 1.0, row / 999)) for row in range(1000)]
    scores, details = evidence_scores(many, [[Real("x", BOX)]] * 1000)
    points = details["evidence"]["points"]
    assert len(points) == MOST_POINTS
    assert (points[0]["threshold"], points[-1]["threshold"], points[-1]["recall"]) == (1.0, 0.0, 1.0)
    assert scores["evidence: average precision"] == pytest.approx(100.0)


def test_evidence_is_kept_for_what_is_not_supported(tmp_path: Path) -> None:
    seen = DetectedObject("cow", BOX, 0.5)
    weak = AnswerObject("dog", BOX, (0, 0, 5, 5), seen, 0.25)
    nothing = AnswerObject("dog", OTHER, (5, 5, 10, 10), None, 0.0)
    answer = Answer("x", (weak, nothing), (), "x")
    assert [one.evidence for one in Prediction.of(answer).objects] == [0.125, 0.0]
    line = predictions.as_json("0:a", "?", answer)
    predictions.append(tmp_path / predictions.FILE, [line])
    (read,) = predictions.read_predictions(tmp_path, {"0:a": "?"}, all_samples=True).values()
    assert read.prediction == Prediction.of(answer)
    # A line of an earlier release: what it does not say is taken from score and overlap.
    old = json.loads(line)
    for one in old["objects"]:
        del one["evidence"]
    old["objects"][0] |= {"score": 0.5, "iou": 0.75}
    (tmp_path / predictions.FILE).write_text(json.dumps(old) + "\n")
    (read,) = predictions.read_predictions(tmp_path, {"0:a": "?"}, all_samples=True).values()
    assert [one.evidence for one in read.prediction.objects] == [0.375, 0.0]


def test_the_picture_of_a_curve() -> None:
    points = [{"recall": 0.5, "precision": 1.0}, {"recall": 1.0, "precision": 0.5}]
    page = ElementTree.fromstring(precision_recall_svg(points, "a < b & c"))
    (line,) = page.iter("{http://www.w3.org/2000/svg}polyline")
    # Steps: at precision 1 (top, 48) until recall 0.5 (48 + 160), then at 0.5 (208) until 1 (368).
    assert line.get("points") == "48.0,48.0 208.0,48.0 208.0,208.0 368.0,208.0"
    assert "a < b & c" in "".join(page.itertext())
