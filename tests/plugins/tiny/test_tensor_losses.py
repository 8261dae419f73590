"""The losses against their definitions, and the assignment of cells to objects."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lyrics.plugins.tiny.boxes import generalised_iou, non_maximum_suppression, pairwise_iou
from lyrics.plugins.tiny.detector import CellPredictions
from lyrics.plugins.tiny.tensor_losses import (
    assign_cells,
    detection_loss,
    dice_loss,
    focal_loss,
    mask_loss,
    multilabel_loss,
)

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [-3.0, 0.0, 1.0]])
TARGETS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])


def cell_centres(rows: int, columns: int, stride: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return (torch.stack([x, y], dim=-1).flatten(0, 1) + 0.5) * stride


def test_multilabel_loss_without_gammas_is_cross_entropy():
    expected = F.binary_cross_entropy_with_logits(LOGITS, TARGETS, reduction="sum") / 2
    torch.testing.assert_close(multilabel_loss(LOGITS, TARGETS, gamma_negative=0.0), expected)


def test_multilabel_loss_weighs_negatives_by_their_probability():
    logits, negative = torch.tensor([[0.3]]), torch.zeros(1, 1)
    p = logits.sigmoid().item()
    assert multilabel_loss(logits, negative, gamma_negative=3.0).item() == pytest.approx(
        -(p**3) * torch.tensor(1 - p).log().item()
    )
    positive = multilabel_loss(logits, 1 - negative, gamma_negative=3.0)
    assert positive.item() == pytest.approx(-torch.tensor(p).log().item())


def test_multilabel_loss_has_finite_gradients_when_saturated():
    logits = torch.tensor([[200.0, -200.0, 200.0, -200.0]], requires_grad=True)
    multilabel_loss(logits, torch.tensor([[1.0, 0.0, 0.0, 1.0]])).backward()
    assert logits.grad.isfinite().all()


def test_focal_loss_is_its_formula():
    p = LOGITS.sigmoid()
    expected = torch.where(TARGETS > 0, -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log())
    torch.testing.assert_close(focal_loss(LOGITS, TARGETS), expected)


def test_dice_and_mask_loss():
    target = torch.zeros(1, 8, 8)
    target[0, 2:6, 2:6] = 1
    right, wrong = (target * 2 - 1) * 30, (1 - target * 2) * 30
    assert dice_loss(right, target).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(wrong, target).item() == pytest.approx(1 - 1 / (48 + 16 + 1), abs=1e-6)
    assert mask_loss(right, target).item() == pytest.approx(0, abs=1e-6)
    assert mask_loss(wrong, target).item() == pytest.approx(30 + 1 - 1 / 65, abs=1e-4)


def test_mask_loss_of_no_boxes_is_zero_and_can_be_descended():
    logits = torch.zeros(0, 8, 8, requires_grad=True)
    loss = mask_loss(logits, torch.zeros(0, 8, 8))
    loss.backward()
    assert loss.item() == 0


def test_generalised_iou_of_known_boxes():
    first = torch.tensor([[0.0, 0.0, 2.0, 2.0]] * 3)
    second = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [4.0, 0.0, 6.0, 2.0]])
    torch.testing.assert_close(generalised_iou(first, second), torch.tensor([1.0, 1 / 3, -1 / 3]))
    torch.testing.assert_close(pairwise_iou(first[:1], second), torch.tensor([[1.0, 1 / 3, 0.0]]))


def test_suppression_keeps_the_order_of_rows_with_equal_scores():
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9], [5.0, 5.0, 6.0, 6.0]])
    assert non_maximum_suppression(boxes, torch.tensor([0.5, 0.5 + 1e-7, 0.9]), 0.5) == [2, 0]
    assert non_maximum_suppression(boxes, torch.tensor([0.5, 0.6, 0.4]), 0.5) == [1, 2]
    assert non_maximum_suppression(boxes, torch.tensor([0.5, 0.6, 0.4]), 0.95) == [1, 0, 2]
    assert non_maximum_suppression(boxes[:0], torch.zeros(0), 0.5) == []


def test_cells_answer_for_the_middle_of_boxes_and_the_smaller_of_two():
    centres = cell_centres(8, 8, 8)
    boxes = torch.tensor([[0.0, 0.0, 64.0, 64.0], [32.0, 32.0, 48.0, 48.0]])
    grid = assign_cells(centres, boxes, stride=8).reshape(8, 8)
    assert (grid == 1).nonzero().tolist() == [[4, 4], [4, 5], [5, 4], [5, 5]]
    # The middle is (32, 32) and the reach 12 px: cells whose centre is 28 or 36, less what the smaller box took.
    assert (grid == 0).nonzero().tolist() == [[3, 3], [3, 4], [4, 3]]
    assert (grid == -1).sum() == 64 - 7


def test_no_object_is_too_small_for_a_cell():
    centres = cell_centres(8, 8, 8)
    boxes = torch.tensor([[17.0, 1.0, 18.0, 2.0], [16.0, 0.0, 24.0, 8.0], [40.0, 40.0, 41.0, 41.0]])
    grid = assign_cells(centres, boxes, stride=8).reshape(8, 8)
    assert grid[0, 2] == 0  # the smaller of two with one nearest cell
    assert (grid == 2).sum() == 1
    assert (assign_cells(centres, boxes[:0], stride=8) == -1).all()


def predictions(objectness: torch.Tensor, boxes: torch.Tensor, phrases: torch.Tensor) -> CellPredictions:
    centres = cell_centres(2, 2, 8)
    mask = torch.ones_like(objectness, dtype=torch.bool)
    return CellPredictions(torch.zeros(*mask.shape, 1), mask, centres, objectness, boxes, phrases)


def test_detection_loss_is_near_zero_when_right_and_ignores_padding():
    box, name = torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.tensor([[1.0, 0.0]])
    objectness = torch.tensor([[20.0, -20.0, -20.0, -20.0]])
    cells = predictions(objectness, box.expand(1, 4, 4), torch.tensor([20.0, -20.0]).expand(1, 4, 2))
    assert detection_loss(cells, [box], [name], 8).item() == pytest.approx(0, abs=1e-5)
    assert detection_loss(cells, [box + 4], [name], 8).item() > 1
    assert detection_loss(cells, [box], [1 - name], 8).item() > 10
    assert detection_loss(cells, [box[:0]], [name[:0]], 8).item() > 1
    cells.mask_BM[0, 0] = False
    assert detection_loss(cells, [box], [1 - name], 8).item() == pytest.approx(0, abs=1e-5)


def test_detection_loss_of_a_batch_without_objects_has_finite_gradients():
    objectness = torch.zeros(2, 4, requires_grad=True)
    cells = predictions(objectness, torch.ones(2, 4, 4), torch.zeros(2, 4, 2))
    loss = detection_loss(cells, [torch.zeros(0, 4)] * 2, [torch.zeros(0, 2)] * 2, 8)
    loss.backward()
    assert loss.item() == pytest.approx(8 * 0.75 * 0.25 * 0.6931, abs=1e-3)
    assert objectness.grad.gt(0).all()
