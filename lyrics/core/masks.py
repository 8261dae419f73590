"""Run-length masks: a segmentation of the original image in a few hundred bytes.

The runs are COCO's: column-major, starting with the zeros. ``Mask.to_coco`` gives the compressed form that pycocotools
reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lyrics.core.errors import GeometryError
from lyrics.core.geometry import Box


@dataclass(frozen=True, slots=True)
class Mask:
    """A binary mask of ``width`` x ``height`` pixels as alternating run lengths, zeros first, in column-major order."""

    width: int
    height: int
    runs: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.width < 0 or self.height < 0 or any(run < 0 for run in self.runs):
            raise GeometryError(
                f"a mask of {self.width} x {self.height} pixels cannot have the runs {self.runs[:6]}..."
            )
        if sum(self.runs) != self.width * self.height:
            raise GeometryError(
                f"the runs of a mask of {self.width} x {self.height} pixels must add up to {self.width * self.height}, "
                f"not {sum(self.runs)}"
            )

    @classmethod
    def from_array(cls, mask_HW: npt.ArrayLike) -> Mask:
        """From a two-dimensional array; non-zero is inside.

        Raises ``GeometryError`` for any other number of dimensions.
        """
        array = np.asarray(mask_HW)
        if array.ndim != 2:
            raise GeometryError(f"a mask is two-dimensional (height, width), not {array.shape}")
        flat = (array != 0).ravel(order="F")
        changes = np.flatnonzero(np.diff(flat)) + 1
        edges = np.concatenate(([0], changes, [flat.size]))
        runs = np.diff(edges)
        if flat.size and flat[0]:
            runs = np.concatenate(([0], runs))
        return cls(width=array.shape[1], height=array.shape[0], runs=tuple(int(run) for run in runs))

    @classmethod
    def from_box(cls, box: Box, size_px: tuple[int, int]) -> Mask:
        """Return the pixels of an image of ``size_px`` (width, height) whose centers lie in a box; at least one."""
        x1, y1, x2, y2 = box.to_px(size_px)
        array = np.zeros((size_px[1], size_px[0]), dtype=np.bool_)
        left, top = min(round(x1), size_px[0] - 1), min(round(y1), size_px[1] - 1)
        array[top : max(round(y2), top + 1), left : max(round(x2), left + 1)] = True
        return cls.from_array(array)

    @classmethod
    def from_coco(cls, encoded: Mapping[str, Any]) -> Mask:
        """From COCO's run-length encoding, compressed (``counts`` a string) or not (``counts`` a list).

        Raises ``GeometryError`` for anything else.
        """
        try:
            height, width = (int(side) for side in encoded["size"])
            counts = encoded["counts"]
            runs = _decompress(counts) if isinstance(counts, str) else [int(run) for run in counts]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise GeometryError(f"not a run-length mask with size [height, width] and counts: {error!r}") from None
        return cls(width, height, tuple(runs))

    def to_array(self) -> npt.NDArray[np.bool_]:
        """As a bool array [height, width]."""
        values = np.arange(len(self.runs)) % 2 == 1
        return np.repeat(values, self.runs).reshape((self.height, self.width), order="F")

    @property
    def area_px(self) -> int:
        return sum(self.runs[1::2])

    def box_norm(self) -> Box | None:
        """Return the smallest box around the mask, or None when it is empty."""
        array = self.to_array()
        columns, rows = np.flatnonzero(array.any(axis=0)), np.flatnonzero(array.any(axis=1))
        if columns.size == 0:
            return None
        return Box.clip(
            columns[0] / self.width,
            rows[0] / self.height,
            (columns[-1] + 1) / self.width,
            (rows[-1] + 1) / self.height,
        )

    def to_coco(self) -> dict[str, Any]:
        """Return ``{"size": [height, width], "counts": str}``, COCO's compressed run-length encoding.

        Each run (from the third on, its difference to the run two before) is written in little-endian groups of five
        bits, a sixth bit saying that more follow, as the character with that value plus 48.
        """
        characters: list[str] = []
        for index, run in enumerate(self.runs):
            value = run - self.runs[index - 2] if index > 2 else run
            more = True
            while more:
                group = value & 0x1F
                value >>= 5
                more = value != -1 if group & 0x10 else value != 0
                characters.append(chr(48 + (group | 0x20 if more else group)))
        return {"size": [self.height, self.width], "counts": "".join(characters)}


def _decompress(counts: str) -> list[int]:
    """Return runs from COCO's compressed string; the inverse of ``Mask.to_coco``."""
    runs: list[int] = []
    value, shift = 0, 0
    for character in counts:
        group = ord(character) - 48
        if not 0 <= group < 64:
            raise ValueError(f"the character {character!r} does not occur in compressed runs")
        value |= (group & 0x1F) << shift
        shift += 5
        if not group & 0x20:
            if group & 0x10:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value, shift = 0, 0
    if shift:
        raise ValueError("the compressed runs end in the middle of a number")
    return runs
