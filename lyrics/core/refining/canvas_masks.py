"""Masks that an expert made on its canvas: back in the original image, and as one token for each.

Shapes: H and W pixels of a canvas or image, h and w cells of an image embedding, D width.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from lyrics.core.geometry import Box, Frame


def mask_token(
    image_Dhw: torch.Tensor, mask_HW: torch.Tensor, box_px_4: torch.Tensor, box: Box, side: int
) -> torch.Tensor:
    """Return the local token of one object [D + 4].

    It is the image embedding averaged over the mask, each cell weighted by the part of it that the mask covers (over
    the box where the mask is empty), and the box as (center x, center y, width, height), a share of the original image.

    Args:
        image_Dhw: embedding of a square canvas.
        mask_HW: bool, of the canvas without its padding on the right and at the bottom.
        box_px_4: xyxy in pixels of the canvas, within it.
        box: the same in the original image.
        side: of the canvas with its padding, in pixels; a multiple of the cells along it.
    """
    cells = image_Dhw.shape[1]
    cell_px = side // cells
    padded_HW = F.pad(mask_HW.float(), (0, side - mask_HW.shape[1], 0, side - mask_HW.shape[0]))
    weight_hw = F.avg_pool2d(padded_HW[None], cell_px)[0]
    if not mask_HW.any():
        weight_hw = _box_coverage(box_px_4, cells, cell_px)
    pooled_D = (image_Dhw.float() * weight_hw).sum(dim=(1, 2)) / weight_hw.sum()
    center = ((box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2, box.x2 - box.x1, box.y2 - box.y1)
    return torch.cat([pooled_D, pooled_D.new_tensor(center)]).to(image_Dhw.dtype)


def _box_coverage(box_px_4: torch.Tensor, cells: int, cell_px: int) -> torch.Tensor:
    """The part of each cell that a box covers [h, w]; for a box without area, the cell that it lies in."""
    edges = torch.arange(cells + 1, device=box_px_4.device) * float(cell_px)
    sides = []
    for low, high in (box_px_4[[1, 3]], box_px_4[[0, 2]]):
        covered = (torch.minimum(high, edges[1:]) - torch.maximum(low, edges[:-1])).clamp(min=0)
        if not covered.any():
            covered[(low / cell_px).long().clamp(0, cells - 1)] = 1.0
        sides.append(covered)
    return sides[0][:, None] * sides[1]


class CanvasToOriginal:
    """Bilinear sampling of a canvas [H, W] at the centers of the original image's pixels, for a frame of any steps.

    For a canvas that was only resized this is ``F.interpolate(..., mode="bilinear", align_corners=False)``.
    """

    def __init__(self, frame: Frame, device: torch.device) -> None:
        width, height = frame.original_size
        canvas_width, canvas_height = frame.size
        self._columns = _neighbors(_centers_px(frame, width, axis=0), canvas_width, device)
        self._rows = _neighbors(_centers_px(frame, height, axis=1), canvas_height, device)
        self._shown_HW = frame.mask_from_canvas(np.ones((canvas_height, canvas_width), dtype=np.bool_))

    def __call__(self, logits_HW: torch.Tensor) -> np.ndarray:
        """Where the logits are above 0 in the original image, bool; False where the canvas does not show it."""
        above, below, down = self._rows
        rows_HW = torch.lerp(logits_HW[above], logits_HW[below], down[:, None])
        left, right, across = self._columns
        original_HW = torch.lerp(rows_HW[:, left], rows_HW[:, right], across)
        return (original_HW > 0).cpu().numpy() & self._shown_HW


def _centers_px(frame: Frame, pixels: int, axis: int) -> np.ndarray:
    """Where on the canvas the centers of the original image's columns (axis 0) or rows (axis 1) lie, in pixels."""
    edges = np.arange(pixels + 1) / pixels
    boxes_N4 = np.tile([0.0, 0.0, 1.0, 1.0], (pixels, 1))
    boxes_N4[:, axis], boxes_N4[:, axis + 2] = edges[:-1], edges[1:]
    canvas_N4 = frame.boxes_to_canvas(boxes_N4)
    return (canvas_N4[:, axis] + canvas_N4[:, axis + 2]) / 2


def _neighbors(
    centers_px: np.ndarray, length: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each position: the two canvas pixels whose centers it lies between (clamped to the canvas), and the second's
    weight.
    """
    position = (centers_px - 0.5).clip(0, length - 1)
    first = np.floor(position).astype(np.int64)
    second = np.minimum(first + 1, length - 1)
    weight = torch.from_numpy((position - first).astype(np.float32))
    return torch.from_numpy(first).to(device), torch.from_numpy(second).to(device), weight.to(device)
