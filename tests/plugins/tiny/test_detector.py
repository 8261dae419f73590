"""Detections: the caller's phrases, suppression, limits, and boxes in the original picture."""

from __future__ import annotations

import logging

import pytest
import torch

from lyrics.core.geometry import Box, Frame
from lyrics.core.types import ImageBatch
from lyrics.plugins.tiny.detector import CellPredictions
from tests.plugins.tiny import builders


def saying(detector, boxes_px, objectness, phrases, monkeypatch):
    """Makes every picture's cells say this: boxes [M,4], objectness logits [M], phrase logits [M,P]."""

    def predict(images):
        count, cells = len(images), len(boxes_px)
        return CellPredictions(
            states_BMD=torch.ones(count, cells, detector.feature_dim - 4),
            mask_BM=torch.ones(count, cells, dtype=torch.bool),
            centres_px_M2=torch.zeros(cells, 2),
            objectness_BM=torch.tensor(objectness).expand(count, cells),
            boxes_px_BM4=torch.tensor(boxes_px).expand(count, cells, 4),
            phrases_BMP=torch.tensor(phrases).expand(count, cells, len(phrases[0])),
        )

    monkeypatch.setattr(detector, "predict", predict)


def images(*frames: Frame) -> ImageBatch:
    return ImageBatch(torch.zeros(len(frames), 3, 64, 64), frames)


SQUARE = Frame.of(64, 64)
SURE = 20.0


@pytest.fixture
def detector():
    return builders.detector(**builders.SMALL, vocabulary=builders.NAMES)


@pytest.mark.parametrize(
    "frame",
    [
        Frame.of(200, 100).resize(64, 32),
        Frame.of(200, 100).resize(96, 64).crop(16, 0, 64, 64),
        Frame.of(200, 100).resize(64, 32).flip(),
    ],
    ids=["resize", "crop", "flip"],
)
def test_boxes_and_tokens_are_in_the_original_picture(detector, frame, monkeypatch):
    boxes_px = [[8.0, 4.0, 24.0, 28.0], [-50.0, -50.0, 300.0, 300.0]]
    saying(detector, boxes_px, [SURE, SURE], [[SURE, -SURE]] * 2, monkeypatch)
    out = detector(images(frame), [["red circle"]])
    expected = [frame.box_from_canvas(box) for box in boxes_px]
    found = [detection.box_norm for detection in out.detections[0]]
    assert len(found) == 2
    for box, wanted in zip(found, expected, strict=True):
        assert box.as_tuple() == pytest.approx(wanted.as_tuple(), abs=1e-6)
    first = expected[0]
    centre_size = [(first.x1 + first.x2) / 2, (first.y1 + first.y2) / 2, first.x2 - first.x1, first.y2 - first.y1]
    assert out.tokens_BMD[0, 0, -4:].tolist() == pytest.approx(centre_size, abs=1e-6)
    assert out.tokens_BMD[0, 1, -4:].tolist() == pytest.approx([0.5, 0.5, 1, 1])


def test_phrases_come_back_letter_for_letter_and_only_if_asked(detector, monkeypatch):
    saying(
        detector,
        [[0.0, 0.0, 8.0, 8.0], [32.0, 32.0, 64.0, 64.0]],
        [SURE, SURE],
        [[SURE, -SURE], [-SURE, SURE]],
        monkeypatch,
    )
    asked = [[" Red\tCIRCLE"], ["blue square", "blue square"], ["red circles", "circle", "red", ""], []]
    out = detector(images(*[SQUARE] * 4), asked)
    assert [[d.phrase for d in found] for found in out.detections] == [[" Red\tCIRCLE"], ["blue square"], [], []]
    assert out.detections[0][0].box_norm == Box(0, 0, 0.125, 0.125)
    assert out.detections[1][0].box_norm == Box(0.5, 0.5, 1, 1)
    assert out.tokens_BMD.shape == (4, 2, detector.feature_dim)


def test_score_is_objectness_times_name(detector, monkeypatch):
    saying(detector, [[0.0, 0.0, 8.0, 8.0]], [1.0], [[0.5, -SURE]], monkeypatch)
    (found,) = detector(images(SQUARE), [["red circle", "blue square"]]).detections[0]
    assert found.score == pytest.approx(float(torch.tensor(1.0).sigmoid() * torch.tensor(0.5).sigmoid()))


def test_suppression_is_within_a_phrase_and_the_best_box_stays(monkeypatch):
    detector = builders.detector(**builders.SMALL, vocabulary=builders.NAMES, rival_iou=1.0)
    boxes_px = [[0.0, 0.0, 30.0, 32.0], [0.0, 0.0, 32.0, 32.0], [0.0, 0.0, 32.0, 10.0]]
    saying(detector, boxes_px, [1.0, 2.0, 3.0], [[SURE, SURE]] * 3, monkeypatch)
    found = detector(images(SQUARE), [["red circle", "blue square"]]).detections[0]
    for phrase in ("red circle", "blue square"):
        boxes = [detection.box_norm.to_px((64, 64)) for detection in found if detection.phrase == phrase]
        assert boxes == [(0, 0, 32, 10), (0, 0, 32, 32)]
    scores = [detection.score for detection in found]
    assert scores == sorted(scores, reverse=True)


def test_of_two_names_for_nearly_the_same_box_the_better_stays(detector, monkeypatch):
    boxes_px = [[0.0, 0.0, 32.0, 32.0], [0.0, 0.0, 32.0, 30.0], [0.0, 0.0, 32.0, 16.0]]
    saying(detector, boxes_px, [SURE] * 3, [[2.0, 1.0], [-SURE, 3.0], [1.5, -SURE]], monkeypatch)
    found = detector(images(SQUARE), [["red circle", "blue square"]]).detections[0]
    assert [(one.phrase, one.box_norm.to_px((64, 64))) for one in found] == [
        ("blue square", (0, 0, 32, 30)),
        ("red circle", (0, 0, 32, 16)),
    ]
    (alone,) = (one for one in detector(images(SQUARE), [["red circle"]]).detections[0] if one.box_norm.y2 == 0.5)
    assert alone.phrase == "red circle"


def test_at_most_max_detections_the_best_and_the_cut_is_logged(monkeypatch, caplog):
    detector = builders.detector(**builders.SMALL, vocabulary=builders.NAMES, max_detections=2)
    boxes_px = [[8.0 * k, 0.0, 8.0 * k + 8, 8.0] for k in range(4)]
    saying(detector, boxes_px, [1.0, 3.0, 2.0, 0.5], [[SURE, -SURE]] * 4, monkeypatch)
    with caplog.at_level(logging.INFO, "lyrics"):
        found = detector(images(SQUARE), [["red circle"]]).detections[0]
    assert [detection.box_norm.x1 for detection in found] == [0.125, 0.25]
    assert "best 2 of 4" in caplog.text


def test_boxes_that_miss_the_picture_are_dropped(detector, monkeypatch):
    saying(detector, [[70.0, 0.0, 90.0, 8.0]], [SURE], [[SURE, SURE]], monkeypatch)
    out = detector(images(SQUARE), [["red circle"]])
    assert out.detections == ((),)
    assert out.tokens_BMD.isfinite().all()


@torch.no_grad()
def test_boxes_reach_from_the_centre_of_their_cell(detector):
    torch.nn.init.zeros_(detector.distances.weight)
    detector.distances.bias.copy_(torch.tensor([1.0, 2.0, 3.0, 1000.0]).log())
    cells = detector.predict(images(Frame.of(32, 16)))
    assert cells.centres_px_M2[:2].tolist() == [[4, 4], [12, 4]]
    assert cells.centres_px_M2[8].tolist() == [4, 12]
    row = cells.boxes_px_BM4[0, 9]
    assert row[:3].tolist() == pytest.approx([12 - 8, 12 - 16, 12 + 24])
    assert 12 + 1000 < row[3].item() < 12 + 1200  # capped, and finite


@torch.no_grad()
def test_padding_is_never_detected_even_at_threshold_zero():
    free = {"score_threshold": 0.0, "nms_iou": 1.0, "rival_iou": 1.0, "max_detections": 999}
    detector = builders.detector(**builders.SMALL, vocabulary=builders.NAMES, **free)
    out = detector(images(Frame.of(64, 16)), [["red circle"]])
    assert out.mask_BM.sum() == 8 * 2
    assert len(out.detections[0]) == 8 * 2


@torch.no_grad()
def test_thousands_of_phrases_cost_little(detector):
    out = detector(images(SQUARE), [[f"tag {index}" for index in range(4585)] + ["x" * 1000]])
    assert out.detections == ((),)


BOXES = [[0.0, 0.0, 16.0, 16.0], [1.0, 0.0, 17.0, 16.0], [32.0, 32.0, 64.0, 64.0], [0.0, 40.0, 8.0, 48.0]]


def test_queries_are_the_surest_cells_of_different_boxes(monkeypatch):
    detector = builders.detector(**builders.SMALL, vocabulary=builders.NAMES, queries=3)
    saying(detector, BOXES, [2.0, 3.0, 1.0, -9.0], [[0.0, 0.0]] * 4, monkeypatch)
    output = detector(images(SQUARE, Frame.of(128, 128).resize(64, 64)), [[], []])
    assert output.tokens_BMD.shape == (2, 3, detector.feature_dim)
    # The first cell's box is the second's, the last is hardly sure of anything.
    assert output.mask_BM.tolist() == [[True, True, False]] * 2
    wanted = torch.tensor([[9 / 64, 0.125, 0.25, 0.25], [0.75, 0.75, 0.5, 0.5]])
    torch.testing.assert_close(output.tokens_BMD[0, :2, -4:], wanted)
    torch.testing.assert_close(output.tokens_BMD[0], output.tokens_BMD[1])
    assert not output.tokens_BMD[:, 2].any()


def test_there_are_never_more_queries_than_asked_for(monkeypatch):
    detector = builders.detector(**builders.SMALL, vocabulary=builders.NAMES, queries=1)
    saying(detector, BOXES, [2.0, 3.0, 4.0, -9.0], [[0.0, 0.0]] * 4, monkeypatch)
    output = detector(images(SQUARE), [[]])
    assert output.mask_BM.tolist() == [[True]]
    assert output.tokens_BMD[0, 0, -4:].tolist() == [0.75, 0.75, 0.5, 0.5]


def test_an_image_without_objects_has_no_queries(monkeypatch):
    detector = builders.detector(**builders.SMALL, vocabulary=builders.NAMES, queries=2)
    saying(detector, BOXES, [-9.0] * 4, [[0.0, 0.0]] * 4, monkeypatch)
    output = detector(images(SQUARE), [["red circle"]])
    assert not output.mask_BM.any()
    assert output.detections == ((),)


def test_names_and_boxes_are_read_from_the_width_of_a_query():
    detector = builders.detector(
        **builders.SMALL, vocabulary=builders.NAMES, queries=2, query_width=8, query_threshold=0
    )
    assert detector.feature_dim == 12
    output = detector(images(SQUARE), [[]])
    assert output.tokens_BMD.shape == (1, 2, 12)
    assert output.mask_BM.all()
    cells = detector.predict(images(SQUARE))
    assert cells.states_BMD.shape == (1, 64, 8)
    (gradient,) = torch.autograd.grad(cells.phrases_BMP.sum() + cells.boxes_px_BM4.sum(), cells.states_BMD)
    assert gradient.any()
