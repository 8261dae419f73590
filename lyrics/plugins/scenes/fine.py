"""Fine scenes: what is where is the layout, which twins share; what it looks like is not to be had from tags and boxes.

Scenes of the numbers 2k and 2k + 1 are twins. Letters: H and W pixels of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lyrics.core.data.draws import generator
from lyrics.core.geometry import Box
from lyrics.plugins.scenes.attributes import SceneLook, ThingLook, twin_looks
from lyrics.plugins.scenes.draws import Draws
from lyrics.plugins.scenes.fitting import fitted_mask
from lyrics.plugins.scenes.layout import INK, RATIOS, WORD_SHARE, Scene, Thing, Word
from lyrics.plugins.scenes.letters import LETTER_HEIGHT, LETTER_WIDTH
from lyrics.plugins.scenes.names import FINE_SIZES, SHAPES, SPLIT_ROOM, SPLITS, WORDS

#: Width to height of a thing.
_ASPECTS = (0.87, 1.15)
#: Of a thing's box, at most so much is shared with any one other box, and with all others.
_MOST_SHARED, _MOST_SHARED_IN_ALL = 0.3, 0.4
#: Of the smaller of two things, at least so much is hidden, or hides, where one is said to lie on the other.
CLEAR_OVERLAP = 0.04
_TRIES = 12
_MARGIN_PX = 1
#: How far the plate of a word reaches beyond its letters, in units of their scale.
_PLATE_MARGIN = 1
#: Lengths of words that more than one word has, each as often as there are words of it.
_LENGTHS = tuple(len(word) for word in WORDS if sum(len(word) == len(other) for other in WORDS) > 1)
Corners = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Place:
    """A box for a thing or a word, in pixels; ``name`` is the shape, or the number of letters with ``size`` their
    scale.
    """

    name: str
    size: str
    corners: Corners

    @property
    def canvas(self) -> tuple[int, int]:
        x1, y1, x2, y2 = self.corners
        return x2 - x1, y2 - y1


def make_fine_scene(seed: int, number: int, *, side: int, max_objects: int, laid: bool = True) -> Scene:
    """Return scene ``number`` of the fine world ``seed``; ``side`` is the longer side in pixels.

    A scene has one thing at least; fewer than drawn where there is no room. Unless ``laid``, which takes most of the
    time, nothing is known of pixels: ``owner_HW`` has no thing, and nothing overlaps or is hidden.
    """
    draws = Draws(generator(seed, "scenes: fine layout", number // 2))
    across, down = draws.pick(RATIOS)
    width, height = side * across // max(across, down), side * down // max(across, down)
    scale = max(1, min(height, width) // (6 * LETTER_HEIGHT))
    lengths = [draws.pick(_LENGTHS)] if draws.unit() < WORD_SHARE else []
    written = [_word_place(draws, length, scale, width, height) for length in lengths]
    places = _thing_places(draws, 1 + draws.below(max_objects), written, width, height)
    draws = Draws(generator(seed, "scenes: fine attributes", number // 2))
    held_out = number // SPLIT_ROOM == SPLITS.index("held-out")
    look = twin_looks(draws, [place.name for place in places], lengths, held_out=held_out)[number % 2]
    owner_HW = np.zeros((height, width), dtype=np.uint8)
    words = []
    for text, corners in zip(look.words, written, strict=True):
        _window(owner_HW, corners)[:] = INK
        x, y = (edge + _PLATE_MARGIN * scale for edge in corners[:2])
        words.append(Word(text, scale, x, y, _box(corners, width, height), fine=True))
    whole, overlaps = _laid(owner_HW, places, look) if laid else ([0] * len(places), ())
    things = [
        _thing(place, one, _box(place.corners, width, height), hidden=bool(total > (owner_HW == index + 1).sum()))
        for index, (place, one, total) in enumerate(zip(places, look.things, whole, strict=True))
    ]
    return Scene(number, width, height, tuple(things), tuple(words), owner_HW, look.ground, look.texture, overlaps)


def _word_place(draws: Draws, length: int, scale: int, width: int, height: int) -> Corners:
    across = (length * (LETTER_WIDTH + 1) - 1 + 2 * _PLATE_MARGIN) * scale
    down = (LETTER_HEIGHT + 2 * _PLATE_MARGIN) * scale
    x = _MARGIN_PX + draws.below(width - across - 2 * _MARGIN_PX + 1)
    y = _MARGIN_PX + draws.below(height - down - 2 * _MARGIN_PX + 1)
    return x, y, x + across, y + down


def _thing_places(draws: Draws, count: int, written: Sequence[Corners], width: int, height: int) -> list[_Place]:
    """Shapes and where they lie, the largest first.

    Half of them have the shape of another: which is meant, only looks tell.
    """
    shapes = [draws.pick(SHAPES)]
    while len(shapes) < count:
        shapes.append(draws.pick(shapes) if draws.below(2) else draws.pick(SHAPES))
    sizes = list(FINE_SIZES)
    wanted = sorted(((shape, draws.pick(sizes)) for shape in shapes), key=lambda one: -sizes.index(one[1]))
    places: list[_Place] = []
    for shape, size in wanted:
        if found := _place(draws, shape, size, places, written, width, height):
            places.append(found)
    # A long word may leave no room for a large thing.
    while not places:
        places += filter(None, [_place(draws, shapes[0], "small", [], written, width, height)])
    return places


def _place(
    draws: Draws,
    shape: str,
    size: str,
    others: Sequence[_Place],
    written: Sequence[Corners],
    width: int,
    height: int,
) -> _Place | None:
    """A place for a thing that touches no word, no thing of its own shape, and shares little of its box with others."""
    down = round(draws.between(*FINE_SIZES[size]) * min(width, height))
    across = round(down * draws.between(*_ASPECTS))
    for _ in range(_TRIES):
        x, y = draws.below(width - across + 1), draws.below(height - down + 1)
        place = _Place(shape, size, (x, y, x + across, y + down))
        if any(_shared(place.corners, corners) for corners in written):
            continue
        if any(_shared(place.corners, other.corners) for other in others if other.name == shape):
            continue
        if _leaves_enough([*others, place]):
            return place
    return None


def _leaves_enough(places: Sequence[_Place]) -> bool:
    """Whether of every thing enough is seen whatever the order of laying: boxes share little of each other."""
    for one in places:
        area = one.canvas[0] * one.canvas[1]
        shared = [_shared(one.corners, other.corners) for other in places if other is not one]
        if shared and (max(shared) > _MOST_SHARED * area or sum(shared) > _MOST_SHARED_IN_ALL * area):
            return False
    return True


def _shared(one: Corners, other: Corners) -> int:
    """Pixels that two boxes share."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(across, 0) * max(down, 0)


def _laid(
    owner_HW: npt.NDArray[np.uint8], places: Sequence[_Place], look: SceneLook
) -> tuple[list[int], tuple[tuple[int, int], ...]]:
    """Lays the things in the look's order.

    Returns the number of pixels of each, and (upper, lower) of those that overlap clearly.
    """
    masks = [fitted_mask(place.name, *place.canvas, one.lean) for place, one in zip(places, look.things, strict=True)]
    whole = [int(np.count_nonzero(mask)) for mask in masks]
    overlaps = []
    for rank, upper in enumerate(look.laid):
        for lower in look.laid[:rank]:
            common = _common(places[upper].corners, masks[upper], places[lower].corners, masks[lower])
            if common >= CLEAR_OVERLAP * min(whole[upper], whole[lower]):
                overlaps.append((upper, lower))
        _window(owner_HW, places[upper].corners)[masks[upper]] = upper + 1
    return whole, tuple(sorted(overlaps))


def _common(one: Corners, one_mask: npt.NDArray[np.bool_], other: Corners, other_mask: npt.NDArray[np.bool_]) -> int:
    """Pixels that are of both masks, each within its box."""
    x1, y1 = max(one[0], other[0]), max(one[1], other[1])
    x2, y2 = min(one[2], other[2]), min(one[3], other[3])
    if x1 >= x2 or y1 >= y2:
        return 0
    ours = one_mask[y1 - one[1] : y2 - one[1], x1 - one[0] : x2 - one[0]]
    theirs = other_mask[y1 - other[1] : y2 - other[1], x1 - other[0] : x2 - other[0]]
    return int(np.count_nonzero(ours & theirs))


def _window(values_HW: npt.NDArray[np.uint8], corners: Corners) -> npt.NDArray[np.uint8]:
    x1, y1, x2, y2 = corners
    return values_HW[y1:y2, x1:x2]


def _box(corners: Corners, width: int, height: int) -> Box:
    box = Box.from_px(corners, (width, height))
    assert box is not None
    return box


def _thing(place: _Place, look: ThingLook, box: Box, *, hidden: bool) -> Thing:
    x, y, *_ = place.corners
    return Thing(
        colour=look.color,
        shape=place.name,
        size=place.size,
        angle=0,
        side=max(place.canvas),
        x=x,
        y=y,
        box=box,
        partly_hidden=hidden,
        fill=look.fill,
        lean=look.lean,
        outline=look.outline,
        canvas=place.canvas,
    )
