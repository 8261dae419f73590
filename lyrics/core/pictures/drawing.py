"""Boxes, masks and labels on an image, legible on any background."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from lyrics.core.renaming import renamed
from lyrics.core.types import DetectedObject

# Okabe and Ito's palette: told apart with every kind of color vision.
PALETTE = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
#: The image's own colors stay to be seen; a line along its edge shows where a mask ends.
MASK_OPACITY = 0.1


@renamed(picture="image")
def draw_objects(image: Image.Image, objects: Sequence[DetectedObject]) -> Image.Image:
    """Return a copy of ``image`` with the objects on it; one color per tag.

    The best object is drawn last, on top of the others.
    """
    colors = {tag: PALETTE[index % len(PALETTE)] for index, tag in enumerate(sorted({found.tag for found in objects}))}
    pixels_HWC = np.array(image.convert("RGB"))
    stroke = max(2, round(min(image.size) / 200))
    for found in reversed(objects):
        if found.mask is not None:
            _tint(pixels_HWC, found.mask.to_array(), colors[found.tag], stroke)
    drawn = Image.fromarray(pixels_HWC)
    pen = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(size=max(12, round(min(image.size) / 32)))
    for found in reversed(objects):
        x1, y1, x2, y2 = found.box_norm.to_px(image.size)
        # A dark line around the colored one keeps the box visible on a background of its own color.
        pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=(0, 0, 0), width=stroke + 2)
        pen.rectangle((x1, y1, x2, y2), outline=colors[found.tag], width=stroke)
    for found in reversed(objects):
        _label(pen, image.size, found, colors[found.tag], font)
    return drawn


def _tint(
    pixels_HWC: npt.NDArray[np.uint8], inside_HW: npt.NDArray[np.bool_], color: tuple[int, int, int], width_px: int
) -> None:
    """Color a mask and its rim, in place; only the part of the image that the mask covers is touched."""
    rows, columns = np.flatnonzero(inside_HW.any(axis=1)), np.flatnonzero(inside_HW.any(axis=0))
    if not len(rows):
        return
    # One pixel of what is outside stays in sight, so that the rim knows an edge from the image's border.
    window = np.s_[max(0, rows[0] - 1) : rows[-1] + 2, max(0, columns[0] - 1) : columns[-1] + 2]
    part_HWC, inside = pixels_HWC[window], inside_HW[window]
    part_HWC[inside] = ((1 - MASK_OPACITY) * part_HWC[inside] + MASK_OPACITY * np.asarray(color)).round()
    part_HWC[_rim(inside, width_px)] = color


def _rim(inside_HW: npt.NDArray[np.bool_], width_px: int) -> npt.NDArray[np.bool_]:
    """Return the pixels of a mask that are at most ``width_px`` steps from what is outside of it.

    The image's border is no edge.
    """
    core = inside_HW
    for _ in range(width_px):
        around = np.pad(core, 1, constant_values=True)
        core = core & around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return inside_HW & ~core


def _label(
    pen: ImageDraw.ImageDraw,
    size_px: tuple[int, int],
    found: DetectedObject,
    color: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Black or white text, whichever is legible, on a plate of the box's color, kept inside the image."""
    # Pillow's built-in font has no other letters.
    text = f"{found.tag} {found.score:.2f}".encode("latin-1", "replace").decode("latin-1")
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 6
    x1, y1, _, _ = found.box_norm.to_px(size_px)
    x = min(max(0.0, x1), max(0.0, size_px[0] - width))
    y = y1 - height if y1 >= height else y1
    y = min(max(0.0, y), max(0.0, size_px[1] - height))
    pen.rectangle((x, y, x + width, y + height), fill=color, outline=(0, 0, 0))
    brightness = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    pen.text((x + 3 - left, y + 3 - top), text, font=font, fill=(0, 0, 0) if brightness > 110 else (255, 255, 255))
