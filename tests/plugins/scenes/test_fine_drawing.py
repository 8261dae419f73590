"""What fine scenes look like: fills are equally bright, outlines dark, grounds what they are called."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from lyrics.plugins.scenes import ScenesOptions
from lyrics.plugins.scenes.dataset import Scenes
from lyrics.plugins.scenes.fine_drawing import _OUTLINE
from lyrics.plugins.scenes.fitting import fitted_edge, fitted_mask
from lyrics.plugins.scenes.names import LEANS, SHAPES

DATA = Scenes(ScenesOptions(attributes="fine"))


def drawn(index: int):
    sample = DATA[index]
    return DATA.scene(index), np.asarray(DATA.picture(sample)).astype(float)


def test_all_fills_are_equally_bright_on_average() -> None:
    shares = defaultdict(list)
    for index in range(800):
        scene, image_HWC = drawn(index)
        for number, thing in enumerate(scene.things):
            inner = thing.pixels & ~fitted_edge(thing.shape, *thing.canvas, thing.lean, 2)
            seen = (scene.owner_HW[thing.window] == number + 1) & inner
            if seen.sum() > 100:
                color_C = image_HWC[thing.window][seen].mean(0)
                shares[thing.fill, thing.colour].append(color_C.sum())
    means = {key: np.mean(values) for key, values in shares.items()}
    for color in {color for _, color in means}:
        values = [mean for (_, of), mean in means.items() if of == color]
        assert max(values) - min(values) < 0.05 * np.mean(values)


def test_outlines_are_there_or_not() -> None:
    for index in range(60):
        scene, image_HWC = drawn(index)
        for number, thing in enumerate(scene.things):
            edge = fitted_edge(thing.shape, *thing.canvas, thing.lean, 2)
            seen = (scene.owner_HW[thing.window] == number + 1) & edge
            brightest = image_HWC[thing.window][seen].max(-1).max()
            assert (brightest <= _OUTLINE + 4) == (thing.outline == "dark")


def test_grounds_and_textures_look_as_they_are_called() -> None:
    brightness, colorfulness, unevenness = defaultdict(list), defaultdict(list), defaultdict(list)
    for index in range(300):
        scene, image_HWC = drawn(index)
        ground = image_HWC[scene.owner_HW == 0]
        brightness[scene.ground].append(ground.mean())
        colorfulness[scene.ground].append(np.ptp(ground.mean(0)))
        unevenness[scene.texture].append(ground.mean(1).std())
    assert max(brightness["dark"]) + 40 < min(brightness["tinted"]) < min(brightness["pale"])
    assert max(colorfulness["pale"] + colorfulness["dark"]) + 15 < min(colorfulness["tinted"])
    assert max(unevenness["plain"]) < min(unevenness["sloping"] + unevenness["checked"])


def test_a_shape_fills_its_box_whatever_its_lean() -> None:
    for shape in SHAPES:
        for width, height in ((23, 25), (40, 37), (61, 55)):
            masks = [fitted_mask(shape, width, height, lean) for lean in LEANS]
            for mask in masks:
                assert mask.shape == (height, width)
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                assert max(rows[0], columns[0], height - 1 - rows[-1], width - 1 - columns[-1]) <= 1
            left, upright, right = masks
            # A mirror makes one lean of the other, and leaning shows.
            assert (left != right[:, ::-1]).mean() < 0.03
            for one, other in ((left, upright), (right, upright), (left, right)):
                assert (one != other).mean() > 0.12, shape
