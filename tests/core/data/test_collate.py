"""Stored refinements that are of another picture than the one that is trained on."""

from __future__ import annotations

import pytest
from PIL import Image

from lyrics.core.data.collate import Collator
from lyrics.core.data.stream import Example
from lyrics.core.errors import DatasetError
from lyrics.core.geometry import Box
from lyrics.core.pictures.processor import Processor
from lyrics.core.refining.refinement import Refinement
from lyrics.core.types import DetectedObject, Preprocessing, Sample

FOUND = (DetectedObject("dog", Box(0.1, 0.1, 0.5, 0.5), 0.9),)
SEEN = Preprocessing("squash", 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def shown(stored_px: tuple[int, int]) -> tuple[DetectedObject, ...] | None:
    refined = {"a.jpg": Refinement(stored_px, objects=FOUND, name="a.jpg")}
    collate = Collator("pretrain", Processor({"detector": SEEN}), seed=0, refined=refined)
    batch = collate([Example(0, "set", 3, Sample("a.jpg", ("a dog",)), Image.new("RGB", (64, 48)))])
    return batch.images.by_expert["detector"].known_objects[0]


def test_a_refinement_of_the_picture_at_any_scale_is_shown() -> None:
    for stored_px in ((64, 48), (640, 480)):
        (one,) = shown(stored_px) or ()
        assert one.tag == "dog"
        assert one.box_norm.iou(FOUND[0].box_norm) > 0.999


@pytest.mark.parametrize("stored_px", [(48, 64), (64, 64)])
def test_a_refinement_of_a_turned_or_cropped_picture_is_refused(stored_px: tuple[int, int]) -> None:
    with pytest.raises(
        DatasetError, match=r"a.jpg \(data set 'set', row 3\) has \(64, 48\) pixels, but .* another pic"
    ):
        shown(stored_px)
