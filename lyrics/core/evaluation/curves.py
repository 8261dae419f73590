"""A precision-recall curve as an SVG image that any browser shows; it loads nothing."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

_SIDE, _MARGIN = 320, 48
_FONT = 'font-family="sans-serif" font-size="12"'


def precision_recall_svg(points: Sequence[Mapping[str, float]], title: str) -> str:
    """Return a curve of points in ascending recall as steps.

    A point has ``recall`` and ``precision`` from 0 to 1; a precision holds back to the recall before.
    """
    size = _SIDE + 2 * _MARGIN
    path, before = [], 0.0
    for point in points:
        path += [_place(before, point["precision"]), _place(point["recall"], point["precision"])]
        before = point["recall"]
    ticks = "".join(
        f'<text x="{_MARGIN + share * _SIDE:.0f}" y="{_MARGIN + _SIDE + 16}" text-anchor="middle" '
        f"{_FONT}>{share:g}</text>"
        f'<text x="{_MARGIN - 6}" y="{_MARGIN + (1 - share) * _SIDE + 4:.0f}" text-anchor="end" '
        f"{_FONT}>{share:g}</text>"
        for share in (0, 0.25, 0.5, 0.75, 1)
    )
    middle = _MARGIN + _SIDE / 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" width="{size}" height="{size}">'
        f'<rect width="{size}" height="{size}" fill="white"/>'
        f'<rect x="{_MARGIN}" y="{_MARGIN}" width="{_SIDE}" height="{_SIDE}" fill="none" stroke="#999"/>{ticks}'
        f'<text x="{middle:.0f}" y="{_MARGIN - 16}" text-anchor="middle" {_FONT}>{html.escape(title)}</text>'
        f'<text x="{middle:.0f}" y="{size - 8}" text-anchor="middle" {_FONT}>recall</text>'
        f'<text x="14" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 14 {middle:.0f})" '
        f"{_FONT}>precision</text>"
        f'<polyline points="{" ".join(path)}" fill="none" stroke="#1f5fa8" stroke-width="2"/></svg>\n'
    )


def _place(recall: float, precision: float) -> str:
    return f"{_MARGIN + recall * _SIDE:.1f},{_MARGIN + (1 - precision) * _SIDE:.1f}"
