"""Answers: objects in original pixels, matched with what the refiner saw; nothing a model writes breaks it."""

from __future__ import annotations

import json
import random

import pytest

from lyrics.core.answers import objects_to_draw, read_answer
from lyrics.core.geometry import Box
from lyrics.core.language.codecs import CODECS, SpatialObject, format_objects
from lyrics.core.refining.refinement import Refinement
from lyrics.core.types import DetectedObject

DOG, CAT = Box(0.1, 0.2, 0.5, 0.6), Box(0.6, 0.1, 0.9, 0.4)
SEEN = Refinement(
    (640, 480), objects=(DetectedObject("dog", DOG, 0.9), DetectedObject("cat", CAT, 0.4)), name="picture.jpg"
)


@pytest.mark.parametrize("codec", CODECS)
def test_objects_are_matched_with_the_refiner(codec: str) -> None:
    nowhere = Box(0.05, 0.7, 0.15, 0.95)
    written = format_objects([SpatialObject("puppy", DOG), SpatialObject("bird", nowhere)], codec, (640, 480))
    answer = read_answer(f" {written} ", codec, SEEN)
    dog, bird = answer.objects
    assert (dog.tag, dog.detection, dog.supported, dog.score) == ("puppy", SEEN.objects[0], True, 0.9)
    assert dog.iou > 0.9
    assert dog.box_px == pytest.approx((64, 96, 320, 288), abs=1.5)
    assert (bird.tag, bird.supported, bird.score) == ("bird", False, None)
    assert bird.iou < 0.5
    assert answer.text == written.strip()
    data = json.loads(json.dumps(answer.to_json()))
    assert [found["detected_as"] for found in data["objects"]] == ["dog", None]
    assert [found.tag for found in objects_to_draw(answer)] == ["puppy", "bird (not seen)"]


def test_support_begins_at_half_an_overlap() -> None:
    wide = Refinement((1000, 1000), objects=(DetectedObject("thing", Box(0, 0, 1, 1), 0.7),))
    for share, supported in ((0.45, False), (0.55, True)):
        text = format_objects([SpatialObject("part", Box(0, 0, share, 1))], "lyrics")
        (found,) = read_answer(text, "lyrics", wide).objects
        assert found.supported is supported
        assert found.iou == pytest.approx(share, abs=0.01)
        assert found.detection == wide.objects[0]


def test_prose_keeps_its_place() -> None:
    written = format_objects([SpatialObject("dog", DOG)], "lyrics")
    answer = read_answer(f"There is a {written} on the grass.", "lyrics", SEEN)
    assert answer.plain_text == "There is a dog on the grass."
    assert str(answer) == f"There is a {written} on the grass."


def test_without_a_picture_there_is_nothing_to_point_at() -> None:
    written = format_objects([SpatialObject("dog", DOG)], "lyrics")
    answer = read_answer(written, "lyrics", None)
    assert (answer.text, answer.plain_text, answer.objects) == (written, written, ())


def test_without_objects_of_the_refiner_nothing_is_supported() -> None:
    written = format_objects([SpatialObject("dog", DOG)], "lyrics")
    (found,) = read_answer(written, "lyrics", Refinement((10, 10))).objects
    assert (found.detection, found.iou, found.supported) == (None, 0.0, False)


@pytest.mark.parametrize("codec", CODECS)
def test_malformed_boxes_never_break_an_answer(codec: str) -> None:
    generator = random.Random(0)
    good = format_objects([SpatialObject("dog", DOG)], codec, (640, 480))
    for _ in range(300):
        letters = list(good * 2)
        for _ in range(generator.randrange(1, 6)):
            place = generator.randrange(len(letters))
            letters[place] = generator.choice(["", "9" * 50, "<", ">", "(", ",", "]", "nan", "-", "</T>", "\x00"])
        answer = read_answer("".join(letters), codec, SEEN)
        assert all(0 <= value <= 640 for found in answer.objects for value in found.box_px)
    broken = read_answer("<br><T>dog</T><Bbox>(1,2),(3</Bbox></br> and more", "lyrics", SEEN)
    assert broken.objects == ()
    assert broken.problems
    assert "and more" in broken.text
