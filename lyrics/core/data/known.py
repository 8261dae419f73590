"""Which of a sample's objects a model may know before it answers, as if a detector had found them.

Experts that look their answers up (``cached``) read a sample's own objects where there are no stored refinements. A
detector sees the image alone. So an object is shown only where its annotation belongs to the image, and not where
it belongs to what is asked or answered about it. A data set says which of the two in ``sample.extra["objects_of"]``:

==================  ==================================================================  ==========================
``objects_of``      the objects are                                                     shown in
==================  ==================================================================  ==========================
``image`` (or no    annotated whatever is asked: COCO's boxes, words that an OCR found  both stages
such key)
``caption``         named by words of the caption: Flickr30K Entities, GRIT             stage 1, which asks nothing
``question``        what a question, its options or its answer point at: the answer's   neither
                    box of DVQA, the mentions of SVIT, the regions of MultiInstruct
==================  ==================================================================  ==========================

A sample about its first object (a referring expression, the caption of a region, a question about an object) never
shows that one: its tag is the expression, or its box is where the answer is.
"""

from __future__ import annotations

from typing import Literal

from lyrics.core.data.templates import ABOUT_FIRST_OBJECT
from lyrics.core.types import DetectedObject, Sample

Stage = Literal["pretrain", "instruct"]
_SHOWN_IN = {"image": ("pretrain", "instruct"), "caption": ("pretrain",)}


def known_objects(sample: Sample, stage: Stage) -> tuple[DetectedObject, ...]:
    """Return the objects of a sample that a model may be shown as found in its image."""
    if stage not in _SHOWN_IN.get(sample.extra.get("objects_of", "image"), ()):
        return ()
    asked_for = sample.extra.get("task") in ABOUT_FIRST_OBJECT and not sample.extra.get("absent")
    return sample.objects[1:] if asked_for else sample.objects
