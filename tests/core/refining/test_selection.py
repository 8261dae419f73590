"""Scores, thresholds and suppression, against definitions written out in plain Python."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch

from lyrics.core.geometry import iou_matrix
from lyrics.core.refining.selection import phrase_scores, select, suppress

THRESHOLDS = {"box_threshold": 0.25, "text_threshold": 0.2, "nms_iou": 0.6, "limit": 300}


def logit(p):
    return math.log(p / (1 - p))


def random_boxes(count, seed=0):
    corners = np.random.default_rng(seed).random((count, 2, 2), dtype=np.float32)
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def array(rows):
    return np.array(rows, dtype=np.float32)


def test_score_is_the_greatest_probability_among_the_phrases_tokens():
    logits = torch.tensor([[9.0, logit(0.3), 9.0, logit(0.2), logit(0.6), logit(0.5), 9.0, -math.inf]])
    scores = phrase_scores(logits, [(1, 2), (3, 6)])
    torch.testing.assert_close(scores, torch.tensor([[0.3, 0.6]]))


def test_scores_without_phrases_are_empty():
    assert phrase_scores(torch.randn(5, 8), []).shape == (5, 0)


def test_box_threshold_opens_a_query_and_text_threshold_its_phrases():
    scores = array(
        [
            [0.26, 0.21, 0.19],  # a box; its second phrase is reported, its third is not
            [0.24, 0.24, 0.24],  # above text_threshold only: no box
            [0.10, 0.90, 0.00],
        ]
    )
    boxes = array([[0.0, 0.0, 0.2, 0.2], [0.4, 0.4, 0.5, 0.5], [0.7, 0.7, 0.9, 0.9]])
    query, phrase, dropped = select(scores, boxes, **THRESHOLDS)
    assert list(zip(query.tolist(), phrase.tolist(), strict=True)) == [(2, 1), (0, 0), (0, 1)]
    assert dropped == 0


def test_thresholds_are_strict():
    options = {**THRESHOLDS, "box_threshold": 0.5, "text_threshold": 0.25}
    boxes = array([[0.0, 0.0, 0.2, 0.2], [0.4, 0.4, 0.5, 0.5]])
    query, phrase, _ = select(array([[0.5, 0.25], [0.75, 0.25]]), boxes, **options)
    assert (query.tolist(), phrase.tolist()) == ([1], [0])


def test_one_phrase_never_suppresses_another():
    scores = array([[0.9, 0.5], [0.8, 0.7]])
    boxes = array([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9]])
    query, phrase, _ = select(scores, boxes, **THRESHOLDS)
    assert list(zip(query.tolist(), phrase.tolist(), strict=True)) == [(0, 0), (1, 1)]


@pytest.mark.parametrize("seed", range(5))
def test_suppression_is_the_greedy_one(seed):
    scores, boxes = np.random.default_rng(seed).random(60, dtype=np.float32), random_boxes(60, seed)
    overlap = iou_matrix(boxes, boxes)
    expected: list[int] = []
    for query in np.argsort(-scores).tolist():
        if all(overlap[query, better] <= 0.3 for better in expected):
            expected.append(query)
    assert suppress(scores, boxes, 0.3).tolist() == expected
    assert 1 < len(expected) < 60


def test_a_suppressed_box_suppresses_nothing():
    boxes = array([[0.0, 0.0, 1.0, 1.0], [0.4, 0.0, 1.4, 1.0], [0.8, 0.0, 1.8, 1.0]])  # each overlaps the next by 0.43
    assert suppress(array([0.9, 0.8, 0.7]), boxes, 0.4).tolist() == [0, 2]


def test_the_best_are_kept_and_the_rest_counted():
    scores = np.random.default_rng(1).random((50, 3), dtype=np.float32) * 0.5 + 0.4
    boxes = np.arange(50, dtype=np.float32)[:, None] + array([0.0, 0.0, 0.5, 0.5])
    query, phrase, dropped = select(scores, boxes, **{**THRESHOLDS, "limit": 20})
    assert dropped == 130
    assert scores[query, phrase].tolist() == sorted(scores.flatten().tolist(), reverse=True)[:20]


def test_degenerate_boxes_and_scores_are_no_detections():
    nan, inf = math.nan, math.inf
    boxes = array([[nan, 0, 1, 1], [0, 0, inf, 1], [0, 0, 1, 1], [-inf, 0, 1, 1], [0.5, 0.5, 0.5, 0.5]])
    query, _, _ = select(array([[0.9], [0.9], [nan], [0.9], [0.8]]), boxes, **THRESHOLDS)
    assert query.tolist() == [4]


def test_no_phrases_and_no_queries():
    for shape in ((0, 3), (7, 0)):
        query, phrase, dropped = select(np.zeros(shape, dtype=np.float32), random_boxes(shape[0]), **THRESHOLDS)
        assert (query.tolist(), phrase.tolist(), dropped) == ([], [], 0)


def test_ten_thousand_boxes_are_bounded():
    scores, boxes = np.random.default_rng(0).random((10_000, 1), dtype=np.float32), random_boxes(10_000)
    tracemalloc.start()
    query, _, dropped = select(scores, boxes, **THRESHOLDS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6  # a table of all overlaps would be 800 MB
    assert len(query) == 300
    assert dropped > 0
    assert scores[query, 0].tolist() == sorted(scores[query, 0].tolist(), reverse=True)
