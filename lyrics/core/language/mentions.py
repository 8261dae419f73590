"""Boxes that the texts of a ``Sample`` name.

They are written in one codec, so that augmentation can move them and training rewrite them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lyrics.core.geometry import Box, Size
from lyrics.core.language.codecs import SpatialObject, format_box, format_objects, parse

#: The codec in which samples name boxes.
CODEC = "lyrics"


def mentioned(text: str) -> tuple[SpatialObject, ...]:
    """Return the boxes that a sample's text names, with their tags (empty for a box alone), in order."""
    return parse(text, CODEC).objects if "<" in text else ()


def mention(one: SpatialObject, codec: str = CODEC, size: Size | None = None) -> str:
    """Return a box with its tag, or alone where there is none."""
    return format_objects([one], codec, size) if one.tag else format_box(one.box, codec, size)


def rewritten(
    text: str, rewrite: Callable[[SpatialObject], str | None], codec: str = CODEC, size: Size | None = None
) -> str | None:
    """Return a sample's text with each mention replaced; None as soon as ``rewrite`` gives None."""
    if codec == CODEC and "<" not in text:
        return text
    found = parse(text, codec, size)
    pieces, end = [], 0
    for one, (start, after) in zip(found.objects, found.spans, strict=True):
        replacement = rewrite(one)
        if replacement is None:
            return None
        pieces += [text[end:start], replacement]
        end = after
    return "".join([*pieces, text[end:]])


def snapped(text: str, boxes: Sequence[Box], min_iou: float, codec: str = CODEC, size: Size | None = None) -> str:
    """Return a text with each box exchanged for the one of ``boxes`` that it overlaps most.

    A box that overlaps none by at least ``min_iou`` stays.

    An answer then names the boxes that were written before it, rather than others a little beside them. ``size`` as for
    ``parse``.
    """

    def moved(one: SpatialObject) -> str:
        best = max(boxes, key=one.box.iou, default=one.box)
        return mention(SpatialObject(one.tag, best if one.box.iou(best) >= min_iou else one.box), codec, size)

    whole = rewritten(text, moved, codec, size)
    assert whole is not None
    return whole
