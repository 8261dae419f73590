"""Shapes that fill a box whatever their lean: sheared, then stretched to touch the box on all four sides.

So the box of a thing says nothing of its lean. Every shape shows its lean, the circle and the ring as slanting
ellipses.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from lyrics.plugins.scenes.names import Lean
from lyrics.plugins.scenes.shapes import INSIDE, Mask, Plane

#: How far the top of a leaning shape is from where it would be upright, in halves of its height.
SHEAR = 0.55
#: More would make a rectangle of it.
_SHEAR_OF_DIAMOND = 0.3
_FINE = 1 / 256


def _inside(shape: str, lean: Lean, x: Plane, y: Plane) -> Mask:
    """Whether places of the sheared shape are inside of it; its arms are cut where the plain shape's canvas ends."""
    shear = _SHEAR_OF_DIAMOND if shape == "diamond" else SHEAR
    upright = x + {"left": -shear, "upright": 0.0, "right": shear}[lean] * y
    return INSIDE[shape](upright, y) & (np.maximum(np.abs(upright), np.abs(y)) <= 1)


@functools.cache
def _extent(shape: str, lean: Lean) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of the sheared shape."""
    across, down = np.arange(-2, 2, _FINE), np.arange(-1.25, 1.25, _FINE)
    x, y = np.meshgrid(across, down)
    inside = _inside(shape, lean, x, y)
    columns, rows = across[inside.any(axis=0)], down[inside.any(axis=1)]
    return float(columns[0]), float(rows[0]), float(columns[-1]), float(rows[-1])


@functools.lru_cache(maxsize=8192)
def fitted_mask(shape: str, width: int, height: int, lean: Lean) -> npt.NDArray[np.bool_]:
    """Return a shape as bool [height, width] that touches all four sides, to within a pixel at its tips."""
    x1, y1, x2, y2 = _extent(shape, lean)
    across = x1 + (np.arange(width) + 0.5) / width * (x2 - x1)
    down = y1 + (np.arange(height) + 0.5) / height * (y2 - y1)
    return np.ascontiguousarray(_inside(shape, lean, *np.meshgrid(across, down)))


@functools.lru_cache(maxsize=8192)
def fitted_edge(shape: str, width: int, height: int, lean: Lean, thickness: int) -> npt.NDArray[np.bool_]:
    """Return the pixels of ``fitted_mask`` that are at most ``thickness`` steps from a pixel outside of it."""
    inside = core = fitted_mask(shape, width, height, lean)
    for _ in range(thickness):
        around = np.pad(core, 1)
        core = core & around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return inside & ~core
