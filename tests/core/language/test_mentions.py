"""Boxes named in texts: exchanged for those that they overlap, in every codec."""

from __future__ import annotations

import pytest

from lyrics.core.geometry import Box
from lyrics.core.language.codecs import CODECS, SpatialObject, format_box, format_objects, parse
from lyrics.core.language.mentions import snapped

SIZE = (640, 480)
TRUE, NEAR, FAR = Box(0.2, 0.2, 0.5, 0.6), Box(0.22, 0.18, 0.5, 0.58), Box(0.6, 0.1, 0.9, 0.5)


@pytest.mark.parametrize("codec", CODECS)
def test_a_box_becomes_the_one_it_overlaps_and_its_tag_stays(codec: str) -> None:
    written = format_objects([SpatialObject("the left one", TRUE)], codec, SIZE)
    text = f"It is {written}, I think"
    expected = text.replace(written, format_objects([SpatialObject("the left one", NEAR)], codec, SIZE))
    assert snapped(text, [FAR, NEAR], 0.5, codec, SIZE) == expected != text


@pytest.mark.parametrize("codec", CODECS)
def test_a_box_alone_and_several_boxes(codec: str) -> None:
    text = f"{format_box(FAR, codec, SIZE)} and {format_box(TRUE, codec, SIZE)}"
    found = parse(snapped(text, [NEAR, FAR], 0.5, codec, SIZE), codec, SIZE)
    assert not found.problems
    assert [one.tag for one in found.objects] == [one.tag for one in parse(text, codec, SIZE).objects]
    assert [one.box.iou(box) > 0.98 for one, box in zip(found.objects, (FAR, NEAR), strict=True)] == [True, True]


def test_what_overlaps_nothing_enough_stays() -> None:
    text = f"a dog {format_box(TRUE)}"
    assert TRUE.iou(NEAR) < 0.9
    assert snapped(text, [NEAR], 0.9) == snapped(text, [FAR], 0.5) == snapped(text, [], 0.5) == text
    assert snapped("no box here", [NEAR], 0.5) == "no box here"
