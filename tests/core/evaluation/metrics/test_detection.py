"""Average precision and matching on cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lyrics.core.evaluation.metrics.detection import (
    FoundBox,
    TrueBox,
    average_precision,
    box_average_precisions,
    mask_iou,
    matched,
    mean,
    tag_average_precisions,
)
from lyrics.core.geometry import Box

LEFT, RIGHT = Box(0, 0, 0.4, 0.4), Box(0.6, 0.6, 1, 1)
#: Overlaps LEFT by 0.4 * 0.3 of a union of 0.16: 0.75; and by 0.4 * 0.2 - exactly half.
NEAR, HALF = Box(0, 0, 0.4, 0.3), Box(0, 0, 0.4, 0.2)


@pytest.mark.parametrize(
    ("scores", "right", "positives", "expected"),
    [
        ([0.9], [True], 1, 1.0),
        ([0.9], [True], 2, 0.5),  # recall stops at a half
        ([0.9, 0.8], [False, True], 1, 0.5),
        # precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1: 0.5 * 1 + 0.5 * 2/3
        ([0.9, 0.8, 0.7], [True, False, True], 2, 0.5 + 0.5 * 2 / 3),
        # precision 0, 1/2, 2/3, 3/4, made monotone: 3/4 throughout
        ([0.9, 0.8, 0.7, 0.6], [False, True, True, True], 3, 0.75),
        # the same, given in another order
        ([0.6, 0.9, 0.7, 0.8], [True, False, True, True], 3, 0.75),
        ([], [], 3, 0.0),
        ([0.9, 0.1], [False, False], 1, 0.0),
    ],
)
def test_average_precision(scores, right, positives, expected):
    assert average_precision(scores, right, positives) == pytest.approx(expected)


def test_equal_scores_are_ranked_together():
    for right in ([True, False], [False, True]):
        assert average_precision([0.5, 0.5], right, 1) == 0.5


def test_tags_are_ranked_over_pictures():
    scores = {"dog": [0.9, 0.8, 0.1], "cat": [0.2, 0.9, 0.1], "cow": [0.9, 0.9, 0.9]}
    truth = [{"dog"}, {"cat"}, {"dog", "cat"}]
    found = tag_average_precisions(scores, truth)
    # dog: right, wrong, right of 2; cat: right, wrong, right of 2; no picture has a cow
    assert found == {"dog": pytest.approx(5 / 6), "cat": pytest.approx(5 / 6)}
    assert mean(found) == pytest.approx(5 / 6)
    with pytest.raises(ValueError, match="no name"):
        mean({})


def test_a_box_is_found_from_an_overlap_of_a_half_on_and_once():
    truth = [TrueBox("dog", LEFT), TrueBox("dog", RIGHT)]
    assert matched([FoundBox("dog", HALF, 0.5)], truth) == [0]
    assert matched([FoundBox("dog", Box(0, 0, 0.4, 0.199), 0.5)], truth) == [None]
    assert matched([FoundBox("cat", LEFT, 0.5)], truth) == [None]
    # the surer one has it, wherever it stands in the list
    assert matched([FoundBox("dog", LEFT, 0.5), FoundBox("dog", NEAR, 0.6)], truth) == [None, 0]
    assert matched([FoundBox("dog", NEAR, 0.5)], truth, min_iou=0.8) == [None]
    assert matched([], truth) == []


def test_average_precision_of_boxes():
    truth = [[TrueBox("dog", LEFT), TrueBox("cat", RIGHT)], [TrueBox("dog", RIGHT)], []]
    found = [
        [FoundBox("dog", LEFT, 0.9), FoundBox("dog", NEAR, 0.8), FoundBox("cat", LEFT, 0.9)],
        [FoundBox("dog", RIGHT, 0.7)],
        [FoundBox("cow", LEFT, 0.9)],
    ]
    # dog: right, twice the same, right of 2; cat: in the wrong place
    assert box_average_precisions(found, truth) == {"dog": pytest.approx(0.5 + 0.5 * 2 / 3), "cat": 0.0}
    # a dog in the third picture, where there is none, comes first and costs precision
    found[2] = [FoundBox("dog", LEFT, 0.95)]
    # wrong, right, wrong, right: 1/2 at recall 1/2 and 1
    assert box_average_precisions(found, truth)["dog"] == pytest.approx(0.5)


def test_mask_iou():
    ours, true = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert mask_iou(ours, true) == 1.0
    ours[:2], true[1:3] = True, True
    assert mask_iou(ours, true) == pytest.approx(4 / 12)
    assert mask_iou(ours, ~ours) == 0.0
