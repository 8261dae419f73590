"""Risk against coverage: how often answers are wrong when only the surest are given (El-Yaniv and Wiener, JMLR 2010).

Answers are ranked by confidence. Giving all from a threshold on, *coverage* is their share and *risk* the mean of what
they lack to be right. Answers of the same confidence cannot be told apart, so the curve has one point for each value
that occurs. AURC is the mean of the risk over the coverages 1/n, 2/n, ..., 1 (Geifman, Uziel and El-Yaniv, ICLR 2019),
where within answers of the same confidence the expected risk of a random order counts. A ranking without any sense has
the risk of all answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class RiskPoint:
    """Of the answers with at least ``threshold`` confidence: their share, and their risk, both from 0 to 1."""

    threshold: float
    coverage: float
    risk: float


@dataclass(frozen=True)
class RiskCurve:
    """``points`` in falling threshold and rising coverage, the last over all answers; ``aurc`` from 0 to 1."""

    points: tuple[RiskPoint, ...]
    aurc: float

    @property
    def risk(self) -> float:
        """Of all answers."""
        return self.points[-1].risk


def risk_curve(confidences: Sequence[float], values: Sequence[float]) -> RiskCurve:
    """Return the curve of answers with these confidences, worth from 0 (wrong) to 1 (right).

    Raises ``ValueError`` for no answers, and for lengths that differ.
    """
    ranked = sorted(zip(confidences, values, strict=True), key=lambda pair: -pair[0])
    if not ranked:
        raise ValueError("a risk needs answers")
    points: list[RiskPoint] = []
    given, wrong, area = 0, 0.0, 0.0
    for threshold, group in groupby(ranked, key=lambda pair: pair[0]):
        lacks = [1.0 - value for _, value in group]
        mean = sum(lacks) / len(lacks)
        area += sum((wrong + mean * number) / (given + number) for number in range(1, len(lacks) + 1))
        given, wrong = given + len(lacks), wrong + sum(lacks)
        points.append(RiskPoint(threshold, given / len(ranked), wrong / given))
    return RiskCurve(tuple(points), area / len(ranked))
