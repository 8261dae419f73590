"""A picture's objects as token ids of a query transformer: its text segment S (paper, section 3.2).

An object is a list of *units*: its tag with the markup around it, each coordinate, and what stands between and after them, each encoded by
itself. Masked spatial prediction hides whole objects, or units; both stages encode objects in the same way.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lyrics.core.geometry import Size
from lyrics.core.language.codecs import SpatialObject, format_box, format_objects
from lyrics.core.language.prompts import encode_words
from lyrics.core.types import DetectedObject

#: What a token of an object's text is.
KINDS = ("markup", "names", "coordinates")
MARKUP, NAME, COORDINATE = range(len(KINDS))
_NUMBERS = re.compile(r"(\d+(?:\.\d+)?)")


def object_units(found: DetectedObject, tokenizer: Any, codec: str, size_px: Size) -> list[list[int]]:
    """One object: ``format_objects`` of it, cut before its box and around every coordinate.

    The codec ``released`` ends an object with BERT's own [SEP]; that one is written by us and becomes the token.
    """
    before, box, ending = _around_the_box(found, codec, size_px)
    pieces = [before, *_NUMBERS.split(box)]
    units = [ids for piece in pieces if (ids := encode_words(tokenizer, piece))]
    if "[SEP]" in ending and tokenizer.sep_token_id is not None:
        return [*units, [int(tokenizer.sep_token_id)]]
    return [*units, ids] if (ids := encode_words(tokenizer, ending)) else units


def _around_the_box(found: DetectedObject, codec: str, size_px: Size) -> tuple[str, str, str]:
    """An object's text before its box, the box, and after it."""
    box = format_box(found.box_norm, codec, size_px)
    whole = format_objects([SpatialObject(found.tag, found.box_norm, found.score)], codec, size_px)
    # The box's text comes after the tag's in every codec, and a tag cannot hold a box's text unescaped.
    start = whole.rindex(box)
    return whole[:start], box, whole[start + len(box) :]


def object_kinds(found: DetectedObject, tokenizer: Any, codec: str, size_px: Size) -> list[int]:
    """For each token of an object's units, in their order, which of ``KINDS`` it is (its number there)."""
    before, box, ending = _around_the_box(found, codec, size_px)
    kinds = _kinds_before_the_box(found, before, tokenizer, codec, size_px)
    for index, piece in enumerate(_NUMBERS.split(box)):
        kinds += [COORDINATE if index % 2 else MARKUP] * len(encode_words(tokenizer, piece))
    if "[SEP]" in ending and tokenizer.sep_token_id is not None:
        return [*kinds, MARKUP]
    return kinds + [MARKUP] * len(encode_words(tokenizer, ending))


def _kinds_before_the_box(found: DetectedObject, before: str, tokenizer: Any, codec: str, size_px: Size) -> list[int]:
    """The tag's tokens stand between those that are there whatever the tag is."""
    first, second = (_around_the_box(replace(found, tag=letter), codec, size_px)[0] for letter in "ab")
    opening, closing = first[: _shared(first, second)], first[len(first) - _shared(first[::-1], second[::-1]) :]
    ids = encode_words(tokenizer, before)
    left = _shared(ids, encode_words(tokenizer, opening))
    right = _shared(ids[left:][::-1], encode_words(tokenizer, closing)[::-1])
    return [MARKUP] * left + [NAME] * (len(ids) - left - right) + [MARKUP] * right


def _shared(first: Sequence[object], second: Sequence[object]) -> int:
    """How many items two sequences begin with in common."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def spatial_units(
    objects: Sequence[DetectedObject], tokenizer: Any, codec: str, size_px: Size, longest: int
) -> list[list[list[int]]]:
    """All objects of a picture, best first, as many as fit into ``longest`` tokens; no object is cut through."""
    found: list[list[list[int]]] = []
    length = 0
    for one in sorted(objects, key=lambda one: -one.score):
        units = object_units(one, tokenizer, codec, size_px)
        length += sum(len(unit) for unit in units)
        if length > longest:
            break
        found.append(units)
    return found


def spatial_kinds(
    objects: Sequence[DetectedObject], count: int, tokenizer: Any, codec: str, size_px: Size
) -> list[list[int]]:
    """``object_kinds`` of the first ``count`` objects, best first, in the order of ``spatial_units``."""
    best = sorted(objects, key=lambda one: -one.score)[:count]
    return [object_kinds(one, tokenizer, codec, size_px) for one in best]
