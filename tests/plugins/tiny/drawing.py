"""Pictures of coloured shapes with their exact tags, boxes and masks, drawn by Pillow."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from lyrics.core.masks import Mask
from lyrics.core.types import DetectedObject

COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 220), "yellow": (230, 210, 50)}
SHAPES = ("circle", "square", "triangle", "cross")
VOCABULARY = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)


def outline(shape: str, x: int, y: int, side: int) -> list[tuple[float, float]]:
    """Corners of a polygon in the square of ``side`` pixels at (x, y)."""
    end = side - 1
    if shape == "square":
        corners = [(0, 0), (end, 0), (end, end), (0, end)]
    elif shape == "triangle":
        corners = [(end / 2, 0), (end, end), (0, end)]
    else:
        a, b = end / 3, 2 * end / 3  # the arms
        corners = [
            (a, 0),
            (b, 0),
            (b, a),
            (end, a),
            (end, b),
            (b, b),
            (b, end),
            (a, end),
            (a, b),
            (0, b),
            (0, a),
            (a, a),
        ]
    return [(x + cx, y + cy) for cx, cy in corners]


def drawn_mask(shape: str, x: int, y: int, side: int, size: tuple[int, int]) -> np.ndarray:
    """The shape's pixels, bool [H,W]."""
    canvas = Image.new("1", size)
    draw = ImageDraw.Draw(canvas)
    if shape == "circle":
        draw.ellipse((x, y, x + side - 1, y + side - 1), fill=1)
    else:
        draw.polygon(outline(shape, x, y, side), fill=1)
    return np.array(canvas, dtype=bool)


def picture(seed: int, size: tuple[int, int], objects: int = 3) -> tuple[Image.Image, tuple[DetectedObject, ...]]:
    """A picture of ``size`` (width, height) with ``objects`` shapes that do not overlap, and those shapes as annotated
    objects.
    """
    random = np.random.default_rng(seed)
    background = random.integers(170, 250, 3)
    pixels = np.broadcast_to(background, (size[1], size[0], 3)).astype(np.uint8).copy()
    taken = np.zeros((size[1], size[0]), dtype=bool)
    found: list[DetectedObject] = []
    while len(found) < objects:
        side = int(random.integers(min(size) // 6, min(size) // 3))
        x, y = int(random.integers(0, size[0] - side)), int(random.integers(0, size[1] - side))
        if taken[y : y + side, x : x + side].any():
            continue
        taken[y : y + side, x : x + side] = True
        colour, shape = random.choice(list(COLOURS)), random.choice(SHAPES)
        mask = drawn_mask(shape, x, y, side, size)
        pixels[mask] = COLOURS[colour]
        rle = Mask.from_array(mask)
        found.append(DetectedObject(f"{colour} {shape}", rle.box_norm(), 1.0, rle))
    return Image.fromarray(pixels), tuple(found)
