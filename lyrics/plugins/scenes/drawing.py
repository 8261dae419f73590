"""A scene as pixels. Every pixel belongs to one owner, so masks are exact: edges are not softened."""

from __future__ import annotations

import numpy as np
from PIL import Image

from lyrics.core.data.draws import generator
from lyrics.plugins.scenes.draws import Draws
from lyrics.plugins.scenes.layout import Scene
from lyrics.plugins.scenes.shapes import shape_edge

_RGB = {
    "red": (212, 40, 40),
    "orange": (245, 138, 24),
    "yellow": (244, 218, 40),
    "green": (44, 150, 60),
    "cyan": (60, 202, 216),
    "blue": (42, 80, 212),
    "purple": (140, 60, 182),
    "gray": (128, 128, 128),
}
_JITTER = 12
_NOISE = 5
_SLOPE = 14
_EDGE = 0.6


def draw_scene(scene: Scene, seed: int) -> Image.Image:
    """RGB.

    Grounds are pale or dark, never of an object's brightness; they slope and are noisy, and no two colours are quite
    the same.
    """
    random = generator(seed, "scenes: look", scene.number)
    draws = Draws(random)
    dark = draws.below(3) == 0
    low, high = (18, 52) if dark else (208, 244)
    ground = np.array([draws.between(low, high) for _ in range(3)])
    canvas_HWC = np.empty((scene.height, scene.width, 3), dtype=np.float32)
    down = np.linspace(-1, 1, scene.height)[:, None] * draws.between(-_SLOPE, _SLOPE)
    across = np.linspace(-1, 1, scene.width) * draws.between(-_SLOPE, _SLOPE)
    canvas_HWC[:] = ground
    canvas_HWC += (down + across)[..., None]
    for word in scene.words:
        rows, columns = word.pixels.shape
        canvas_HWC[word.y : word.y + rows, word.x : word.x + columns][word.pixels] = 250 if dark else 12
    for thing in scene.things:
        shift = draws.between(-_JITTER, _JITTER)
        tint = [0.0, 0.0, 0.0] if thing.colour == "gray" else [draws.between(-_JITTER, _JITTER) for _ in range(3)]
        colour = np.array(_RGB[thing.colour]) + shift + tint
        window = canvas_HWC[thing.window]
        window[thing.pixels] = colour
        window[shape_edge(thing.shape, thing.side, thing.angle)] = colour * _EDGE
    canvas_HWC += random.integers(-_NOISE, _NOISE + 1, (scene.height, scene.width, 1), dtype=np.int8)
    return Image.fromarray(canvas_HWC.clip(0, 255).astype(np.uint8))
