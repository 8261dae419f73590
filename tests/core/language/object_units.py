"""An object's units by their definition: every piece of its text encoded by itself, one call of the tokenizer after
another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lyrics.core.geometry import Size
from lyrics.core.language.codecs import SpatialObject, format_box, format_objects
from lyrics.core.language.prompts import encode_words
from lyrics.core.types import DetectedObject


def object_units(found: DetectedObject, tokenizer: Any, codec: str, size_px: Size) -> list[list[int]]:
    """One object: ``format_objects`` of it, cut before its box and around every coordinate.

    The codec ``released`` ends an object with BERT's own [SEP]; that one is written by us and becomes the token.
    """
    box = format_box(found.box_norm, codec, size_px)
    whole = format_objects([SpatialObject(found.tag, found.box_norm, found.score)], codec, size_px)
    start = whole.rindex(box)
    before, ending = whole[:start], whole[start + len(box) :]
    pieces = [before, *re.split(r"(\d+(?:\.\d+)?)", box)]
    units = [ids for piece in pieces if (ids := encode_words(tokenizer, piece))]
    if "[SEP]" in ending and tokenizer.sep_token_id is not None:
        return [*units, [int(tokenizer.sep_token_id)]]
    return [*units, ids] if (ids := encode_words(tokenizer, ending)) else units


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
