"""Masks of a canvas: back in the original image, and as tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lyrics.core.geometry import Box, Frame
from lyrics.core.refining.canvas_masks import CanvasToOriginal, mask_token


def test_sampling_is_bilinear_interpolation():
    torch.manual_seed(0)
    logits = torch.randn(40, 64)
    for width, height in ((50, 30), (64, 40), (200, 333), (1, 1)):
        ours = CanvasToOriginal(Frame.of(width, height).resize(64, 40), torch.device("cpu"))(logits)
        theirs = F.interpolate(logits[None, None], (height, width), mode="bilinear", align_corners=False)[0, 0]
        sure = theirs.abs().numpy() > 1e-5
        assert (ours == (theirs > 0).numpy())[sure].all()
        assert sure.mean() > 0.99


def test_a_token_is_the_mean_of_the_cells_that_the_mask_covers() -> None:
    image_Dhw = torch.arange(4.0).view(1, 2, 2)  # cells of 4 pixels: 0 1 / 2 3
    mask_HW = torch.zeros(8, 6, dtype=torch.bool)
    mask_HW[:4, 2:6] = True  # half of cell 0 and half of cell 1, whose right half is padding
    box = Box(0.25, 0.0, 0.75, 0.5)
    token = mask_token(image_Dhw, mask_HW, torch.tensor([2.0, 0.0, 6.0, 4.0]), box, 8)
    assert token.tolist() == pytest.approx([0.5, 0.5, 0.25, 0.5, 0.5])


@pytest.mark.parametrize(("box_px", "expected"), [([0.0, 0.0, 8.0, 4.0], 0.5), ([5.0, 5.0, 5.0, 5.0], 3.0)])
def test_an_empty_mask_gives_the_mean_over_the_box(box_px: list[float], expected: float) -> None:
    image_Dhw = torch.arange(4.0).view(1, 2, 2)
    nothing = torch.zeros(8, 8, dtype=torch.bool)
    token = mask_token(image_Dhw, nothing, torch.tensor(box_px), Box(0.0, 0.0, 1.0, 0.5), 8)
    assert token[0].item() == pytest.approx(expected)
