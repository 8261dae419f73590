"""The losses that the tiny experts are trained with, as plain functions of tensors.

Shapes: B images, P names of a vocabulary, M cells, N objects of one image, K boxes, R samples along a side of a box.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from lyrics.plugins.tiny.boxes import areas, generalised_iou
from lyrics.plugins.tiny.detector import CellPredictions

#: A cell belongs to an object if its centre is this close to the object's, in cells, along both axes (FCOS's centre
#: sampling).
CENTRE_RADIUS = 1.5


def multilabel_loss(logits: torch.Tensor, targets: torch.Tensor, *, gamma_negative: float = 2.0) -> torch.Tensor:
    """Loss for independent labels, summed over labels and averaged over the leading dimensions.

    The asymmetric loss of Ridnik et al. 2021 (equation 4) with its gamma for positives 0: negatives, of which an image
    has many, are weighted by their probability to the power of ``gamma_negative``. With 0 it is binary cross-entropy.

    Args:
        logits: [..., P].
        targets: [..., P], 0 or 1.
    """
    weights = torch.where(targets > 0.5, 1.0, logits.sigmoid() ** gamma_negative)
    return (weights * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")).sum(-1).mean()


def focal_loss(logits: torch.Tensor, targets: torch.Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> torch.Tensor:
    """Sigmoid focal loss of every element, unreduced (Lin et al. 2017, equation 5); ``targets`` are 0 or 1, of the
    logits' shape.
    """
    probabilities = logits.sigmoid()
    right = torch.where(targets > 0.5, probabilities, 1 - probabilities)
    weight = torch.where(targets > 0.5, alpha, 1 - alpha)
    return weight * (1 - right) ** gamma * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def assign_cells(centres_px_M2: torch.Tensor, boxes_px_N4: torch.Tensor, stride: int) -> torch.Tensor:
    """Which object each cell answers for: its row in ``boxes_px_N4``, or -1 for none; int64 [M].

    A cell answers for the smallest box that holds the cell's centre within ``CENTRE_RADIUS`` cells of the box's own
    centre (FCOS, Tian et al. 2019, section 3.1, with its later centre sampling). The cell nearest to a box's centre
    answers for it in any case, so that no object is left out, however small; of two objects with the same nearest cell
    the smaller has it.
    """
    count = len(boxes_px_N4)
    assigned_M = torch.full((len(centres_px_M2),), -1, device=centres_px_M2.device)
    if count == 0:
        return assigned_M
    middle_N2 = (boxes_px_N4[:, :2] + boxes_px_N4[:, 2:]) / 2
    reach_N2 = ((boxes_px_N4[:, 2:] - boxes_px_N4[:, :2]) / 2).clamp(max=CENTRE_RADIUS * stride)
    offset_MN = (centres_px_M2[:, None] - middle_N2).abs()
    within_MN = (offset_MN < reach_N2).all(dim=-1)
    area_N = areas(boxes_px_N4)
    claims_MN = torch.where(within_MN, area_N, torch.inf)
    smallest_M = claims_MN.argmin(dim=1)
    assigned_M = torch.where(within_MN.any(dim=1), smallest_M, assigned_M)
    nearest_N = offset_MN.square().sum(dim=-1).argmin(dim=0)
    for row in area_N.argsort(descending=True).tolist():
        assigned_M[nearest_N[row]] = row
    return assigned_M


def detection_loss(
    cells: CellPredictions,
    boxes_px: Sequence[torch.Tensor],
    names: Sequence[torch.Tensor],
    stride: int,
) -> torch.Tensor:
    """Objectness (focal) + boxes (generalised IoU) + names (asymmetric), each divided by the batch's number of
    answering cells.

    Args:
        cells: ``TinyDetector.predict`` of B images.
        boxes_px: per image its objects' boxes [N,4], xyxy in pixels of the canvas.
        names: per image its objects' names [N,P], 0 or 1.
        stride: pixels per cell.

    A batch without objects is trained on objectness alone.
    """
    assigned_BM = torch.stack([assign_cells(cells.centres_px_M2, boxes_px_N4, stride) for boxes_px_N4 in boxes_px])
    assigned_BM = assigned_BM.masked_fill(~cells.mask_BM, -1)
    answering_BM = assigned_BM >= 0
    count = answering_BM.sum().clamp(min=1)
    objectness = focal_loss(cells.objectness_BM, answering_BM.to(cells.objectness_BM))[cells.mask_BM].sum() / count
    if not answering_BM.any():
        return objectness
    answers = [assigned_M[assigned_M >= 0] for assigned_M in assigned_BM]
    wanted_boxes = torch.cat([boxes_px_N4[rows] for boxes_px_N4, rows in zip(boxes_px, answers, strict=True)])
    wanted_names = torch.cat([names_NP[rows] for names_NP, rows in zip(names, answers, strict=True)])
    placing = (1 - generalised_iou(cells.boxes_px_BM4[answering_BM], wanted_boxes)).mean()
    return objectness + placing + multilabel_loss(cells.phrases_BMP[answering_BM], wanted_names)


def dice_loss(logits_KRR: torch.Tensor, targets_KRR: torch.Tensor) -> torch.Tensor:
    """1 - Dice coefficient per box [K] of soft masks (Milletari et al. 2016, equation 3); 1 is added to both sides of
    the fraction.
    """
    probabilities = logits_KRR.sigmoid().flatten(1)
    targets = targets_KRR.flatten(1)
    overlap = (probabilities * targets).sum(1)
    return 1 - (2 * overlap + 1) / (probabilities.square().sum(1) + targets.square().sum(1) + 1)


def mask_loss(logits_KRR: torch.Tensor, targets_KRR: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy plus Dice, averaged over boxes; 0 for no boxes. ``targets_KRR`` are shares in [0, 1]."""
    if len(logits_KRR) == 0:
        return logits_KRR.sum()
    return F.binary_cross_entropy_with_logits(logits_KRR, targets_KRR) + dice_loss(logits_KRR, targets_KRR).mean()
