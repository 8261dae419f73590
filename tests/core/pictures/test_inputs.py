"""What a newcomer may write: one image and one question, lists, arrays; and what cannot be meant, in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lyrics.core.answers import Answer
from lyrics.core.build import build_refiner
from lyrics.core.errors import ImageError, LyricsError, PromptError, SpecError, WeightsError
from lyrics.core.loading import build_model
from lyrics.core.model import LyricsModel
from lyrics.core.refining.refinement import Refinement
from tests.core.small import drawn, small
from tests.core.test_model_steps import made

IMAGE = drawn()
ARRAY = np.asarray(IMAGE)
TENSOR = torch.from_numpy(ARRAY.copy()).permute(2, 0, 1)


@pytest.fixture(scope="module")
def model() -> LyricsModel:
    return made()


def test_one_image_and_one_question(model: LyricsModel) -> None:
    (expected,) = model.generate([IMAGE], ["what?"], max_new_tokens=6)
    for image in (IMAGE, ARRAY, ARRAY / 255, TENSOR, TENSOR / 255):
        answer = model.generate(image, "what?", max_new_tokens=6)
        assert isinstance(answer, Answer)
        assert answer == expected
        assert model.chat(image).ask("what?", max_new_tokens=6) == expected
        assert model.chat().ask("what?", image, max_new_tokens=6) == expected
    assert model.generate([ARRAY, [TENSOR], None], ["what?"] * 3, max_new_tokens=6)[1] == expected


def test_several_images_of_one_question_and_none(model: LyricsModel) -> None:
    both = model.generate([IMAGE, ARRAY], "what?", max_new_tokens=6)
    assert both == model.generate([[IMAGE, IMAGE]], ["what?"], max_new_tokens=6)[0]
    assert both == model.chat([IMAGE, TENSOR]).ask("what?", max_new_tokens=6)
    alone = model.generate(None, "what?", max_new_tokens=6)
    assert [alone] * 2 == model.generate(None, ["what?"] * 2, max_new_tokens=6)
    assert model.generate([], [], max_new_tokens=6) == []


def test_encode_and_the_refiner_take_one_image(model: LyricsModel) -> None:
    one = model.encode(TENSOR, "what?").soft_tokens_PQD
    assert torch.equal(one, model.encode([IMAGE], ["what?"]).soft_tokens_PQD)
    assert torch.equal(model.encode(IMAGE).soft_tokens_PQD, model.encode([ARRAY], [""]).soft_tokens_PQD)
    refiner = build_refiner(small(), weights="random")
    found = refiner(ARRAY, ["dog"], names=["a"])
    assert isinstance(found, Refinement)
    assert (found.size_px, found.name) == (IMAGE.size, "a")
    assert [found] == refiner([IMAGE], [["dog"]], names=["a"])
    assert refiner([]) == []


WRONG: dict[str, tuple[Callable[[Any], object], type[Exception], str]] = {
    "no question": (lambda m: m.generate(IMAGE, None), PromptError, "an instruction is a text, and several are a list"),
    "swapped": (lambda m: m.generate("what?", IMAGE), PromptError, "images come first, instructions second"),
    "number asked": (lambda m: m.generate([IMAGE], [3]), PromptError, "a text, not a value of type int"),
    "more questions": (lambda m: m.generate(IMAGE, ["a", "b"]), PromptError, "2 instructions need as many entries"),
    "number": (lambda m: m.generate(3, "what?"), ImageError, "a path, a PIL image.*not a value of type int"),
    "bytes": (lambda m: m.generate(b"x", "what?"), ImageError, "type bytes; open it with PIL.Image.open"),
    "nested": (lambda m: m.generate([[[IMAGE]]], ["what?"]), ImageError, "not a value of type list"),
    "empty question": (lambda m: m.generate(IMAGE, " "), PromptError, "the prompt is empty"),
    "ask a number": (lambda m: m.chat(IMAGE).ask(3), PromptError, "a text, not a value of type int"),
    "tokens as image": (lambda m: m.chat(IMAGE).ask("what?", 64), ImageError, "not a value of type int"),
    "chat about a number": (lambda m: m.chat(3), ImageError, "not a value of type int"),
    "show a mapping": (lambda m: m.chat().show({}), ImageError, "not a value of type dict"),
    "fewer instructions": (lambda m: m.encode([IMAGE] * 2, ["a"]), PromptError, "2 images need as many instructions"),
    "encode a number": (lambda m: m.encode(3), ImageError, "not a value of type int"),
    "phrases as text": (lambda m: m.encode(IMAGE, phrases="dog"), PromptError, r"such as phrases=\[\['dog'"),
    "one list for two": (
        lambda m: m.encode([IMAGE] * 2, phrases=["dog"]),
        PromptError,
        "2 images need as many lists",
    ),
    "texts for two": (lambda m: m.encode([IMAGE] * 2, phrases=["a", "b"]), PromptError, "phrases, image 0: a list of"),
    "number as phrase": (lambda m: m.encode([IMAGE], phrases=[[3]]), PromptError, "not a value of type int in it"),
    "names": (lambda m: m.refiner([IMAGE], names=["a", "b"]), ValueError, "names: a list with one for each of 1"),
    "image as a batch": (lambda m: m(IMAGE), TypeError, r"call generate\(image, question\)"),
    "text as dialogue": (
        lambda m: m.answer(["a"], m.look([], [])),
        PromptError,
        "lyrics.core.language.prompts.Exchange",
    ),
    "no folder": (lambda m: m.from_pretrained(None), WeightsError, "a model folder or a hub id"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_meant(what: str, model: LyricsModel) -> None:
    call, error, message = WRONG[what]
    with pytest.raises(error, match=message):
        call(model)


def test_phrases_without_a_refiner_are_said_to_have_no_effect() -> None:
    blind = build_model(small(), overrides={"refiner": None}, weights="random")
    with pytest.warns(UserWarning, match="phrases: have no effect, as this model has no refiner"):
        blind.encode(IMAGE, phrases=["dog"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": "bf17"}, SpecError, r"dtype bf17: is one of float32 \(or fp32\).*Did you mean 'bf16'"),
        ({"dtype": torch.int8}, SpecError, "dtype=torch.int8 is not a floating-point type"),
        ({"dtype": 16}, SpecError, "dtype=16 is not a floating-point type"),
        ({"device": "gpu"}, SpecError, r"device='gpu': cannot be used here .*'lyrics doctor'"),
        ({"device": 3.5}, SpecError, "device=3.5: cannot be used here"),
        ({"weights": None}, WeightsError, "weights=None: is 'pretrained', 'random', 'meta' or a folder"),
        ({"overrides": ["a=b"]}, SpecError, r"overrides: a mapping of dotted paths to values.*not \['a=b'\]"),
        ({"overrides": {3: 3}}, SpecError, "overrides: a mapping of dotted paths"),
    ],
)
def test_build_model_with_odd_arguments(options: dict[str, Any], error: type[LyricsError], message: str) -> None:
    with pytest.raises(error, match=message):
        build_model(small(), **({"weights": "random"} | options))
    assert torch.get_default_dtype() == torch.float32


def test_types_by_name() -> None:
    for name in ("bfloat16", "bf16", torch.bfloat16):
        assert build_model(small(), weights="meta", dtype=name).dtype == torch.bfloat16
    assert next(build_refiner(small(), weights="meta", dtype="fp16").parameters()).dtype == torch.float16
