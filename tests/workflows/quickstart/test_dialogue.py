"""Boxes in questions and answers of a data set, as they are typed, read and drawn."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from lyrics.core.geometry import Box
from lyrics.core.language.codecs import SpatialObject, format_box, format_objects
from lyrics.core.types import Turn
from lyrics.workflows.quickstart.dialogue import in_pixels
from lyrics.workflows.quickstart.page import _question

SIZE = (200, 100)


def test_boxes_of_a_turn_are_in_pixels() -> None:
    box, other = Box(0.1, 0.2, 0.5, 0.6), Box(0.0, 0.0, 1.0, 1.0)
    question = f"What is at {format_box(box)}, and in {format_objects([SpatialObject('the ring', other)])}?"
    answer = f"It is {format_objects([SpatialObject('red star', box)])}."
    turn = in_pixels(Turn(question, answer), SIZE)
    assert turn.instruction == "What is at <box 20 20 100 60>, and in the ring <box 0 0 200 100>?"
    assert turn.answer == "It is red star (20, 20, 100, 60)."
    assert in_pixels(Turn("How many?", "2"), SIZE) == Turn("How many?", "2")


@pytest.mark.parametrize("corners", [(20, 20, 100, 60), (0, 0, 200, 100), (190, 90, 191, 91)])
def test_a_box_in_a_question_is_drawn(corners: tuple[int, int, int, int], tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", SIZE, "red").save(path)
    said = f"What is <in> <box {' '.join(map(str, corners))}>?"
    before, shown, after = _question(said, str(path))
    assert (before["text"], after["text"]) == ("What is <in> ", "?")
    assert (before["image"], after["image"]) == ("", "")
    assert shown["text"] == f"the box {' '.join(map(str, corners))}"
    data = shown["image"].partition("base64,")[2]
    with Image.open(io.BytesIO(base64.b64decode(data))) as part:
        assert max(part.size) == 96
        colors = {color for _, color in part.convert("RGB").getcolors(10_000)}
    assert colors >= {(255, 0, 0), (255, 255, 255)}
