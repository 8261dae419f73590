"""Does the refiner's evidence rank the boxes of answers, the real before the invented?

The evidence for a box is its overlap (IoU) with the refiner's object that overlaps it most, times that object's score
(``lyrics.core.answers``); 0 where the refiner saw nothing there. Boxes are ranked by it. Taking all from a threshold on
as real, precision is the share of those taken that are real, and recall the share of the real ones that are taken.
Boxes with the same evidence cannot be told apart, so the curve has one point for each value that occurs. Average
precision is the sum of precision times the gain in recall from point to point, without interpolation (Manning, Raghavan
and Schuetze, Introduction to Information Retrieval, section 8.4; the same as scikit-learn's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class EvidencePoint:
    """All boxes with at least ``threshold`` evidence taken as real: how many they are, and how well that does."""

    threshold: float
    taken: int
    precision: float
    recall: float


@dataclass(frozen=True)
class EvidenceCurve:
    """Args:
    points: in descending threshold; the last takes every box. Empty where no box is real, since nothing could be
    recalled. average_precision: from 0 to 1; None where no box is real. A ranking that says nothing has the share of
    real boxes.
    """

    points: tuple[EvidencePoint, ...]
    average_precision: float | None


def evidence_curve(evidence: Sequence[float], real: Sequence[bool]) -> EvidenceCurve:
    """Return the curve of boxes with that evidence and whether they are real.

    Raises ``ValueError`` for lengths that differ.
    """
    ranked = sorted(zip(evidence, real, strict=True), key=lambda pair: -pair[0])
    all_real = sum(real)
    if not all_real:
        return EvidenceCurve((), None)
    points: list[EvidencePoint] = []
    taken = right = 0
    average = 0.0
    for threshold, group in groupby(ranked, key=lambda pair: pair[0]):
        truths = [true for _, true in group]
        taken, gained = taken + len(truths), sum(truths)
        right += gained
        average += right / taken * gained / all_real
        points.append(EvidencePoint(threshold, taken, right / taken, right / all_real))
    return EvidenceCurve(tuple(points), average)


@dataclass(frozen=True)
class SupportShares:
    """``supported`` taken as "real": precision is None where nothing is supported, recall where nothing is real."""

    precision: float | None
    recall: float | None


def support_shares(supported: Sequence[bool], real: Sequence[bool]) -> SupportShares:
    """Of the supported boxes, the share that is real; of the real ones, the share that is supported."""
    both = sum(yes and true for yes, true in zip(supported, real, strict=True))
    said, there = sum(supported), sum(real)
    return SupportShares(both / said if said else None, both / there if there else None)
