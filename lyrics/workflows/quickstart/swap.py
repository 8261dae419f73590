"""Swap the detector by its name, and show what is then different.

The annotations, read by ``cached``, stand in the place of the trained one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from lyrics.core.refining.refinement import Refinement
from lyrics.core.types import DetectedObject

#: What ``--set`` would say; the tagger's tags would come from the images still, and nothing would ask for them.
OVERRIDES = {f"refiner.{part}": {"use": "cached", "options": {"missing": "empty"}} for part in ("tagger", "detector")}
_SAME_IOU = 0.5


def annotated(pictures: Sequence[Image.Image], annotations: Sequence[Sequence[DetectedObject]]) -> list[Refinement]:
    """Return what ``lyrics-tiny``'s refiner says of images when tags and boxes are the annotations'.

    Masks are still the segmenter's.
    """
    from lyrics.core.build import build_refiner
    from lyrics.core.pictures.processor import Processor

    refiner = build_refiner("lyrics-tiny", overrides=OVERRIDES)
    processor = Processor({name: expert.preprocessing for name, expert in refiner.experts.items()})  # type: ignore[misc]
    images = processor.images(pictures, known_objects=annotations)
    return list(refiner.refine(images).refinements)


def difference(seen: Refinement, true: Refinement) -> dict[str, Any]:
    """Return how many objects both have (same name, IoU from 0.5 on), and the names of those that one has alone."""
    left = list(true.objects)
    alone = []
    for found in seen.objects:
        match = next((o for o in left if o.tag == found.tag and o.box_norm.iou(found.box_norm) >= _SAME_IOU), None)
        if match is None:
            alone.append(found.tag)
        else:
            left.remove(match)
    return {
        "both": len(true.objects) - len(left),
        "trained detector alone": alone,
        "annotations alone": [one.tag for one in left],
    }
