"""Referring expression comprehension: is the box of an answer the one that is meant?

The paper says that an IoU "higher than 0.5" counts (section 5.1); the code of Qwen-VL, of Shikra's successors and of
lmms-eval counts 0.5 itself, too, and so does this. Where an answer names several boxes the first is judged. An answer
without a box is wrong.
"""

from __future__ import annotations

from lyrics.core.geometry import Box

MIN_IOU = 0.5


def box_is_right(predicted: Box | None, target: Box) -> bool:
    """Do the boxes, shares of the same image, overlap enough? None, an answer without a box, does not."""
    return predicted is not None and predicted.iou(target) >= MIN_IOU
