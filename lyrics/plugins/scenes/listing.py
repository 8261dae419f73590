"""The objects of a scene as a refiner lists them: tags, boxes that are a little off, any order."""

from __future__ import annotations

from lyrics.core.geometry import Box
from lyrics.core.language.codecs import SpatialObject
from lyrics.plugins.scenes.draws import Draws
from lyrics.plugins.scenes.layout import Scene, Thing, Word

#: A box that is off by no more than the options allow overlaps the right one so much.
SAME_IOU = 0.5


def listed(scene: Scene, draws: Draws, box_error: float) -> list[tuple[Thing | Word, SpatialObject]]:
    """Things and words, each with what a refiner says of it, in any order.

    Args:
        box_error: most that a coordinate is off, as a share of the box's side.
    """
    there: list[Thing | Word] = [*scene.things, *scene.words]
    return [(one, SpatialObject(one.tag, _about(one.box, draws, box_error))) for one in draws.shuffled(there)]


def _about(box: Box, draws: Draws, error: float) -> Box:
    """The box with each coordinate off by up to ``error`` of its side, inside of the image."""
    if not error:
        return box
    width, height = error * (box.x2 - box.x1), error * (box.y2 - box.y1)
    off = [draws.between(-most, most) for most in (width, height, width, height)]
    moved = Box.clip(*(value + by for value, by in zip(box.as_tuple(), off, strict=True)))
    assert moved is not None
    return moved
