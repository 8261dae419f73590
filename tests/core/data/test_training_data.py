"""What a forward pass takes as its batch, and what it refuses in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lyrics.core.data.collate import InstructionExamples, PretrainExamples
from lyrics.core.data.training_data import batch_of
from lyrics.core.errors import PromptError
from lyrics.core.pictures.processor import Processor
from lyrics.core.types import Preprocessing
from tests.core.small import drawn

PROCESSOR = Processor({"image_encoder": Preprocessing("squash", 8, (0, 0, 0), (1, 1, 1))})


def batch(given: Any = None, **inputs: Any) -> Any:
    names = ("images", "text", "answers", "captions", "images_per_text")
    return batch_of(given, **{**dict.fromkeys(names), **inputs})


def test_conversations_know_their_images() -> None:
    images = [drawn(), [drawn(), drawn()], None]
    found = batch(**PROCESSOR(images=images, text=["a?", "b?", "c?"], answers=["1", "2", "3"]))
    assert isinstance(found, InstructionExamples)
    (first,), (second,), (third,) = found.dialogues
    assert (first.pictures, second.pictures, third.pictures) == ((0,), (1, 2), ())
    assert (second.instruction, second.answer) == ("b?", "2")
    assert found.positions == (0, 1, 2)


def test_captions_of_one_file_are_of_one_image(tmp_path: Path) -> None:
    drawn().save(tmp_path / "a.png")
    drawn().save(tmp_path / "b.png")
    paths = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "a.png"]
    found = batch(**PROCESSOR(images=paths, captions=["one", "two", "three"]))
    assert isinstance(found, PretrainExamples)
    assert found.image_ids == (0, 1, 0)
    unnamed = batch(**PROCESSOR(images=[drawn(), drawn()], captions=["one", "two"]))
    assert unnamed.image_ids == (0, 1)


def test_a_batch_goes_through_as_it_is() -> None:
    made = batch(**PROCESSOR(images=drawn(), captions="one"))
    assert batch(made) is made
    with pytest.raises(TypeError, match="leave out images"):
        batch(made, images=made.images)


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        (PROCESSOR(images=drawn(), text="What?"), PromptError, "text and answers"),
        (PROCESSOR(images=drawn()), PromptError, "captions"),
        (
            {**PROCESSOR(images=drawn(), captions="x"), "captions": ["x", "y"]},
            PromptError,
            "1 images need as many, not 2",
        ),
        ({**PROCESSOR(images=drawn(), text="a", answers="b"), "answers": []}, PromptError, "1 instructions need"),
        ({}, TypeError, r"model\(\*\*inputs\)"),
        ({"images": [drawn()], "captions": ["x"]}, TypeError, r"model\.processor"),
    ],
)
def test_what_is_refused(inputs: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        batch(**inputs)


def test_an_image_alone_is_no_batch() -> None:
    with pytest.raises(TypeError, match="generate"):
        batch(drawn())
