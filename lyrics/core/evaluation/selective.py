"""Risk against coverage of a benchmark's answers, and the threshold for a stated risk.

The confidence of an answer is its mean log-probability (``lyrics.core.answers.Confidence``). One that points at things
of which the refiner saw none is withheld whatever its confidence, so it is ranked below all others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lyrics.core.abstaining import ABSTENTION, Abstaining
from lyrics.core.errors import LyricsError, SpecError
from lyrics.core.evaluation.benchmark import Prediction, Verdict
from lyrics.core.evaluation.metrics.risk import RiskCurve, risk_curve
from lyrics.core.evaluation.predictions import write_whole
from lyrics.core.json_reading import read_json_object
from lyrics.core.reports.plots import Lines, Panel, Point

FILE = "abstaining.json"
#: Points of a curve that are kept in ``scores.json``; of more, evenly many by rank.
MOST_POINTS = 200
#: Ranks what is withheld whatever the threshold.
_NEVER = -math.inf


def has_risk(said: Sequence[Prediction], verdict: Verdict) -> bool:
    """Return whether answers have both a confidence and a worth from 0 to 1."""
    return (
        bool(verdict.values)
        and all(0 <= value <= 1 for value in verdict.values)
        and all(one.confidence is not None for one in said)
    )


def curve_of(said: Sequence[Prediction], values: Sequence[float]) -> RiskCurve:
    """Return the risk against coverage of answers with a confidence."""
    return risk_curve([_ranked(one) for one in said], values)


def _ranked(one: Prediction) -> float:
    assert one.confidence is not None, "has_risk has looked"
    return _NEVER if one.seen is False else one.confidence.mean_log_prob


def details(curve: RiskCurve) -> dict[str, Any]:
    """Return plain data for ``scores.json``; thresholds are None where answers are withheld whatever the threshold."""
    last = len(curve.points) - 1
    kept = range(last + 1)
    rows = (
        kept if len(kept) <= MOST_POINTS else sorted({round(last * n / (MOST_POINTS - 1)) for n in range(MOST_POINTS)})
    )
    points = [asdict(curve.points[row]) for row in rows]
    for point in points:
        point["threshold"] = None if point["threshold"] == _NEVER else point["threshold"]
    return {"aurc": curve.aurc, "risk": curve.risk, "points": points}


def panel(name: str, data: Mapping[str, Any]) -> Panel:
    """Return the curve of ``details``, from the surest answers to all of them."""
    points = [Point(point["coverage"], point["risk"]) for point in data["points"]]
    return Lines(f"{name}: risk, AURC {data['aurc']:.3f}", {"risk": points}, "coverage")


def withheld(said: Sequence[Prediction], abstaining: Abstaining) -> list[bool]:
    """Return which answers are withheld. Raises ``SpecError`` where a threshold meets answers without a confidence."""
    return [abstaining.withholds(one.seen, one.confidence) for one in said]


def as_abstention(one: Prediction) -> Prediction:
    """Return what is said in place of an answer."""
    return replace(one, text=ABSTENTION, answer=ABSTENTION, objects=())


def abstaining_scores(hidden: Sequence[bool], values: Sequence[float]) -> dict[str, float]:
    """Return the coverage and risk, times 100, of the answers that are given.

    No risk where none is, or where answers have no worth.
    """
    given = [value for value, gone in zip(values, hidden, strict=True) if not gone] if values else []
    scores = {"abstaining: coverage": 100 * (len(hidden) - sum(hidden)) / len(hidden)}
    if given:
        scores["abstaining: risk"] = 100 * (1 - sum(given) / len(given))
    return scores


# --- the threshold
# -----------------------------------------------------------------------------------------------------


def choose_threshold(data: Mapping[str, Any], risk: float, name: str) -> dict[str, Any]:
    """The threshold of the greatest coverage whose risk on these answers is ``risk`` at most, with what it gives.

    Args:
        data: what ``details`` says of a curve.
        risk: from 0 to 1.
        name: of the benchmark, for messages.

    Raises ``LyricsError`` where none has so little risk.
    """
    points = [point for point in data["points"] if point["threshold"] is not None]
    fitting = [point for point in points if point["risk"] <= risk]
    if not fitting:
        least = min((point["risk"] for point in points), default=data["risk"])
        raise LyricsError(
            f"{name}: no threshold has a risk of {risk:g} or less on these answers; the least is {least:.4f}."
        )
    return {**max(fitting, key=lambda point: point["coverage"]), "risk_asked": risk, "aurc": data["aurc"]}


def write_threshold(folder: Path, data: Mapping[str, Any]) -> None:
    write_whole(folder / FILE, json.dumps(dict(data), indent=2) + "\n")


def read_threshold(path: Path) -> Abstaining:
    """Return the threshold that ``write_threshold`` wrote. Raises ``SpecError`` for a file that holds none."""
    data = read_json_object(path, SpecError, advice="Choose a threshold with lyrics evaluate --choose-threshold.")
    value = data.get("threshold")
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise SpecError(f"{path}: has no threshold; lyrics evaluate --choose-threshold writes such a file.")
    return Abstaining(float(value))
