"""``Refinement.to_supervision`` on the supervision that is installed: 0.6.0 beside groundingdino-py, or a newer one."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lyrics.core.geometry import Box
from lyrics.core.masks import Mask
from lyrics.core.refining.refinement import Refinement
from lyrics.core.types import DetectedObject
from tests.experts.conftest import needs

supervision = needs("supervision")

SIZE_PX = (8, 6)  # width, height


def mask(*cells: tuple[int, int]) -> Mask:
    """True at these (x, y)."""
    array_HW = np.zeros(SIZE_PX[::-1], dtype=bool)
    for x, y in cells:
        array_HW[y, x] = True
    return Mask.from_array(array_HW)


def refinement(*masks: Mask | None) -> Refinement:
    """Up to three objects of two tags, best first, with these masks."""
    found = [
        ("zebra", Box(0.25, 0.0, 0.75, 0.5), 0.9),
        ("cat", Box(0, 0, 1, 1), 0.8),
        ("zebra", Box(0, 0, 0.5, 1), 0.3),
    ]
    objects = [DetectedObject(*one, own) for one, own in zip(found, masks, strict=False)]
    return Refinement(SIZE_PX, objects=tuple(objects), name="a.jpg")


def test_with_masks() -> None:
    masks = mask((2, 0), (3, 1)), mask((7, 5)), mask((0, 0))
    found = refinement(*masks).to_supervision()
    assert isinstance(found, supervision.Detections)
    assert found.xyxy.tolist() == [[2, 0, 6, 3], [0, 0, 8, 6], [0, 0, 4, 6]]
    assert found.confidence == pytest.approx([0.9, 0.8, 0.3])
    assert found.class_id.tolist() == [1, 0, 1]
    assert found.mask.dtype == bool
    assert [[tuple(cell[::-1]) for cell in np.argwhere(own)] for own in found.mask] == [
        [(2, 0), (3, 1)],
        [(7, 5)],
        [(0, 0)],
    ]


@pytest.mark.parametrize("masks", [(None, None, None), (mask((0, 0)), None, mask((1, 1)))], ids=["none", "not all"])
def test_without_masks(masks: tuple[Mask | None, ...]) -> None:
    found = refinement(*masks).to_supervision()
    assert found.mask is None
    assert len(found) == 3
    best = found[found.confidence > 0.5]
    assert best.xyxy.tolist() == [[2, 0, 6, 3], [0, 0, 8, 6]]


def test_empty() -> None:
    found = refinement().to_supervision()
    assert len(found) == 0
    assert found.xyxy.shape == (0, 4)
    assert found.mask is None
    assert list(found) == []


@pytest.mark.skipif(not hasattr(supervision.Detections.empty(), "data"), reason="this supervision keeps no names")
def test_names_where_there_is_a_place_for_them() -> None:
    found = refinement(None, None, None).to_supervision()
    assert found["class_name"].tolist() == ["zebra", "cat", "zebra"]
    assert refinement().to_supervision().data["class_name"].tolist() == []


def test_its_annotators_read_it() -> None:
    """Drawn boxes are where the object is, whatever supervision calls its annotator."""
    annotator = getattr(supervision, "BoundingBoxAnnotator", None) or supervision.BoxAnnotator
    quiet = {} if hasattr(supervision.Detections.empty(), "data") else {"skip_label": True}
    large = Refinement((80, 60), objects=refinement(None).objects)
    drawn = annotator(thickness=1).annotate(np.full((60, 80, 3), 255, np.uint8), large.to_supervision(), **quiet)
    changed = Image.fromarray((drawn != 255).any(axis=2)).getbbox()
    assert changed == pytest.approx((20, 0, 60, 30), abs=1)
