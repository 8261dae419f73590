"""What each token of an object's text is: markup, of a name, or of a coordinate."""

from __future__ import annotations

from typing import Any

import pytest

from lyrics.core.geometry import Box
from lyrics.core.language.codecs import CODECS
from lyrics.core.language.spatial_tokens import COORDINATE, MARKUP, NAME, object_kinds, spatial_kinds, spatial_units
from lyrics.core.language.tokenizers import builtin_tokenizer, byte_tokenizer
from lyrics.core.types import DetectedObject

SIZE_PX = (100, 200)


@pytest.fixture(scope="module", params=["words", "bytes"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    special = ("<pad>", "<s>", "</s>")
    return builtin_tokenizer("words", special) if request.param == "words" else byte_tokenizer(special)


def text_of(tokenizer: Any, found: DetectedObject, codec: str, kind: int) -> str:
    ids = [index for unit in spatial_units([found], tokenizer, codec, SIZE_PX, 512)[0] for index in unit]
    kinds = object_kinds(found, tokenizer, codec, SIZE_PX)
    assert len(ids) == len(kinds)
    return "|".join(tokenizer.decode([index]).strip() for index, one in zip(ids, kinds, strict=True) if one == kind)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("tag", ["dog", "red car", "t", "box 25", "a"])
def test_kinds(tokenizer: Any, codec: str, tag: str) -> None:
    found = DetectedObject(tag, Box(0.1, 0.2, 0.5, 0.6), 0.5)
    assert text_of(tokenizer, found, codec, NAME).replace("|", "") == tag.replace(" ", "")
    coordinates = text_of(tokenizer, found, codec, COORDINATE).replace("|", "")
    assert coordinates.replace(".", "").isdigit()
    assert not any(letter.isdigit() for letter in text_of(tokenizer, found, codec, MARKUP))


def test_the_papers_markup_in_words() -> None:
    words = builtin_tokenizer("words", ("<pad>", "<s>", "</s>"))
    found = DetectedObject("gray diamond", Box(0.1, 0.2, 0.5, 0.6), 0.5)
    assert text_of(words, found, "lyrics", NAME) == "gray|diamond"
    assert text_of(words, found, "lyrics", COORDINATE) == "100|200|500|599"
    assert text_of(words, found, "lyrics", MARKUP) == "<br><T>|</T>|<Bbox>(|,|),(|,|)</Bbox>|</br>"


def test_objects_are_in_the_order_of_their_units(tokenizer: Any) -> None:
    box = Box(0.1, 0.2, 0.5, 0.6)
    one, two = DetectedObject("dog", box, 0.2), DetectedObject("red car", box, 0.9)
    expected = [object_kinds(found, tokenizer, "lyrics", SIZE_PX) for found in (two, one)]
    assert spatial_kinds([one, two], 2, tokenizer, "lyrics", SIZE_PX) == expected
    assert spatial_kinds([one, two], 1, tokenizer, "lyrics", SIZE_PX) == expected[:1]
