"""What the page draws, as data: boxes in original pixels, masks, evidence in words."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from lyrics.core.answers import Answer, Confidence, read_answer
from lyrics.core.geometry import Box
from lyrics.core.language.codecs import SpatialObject, format_objects
from lyrics.core.masks import Mask
from lyrics.core.refining.refinement import Refinement
from lyrics.core.types import DetectedObject, Tag
from lyrics.workflows.demo.view import COLORS, scene, with_answer
from tests.core.small import drawn

BOX = Box(0.25, 0.25, 0.5, 0.5)
PARTS = {"tagger": "t", "detector": "d", "segmenter": None}


def opened(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def seen(width: int, height: int, *, mask: bool = True) -> Refinement:
    pixels = np.zeros((height, width), dtype=bool)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = True
    found = DetectedObject("red <b>circle</b>", BOX, 0.754, Mask.from_array(pixels) if mask else None)
    return Refinement((width, height), (Tag("red circle", 0.999),), (found,))


@pytest.mark.parametrize(("width", "height"), [(96, 64), (3000, 2000), (1, 1), (5000, 3)])
def test_an_image_with_what_was_seen(width: int, height: int) -> None:
    shown = scene(drawn(width, height) if width > 1 else Image.new("RGB", (1, 1)), seen(width, height), PARTS)
    assert (shown["width"], shown["height"]) == (width, height)
    assert max(opened(shown["image"]).size) == min(max(width, height), 1024)
    (found,) = shown["objects"]
    assert found["box"] == pytest.approx([width / 4, height / 4, width / 2, height / 2], abs=0.06)
    assert found["evidence"] == "d, score 0.75"
    mask = opened(found["mask"])
    assert (mask.size, mask.mode) == (opened(shown["image"]).size, "RGBA")
    if width == 96:
        alpha = np.asarray(mask)[..., 3]
        assert alpha[16 + 4, 24 + 4] > 0
        assert alpha[2, 2] == 0
    assert shown["parts"] == {"tagger": "t", "detector": "d", "segmenter": "none"}
    json.dumps(shown)


def test_nothing_that_was_seen() -> None:
    shown = scene(drawn(), Refinement((96, 64)), dict.fromkeys(PARTS))
    assert (shown["objects"], shown["tags"], shown["answer"]) == ([], [], None)


def test_an_answer_says_who_saw_what_it_points_at() -> None:
    there = format_objects([SpatialObject("circle", BOX)], "lyrics")
    nothing = format_objects([SpatialObject("dog", Box(0.7, 0.7, 0.9, 0.9))], "lyrics")
    shown = scene(drawn(), seen(96, 64), PARTS)
    answer = read_answer(f"A {there} and a {nothing}.", "lyrics", seen(96, 64), Confidence(-0.1, -0.5))
    found = with_answer(shown, answer, "tiny-detector")["answer"]
    assert found["text"] == "A circle and a dog."
    assert found["sure"] == pytest.approx(0.905)
    assert [one["supported"] for one in found["objects"]] == [True, False]
    assert found["objects"][0]["evidence"] == "seen by tiny-detector as 'red <b>circle</b>', score 0.75"
    assert found["objects"][1]["evidence"] == "nobody saw this"
    assert shown["answer"] is None
    assert with_answer(shown, Answer("no"), None)["answer"]["sure"] is None


def luminance(color: str) -> float:
    """WCAG 2.2, relative luminance."""
    values = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("color", COLORS)
def test_edges_stand_out(color: str) -> None:
    assert 1.05 / (luminance(color) + 0.05) >= 4.5
