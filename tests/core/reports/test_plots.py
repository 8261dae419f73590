"""Charts: what is drawn where, and what is left out."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

from lyrics.core.reports.plots import Bars, Lines, Panel, Point, chart, curve

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*panels: Panel) -> ElementTree.Element:
    """Well-formed, or this raises."""
    return ElementTree.fromstring(chart(panels))


def test_bars_are_as_high_as_their_values() -> None:
    found = drawn(Bars("a <title>", {"one": Point(0, 10), "two": Point(0, 5), "none": Point(0, math.nan)}))
    bars = [bar for bar in found.iter(f"{SVG}rect") if bar.get("x")]
    high, low = (float(bar.get("height", "")) for bar in bars)
    assert math.isclose(high, 2 * low, rel_tol=1e-2)
    # Both stand on the same line.
    assert len({round(float(bar.get("y", "")) + float(bar.get("height", "")), 1) for bar in bars}) == 1
    texts = [text.text for text in found.iter(f"{SVG}text")]
    assert {"a <title>", "one", "two", "10", "0"} <= set(texts)
    assert "none" not in texts


def test_whiskers_are_as_long_as_the_spread() -> None:
    def whiskers(spread: float) -> list[str]:
        found = drawn(Bars("t", {"one": Point(0, 10, spread), "two": Point(0, 20)}))
        return [path.get("d", "") for path in found.iter(f"{SVG}path") if path.get("stroke") == "#333"]

    assert whiskers(0.0) == []
    assert len(whiskers(3.0)) == 1


def test_lines_rise_with_their_values() -> None:
    points = [Point(0, 1.0), Point(5, 3.0), Point(10, 2.0)]
    found = drawn(Lines("t", {"a": points, "b": [Point(10, 4.0), Point(0, math.inf)]}, "steps"))
    first, second = (
        [tuple(map(float, pair.split(","))) for pair in line.get("points", "").split()]
        for line in found.iter(f"{SVG}polyline")
    )
    xs, ys = zip(*first, strict=True)
    assert xs[0] < xs[1] < xs[2]
    assert math.isclose(xs[1], (xs[0] + xs[2]) / 2, abs_tol=0.2)
    # Down is up.
    assert ys[1] < ys[2] < ys[0]
    assert len(second) == 1
    assert second[0][1] < ys[1]
    texts = [text.text for text in found.iter(f"{SVG}text")]
    assert {"a", "b", "steps", "0", "10", "4", "1"} <= set(texts)


def test_panels_do_not_overlap() -> None:
    found = drawn(*[Bars(str(number), {"one": Point(0, number)}) for number in range(5)])
    places = [group.get("transform") for group in found.iter(f"{SVG}g")]
    assert len(set(places)) == 5
    assert "no finite value" in chart([Bars("t", {})])
    assert "no finite value" in chart([Lines("t", {"a": [Point(0, math.nan)]}, "x")])


def test_a_curve_averages_what_it_cannot_show() -> None:
    text = curve([(step, float(step % 2)) for step in range(1, 801)])
    (line,) = ElementTree.fromstring(text).iter("polyline")
    pairs = line.get("points", "").split()
    assert len(pairs) == 400
    assert len({pair.split(",")[1] for pair in pairs}) == 1
    assert curve([(1, math.nan)]) == "<p>no finite value</p>"
    assert "<text x='2' y='14'>4</text>" in curve([(1, 2.0), (2, math.inf), (3, 4.0)])
