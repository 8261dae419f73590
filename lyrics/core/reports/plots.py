"""Small charts as SVG text: a curve for a report, and panels of bars and lines for a file of their own.

Draws with strings alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT, _LEFT = 420, 160, 52
#: Points of a curve; more are averaged in groups.
_POINTS = 400
#: Of Okabe and Ito's palette, which the color-blind can tell apart.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_PANEL_WIDTH, _PANEL_HEIGHT, _TOP, _BOTTOM, _RIGHT = 420, 240, 38, 46, 12
_COLUMNS = 3


@dataclass(frozen=True)
class Point:
    """A value, and how far it spreads to either side; 0 draws no whisker."""

    x: float
    y: float
    spread: float = 0.0


@dataclass(frozen=True)
class Bars:
    """A panel with a bar for each name; ``x`` of their points is not looked at."""

    title: str
    bars: Mapping[str, Point]


@dataclass(frozen=True)
class Lines:
    """A panel with a line for each name, over ``x_name``; points in rising order of x."""

    title: str
    lines: Mapping[str, Sequence[Point]]
    x_name: str


Panel = Bars | Lines


def curve(points: Sequence[tuple[int, float]]) -> str:
    """Return (step, value) pairs as an inline SVG; values that are not finite are left out."""
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    if not finite:
        return "<p>no finite value</p>"
    group = -(-len(finite) // _POINTS)
    means = [
        (part[-1][0], sum(value for _, value in part) / len(part))
        for part in (finite[start : start + group] for start in range(0, len(finite), group))
    ]
    first, last = means[0][0], means[-1][0]
    low, high = min(value for _, value in means), max(value for _, value in means)
    frame = _Frame(_LEFT, 8, _WIDTH - 8, _HEIGHT - 22, (first, last), (low, high))
    line = " ".join(frame.at(step, value) for step, value in means)
    return (
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' width='{_WIDTH}' height='{_HEIGHT}' role='img'>"
        f"<path d='M{_LEFT} 4V{_HEIGHT - 20}H{_WIDTH - 4}' fill='none' stroke='#bbb'/>"
        f"<polyline points='{line}' fill='none' stroke='{_COLORS[0]}' stroke-width='1.5'/>"
        f"<text x='2' y='14'>{high:.4g}</text><text x='2' y='{_HEIGHT - 22}'>{low:.4g}</text>"
        f"<text x='{_LEFT}' y='{_HEIGHT - 6}'>{first}</text>"
        f"<text x='{_WIDTH - 4}' y='{_HEIGHT - 6}' text-anchor='end'>{last}</text></svg>"
    )


def chart(panels: Sequence[Panel]) -> str:
    """Panels beside and below each other, as an SVG file that needs nothing else.

    Values that are not finite are left out.
    """
    columns = max(1, min(_COLUMNS, len(panels)))
    rows = -(-len(panels) // columns)
    width, height = columns * _PANEL_WIDTH, max(1, rows) * _PANEL_HEIGHT
    drawn = []
    for number, panel in enumerate(panels):
        x, y = number % columns * _PANEL_WIDTH, number // columns * _PANEL_HEIGHT
        body = _bars(panel) if isinstance(panel, Bars) else _lines(panel)
        title = f"<text x='8' y='16' font-weight='bold'>{escape(panel.title)}</text>"
        drawn.append(f"<g transform='translate({x} {y})'>{title}{body}</g>")
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}' "
        "font-family='sans-serif' font-size='11' fill='#333'><rect width='100%' height='100%' fill='#fff'/>\n"
        + "\n".join(drawn)
        + "\n</svg>\n"
    )


@dataclass(frozen=True)
class _Frame:
    """A rectangle in pixels, and the values that its sides stand for."""

    left: float
    top: float
    right: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, x: float) -> float:
        return self.left + (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1.0) * (self.right - self.left)

    def up(self, y: float) -> float:
        return self.bottom - (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1.0) * (self.bottom - self.top)

    def at(self, x: float, y: float) -> str:
        return f"{self.across(x):.1f},{self.up(y):.1f}"

    def axes(self) -> str:
        low, high = self.y
        return (
            f"<path d='M{self.left} {self.top}V{self.bottom}H{self.right}' fill='none' stroke='#bbb'/>"
            f"<text x='{self.left - 4}' y='{self.top + 8}' text-anchor='end'>{high:.4g}</text>"
            f"<text x='{self.left - 4}' y='{self.bottom}' text-anchor='end'>{low:.4g}</text>"
        )

    def whisker(self, x_px: float, point: Point) -> str:
        if not point.spread:
            return ""
        low, high = self.up(point.y - point.spread), self.up(point.y + point.spread)
        path = f"M{x_px:.1f} {low:.1f}V{high:.1f}M{x_px - 3:.1f} {low:.1f}h6M{x_px - 3:.1f} {high:.1f}h6"
        return f"<path d='{path}' stroke='#333' fill='none'/>"


def _frame(points: Sequence[Point], x: tuple[float, float], *, from_zero: bool) -> _Frame:
    low = min(point.y - point.spread for point in points)
    high = max(point.y + point.spread for point in points)
    if from_zero:
        low, high = min(0.0, low), max(0.0, high)
    return _Frame(_LEFT, _TOP, _PANEL_WIDTH - _RIGHT, _PANEL_HEIGHT - _BOTTOM, x, (low, high))


def _bars(panel: Bars) -> str:
    bars = {name: point for name, point in panel.bars.items() if math.isfinite(point.y)}
    if not bars:
        return _nothing()
    frame = _frame(list(bars.values()), (0.0, float(len(bars))), from_zero=True)
    parts = [frame.axes()]
    for number, (name, point) in enumerate(bars.items()):
        left, middle, right = (frame.across(number + part) for part in (0.15, 0.5, 0.85))
        top, bottom = sorted((frame.up(point.y), frame.up(0.0)))
        parts += [
            f"<rect x='{left:.1f}' y='{top:.1f}' width='{right - left:.1f}' height='{bottom - top:.1f}' "
            f"fill='{_color(number)}'><title>{escape(name)}: {point.y:.4g}</title></rect>",
            frame.whisker(middle, point),
            # Names stand in two rows by turns, so that neighbors do not run into each other.
            f"<text x='{middle:.1f}' y='{frame.bottom + 15 + number % 2 * 14}' "
            f"text-anchor='middle'>{escape(name)}</text>",
        ]
    return "".join(parts)


def _lines(panel: Lines) -> str:
    lines = {name: [point for point in points if math.isfinite(point.y)] for name, points in panel.lines.items()}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return _nothing()
    every = [point for points in lines.values() for point in points]
    first, last = min(point.x for point in every), max(point.x for point in every)
    frame = _frame(every, (first, last), from_zero=False)
    parts = [frame.axes()]
    for number, (name, points) in enumerate(lines.items()):
        path = " ".join(frame.at(point.x, point.y) for point in points)
        color = _color(number)
        parts.append(f"<polyline points='{path}' fill='none' stroke='{color}' stroke-width='1.5'/>")
        for point in points:
            x, y = frame.across(point.x), frame.up(point.y)
            parts.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='2' fill='{color}'/>{frame.whisker(x, point)}")
        if len(lines) > 1:
            x = frame.left + number * (frame.right - frame.left) / len(lines)
            parts.append(f"<text x='{x:.1f}' y='{_TOP - 2}' fill='{color}'>{escape(name)}</text>")
    below = frame.bottom + 15
    parts += [
        f"<text x='{frame.left}' y='{below}'>{first:g}</text>",
        f"<text x='{frame.right}' y='{below}' text-anchor='end'>{last:g}</text>",
        f"<text x='{(frame.left + frame.right) / 2}' y='{below}' text-anchor='middle'>{escape(panel.x_name)}</text>",
    ]
    return "".join(parts)


def _color(number: int) -> str:
    return _COLORS[number % len(_COLORS)]


def _nothing() -> str:
    return f"<text x='{_LEFT}' y='{_TOP + 20}'>no finite value</text>"
