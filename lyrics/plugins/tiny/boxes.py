"""Box arithmetic on tensors. Boxes are xyxy, ``x1 <= x2`` and ``y1 <= y2``, in any one frame.

Shapes: N and M boxes.
"""

from __future__ import annotations

import torch


def to_centre_size(boxes: torch.Tensor) -> torch.Tensor:
    """xyxy [..., 4] -> (centre x, centre y, width, height) [..., 4]."""
    corner, opposite = boxes.split(2, dim=-1)
    return torch.cat([(corner + opposite) / 2, opposite - corner], dim=-1)


def areas(boxes: torch.Tensor) -> torch.Tensor:
    """Area of each box [..., 4] -> [...]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def paired_iou(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Intersection over union, and the union's area, of boxes that broadcast to [..., 4]; 0 for two boxes
    of no area.
    """
    corner = torch.maximum(first[..., :2], second[..., :2])
    opposite = torch.minimum(first[..., 2:], second[..., 2:])
    intersection = (opposite - corner).clamp(min=0).prod(dim=-1)
    union = areas(first) + areas(second) - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).eps), union


def pairwise_iou(first_N4: torch.Tensor, second_M4: torch.Tensor) -> torch.Tensor:
    """Intersection over union of every box with every other, [N,M]."""
    return paired_iou(first_N4[:, None], second_M4[None])[0]


def generalised_iou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Generalised IoU in [-1, 1] of boxes that broadcast to [..., 4] (Rezatofighi et al. 2019, algorithm 1)."""
    iou, union = paired_iou(first, second)
    corner = torch.minimum(first[..., :2], second[..., :2])
    opposite = torch.maximum(first[..., 2:], second[..., 2:])
    hull = (opposite - corner).prod(dim=-1).clamp(min=torch.finfo(union.dtype).eps)
    return iou - (hull - union) / hull


def non_maximum_suppression(boxes_N4: torch.Tensor, scores_N: torch.Tensor, threshold: float) -> list[int]:
    """Rows that stay, best first: a row is dropped if a better one that stays overlaps it by an IoU of more than
    ``threshold``.
    """
    # Scores that differ by rounding noise count as equal and keep the order of the rows: noise depends on the size of
    # the batch.
    order = torch.sort(scores_N.round(decimals=5), descending=True, stable=True).indices
    overlapping_NN = pairwise_iou(boxes_N4[order], boxes_N4[order]) > threshold
    dropped_N = torch.zeros(len(order), dtype=torch.bool)
    kept: list[int] = []
    for place, row in enumerate(order.tolist()):
        if not dropped_N[place]:
            kept.append(row)
            dropped_N |= overlapping_NN[place]
    return kept
