"""Boxes and frames, against exact arithmetic and against masks."""

from __future__ import annotations

import itertools
import math
import pickle
import subprocess
import sys
from fractions import Fraction
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lyrics.core.errors import GeometryError
from lyrics.core.geometry import (
    MAX_SIDE,
    MIN_SIDE,
    Box,
    Crop,
    FlipHorizontal,
    Frame,
    Pad,
    Resize,
    Step,
    checked_size,
    iou_matrix,
)

Mask = npt.NDArray[np.bool_]

ODD_NUMBERS = [
    *(math.nan, math.inf, -math.inf, 1e9, -1e9, 10**400, -(10**400), 1e308, 5e-324, -5e-324),
    *(0.0, -0.0, 1.0, -1.0, 2.0, 0.5, 0.25, 0.75, MIN_SIDE, MIN_SIDE / 2, 1 - MIN_SIDE, math.nextafter(1, 2)),
    *(0, 1, True, np.float32(0.3), np.float64(0.9), np.int64(1), np.float16(0.1), Fraction(1, 3)),
]


def random_boxes(rng: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    """[count, 4] normalized xyxy; a part of them thin, a part of them touching the picture's border."""
    corners = rng.random((count, 2, 2))
    corners[rng.random((count, 2, 2)) < 0.05] = 0.0
    corners[rng.random((count, 2, 2)) < 0.05] = 1.0
    low, high = corners.min(axis=1), corners.max(axis=1)
    thin = rng.random((count, 2)) < 0.1
    high = np.where(thin, low + 10.0 ** rng.uniform(-6, -2, (count, 2)), high)
    low, high = np.minimum(low, 1 - 2e-6), np.minimum(np.maximum(high, low + 1e-6), 1.0)
    return np.concatenate([low, high], axis=1)


def random_frame(rng: Random, frame: Frame, count: int, *, resize: bool = True) -> Frame:
    """``count`` more random steps, all of which fit; no canvas gets larger than 600 or smaller than 1."""
    for _ in range(count):
        width, height = frame.size
        kind = rng.choice(["crop", "pad", "flip", "resize"] if resize else ["crop", "pad", "flip"])
        if kind == "crop":
            left, top = rng.randrange(width), rng.randrange(height)
            frame = frame.crop(left, top, rng.randint(1, width - left), rng.randint(1, height - top))
        elif kind == "pad":
            frame = frame.pad(*(rng.choice([0, 1, 7, 40]) for _ in range(4)))
        elif kind == "flip":
            frame = frame.flip()
        else:
            frame = frame.resize(rng.randint(1, 600), rng.randint(1, 600))
    return frame


# --- Box
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "numbers, named",
    [
        ((math.nan, 0, 1, 1), "x1"),
        ((0, math.inf, 1, 1), "y1"),
        ((0, 0, 1.0000001, 1), "x2"),
        ((0, 0, 1, -0.1), "y2"),
        ((0.5, 0, 0.5, 1), "x2"),
        ((0, 0.6, 1, 0.5), "y2"),
        ((0, 0, MIN_SIDE / 2, 1), "x2"),
        ((0, 0, 10**400, 1), "x2"),
        (("0", 0, 1, 1), "x1"),
        ((0, None, 1, 1), "y1"),
    ],
)
def test_constructor_names_the_wrong_number(numbers, named):
    with pytest.raises(GeometryError, match=rf"^{named} of a box is "):
        Box(*numbers)


def test_box_is_a_value_of_plain_floats():
    box = Box(np.float32(0.25), -0.0, np.float64(0.5), 1)
    assert box == Box(0.25, 0.0, 0.5, 1.0)
    assert [type(number) for number in box.as_tuple()] == [float] * 4
    assert math.copysign(1, box.y1) == 1
    assert len({box, Box(0.25, 0.0, 0.5, 1.0)}) == 1
    assert pickle.loads(pickle.dumps(box)) == box
    with pytest.raises(AttributeError):
        box.x1 = 0.3


def test_degenerate_boxes_never_pass():
    rng = Random(10)
    kept = 0
    for _ in range(10_000):
        numbers = [rng.choice(ODD_NUMBERS) if rng.random() < 0.7 else rng.uniform(-0.5, 1.5) for _ in range(4)]
        box = Box.clip(*numbers)
        x1, y1, x2, y2 = (math.inf if type(number) is int and abs(number) > 1 else float(number) for number in numbers)
        finite = all(map(math.isfinite, (x1, y1, x2, y2)))
        inside = finite and min(x2, 1) - max(x1, 0) >= MIN_SIDE and min(y2, 1) - max(y1, 0) >= MIN_SIDE
        assert (box is not None) == inside, numbers
        for made in (
            box,
            Box.from_px(numbers, (3, 2)),
            Box.from_xywh_px(numbers, (3, 2)),
            Box.from_cxcywh_norm(numbers),
        ):
            if made is None:
                continue
            kept += 1
            as_float32 = np.array(made.as_tuple(), dtype=np.float32)
            assert ((as_float32 >= 0) & (as_float32 <= 1)).all()
            assert (as_float32[2:] > as_float32[:2]).all()
            assert made.area > 0
    assert kept > 1000


@given(st.floats(0, 1 - MIN_SIDE), st.floats(0, 1 - MIN_SIDE))
def test_the_thinnest_boxes_survive_float32(x, y):
    box = Box.clip(x, y, x + 1.01 * MIN_SIDE, y + 1.01 * MIN_SIDE)
    if box is not None:  # x + MIN_SIDE may round to less
        x1, y1, x2, y2 = np.array(box.as_tuple(), dtype=np.float32)
        assert x1 < x2
        assert y1 < y2


def test_clip_cuts_at_the_border():
    assert Box.clip(-0.5, 0.25, 0.5, 7) == Box(0, 0.25, 0.5, 1)
    assert Box.clip(-0.5, 0.2, -0.1, 0.4) is None
    assert Box.clip(1.0, 0.2, 1.5, 0.4) is None


def test_conventions():
    assert Box.from_px((64, 120, 320, 480), size=(640, 480)) == Box(0.1, 0.25, 0.5, 1)
    assert Box.from_xywh_px((64, 120, 256, 360), size=(640, 480)) == Box(0.1, 0.25, 0.5, 1)
    assert Box.from_xywh_px((600, 120, 256, 360), size=(640, 480)) == Box(0.9375, 0.25, 1, 1)
    assert Box.from_xywh_px((64, 120, 0, 360), size=(640, 480)) is None
    assert Box.from_cxcywh_norm((0.5, 0.25, 0.5, 0.25)) == Box(0.25, 0.125, 0.75, 0.375)
    assert Box.from_cxcywh_norm(np.array([0.0, 0.5, 0.5, 1.0], dtype=np.float32)) == Box(0, 0, 0.25, 1)
    assert Box(0.1, 0.25, 0.5, 1).to_px((640, 480)) == (64, 120, 320, 480)


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (2.5, 3), (3,), (3, 4, 5), "ab", None, (MAX_SIDE + 1, 3)])
def test_sizes_are_whole_pixels(size):
    with pytest.raises(GeometryError, match="pixels"):
        checked_size(size)
    with pytest.raises(GeometryError, match="pixels"):
        Box.from_px((0, 0, 1, 1), size)


def test_four_numbers():
    with pytest.raises(GeometryError, match="four numbers, not 3"):
        Box.from_px((1, 2, 3), (4, 4))


def test_iou_counts_pixels():
    rng = np.random.default_rng(3)
    corners = np.sort(rng.integers(0, 21, (60, 2, 2)), axis=1)  # [N, low/high, x/y] on a grid of 20 x 20 pixels
    corners = corners[(corners[:, 1] > corners[:, 0]).all(axis=1)]
    boxes_N4 = corners.reshape(-1, 4) / 20
    masks = np.zeros((len(corners), 20, 20), dtype=bool)
    for mask, ((x1, y1), (x2, y2)) in zip(masks, corners, strict=True):
        mask[y1:y2, x1:x2] = True
    shared = (masks[:, None] & masks).sum(axis=(2, 3))
    union = (masks[:, None] | masks).sum(axis=(2, 3))
    matrix = iou_matrix(boxes_N4, boxes_N4[:40])
    assert matrix.shape == (len(boxes_N4), 40)
    np.testing.assert_allclose(matrix, (shared / union)[:, :40], atol=1e-12)
    boxes = [Box(*row) for row in boxes_N4]
    for i, j in itertools.product(range(40), repeat=2):
        assert boxes[i].iou(boxes[j]) == pytest.approx(matrix[i, j], abs=1e-12)
    assert all(box.iou(box) == 1 for box in boxes)


def test_iou_matrix_of_nothing_and_of_bad_rows():
    assert iou_matrix([], [[0, 0, 1, 1]]).shape == (0, 1)
    assert iou_matrix(np.zeros((2, 4)), []).shape == (2, 0)
    flat, reversed_, whole = [0.5, 0.5, 0.5, 0.5], [0.9, 0.9, 0.1, 0.1], [0, 0, 1, 1]
    np.testing.assert_array_equal(iou_matrix([flat, reversed_, whole], [flat, reversed_, whole]), np.diag([0, 0, 1]))
    with pytest.raises(GeometryError, match=r"\[N, 4\], not \[4\]"):
        iou_matrix(whole, [whole])


# --- Frame
# -------------------------------------------------------------------------------------------------------------


def test_a_chain_by_hand():
    frame = Frame.of(640, 480).resize(320, 240).crop(40, 0, 240, 240).pad(0, 10, 0, 6).flip()
    assert frame.size == (240, 256)
    assert frame.original_size == (640, 480)
    assert frame.steps == (Resize(320, 240), Crop(40, 0, 240, 240), Pad(0, 10, 0, 6), FlipHorizontal())
    box = Box.from_px((100, 100, 300, 200), (640, 480))
    # halved: 50..150 x 50..100; cropped: 10..110; padded: 60..110; mirrored in 240: 130..230
    assert frame.box_to_canvas(box) == pytest.approx((130, 60, 230, 110))
    assert frame.box_from_canvas((130, 60, 230, 110)).as_tuple() == pytest.approx(box.as_tuple())
    assert frame.visible_fraction(box) == pytest.approx(1)
    # 0..160 of 640 is 0..80 halved, of which the crop at 40 leaves a half
    assert frame.visible_fraction(Box(0, 0.5, 0.25, 1)) == pytest.approx(0.5)
    assert frame.visible_fraction(Box(0, 0.5, 0.1, 1)) == 0


def test_builders_leave_the_frame_alone():
    frame = Frame.of(10, 20)
    assert frame.flip().flip() != frame
    assert frame.resize(5, 5).size == (5, 5)
    assert frame.size == (10, 20)
    assert frame.steps == ()


def test_frames_are_values():
    frame = Frame.of(64, 48).resize(32, 24).crop(1, 2, 3, 4).pad(1, 1, 1, 1).flip()
    copy = pickle.loads(pickle.dumps(frame))
    assert copy == frame
    assert hash(copy) == hash(frame)
    assert copy.box_to_canvas(Box(0.1, 0.2, 0.3, 0.4)) == frame.box_to_canvas(Box(0.1, 0.2, 0.3, 0.4))
    assert Frame.of(64, 48) != Frame.of(48, 64)
    assert Frame.of(np.int64(64), 48) == Frame.of(64, 48)


@pytest.mark.parametrize(
    "step",
    [
        lambda frame: frame.resize(0, 5),
        lambda frame: frame.resize(5.5, 5),
        lambda frame: frame.crop(0, 0, 0, 5),
        lambda frame: frame.crop(-1, 0, 5, 5),
        lambda frame: frame.crop(0, 0, 11, 5),
        lambda frame: frame.crop(0, 16, 5, 5),
        lambda frame: frame.crop(0.5, 0, 5, 5),
        lambda frame: frame.pad(-1, 0, 0, 0),
        lambda frame: frame.pad(0, 0.5, 0, 0),
        lambda frame: frame.mask_to_canvas(np.zeros((10, 20), dtype=bool)),
        lambda frame: frame.resize(4, 3).mask_from_canvas(np.zeros((20, 10), dtype=bool)),
        lambda frame: frame.box_from_canvas((1, 2, 3)),
        lambda frame: frame.boxes_to_canvas(np.zeros((2, 3))),
        lambda frame: Frame.of(0, 4),
    ],
)
def test_what_does_not_fit_is_refused(step):
    with pytest.raises(GeometryError):
        step(Frame.of(10, 20))


def test_boxes_come_back_through_any_chain():
    rng, numpy_rng = Random(11), np.random.default_rng(11)
    worst = 0.0
    for _ in range(2_000):
        frame = random_frame(rng, Frame.of(rng.randint(1, 2000), rng.randint(1, 2000)), rng.randint(0, 8))
        boxes_norm = random_boxes(numpy_rng, 50)
        boxes_px = frame.boxes_to_canvas(boxes_norm)
        assert (boxes_px[:, 2:] > boxes_px[:, :2]).all()
        worst = max(worst, np.abs(frame.boxes_from_canvas(boxes_px) - boxes_norm).max())
        box = Box(*boxes_norm[0])
        corners_px = frame.box_to_canvas(box)
        np.testing.assert_allclose(corners_px, boxes_px[0], rtol=1e-12, atol=1e-9)
        back = frame.box_from_canvas(corners_px)
        assert back is not None
        assert back.as_tuple() == pytest.approx(box.as_tuple(), abs=1e-6)
    assert worst <= 1e-6


@pytest.mark.parametrize("flip", [False, True])
def test_canvas_boxes_are_clipped_to_the_picture(flip):
    frame = Frame.of(100, 50).pad(10, 20, 30, 40)
    canvas = (0, 0, 60, 45)
    if flip:
        frame, canvas = frame.flip(), (80, 0, 140, 45)
    assert frame.box_from_canvas(canvas).as_tuple() == pytest.approx((0, 0, 0.5, 0.5))
    for nothing in [(0, 0, 140, 20), (0, 75, 140, 110), (60, 30, 50, 40), (math.nan, 0, 9, 9), (0, 0, math.inf, 9)]:
        assert frame.box_from_canvas(nothing) is None


def test_no_boxes():
    assert Frame.of(3, 4).flip().boxes_to_canvas([]).shape == (0, 4)
    assert Frame.of(3, 4).boxes_from_canvas(np.zeros((0, 4))).shape == (0, 4)


def stepwise(mask: Mask, steps: tuple[Step, ...]) -> Mask:
    """A mask through crops, pads and flips by plain slicing, and through resizes by whole factors by repetition."""
    for step in steps:
        match step:
            case Crop(x, y, width, height):
                mask = mask[y : y + height, x : x + width]
            case Pad(left, top, right, bottom):
                mask = np.pad(mask, ((top, bottom), (left, right)))
            case FlipHorizontal():
                mask = mask[:, ::-1]
            case Resize(width, height):
                mask = mask.repeat(height // mask.shape[0], axis=0).repeat(width // mask.shape[1], axis=1)
    return mask


def extent(mask: Mask) -> tuple[int, int, int, int]:
    """xyxy in pixels around all that is True."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def test_frames_equal_slicing():
    """Boxes on whole pixels, no rounding anywhere: mask, box and visible share must agree exactly with plain array
    operations.
    """
    rng = Random(12)
    seen = hidden = 0
    for _ in range(1_500):
        width, height = rng.randint(1, 30), rng.randint(1, 30)
        frame = random_frame(rng, Frame.of(width, height), rng.randint(0, 3), resize=False)
        up_x, up_y = rng.randint(1, 3), rng.randint(1, 3)
        frame = frame.resize(frame.size[0] * up_x, frame.size[1] * up_y)
        frame = random_frame(rng, frame, rng.randint(0, 3), resize=False)

        x1, y1 = rng.randrange(width), rng.randrange(height)
        x2, y2 = rng.randint(x1 + 1, width), rng.randint(y1 + 1, height)
        mask = np.zeros((height, width), dtype=bool)
        mask[y1:y2, x1:x2] = True
        canvas = stepwise(mask, frame.steps)

        assert canvas.shape == (frame.size[1], frame.size[0])
        np.testing.assert_array_equal(frame.mask_to_canvas(mask), canvas)
        box = Box.from_px((x1, y1, x2, y2), (width, height))
        assert frame.visible_fraction(box) == pytest.approx(canvas.sum() / mask.sum() / (up_x * up_y), abs=1e-9)

        shows = stepwise(np.ones((height, width), dtype=bool), frame.steps)
        if not canvas.any():
            hidden += 1
            continue
        seen += 1
        left, top, right, bottom = extent(shows)
        bx1, by1, bx2, by2 = frame.box_to_canvas(box)
        visible = (max(bx1, left), max(by1, top), min(bx2, right), min(by2, bottom))
        assert visible == pytest.approx(extent(canvas), abs=1e-9)
    assert seen > 500
    assert hidden > 100


def exact_columns(frame: Frame) -> list[int | None]:
    """For each canvas column the original column it shows, None for none, by exact fractions back through the steps; -1
    for a tie.
    """
    lengths = [frame.original_size[0]]
    for step in frame.steps:
        match step:
            case Crop() | Resize():
                lengths.append(step.width)
            case Pad():
                lengths.append(lengths[-1] + step.left + step.right)
            case FlipHorizontal():
                lengths.append(lengths[-1])
    columns: list[int | None] = []
    for column in range(lengths[-1]):
        at, tie = Fraction(2 * column + 1, 2), False
        for step, before, after in reversed(list(zip(frame.steps, lengths, lengths[1:], strict=False))):
            match step:
                case Crop():
                    at += step.x
                case Pad():
                    at -= step.left
                case FlipHorizontal():
                    at = before - at
                case Resize():
                    at = at * before / after
            tie = tie or at in (0, before)
            if not 0 <= at <= before:
                break
        shown = 0 <= at <= before if frame.steps else True
        columns.append(-1 if shown and (tie or at.denominator == 1) else math.floor(at) if shown else None)
    return columns


def columns_only(frame: Frame) -> Frame:
    """The same steps along x; the row stays one pixel high."""
    steps: list[Step] = []
    for step in frame.steps:
        match step:
            case Crop():
                steps.append(Crop(step.x, 0, step.width, 1))
            case Pad():
                steps.append(Pad(step.left, 0, step.right, 0))
            case Resize():
                steps.append(Resize(step.width, 1))
            case FlipHorizontal():
                steps.append(step)
    return Frame((frame.original_size[0], 1), tuple(steps))


def test_masks_equal_exact_arithmetic():
    """Any chain: each canvas pixel takes the original pixel below its center, and nothing where a crop or a pad had
    been.
    """
    rng, numpy_rng = Random(13), np.random.default_rng(13)
    compared = 0
    for _ in range(300):
        width = rng.randint(1, 60)
        frame = columns_only(random_frame(rng, Frame.of(width, 1), rng.randint(1, 5)))
        mask = numpy_rng.random((1, width)) < 0.5
        canvas = frame.mask_to_canvas(mask)[0]
        for column, source in enumerate(exact_columns(frame)):
            if source != -1:
                compared += 1
                assert canvas[column] == (mask[0, source] if source is not None else False), (frame, column)
    assert compared > 10_000


def test_masks_and_boxes_move_together_through_any_resize():
    rng = Random(14)
    compared = 0
    for _ in range(800):
        width, height = rng.randint(8, 80), rng.randint(8, 80)
        frame = random_frame(rng, Frame.of(width, height), rng.randint(1, 4))
        x1, y1 = rng.randrange(width), rng.randrange(height)
        x2, y2 = rng.randint(x1 + 1, width), rng.randint(y1 + 1, height)
        mask = np.zeros((height, width), dtype=bool)
        mask[y1:y2, x1:x2] = True
        canvas, shows = frame.mask_to_canvas(mask), frame.mask_to_canvas(np.ones_like(mask))
        if not canvas.any():
            continue
        compared += 1
        left, top, right, bottom = extent(shows)
        box = frame.box_to_canvas(Box.from_px((x1, y1, x2, y2), (width, height)))
        visible = np.clip(box, (left, top, left, top), (right, bottom, right, bottom))
        assert np.abs(visible - extent(canvas)).max() <= 0.5 + 1e-5
    assert compared > 300


def test_masks_come_back():
    """Enlarged, mirrored, padded and cropped: every original pixel that is still shown has its value, all others are
    False.
    """
    rng, numpy_rng = Random(15), np.random.default_rng(15)
    cut = 0
    for _ in range(500):
        width, height = rng.randint(1, 30), rng.randint(1, 30)
        mask = numpy_rng.random((height, width)) < 0.5
        frame = Frame.of(width, height).resize(rng.randint(width, 90), rng.randint(height, 90))
        if rng.random() < 0.5:
            frame = frame.flip()
        frame = frame.pad(*(rng.randrange(4) for _ in range(4)))
        np.testing.assert_array_equal(frame.mask_from_canvas(frame.mask_to_canvas(mask)), mask)

        canvas_w, canvas_h = frame.size
        left, top = rng.randrange(canvas_w), rng.randrange(canvas_h)
        cropped = frame.crop(left, top, rng.randint(1, canvas_w - left), rng.randint(1, canvas_h - top)).pad(9, 9, 9, 9)
        back = cropped.mask_from_canvas(cropped.mask_to_canvas(mask))
        kept = cropped.mask_from_canvas(np.ones(cropped.size[::-1], dtype=bool))
        cut += not kept.all()
        np.testing.assert_array_equal(back, mask & kept)
        # a pixel is kept just when its center lies in what the crop left
        for y, x in itertools.islice(np.ndindex(height, width), 40):
            center = Box.clip((x + 0.499) / width, (y + 0.499) / height, (x + 0.501) / width, (y + 0.501) / height)
            fraction = cropped.visible_fraction(center)
            if fraction in (0, 1):
                assert kept[y, x] == (fraction == 1)
    assert cut > 300


def test_halving_takes_the_right_pixel_of_each_pair():
    mask = np.arange(10)[None, :] % 2 == 1
    np.testing.assert_array_equal(Frame.of(10, 1).resize(5, 1).mask_to_canvas(mask), np.ones((1, 5), dtype=bool))


def test_importing_needs_no_torch():
    code = "import sys, lyrics.core.geometry, lyrics.core.language.codecs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
