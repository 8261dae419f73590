"""A scene before it is drawn: which things lie where, what of each is to be seen, and which words are written.

After the first thing, the others are laid from the largest to the smallest, so the smaller lie on top. Letters: H and W
pixels of the image.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lyrics.core.data.draws import generator
from lyrics.core.geometry import Box
from lyrics.core.masks import Mask
from lyrics.plugins.scenes.draws import Draws
from lyrics.plugins.scenes.fitting import fitted_mask
from lyrics.plugins.scenes.letters import LETTER_HEIGHT, word_mask
from lyrics.plugins.scenes.names import (
    COLOURS,
    HELD_OUT,
    SHAPES,
    SIZES,
    SPLIT_ROOM,
    SPLITS,
    WORD_TAG,
    WORDS,
    Fill,
    Ground,
    Lean,
    Outline,
    Split,
    Texture,
)
from lyrics.plugins.scenes.shapes import ANGLES, run_edges, shape_mask, shape_run_edges

#: At least so much of each thing's pixels is to be seen.
MIN_VISIBLE = 0.55
WORD_SHARE = 0.5
#: Width to height.
RATIOS = ((1, 1), (1, 1), (4, 3), (3, 4))
_TRIES = 12
_MARGIN_PX = 1
INK = 255


@dataclass(frozen=True)
class Thing:
    """A colored shape. (x, y) is the corner of its whole mask, in pixels.

    Attributes:
        box: in a plain scene around what is visible of it, in a fine one around all of it.
        partly_hidden: another thing covers some of it.
        fill, lean, outline: of fine scenes; in plain ones they say nothing.
        canvas: of fine scenes: width and height in pixels of the box, which the shape touches on all sides whatever its
            lean. ``angle`` is then 0 and ``side`` the larger of them.
    """

    colour: str
    shape: str
    size: str
    angle: int
    side: int
    x: int
    y: int
    box: Box
    partly_hidden: bool
    fill: Fill = "solid"
    lean: Lean = "upright"
    outline: Outline = "dark"
    canvas: tuple[int, int] | None = None

    @property
    def tag(self) -> str:
        """What the experts call it: in a fine scene its shape alone."""
        return f"{self.colour} {self.shape}" if self.canvas is None else self.shape

    @property
    def pixels(self) -> npt.NDArray[np.bool_]:
        if self.canvas is not None:
            return fitted_mask(self.shape, *self.canvas, self.lean)
        return shape_mask(self.shape, self.side, self.angle)

    @property
    def window(self) -> tuple[slice, slice]:
        height, width = self.pixels.shape
        return slice(self.y, self.y + height), slice(self.x, self.x + width)


@dataclass(frozen=True)
class Word:
    """Written in capitals; ``scale`` pixels per pixel of the letters, corner at (x, y).

    Attributes:
        box: around its ink; in a fine scene that of the plate that it is written on, which tells the number of
            letters alone.
        tag: what the experts call it: in a fine scene ``word``.
    """

    text: str
    scale: int
    x: int
    y: int
    box: Box
    fine: bool = False

    @property
    def tag(self) -> str:
        return WORD_TAG if self.fine else f'word "{self.text}"'

    @property
    def pixels(self) -> npt.NDArray[np.bool_]:
        return word_mask(self.text, self.scale)

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2 in pixels."""
        rows, columns = self.pixels.shape
        return self.x, self.y, self.x + columns, self.y + rows


@dataclass(frozen=True)
class Scene:
    """What is where in an image.

    Attributes:
        owner_HW: uint8, whose pixel it is: k + 1 for thing k, 255 for ink (in a fine scene for the word's plate), 0
            for the ground.
        ground, texture: of a fine scene; None in a plain one.
        overlaps: of a fine scene: (upper, lower) for each pair of things of which one clearly hides a part of the
            other.
    """

    number: int
    width: int
    height: int
    things: tuple[Thing, ...]
    words: tuple[Word, ...]
    owner_HW: npt.NDArray[np.uint8]
    ground: Ground | None = None
    texture: Texture | None = None
    overlaps: tuple[tuple[int, int], ...] = ()

    def mask(self, index: int) -> Mask:
        """The pixels of a thing that are to be seen.

        As ``Mask.from_array``, but looking at the thing's own part of the image only.
        """
        thing = self.things[index]
        if thing.partly_hidden or thing.canvas is not None:
            column, row = run_edges(self.owner_HW[thing.window] == index + 1)
        else:
            column, row = shape_run_edges(thing.shape, thing.side, thing.angle)
        edges = np.zeros(len(row) + 2, dtype=np.int64)
        edges[1:-1] = (thing.x + column) * self.height + thing.y + row
        edges[-1] = self.width * self.height
        runs = (edges[1:] - edges[:-1]).tolist()
        return Mask(self.width, self.height, tuple(runs if runs[-1] else runs[:-1]))


def scene_number(split: Split, index: int) -> int:
    """Number of a split's scene; no two splits share one."""
    assert 0 <= index < SPLIT_ROOM
    return SPLITS.index(split) * SPLIT_ROOM + index


@functools.cache
def combinations(held_out: bool) -> tuple[tuple[str, str], ...]:
    """(colour, shape) pairs: those that only the held-out split has, or the others."""
    return tuple((c, s) for c in COLOURS for s in SHAPES if ((c, s) in HELD_OUT) == held_out)


def make_scene(seed: int, number: int, *, side: int, max_objects: int) -> Scene:
    """Scene ``number`` of the world ``seed``; ``side`` is the longer side in pixels.

    A scene has one thing at least; fewer than drawn where there is no room.
    """
    draws = Draws(generator(seed, "scenes: layout", number))
    across, down = draws.pick(RATIOS)
    width, height = side * across // max(across, down), side * down // max(across, down)
    owner_HW = np.zeros((height, width), dtype=np.uint8)
    words = (_write(owner_HW, draws),) if draws.unit() < WORD_SHARE else ()
    written = words[0].corners if words else (0, 0, 0, 0)
    wanted = _wanted(draws, 1 + draws.below(max_objects), held_out=number // SPLIT_ROOM == SPLITS.index("held-out"))
    placed = _place(owner_HW, wanted, written, draws)
    return Scene(number, width, height, tuple(_seen(owner_HW, placed)), words, owner_HW)


@dataclass
class _Placed:
    colour: str
    shape: str
    size: str
    angle: int
    side: int
    x: int = 0
    y: int = 0
    total_px: int = 0
    seen_px: int = 0

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2 in pixels."""
        rows, columns = shape_mask(self.shape, self.side, self.angle).shape
        return self.x, self.y, self.x + columns, self.y + rows


def _wanted(draws: Draws, count: int, *, held_out: bool) -> list[tuple[str, str, str]]:
    """Colour, shape and size of each thing, in the order of laying. Half of them share colour or shape with another:
    distractors.

    The first is one of the held-out combinations in the split that is about them.
    """
    pairs = combinations(held_out=False)
    chosen = [draws.pick(combinations(held_out=True) if held_out else pairs)]
    while len(chosen) < count:
        colour, shape = draws.pick(chosen)
        kind = draws.below(6)
        if kind == 0:
            like = [(colour, shape)]
        elif kind == 1:
            like = [pair for pair in pairs if pair[0] == colour]
        elif kind == 2:
            like = [pair for pair in pairs if pair[1] == shape]
        else:
            like = list(pairs)
        chosen.append(draws.pick(like))
    sizes = list(SIZES)
    first, *others = [(colour, shape, draws.pick(sizes)) for colour, shape in chosen]
    return [first, *sorted(others, key=lambda thing: -sizes.index(thing[2]))]


def _write(owner_HW: npt.NDArray[np.uint8], draws: Draws) -> Word:
    height, width = owner_HW.shape
    text = draws.pick(WORDS)
    scale = max(1, min(height, width) // (6 * LETTER_HEIGHT))
    ink = word_mask(text, scale)
    x = _MARGIN_PX + draws.below(width - ink.shape[1] - 2 * _MARGIN_PX + 1)
    y = _MARGIN_PX + draws.below(height - ink.shape[0] - 2 * _MARGIN_PX + 1)
    owner_HW[y : y + ink.shape[0], x : x + ink.shape[1]][ink] = INK
    # An I is narrower than its place.
    columns = np.flatnonzero(ink.any(axis=0))
    box = Box.from_px((x + columns[0], y, x + columns[-1] + 1, y + ink.shape[0]), (width, height))
    assert box is not None
    return Word(text, scale, x, y, box)


def _place(
    owner_HW: npt.NDArray[np.uint8],
    wanted: Sequence[tuple[str, str, str]],
    written: tuple[int, int, int, int],
    draws: Draws,
) -> list[_Placed]:
    """Lays each thing where there is room for it, or leaves it out; the first is made small rather than left out."""
    placed: list[_Placed] = []
    for colour, shape, size in wanted:
        found = _lay(owner_HW, placed, written, (colour, shape, size), draws)
        while not (found or placed):
            found = _lay(owner_HW, placed, written, (colour, shape, "small"), draws)
    return placed


def _lay(
    owner_HW: npt.NDArray[np.uint8],
    placed: list[_Placed],
    written: tuple[int, int, int, int],
    wanted: tuple[str, str, str],
    draws: Draws,
) -> bool:
    """Lays a thing at random where it hides no word, touches none of its own tag, and leaves enough of all others to be
    seen.
    """
    height, width = owner_HW.shape
    colour, shape, size = wanted
    side = round(draws.between(*SIZES[size]) * min(width, height))
    thing = _Placed(colour, shape, size, draws.pick(ANGLES), side)
    pixels = shape_mask(shape, side, thing.angle)
    rows, columns = pixels.shape
    taken = [other.corners for other in placed if (other.colour, other.shape) == (colour, shape)]
    for _ in range(_TRIES):
        thing.x, thing.y = draws.below(width - columns + 1), draws.below(height - rows + 1)
        if any(_overlap(thing.corners, corners) for corners in (written, *taken)):
            continue
        there = owner_HW[thing.y : thing.y + rows, thing.x : thing.x + columns]
        hidden = np.bincount(there[pixels], minlength=len(placed) + 1)[1:].tolist()
        losses = [(other, lost) for other, lost in zip(placed, hidden, strict=True) if lost]
        if all(other.seen_px - lost >= MIN_VISIBLE * other.total_px for other, lost in losses):
            for other, lost in losses:
                other.seen_px -= lost
            thing.total_px = thing.seen_px = int(np.count_nonzero(pixels))
            placed.append(thing)
            there[pixels] = len(placed)
            return True
    return False


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _seen(owner_HW: npt.NDArray[np.uint8], placed: Sequence[_Placed]) -> list[Thing]:
    height, width = owner_HW.shape
    things = []
    for index, one in enumerate(placed):
        x1, y1, x2, y2 = one.corners
        if one.seen_px < one.total_px:
            seen = owner_HW[y1:y2, x1:x2] == index + 1
            down, across = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
            x1, x2 = one.x + int(across[0]), one.x + int(across[-1]) + 1
            y1, y2 = one.y + int(down[0]), one.y + int(down[-1]) + 1
        box = Box.from_px((x1, y1, x2, y2), (width, height))
        assert box is not None
        hidden = one.seen_px < one.total_px
        things.append(Thing(one.colour, one.shape, one.size, one.angle, one.side, one.x, one.y, box, hidden))
    return things
