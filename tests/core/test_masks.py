"""Run-length masks against arrays, and COCO's compressed form against its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from lyrics.core.errors import GeometryError
from lyrics.core.geometry import Box
from lyrics.core.masks import Mask

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=17))


@given(masks)
def test_array_comes_back(array: np.ndarray) -> None:
    mask = Mask.from_array(array)
    assert (mask.width, mask.height) == (array.shape[1], array.shape[0])
    assert np.array_equal(mask.to_array(), array)
    assert mask.area_px == array.sum()
    assert all(run > 0 for run in mask.runs[1:]), "runs alternate"


@given(masks)
def test_runs_are_column_major_and_begin_with_zeros(array: np.ndarray) -> None:
    """COCO's definition, written out."""
    runs, value, length = [], False, 0
    for pixel in array.T.ravel():
        if pixel != value:
            runs.append(length)
            value, length = pixel, 0
        length += 1
    assert Mask.from_array(array).runs == (*runs, length)


def decoded(counts: str) -> list[int]:
    """The runs in COCO's compressed string, after rleFrString of the COCO API."""
    runs: list[int] = []
    position = 0
    while position < len(counts):
        value, shift, more = 0, 0, True
        while more:
            group = ord(counts[position]) - 48
            value |= (group & 0x1F) << shift
            more = bool(group & 0x20)
            position += 1
            shift += 5
            if not more and group & 0x10:
                value |= -1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs


@given(masks)
def test_coco_string_holds_the_runs(array: np.ndarray) -> None:
    mask = Mask.from_array(array)
    assert mask.to_coco()["size"] == [array.shape[0], array.shape[1]]
    assert tuple(decoded(mask.to_coco()["counts"])) == mask.runs


@given(st.lists(st.integers(0, 2**20), min_size=1, max_size=30))
def test_coco_string_holds_long_runs(runs: list[int]) -> None:
    mask = Mask(width=sum(runs), height=1, runs=tuple(runs))
    assert decoded(mask.to_coco()["counts"]) == runs


def test_coco_string_is_the_one_that_pycocotools_writes() -> None:
    """Copied from ``pycocotools.mask.encode`` (2.0.11)."""
    small = np.zeros((4, 5))
    small[1:3, 1:4] = 1
    assert Mask.from_array(small).to_coco() == {"size": [4, 5], "counts": "5220003"}
    assert Mask.from_array(np.zeros((3, 3))).to_coco()["counts"] == "9"
    assert Mask.from_array(np.ones((3, 3))).to_coco()["counts"] == "09"
    large = np.zeros((70, 40))
    large[2:67, 3:30] = 1
    large[:, 20] = 0
    assert Mask.from_array(large).to_coco() == {
        "size": [70, 40],
        "counts": "d6Q250000000000000000000000000000000V20jM000000000000000je0",
    }


@given(masks)
def test_box_is_the_smallest_around_the_mask(array: np.ndarray) -> None:
    box = Mask.from_array(array).box_norm()
    rows, columns = np.nonzero(array)
    if not len(rows):
        assert box is None
        return
    height, width = array.shape
    assert box == Box(
        columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height
    )


@pytest.mark.parametrize("values", [np.array([[0, 2], [-1, 0]]), np.array([[0.0, 0.5], [1.0, 0.0]]), [[0, 1], [1, 0]]])
def test_anything_but_zero_is_inside(values: Any) -> None:
    assert Mask.from_array(values).to_array().tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 3)])
def test_array_of_other_dimensions_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(GeometryError, match=r"two-dimensional \(height, width\)"):
        Mask.from_array(np.zeros(shape))


@pytest.mark.parametrize(
    ("width", "height", "runs"), [(2, 2, (3,)), (2, 2, (5,)), (2, 2, (-1, 5)), (-2, -2, (4,)), (2, 2, ())]
)
def test_runs_that_do_not_fill_the_picture_are_refused(width: int, height: int, runs: tuple[int, ...]) -> None:
    with pytest.raises(GeometryError, match=f"{width} x {height} pixels"):
        Mask(width, height, runs)


def test_equal_masks_are_equal_and_hash_alike() -> None:
    """``from_array`` gives one form only, so masks can be compared and be keys."""
    first, second = (Mask.from_array(np.eye(3)) for _ in range(2))
    assert first == second
    assert len({first, second}) == 1
