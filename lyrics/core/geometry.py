"""``Box``: a rectangle in an image. ``Frame``: how that image became the canvas a model looks at, and the way back.

Pixel convention, everywhere: coordinates are continuous, an image w pixels wide spans [0, w], and pixel column j
covers [j, j + 1] with its center at j + 0.5. A box that covers columns 3 and 4 is x1=3, x2=5. Normalized coordinates
are these divided by the width or the height of the *original* image; there is no other normalized frame. ``_norm``
and ``_px`` in names say which one is meant. Sizes are (width, height), as in Pillow; masks are [H, W], as in numpy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import SupportsFloat, SupportsIndex, cast

import numpy as np
import numpy.typing as npt

from lyrics.core.errors import GeometryError

Size = tuple[int, int]
Corners = tuple[float, float, float, float]

# The narrowest side a box may have. Two float64 numbers of [0, 1] that are 1e-7 apart stay apart and in order as
# float32, so a Box never becomes degenerate on its way into a tensor. MAX_SIDE keeps every pixel wider than that.
MIN_SIDE = 1e-7
MAX_SIDE = 1_000_000


def checked_size(size: Sequence[SupportsIndex]) -> Size:
    """Return (width, height) as two ints.

    Raises ``GeometryError`` unless both are whole numbers from 1 to ``MAX_SIDE``.
    """
    try:
        width, height = (side.__index__() for side in size)
    except (AttributeError, TypeError, ValueError):
        raise GeometryError(f"a size is (width, height) in whole pixels, not {size!r}") from None
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise GeometryError(f"width and height must be from 1 to {MAX_SIDE} pixels, not {width} x {height}")
    return width, height


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle: left, top, right, bottom, each as a share of the original image's width or height.

    Always finite, inside [0, 1], ordered, and at least ``MIN_SIDE`` wide and high: a line or a point is not a box. So
    whoever holds a ``Box`` may divide by its sides. The constructor raises ``GeometryError`` for anything else;
    coordinates from outside (a detector, an annotation file, a language model) come in through ``clip`` and the
    ``from_...`` methods, which cut at the image's border and return None when nothing is left.
    """

    x1: float
    y1: float
    x2: float
    y2: float

    def __post_init__(self) -> None:
        for name in ("x1", "y1", "x2", "y2"):
            raw = getattr(self, name)
            try:
                valid = math.isfinite(raw) and 0 <= raw <= 1
            except (TypeError, OverflowError):
                valid = False
            if not valid:
                raise GeometryError(
                    f"{name} of a box is {raw!r}, but it must be a number from 0 to 1, a share of the image's side. "
                    "Use Box.clip or Box.from_px for numbers from outside."
                )
            # A plain float, whatever kind of number came in; + 0.0 turns -0.0 into 0.0.
            object.__setattr__(self, name, float(raw) + 0.0)
        for low, high in (("x1", "x2"), ("y1", "y2")):
            side = getattr(self, high) - getattr(self, low)
            if side < MIN_SIDE:
                raise GeometryError(
                    f"{high} of a box is {getattr(self, high)!r}, but it must be greater than {low} = "
                    f"{getattr(self, low)!r} by {MIN_SIDE:g} at least: a box has an area."
                )

    @classmethod
    def clip(cls, x1: SupportsFloat, y1: SupportsFloat, x2: SupportsFloat, y2: SupportsFloat) -> Box | None:
        """Return the part of a normalized rectangle that lies in the image.

        None when a number is NaN or infinite, when the corners are reversed, or when less than ``MIN_SIDE`` of a side
        lies inside.
        """
        try:
            left, top, right, bottom = float(x1), float(y1), float(x2), float(y2)
        except OverflowError:  # a whole number beyond float64
            return None
        if not (math.isfinite(left) and math.isfinite(top) and math.isfinite(right) and math.isfinite(bottom)):
            return None
        left, top, right, bottom = max(left, 0.0), max(top, 0.0), min(right, 1.0), min(bottom, 1.0)
        if right - left < MIN_SIDE or bottom - top < MIN_SIDE:
            return None
        return cls(left, top, right, bottom)

    @classmethod
    def from_px(cls, xyxy_px: Sequence[SupportsFloat], size: Sequence[SupportsIndex]) -> Box | None:
        """Make a box of (x1, y1, x2, y2) in pixels of an image of ``size`` (width, height), as ``clip`` does."""
        width, height = checked_size(size)
        x1, y1, x2, y2 = _four(xyxy_px)
        return cls.clip(x1 / width, y1 / height, x2 / width, y2 / height)

    @classmethod
    def from_xywh_px(cls, xywh_px: Sequence[SupportsFloat], size: Sequence[SupportsIndex]) -> Box | None:
        """From COCO's (left, top, width, height) in pixels of the original image, as ``clip`` does."""
        x, y, w, h = _four(xywh_px)
        return cls.from_px((x, y, x + w, y + h), size)

    @classmethod
    def from_cxcywh_norm(cls, cxcywh_norm: Sequence[SupportsFloat]) -> Box | None:
        """From DETR's (center x, center y, width, height), each a share of the image, as ``clip`` does."""
        cx, cy, w, h = _four(cxcywh_norm)
        return cls.clip(cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)

    def to_px(self, size: Sequence[SupportsIndex]) -> Corners:
        """Pixel corners (x1, y1, x2, y2) in the original image of ``size`` (width, height); floats, not rounded."""
        width, height = checked_size(size)
        return self.x1 * width, self.y1 * height, self.x2 * width, self.y2 * height

    def as_tuple(self) -> Corners:
        """Return (x1, y1, x2, y2), normalized."""
        return self.x1, self.y1, self.x2, self.y2

    @property
    def area(self) -> float:
        """Share of the image that the box covers: in (0, 1]."""
        return (self.x2 - self.x1) * (self.y2 - self.y1)

    def iou(self, other: Box) -> float:
        """Return the intersection over union of two boxes of the same image: in [0, 1]."""
        width = min(self.x2, other.x2) - max(self.x1, other.x1)
        height = min(self.y2, other.y2) - max(self.y1, other.y1)
        shared = max(width, 0.0) * max(height, 0.0)
        return shared / (self.area + other.area - shared)


def _four(numbers: Sequence[SupportsFloat]) -> Corners:
    """Four floats, whole numbers beyond float64 as infinity. Raises ``GeometryError`` when there are not four."""
    if len(numbers) != 4:
        raise GeometryError(f"a box is four numbers, not {len(numbers)}: {numbers!r}")
    floats = []
    for number in numbers:
        try:
            floats.append(float(number))
        except OverflowError:
            floats.append(math.inf)
    return cast(Corners, tuple(floats))


def _rows(boxes: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return an [N, 4] float64 array; an empty list is [0, 4]. Raises ``GeometryError`` for any other shape."""
    rows: npt.NDArray[np.float64] = np.asarray(boxes, dtype=np.float64)
    if rows.size == 0:
        return rows.reshape(0, 4)
    if rows.ndim != 2 or rows.shape[1] != 4:
        raise GeometryError(f"boxes must be an array [N, 4], not {list(rows.shape)}")
    return rows


def iou_matrix(boxes_norm_N4: npt.ArrayLike, boxes_norm_M4: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the intersection over union of every box with every other: [N, 4] and [M, 4] -> float64 [N, M].

    Any frame will do, as long as it is the same for both. A row without area has IoU 0 with everything.
    """
    ours, theirs = _rows(boxes_norm_N4), _rows(boxes_norm_M4)
    shared = np.minimum(ours[:, None, 2], theirs[:, 2]) - np.maximum(ours[:, None, 0], theirs[:, 0])
    height = np.minimum(ours[:, None, 3], theirs[:, 3]) - np.maximum(ours[:, None, 1], theirs[:, 1])
    shared.clip(0, out=shared)
    height.clip(0, out=height)
    shared *= height
    union = _areas(ours)[:, None] + _areas(theirs) - shared
    iou: npt.NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return iou


def _areas(boxes_N4: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    areas: npt.NDArray[np.float64] = (boxes_N4[:, 2:] - boxes_N4[:, :2]).clip(0).prod(axis=1)
    return areas


@dataclass(frozen=True, slots=True)
class Resize:
    """Stretch the canvas to ``width`` x ``height`` pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Crop:
    """Keep the ``width`` x ``height`` pixels whose top left corner is (x, y); they must lie in the canvas."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Pad:
    """Add so many pixels at each side."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True, slots=True)
class FlipHorizontal:
    """Mirror left and right."""


Step = Resize | Crop | Pad | FlipHorizontal

# Halving an image puts every pixel center exactly on the border of two pixels, or on a crop's edge. Centers are moved
# right by this much, so that such ties do not depend on rounding.
_TIE = 1e-6


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis of a frame, all steps composed: ``canvas_px = scale * original_norm + offset``; scale < 0 if mirrored.

    ``[low, high]`` is the part of the canvas, in pixels, that shows the original image: crops cut it, pads stay
    outside of it.
    """

    length: int
    scale: float
    offset: float
    low: float
    high: float

    def resized(self, length: int) -> _Axis:
        by = length / self.length
        return _Axis(length, self.scale * by, self.offset * by, self.low * by, self.high * by)

    def cropped(self, start: int, length: int) -> _Axis:
        low, high = (min(max(edge - start, 0.0), float(length)) for edge in (self.low, self.high))
        return _Axis(length, self.scale, self.offset - start, low, high)

    def padded(self, before: int, after: int) -> _Axis:
        length = self.length + before + after
        return _Axis(length, self.scale, self.offset + before, self.low + before, self.high + before)

    def flipped(self) -> _Axis:
        length = self.length
        return _Axis(length, -self.scale, length - self.offset, length - self.high, length - self.low)

    def visible_share(self, start_norm: float, end_norm: float) -> float:
        """Return the share of the original interval that the canvas shows."""
        first, last = sorted(((self.low - self.offset) / self.scale, (self.high - self.offset) / self.scale))
        shown = min(last, end_norm) - max(first, start_norm)
        return min(max(shown / (end_norm - start_norm), 0.0), 1.0)

    def canvas_to_original(self, original: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """For each canvas pixel's center: which of the ``original`` pixels lies there, and whether one does at all."""
        centers = np.arange(self.length) + 0.5
        index = np.floor((centers - self.offset) / self.scale * original + _TIE)
        shown = (self.low <= centers + _TIE) & (centers + _TIE < self.high)
        return index.clip(0, original - 1).astype(np.intp), shown

    def original_to_canvas(self, original: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """Return for each original pixel's center: the canvas pixel it fell on, and whether it was kept at all."""
        position = (np.arange(original) + 0.5) / original * self.scale + self.offset + _TIE
        shown = (self.low <= position) & (position < self.high)
        return np.floor(position).clip(0, self.length - 1).astype(np.intp), shown


@dataclass(frozen=True, slots=True)
class Frame:
    """What was done to an image of ``original_size`` (width, height) to make the canvas that a model sees.

    Immutable: ``Frame.of(640, 480).resize(448, 336).crop(0, 0, 336, 336).flip()`` gives a new frame at each call. The
    steps are composed once into an affine map per axis, so a long chain costs no more than a short one, and the map is
    inverted exactly: a crop hides what is outside of it (``visible_fraction``, masks) but loses no coordinates.
    """

    original_size: Size
    steps: tuple[Step, ...] = ()
    _x: _Axis = field(init=False, repr=False, compare=False)
    _y: _Axis = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        width, height = checked_size(self.original_size)
        object.__setattr__(self, "original_size", (width, height))
        x, y = _Axis(width, width, 0.0, 0.0, width), _Axis(height, height, 0.0, 0.0, height)
        for step in self.steps:
            x, y = _apply(step, x, y)
        object.__setattr__(self, "_x", x)
        object.__setattr__(self, "_y", y)

    @classmethod
    def of(cls, width: int, height: int) -> Frame:
        """Return the frame of an image that nothing was done to yet.

        Raises ``GeometryError`` as ``checked_size`` does.
        """
        return cls((width, height))

    def resize(self, width: int, height: int) -> Frame:
        """Stretched to ``width`` x ``height`` pixels. Raises ``GeometryError`` as ``checked_size`` does."""
        return self._then(Resize(width, height))

    def crop(self, x: int, y: int, width: int, height: int) -> Frame:
        """Cut to ``width`` x ``height`` pixels from (x, y) on. Raises ``GeometryError`` if they leave the canvas."""
        return self._then(Crop(x, y, width, height))

    def pad(self, left: int, top: int, right: int, bottom: int) -> Frame:
        """Enlarged by so many pixels at each side. Raises ``GeometryError`` if one is negative."""
        return self._then(Pad(left, top, right, bottom))

    def flip(self) -> Frame:
        """Mirrored, left and right exchanged."""
        return self._then(FlipHorizontal())

    def _then(self, step: Step) -> Frame:
        return Frame(self.original_size, (*self.steps, step))

    @property
    def size(self) -> Size:
        """(width, height) of the canvas, in pixels."""
        return self._x.length, self._y.length

    def box_to_canvas(self, box: Box) -> Corners:
        """Return (x1, y1, x2, y2) of a box on the canvas, in pixels, ordered.

        Not clipped: what was cropped off is outside.
        """
        x1, x2 = sorted((self._x.scale * box.x1 + self._x.offset, self._x.scale * box.x2 + self._x.offset))
        y1, y2 = self._y.scale * box.y1 + self._y.offset, self._y.scale * box.y2 + self._y.offset
        return x1, y1, x2, y2

    def box_from_canvas(self, xyxy_px: Sequence[SupportsFloat]) -> Box | None:
        """Return a box in canvas pixels back in the original image, as ``Box.clip`` does.

        None if all of it is on padding.
        """
        x1, y1, x2, y2 = _four(xyxy_px)
        if self._x.scale < 0:
            x1, x2 = x2, x1
        return Box.clip(
            (x1 - self._x.offset) / self._x.scale,
            (y1 - self._y.offset) / self._y.scale,
            (x2 - self._x.offset) / self._x.scale,
            (y2 - self._y.offset) / self._y.scale,
        )

    def boxes_to_canvas(self, boxes_norm_N4: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Map ``box_to_canvas`` of many: normalized [N, 4] -> canvas pixels, float64 [N, 4], not clipped."""
        scale_4, offset_4 = self._affine_4()
        return self._mirrored(_rows(boxes_norm_N4) * scale_4 + offset_4)

    def boxes_from_canvas(self, boxes_px_N4: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return canvas pixels [N, 4] as normalized boxes of the original image, float64 [N, 4], not clipped."""
        scale_4, offset_4 = self._affine_4()
        return self._mirrored((_rows(boxes_px_N4) - offset_4) / scale_4)

    def _affine_4(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        scale_4 = np.array([self._x.scale, self._y.scale] * 2)
        offset_4 = np.array([self._x.offset, self._y.offset] * 2)
        return scale_4, offset_4

    def _mirrored(self, boxes_N4: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """After a flip the left edge has become the right one."""
        return boxes_N4[:, [2, 1, 0, 3]] if self._x.scale < 0 else boxes_N4

    def visible_fraction(self, box: Box) -> float:
        """Return the share of the box's area that the crops have left, from 0 to 1; other steps do not change it."""
        return self._x.visible_share(box.x1, box.x2) * self._y.visible_share(box.y1, box.y2)

    def mask_to_canvas(self, mask_HW: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Return a mask of the original image, bool [H, W], on the canvas.

        Each pixel has its nearest neighbor by centers; padding is False.

        Raises ``GeometryError`` unless the mask has the original image's size.
        """
        width, height = self.original_size
        _check_mask(mask_HW, self.original_size, "original image")
        columns, column_shown = self._x.canvas_to_original(width)
        rows, row_shown = self._y.canvas_to_original(height)
        return _sample(mask_HW, rows, columns, row_shown, column_shown)

    def mask_from_canvas(self, mask_HW: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Return a mask of the canvas, bool [H, W], in the original image.

        Each pixel has its nearest neighbor; it is False where crops had cut.

        Raises ``GeometryError`` unless the mask has the canvas's size.
        """
        width, height = self.original_size
        _check_mask(mask_HW, self.size, "canvas")
        columns, column_shown = self._x.original_to_canvas(width)
        rows, row_shown = self._y.original_to_canvas(height)
        return _sample(mask_HW, rows, columns, row_shown, column_shown)


def _apply(step: Step, x: _Axis, y: _Axis) -> tuple[_Axis, _Axis]:
    """Both axes after one more step. Raises ``GeometryError`` when the step does not fit the canvas."""
    match step:
        case Resize():
            width, height = checked_size((step.width, step.height))
            return x.resized(width), y.resized(height)
        case Crop():
            if not (
                _whole(step)
                and 0 <= step.x < step.x + step.width <= x.length
                and 0 <= step.y < step.y + step.height <= y.length
            ):
                raise GeometryError(
                    f"{step} does not name whole pixels of a canvas of {x.length} x {y.length}: pad first, or crop less"
                )
            return x.cropped(int(step.x), int(step.width)), y.cropped(int(step.y), int(step.height))
        case Pad():
            if not (_whole(step) and min(step.left, step.top, step.right, step.bottom) >= 0):
                raise GeometryError(
                    f"{step} must add a whole number of pixels, 0 or more, at each side; use crop to cut"
                )
            return x.padded(int(step.left), int(step.right)), y.padded(int(step.top), int(step.bottom))
        case FlipHorizontal():
            return x.flipped(), y


def _whole(step: Crop | Pad) -> bool:
    return all(isinstance(getattr(step, part.name), SupportsIndex) for part in fields(step))


def _check_mask(mask_HW: npt.NDArray[np.bool_], size: Size, what: str) -> None:
    if mask_HW.shape != (size[1], size[0]):
        raise GeometryError(
            f"the {what} is {size[0]} x {size[1]} pixels, so its mask must be an array [{size[1]}, {size[0]}], "
            f"not {list(mask_HW.shape)}"
        )


def _sample(
    mask_HW: npt.NDArray[np.bool_],
    rows: npt.NDArray[np.intp],
    columns: npt.NDArray[np.intp],
    row_shown: npt.NDArray[np.bool_],
    column_shown: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    picked = np.asarray(mask_HW, dtype=np.bool_)[np.ix_(rows, columns)]
    picked &= row_shown[:, None]
    picked &= column_shown
    return picked
