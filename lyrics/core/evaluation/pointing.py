"""Are the boxes of answers real, and does the refiner's evidence tell?

A box is real where something annotated has its name and overlaps it as much as a referring expression must (IoU 0.5).
Case and the article before a name do not matter, and a box without a name is held to its place alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lyrics.core.evaluation.benchmark import PredictedObject, Prediction
from lyrics.core.evaluation.metrics.evidence import evidence_curve, support_shares
from lyrics.core.evaluation.metrics.rec import box_is_right
from lyrics.core.geometry import Box

#: Points of a curve that are kept in ``scores.json``; of more, evenly many by rank.
MOST_POINTS = 200
_ARTICLE = re.compile(r"^(?:the|an|a)\s+")


@dataclass(frozen=True)
class Real:
    """Something that is there: what it may be called, and where it is."""

    name: str
    box_norm: Box


def plain_name(tag: str) -> str:
    """Return a name as it is compared: "The  Dog." is "dog"."""
    return _ARTICLE.sub("", " ".join(tag.lower().split()).rstrip(".,;:!?"))


def is_real(found: PredictedObject, there: Iterable[Real]) -> bool:
    name = plain_name(found.tag)
    return any(
        (not name or name == plain_name(one.name)) and box_is_right(found.box_norm, one.box_norm) for one in there
    )


def evidence_scores(
    predictions: Sequence[Prediction], there: Sequence[Sequence[Real]]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the scores and ``details`` over the boxes of all answers; ``there[i]`` is what image i holds.

    Both are empty without boxes.

    Scores: ``evidence: boxes``, ``evidence: real`` (their share), ``evidence: average precision``, and ``supported``
    taken as "real": ``evidence: supported, precision`` and ``..., recall``; those that are undefined are left out.
    Details: the curve as ``evidence``.
    """
    found = [(one, is_real(one, real)) for said, real in zip(predictions, there, strict=True) for one in said.objects]
    if not found:
        return {}, {}
    truths = [true for _, true in found]
    curve = evidence_curve([one.evidence for one, _ in found], truths)
    shares = support_shares([one.supported for one, _ in found], truths)
    scores: dict[str, float] = {"evidence: boxes": len(found), "evidence: real": 100 * sum(truths) / len(truths)}
    for name, value in (
        ("average precision", curve.average_precision),
        ("supported, precision", shares.precision),
        ("supported, recall", shares.recall),
    ):
        if value is not None:
            scores[f"evidence: {name}"] = 100 * value
    last = len(curve.points) - 1
    kept = range(len(curve.points))
    if len(kept) > MOST_POINTS:
        kept = sorted({round(last * step / (MOST_POINTS - 1)) for step in range(MOST_POINTS)})  # type: ignore[assignment]
    points = [asdict(curve.points[row]) for row in kept]
    return scores, {"evidence": {"average_precision": curve.average_precision, "points": points}}
