"""A fine scene as pixels. Every pixel belongs to one owner, so masks are exact: edges are not softened.

All fills of a color are equally bright on average, so that a blurred or a small image does not tell them apart.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from lyrics.core.data.draws import generator
from lyrics.plugins.scenes.draws import Draws
from lyrics.plugins.scenes.fitting import fitted_edge
from lyrics.plugins.scenes.layout import Scene, Thing

#: Colors at their brightest.
_RGB = {
    "red": (246, 42, 42),
    "orange": (248, 148, 20),
    "yellow": (246, 232, 40),
    "green": (40, 190, 66),
    "cyan": (60, 232, 240),
    "blue": (50, 84, 246),
    "purple": (178, 64, 226),
    "gray": (176, 176, 176),
}
#: A thing's brightness, and how far the light and the dark half of its pattern are from it.
_BRIGHTNESS, _CONTRAST = (0.72, 0.80), 0.25
#: A dot is a quarter of its pattern: so much darker than the rest that the mean stays.
_DOT_SHARE = 0.25
_TINT = 10
_OUTLINE, _INK_DARK, _INK_LIGHT = 10, 12, 250
_NOISE = 4
#: At its edges a sloping ground differs from its middle by about so much; the fields of a checked one from each other
#: by twice the other.
_SLOPE, _CHECK = (14, 22), (9, 13)
#: Pixels of an image of 128: the period of a pattern, the thickness of an outline, the side of a field.
_PERIOD, _THICKNESS, _FIELD = 4, 2, 12


def draw_fine_scene(scene: Scene, seed: int) -> Image.Image:
    """Return the scene as RGB. No two colors are quite the same, and everything is noisy."""
    random = generator(seed, "scenes: fine look", scene.number)
    draws = Draws(random)
    unit = max(scene.width, scene.height) / 128
    canvas_HWC = _ground(scene, draws, unit)
    for word in scene.words:
        # On a plate, so that what is around a word does not depend on the ground.
        ink, plate = (_INK_LIGHT, _INK_DARK) if draws.below(2) else (_INK_DARK, _INK_LIGHT)
        rows, columns = word.pixels.shape
        x1, y1, x2, y2 = map(round, word.box.to_px((scene.width, scene.height)))
        canvas_HWC[y1:y2, x1:x2] = plate
        canvas_HWC[word.y : word.y + rows, word.x : word.x + columns][word.pixels] = ink
    for index, thing in enumerate(scene.things):
        _lay(canvas_HWC, scene.owner_HW[thing.window] == index + 1, thing, draws, unit)
    canvas_HWC += random.integers(-_NOISE, _NOISE + 1, (scene.height, scene.width, 1), dtype=np.int8)
    return Image.fromarray(canvas_HWC.clip(0, 255).astype(np.uint8))


def _ground(scene: Scene, draws: Draws, unit: float) -> npt.NDArray[np.float32]:
    if scene.ground == "pale":
        base = draws.between(214, 240) + np.array([draws.between(-6, 6) for _ in range(3)])
    elif scene.ground == "dark":
        base = draws.between(58, 78) + np.array([draws.between(-8, 8) for _ in range(3)])
    else:
        # One or two channels well below the others: a pastel.
        low = draws.below(6)
        lowered = [low % 3 == channel if low < 3 else low % 3 != channel for channel in range(3)]
        base = np.array([draws.between(128, 148) if less else draws.between(188, 208) for less in lowered])
    canvas_HWC = np.empty((scene.height, scene.width, 3), dtype=np.float32)
    canvas_HWC[:] = base
    # What is drawn for a texture is drawn for all, so that the rest of the look does not depend on it.
    steep = [draws.between(*_SLOPE) * (1 if draws.below(2) else -1) for _ in range(2)]
    deep, x, y = draws.between(*_CHECK), draws.below(64), draws.below(64)
    if scene.texture == "sloping":
        down = np.linspace(-1, 1, scene.height)[:, None] * steep[0]
        canvas_HWC += (down + np.linspace(-1, 1, scene.width) * steep[1])[..., None]
    elif scene.texture == "checked":
        field = round(_FIELD * unit)
        rows = (np.arange(scene.height)[:, None] + y) // field
        canvas_HWC += np.where((rows + (np.arange(scene.width) + x) // field) % 2, deep, -deep)[..., None]
    return canvas_HWC


def _lay(
    canvas_HWC: npt.NDArray[np.float32], seen_hw: npt.NDArray[np.bool_], thing: Thing, draws: Draws, unit: float
) -> None:
    """Colors the pixels of a thing that are to be seen."""
    assert thing.canvas is not None
    tint = [0.0, 0.0, 0.0] if thing.colour == "gray" else [draws.between(-_TINT, _TINT) for _ in range(3)]
    color = np.array(_RGB[thing.colour]) + tint
    mean, x, y = draws.between(*_BRIGHTNESS), draws.below(64), draws.below(64)
    looks_hwC = (mean + _pattern(thing, x, y, unit))[..., None] * color
    if thing.outline == "dark":
        looks_hwC[fitted_edge(thing.shape, *thing.canvas, thing.lean, max(1, round(_THICKNESS * unit)))] = _OUTLINE
    canvas_HWC[thing.window][seen_hw] = looks_hwC[seen_hw]


def _pattern(thing: Thing, x: int, y: int, unit: float) -> npt.NDArray[np.float64]:
    """How much brighter than the mean each pixel of a thing's box is; 0 on average."""
    assert thing.canvas is not None
    width, height = thing.canvas
    half = max(1, round(_PERIOD * unit / 2))
    dark_h = (np.arange(height)[:, None] + y) // half % 2 == 0
    dark_w = (np.arange(width) + x) // half % 2 == 0
    if thing.fill == "solid":
        return np.zeros((height, width))
    if thing.fill == "striped across":
        return np.broadcast_to(np.where(dark_h, -_CONTRAST, _CONTRAST), (height, width))
    if thing.fill == "striped down":
        return np.broadcast_to(np.where(dark_w, -_CONTRAST, _CONTRAST), (height, width))
    light = 2 * _CONTRAST * _DOT_SHARE
    return np.where(dark_h & dark_w, light - 2 * _CONTRAST, light)
