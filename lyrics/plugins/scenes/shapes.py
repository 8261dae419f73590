"""The shapes as masks, each computed once per size and angle."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
#: Degrees by which a shape may lean; the round ones cannot.
ANGLES = (-15, 0, 15)
_STAR_INNER = 0.45


def _star(x: Plane, y: Plane) -> Mask:
    """Five points, one of them up: inside if nearer to the centre than the edge between an outer and an
    inner corner.
    """
    turn = math.tau / 5
    from_tip = np.abs((np.arctan2(x, -y) + turn / 2) % turn - turn / 2)
    inner_x, inner_y = _STAR_INNER * math.cos(turn / 2), _STAR_INNER * math.sin(turn / 2)
    edge = inner_y / (inner_y * np.cos(from_tip) + (1 - inner_x) * np.sin(from_tip))
    return np.asarray(np.hypot(x, y) <= edge)


def _heart(x: Plane, y: Plane) -> Mask:
    x, y = 1.15 * x, 0.12 - 1.15 * y
    return np.asarray((x * x + y * y - 1) ** 3 <= x * x * y**3)


# Inside or not, for x to the right and y downwards, each from -1 to 1.
INSIDE: dict[str, Callable[[Plane, Plane], Mask]] = {
    "circle": lambda x, y: np.asarray(x * x + y * y <= 1),
    "square": lambda x, y: np.asarray(np.maximum(np.abs(x), np.abs(y)) <= 0.9),
    "triangle": lambda x, y: np.asarray((np.abs(x) <= (y + 1) / 2) & (y <= 0.85)),
    "star": _star,
    "cross": lambda x, y: np.asarray(np.minimum(np.abs(x), np.abs(y)) <= 0.34),
    "ring": lambda x, y: np.asarray((x * x + y * y <= 1) & (x * x + y * y >= 0.3)),
    "diamond": lambda x, y: np.asarray(np.abs(x) / 0.7 + np.abs(y) <= 1),
    "heart": _heart,
}


@functools.lru_cache(maxsize=2048)
def shape_mask(shape: str, side: int, angle: int) -> Mask:
    """A shape, bool [h, w] with h, w <= side, cut close around it."""
    across = (np.arange(side) + 0.5) / side * 2 - 1
    x, y = np.meshgrid(across, across)
    if angle and shape not in ("circle", "ring"):
        # Leaning corners would leave the square.
        cos, sin = math.cos(math.radians(angle)) * 1.15, math.sin(math.radians(angle)) * 1.15
        x, y = cos * x + sin * y, cos * y - sin * x
    inside = INSIDE[shape](x, y)
    if shape == "cross" and angle:
        inside &= np.maximum(np.abs(x), np.abs(y)) <= 1
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return np.ascontiguousarray(inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


@functools.lru_cache(maxsize=2048)
def shape_edge(shape: str, side: int, angle: int) -> Mask:
    """The pixels of ``shape_mask`` that have a neighbour outside of it."""
    inside = shape_mask(shape, side, angle)
    around = np.pad(inside, 1)
    core = inside & around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return inside & ~core


def run_edges(mask_HW: Mask) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where the mask's runs begin and end, column by column downwards: columns [R] and rows [R]; an end may be one row
    beyond the mask.
    """
    rows, columns = mask_HW.shape
    framed_WH = np.zeros((columns, rows + 2), dtype=np.bool_)
    framed_WH[:, 1:-1] = mask_HW.T
    flat = framed_WH.ravel()
    column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), rows + 2)
    return column, row


@functools.lru_cache(maxsize=2048)
def shape_run_edges(shape: str, side: int, angle: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """``run_edges`` of a whole shape."""
    return run_edges(shape_mask(shape, side, angle))
