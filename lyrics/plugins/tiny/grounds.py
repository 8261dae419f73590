"""Views of one image on two grounds, and what an expert learns from them: that a thing is the same whatever it lies on.

Shapes: B images, M cells, D width, N objects of one image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from lyrics.core.data.draws import generator
from lyrics.core.types import DetectedObject, ImageBatch
from lyrics.plugins.tiny.detector import CellPredictions, TinyDetector
from lyrics.plugins.tiny.losses import assign_cells, detection_loss
from lyrics.plugins.tiny.training import Objects, detector_targets

#: The ground's own pattern is kept with a factor from minus to plus this.
_MOST_GAIN = 1.5


def on_another_ground(image: Image.Image, objects: Sequence[DetectedObject], row: int) -> Image.Image:
    """Return an RGB image in which all that is of no object has another color and a weaker, stronger or inverted pattern.

    Args:
        image: stays as it is.
        objects: all of them, with masks.
        row: the same one gives the same ground.
    """
    draws = generator(0, "tiny experts: grounds", row)
    pixels_HWC = np.asarray(image).astype(np.float32)
    ground_HW = np.ones(pixels_HWC.shape[:2], dtype=np.bool_)
    for one in objects:
        assert one.mask is not None
        ground_HW &= ~one.mask.to_array()
    if ground_HW.any():
        old_PC = pixels_HWC[ground_HW]
        color_C, gain = draws.uniform(0, 255, 3), draws.uniform(-_MOST_GAIN, _MOST_GAIN)
        # As often as not a gray one: pale or dark.
        color_C = color_C if draws.integers(2) else np.full(3, color_C[0])
        pixels_HWC[ground_HW] = color_C + gain * (old_PC - old_PC.mean(0))
    return Image.fromarray(pixels_HWC.clip(0, 255).astype(np.uint8))


def detector_views_loss(detector: TinyDetector, images: ImageBatch, objects: Objects) -> torch.Tensor:
    """``detector_loss`` of all images, and how far the states of a thing differ between the two views of each.

    Images 2i and 2i + 1 show the same objects at the same places.
    """
    boxes_px, names = detector_targets(detector, images, objects)
    cells = detector.predict(images)
    stride = detector.trunk.stride
    return detection_loss(cells, boxes_px, names, stride) + _difference(cells, boxes_px, stride)


def _difference(cells: CellPredictions, boxes_px: Sequence[torch.Tensor], stride: int) -> torch.Tensor:
    """Mean squared difference of the states of cells that answer for an object, as a share of their variance."""
    first, second = [], []
    for view in range(0, len(boxes_px), 2):
        answering_M = assign_cells(cells.centres_px_M2, boxes_px[view], stride) >= 0
        first.append(cells.states_BMD[view, answering_M])
        second.append(cells.states_BMD[view + 1, answering_M])
    one_KD, other_KD = torch.cat(first), torch.cat(second)
    if len(one_KD) < 2:
        return one_KD.sum() * 0
    variance_D = torch.cat([one_KD, other_KD]).var(0).detach().clamp(min=1e-6)
    return ((one_KD - other_KD).square() / variance_D).mean()
