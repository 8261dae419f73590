"""Does the refiner's support tell boxes that a language model invented from those of real things?

An answer's box is *supported* where the refiner saw something that overlaps it enough (``lyrics.core.answers``). On
images of which everything is known, a box is real where it overlaps a true thing as much as a referring expression
must (IoU 0.5). Taking "not supported" as the warning that a box is invented: precision is the share of warned boxes
that are invented, recall the share of invented boxes that are warned of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Overlaps with the refiner's box from which an answer's box could count as supported.
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class SupportPoint:
    """One threshold's warning.

    ``precision`` is None where nothing is warned of, ``recall`` where nothing is invented.
    """

    threshold: float
    warned: int
    precision: float | None
    recall: float | None


def support_at(threshold: float, overlaps: Sequence[float], real: Sequence[bool]) -> SupportPoint:
    """Return the warning "overlaps the refiner's box by less than ``threshold``".

    It is over boxes with that overlap and whether they are real.
    """
    warned = [overlap < threshold for overlap in overlaps]
    invented = sum(not true for true in real)
    caught = sum(flag and not true for flag, true in zip(warned, real, strict=True))
    count = sum(warned)
    return SupportPoint(threshold, count, caught / count if count else None, caught / invented if invented else None)


def support_curve(overlaps: Sequence[float], real: Sequence[bool]) -> tuple[SupportPoint, ...]:
    """Return ``support_at`` for each of ``THRESHOLDS``."""
    return tuple(support_at(threshold, overlaps, real) for threshold in THRESHOLDS)
