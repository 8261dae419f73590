"""From a network's queries to detections of phrases: what detectors with and without classes of their own share.

Shapes: Q queries, P phrases, D width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from lyrics.core.geometry import Frame
from lyrics.core.refining.selection import select
from lyrics.core.types import Detection, ImageBatch


def check_phrases(images: ImageBatch, phrases: Sequence[Sequence[str]]) -> None:
    """Raise ``ValueError`` unless there is one list of phrases for each image."""
    if len(phrases) != len(images) or any(isinstance(names, str) for names in phrases):
        raise ValueError(
            f"a detector needs one list of phrases for each of the {len(images)} images, not {phrases!r:.200}"
        )


def spelling(phrase: str) -> str:
    """Return a phrase without case and surplus space."""
    return " ".join(phrase.casefold().split())


def of_one_size(frames: Sequence[Frame]) -> list[list[int]]:
    """Return the images, by number, grouped by the size of their canvas.

    Together they need no padding, so that an image's result does not depend on its neighbors.
    """
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for image, frame in enumerate(frames):
        groups[frame.size].append(image)
    return list(groups.values())


def canvases(images: ImageBatch, group: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """Return the pixels of images of one size, without padding, on the device and in the precision of ``like``."""
    width, height = images.frames[group[0]].size
    return images.pixels_BCHW[list(group), :, :height, :width].to(like)


def corners(boxes_Q4: torch.Tensor) -> torch.Tensor:
    """(center x, center y, width, height) -> xyxy, float32."""
    center_Q2, size_Q2 = boxes_Q4[..., :2].float(), boxes_Q4[..., 2:].float()
    return torch.cat([center_Q2 - size_Q2 / 2, center_Q2 + size_Q2 / 2], dim=-1)


def detections_of(
    scores_QP: torch.Tensor,
    boxes_Q4: torch.Tensor,
    phrases: Sequence[str],
    frame: Frame,
    *,
    threshold: float,
    nms_iou: float,
    limit: int,
    text_threshold: float | None = None,
) -> tuple[list[Detection], list[int]]:
    """Return one image's detections in descending score, and the query of each.

    Args:
        scores_QP: probabilities.
        boxes_Q4: xyxy, a share of the canvas.
        phrases: P of them, as the caller spelled them.
        frame: leads from the canvas to the original image; what it does not show is left out.
        threshold: a query is a box when its best score is above it.
        nms_iou: of two boxes for one phrase that overlap more, the better stays; 1 keeps all.
        limit: most detections.
        text_threshold: a box is a detection of each phrase above it; ``threshold`` unless given.
    """
    width, height = frame.size
    boxes_px_Q4 = (boxes_Q4 * boxes_Q4.new_tensor([width, height, width, height])).cpu().numpy()
    scores = scores_QP.float().cpu().numpy()
    query_N, phrase_N, _ = select(
        scores,
        boxes_px_Q4,
        box_threshold=threshold,
        text_threshold=threshold if text_threshold is None else text_threshold,
        nms_iou=nms_iou,
        limit=limit,
    )
    found, queries = [], []
    for query, phrase in zip(query_N.tolist(), phrase_N.tolist(), strict=True):
        box = frame.box_from_canvas(boxes_px_Q4[query])
        if box is not None:
            found.append(Detection(phrases[phrase], box, float(scores[query, phrase])))
            queries.append(query)
    return found, queries
