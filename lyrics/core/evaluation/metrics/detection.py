"""Average precision, of tags and of boxes, and the overlap of masks.

Average precision is the area under the precision-recall curve with precision made monotone, over all points (the PASCAL
VOC measure from 2010 on: Everingham et al. 2015, section 4.2; the 101 points of COCO are not used). Boxes are matched
as there: best first, each with the true box of its name and image that it overlaps most, which counts once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lyrics.core.geometry import Box

MIN_IOU = 0.5


class FoundBox(NamedTuple):
    """A detection: a name, where, and how sure (larger is surer)."""

    name: str
    box: Box
    score: float


class TrueBox(NamedTuple):
    """An object that is there."""

    name: str
    box: Box


def average_precision(scores: Sequence[float], right: Sequence[bool], positives: int) -> float:
    """Return the average precision in [0, 1] of a ranking.

    Equal scores are ranked together: what is right among them gains nothing from the order in which it came.

    Args:
        scores: of what was found.
        right: whether each is one of those looked for.
        positives: how many were to be found, also those that were not; at least 1.
    """
    assert positives >= 1
    assert sum(right) <= positives
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    ranked, hits = np.asarray(scores, dtype=np.float64)[order], np.asarray(right, dtype=np.bool_)[order]
    if not hits.any():
        return 0.0
    last_of_its_score = np.append(ranked[1:] != ranked[:-1], True)
    found = np.cumsum(hits)[last_of_its_score]
    precision = found / (np.flatnonzero(last_of_its_score) + 1)
    recall = found / positives
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * best_from_here))


def tag_average_precisions(
    scores: Mapping[str, Sequence[float]], truth: Sequence[frozenset[str] | set[str]]
) -> dict[str, float]:
    """Return the average precision of each name that some image shows.

    Args:
        scores: per name its score for every image.
        truth: per image the names of what it shows.
    """
    found = {}
    for name, row in scores.items():
        right = [name in names for names in truth]
        if any(right):
            found[name] = average_precision(row, right, sum(right))
    return found


def box_average_precisions(
    found: Sequence[Sequence[FoundBox]], truth: Sequence[Sequence[TrueBox]], *, min_iou: float = MIN_IOU
) -> dict[str, float]:
    """Return the average precision of each name that some image has a true box of; images in the same order in both.

    A detection is right if the true box of its name that it overlaps most overlaps it by an IoU of ``min_iou`` or more,
    and no better detection has had that box. A name that was never there, however often it was found, does not count.
    """
    assert len(found) == len(truth), "one list of true boxes per image"
    positives: dict[str, int] = {}
    for boxes in truth:
        for there in boxes:
            positives[there.name] = positives.get(there.name, 0) + 1
    ranked: dict[str, list[tuple[float, bool]]] = {name: [] for name in positives}
    for detections, boxes in zip(found, truth, strict=True):
        for detection, right in zip(detections, matched(detections, boxes, min_iou=min_iou), strict=True):
            if detection.name in ranked:
                ranked[detection.name].append((detection.score, right is not None))
    return {
        name: average_precision([score for score, _ in rows], [right for _, right in rows], positives[name])
        for name, rows in ranked.items()
    }


def matched(detections: Sequence[FoundBox], boxes: Sequence[TrueBox], *, min_iou: float = MIN_IOU) -> list[int | None]:
    """Return per detection of one image the row of the true box that it finds, or None where it is wrong."""
    rows: list[int | None] = [None] * len(detections)
    taken: set[int] = set()
    for place in sorted(range(len(detections)), key=lambda place: -detections[place].score):
        detection = detections[place]
        overlaps = {
            row: detection.box.iou(there.box) for row, there in enumerate(boxes) if there.name == detection.name
        }
        best = max(overlaps, key=overlaps.__getitem__, default=None)
        if best is not None and overlaps[best] >= min_iou and best not in taken:
            rows[place] = best
            taken.add(best)
    return rows


def mask_iou(ours_HW: npt.NDArray[np.bool_], true_HW: npt.NDArray[np.bool_]) -> float:
    """Return the intersection over union of two masks of one image; 1 where both are empty."""
    union = int(np.count_nonzero(ours_HW | true_HW))
    return int(np.count_nonzero(ours_HW & true_HW)) / union if union else 1.0


def mean(values: Mapping[str, float]) -> float:
    """Of average precisions: their mean over names. Raises ``ValueError`` for none."""
    if not values:
        raise ValueError("no name has anything to be found, so there is no mean over names")
    return sum(values.values()) / len(values)
