"""``processor(images=..., text=...)``: what it returns, and that a model takes it."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

from lyrics.core.errors import ImageError, PromptError
from lyrics.core.model import LyricsModel
from lyrics.core.pictures.model_inputs import ModelImages, ModelInputs, asked
from lyrics.core.pictures.processor import Processor
from lyrics.core.types import Preprocessing
from tests.core.small import drawn
from tests.core.test_model_steps import made, questions

PROCESSOR = Processor({"image_encoder": Preprocessing("longest", 16, (0, 0, 0), (1, 1, 1))})


@pytest.fixture(scope="module")
def model() -> LyricsModel:
    return made()


def test_inputs_are_a_mapping_with_attributes() -> None:
    inputs = PROCESSOR(images=drawn(), text="What?", return_tensors="pt", padding=True)
    assert list(inputs) == ["images", "text", "images_per_text"]
    assert inputs.text == inputs["text"] == ["What?"]
    assert isinstance(inputs.images, ModelImages)
    with pytest.raises(AttributeError, match="no 'pixel_values'; they have images, text, images_per_text"):
        _ = inputs.pixel_values
    again = pickle.loads(pickle.dumps(inputs))
    assert isinstance(again, ModelInputs)
    assert again.text == inputs.text


def test_inputs_move() -> None:
    inputs = PROCESSOR(images=[drawn()], text="What?")
    moved = inputs.to("meta", torch.float16)
    pixels = moved.images.by_expert["image_encoder"].pixels_BCHW
    assert (pixels.device.type, pixels.dtype) == ("meta", torch.float16)
    assert inputs.images.by_expert["image_encoder"].pixels_BCHW.dtype == torch.float32
    assert moved.text == inputs.text


@pytest.mark.parametrize(
    ("images", "text", "counts"),
    [
        ("one", "a", (1,)),
        (["one", "one"], "a", (2,)),
        (None, "a", (0,)),
        ([], "a", (0,)),
        (["one", None, ["one", "one"]], ["a", "b", "c"], (1, 0, 2)),
        (None, ["a", "b"], (0, 0)),
        (["one"], ["a"], (1,)),
        ([], [], ()),
    ],
)
def test_images_belong_to_texts(images: Any, text: Any, counts: tuple[int, ...]) -> None:
    def given(entry: Any) -> Any:
        return drawn() if entry == "one" else [given(one) for one in entry] if isinstance(entry, list) else entry

    inputs = PROCESSOR(images=given(images), text=text)
    assert inputs.images_per_text == counts
    assert len(inputs.images) == sum(counts)
    again = asked(inputs.images, inputs.text, inputs.images_per_text)
    assert again.images_per_text == counts
    assert len(again.by_image) == sum(counts)


def test_generate_answers_inputs_as_it_answers_images(model: LyricsModel) -> None:
    images, text = questions()
    inputs = model.processor(images=images, text=text)
    assert model.generate(**inputs, max_new_tokens=6) == model.generate(images, text, max_new_tokens=6)
    alone = model.generate(images[0], text[0], max_new_tokens=6)
    assert model.generate(**model.processor(images[0], text[0]).to("cpu"), max_new_tokens=6) == [alone]
    assert model.generate(**model.processor([], []), max_new_tokens=6) == []
    assert len(model.generate(**model.processor(text="hello"), max_new_tokens=2)) == 1


def test_images_alone_are_encoded(model: LyricsModel) -> None:
    images = [drawn(), drawn(40, 90, "blue")]
    inputs = model.processor(images=images)
    assert list(inputs) == ["images"]
    with torch.no_grad():
        assert torch.equal(model.encode(inputs.images).soft_tokens_PQD, model.encode(images).soft_tokens_PQD)


def test_the_old_names_of_generate_warn(model: LyricsModel) -> None:
    with pytest.warns(DeprecationWarning, match="pictures is now .*images"):
        old = model.generate(pictures=drawn(), instructions="What?", max_new_tokens=3)  # type: ignore[call-overload]
    assert old == model.generate(images=drawn(), text="What?", max_new_tokens=3)
    with pytest.raises(TypeError, match="picture"):
        model.generate(drawn(), "What?", picture=drawn())  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({}, PromptError, "images and text are both missing"),
        ({"images": drawn(), "text": 3}, PromptError, "an instruction is a text"),
        ({"images": [drawn()] * 2, "text": ["a"]}, PromptError, "1 instructions need as many entries"),
        ({"images": 3, "text": "a"}, ImageError, "an image is a path"),
        ({"images": [[drawn()]], "captions": "a"}, ImageError, "an image is a path"),
        (
            {"images": drawn(), "text": "a", "answers": ["b", "c"]},
            PromptError,
            "answers: 1 instructions need as many, not 2",
        ),
        ({"images": [drawn()] * 2, "captions": "a"}, PromptError, "captions: 2 images need as many, not 1"),
        ({"images": drawn(), "answers": "b"}, PromptError, "belong to instructions"),
        ({"images": drawn(), "text": "a", "captions": "b"}, PromptError, "give one of the two"),
        ({"images": drawn(), "text": "a", "return_tensors": "np"}, ValueError, "torch tensors only"),
        ({"images": drawn(), "text": "a", "padding": False}, ValueError, "padded to its largest image"),
        ({"images": drawn(), "text": "a", "padding": "max_length"}, ValueError, "padding='max_length'"),
    ],
)
def test_what_the_processor_refuses(given: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        PROCESSOR(**given)
    assert len(str(caught.value).splitlines()) == 1


def test_prepared_images_must_fit_their_texts(model: LyricsModel) -> None:
    inputs = model.processor(images=[drawn(), drawn()], text="Compare")
    with pytest.raises(PromptError, match="2 prepared images do not fit 1 texts"):
        model.generate(inputs.images, inputs.text)
    with pytest.raises(PromptError, match="is for images that model"):
        model.generate([drawn()], ["a"], images_per_text=[1])
