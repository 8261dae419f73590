"""Risk against coverage, by hand and against a definition that tries all orders of ties."""

from __future__ import annotations

import itertools
import statistics

import pytest

from lyrics.core.evaluation.metrics.risk import RiskPoint, risk_curve


def by_definition(confidences: list[float], values: list[float]) -> float:
    """The mean over all orders in which the surest come first."""
    areas = []
    for order in itertools.permutations(range(len(values))):
        if all(confidences[a] >= confidences[b] for a, b in itertools.pairwise(order)):
            lacks = [1 - values[row] for row in order]
            areas.append(statistics.fmean(statistics.fmean(lacks[: n + 1]) for n in range(len(lacks))))
    return statistics.fmean(areas)


def test_a_curve_by_hand() -> None:
    found = risk_curve([-0.1, -0.3, -0.2, -0.2], [1, 0, 1, 0])
    assert found.points == (RiskPoint(-0.1, 0.25, 0.0), RiskPoint(-0.2, 0.75, 1 / 3), RiskPoint(-0.3, 1.0, 0.5))
    assert found.risk == 0.5
    assert found.aurc == pytest.approx((0 + 0.25 + 1 / 3 + 0.5) / 4)


@pytest.mark.parametrize(
    ("confidences", "values"),
    [
        ([-1.0], [0.25]),
        ([-1.0, -1.0, -1.0], [1, 0, 1]),
        ([-0.5, -2.0, -0.5, -1.0, -2.0], [0.5, 1, 0, 0.75, 0]),
        ([float("-inf"), -0.5, float("-inf"), -0.1], [1, 0, 0, 1]),
    ],
)
def test_the_definition(confidences: list[float], values: list[float]) -> None:
    assert risk_curve(confidences, values).aurc == pytest.approx(by_definition(confidences, values))


def test_a_ranking_without_sense_has_the_risk_of_all() -> None:
    found = risk_curve([-1.0] * 10, [1, 0] * 5)
    assert found.aurc == pytest.approx(found.risk) == pytest.approx(0.5)
    assert risk_curve([-n for n in range(10)], [1] * 5 + [0] * 5).aurc < 0.2
    assert risk_curve(list(range(10)), [1] * 5 + [0] * 5).aurc > 0.8


def test_no_answers() -> None:
    with pytest.raises(ValueError, match="a risk needs answers"):
        risk_curve([], [])
    with pytest.raises(ValueError, match="zip"):
        risk_curve([-1.0], [])
