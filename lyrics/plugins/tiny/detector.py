"""``tiny-detector``: boxes for those names of a fixed vocabulary that it is asked for.

One stage and no anchors: every cell of 8 x 8 pixels says whether an object is there, how far its sides are from the
cell's centre, and what it is called (after FCOS, Tian et al. 2019, with objectness in place of centre-ness).

Shapes: B images, M cells in row-major order, D width, P names of the vocabulary, h and w cells.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from lyrics.core.contracts import BuildContext
from lyrics.core.geometry import Box
from lyrics.core.types import Detection, DetectorOutput, ImageBatch, Preprocessing
from lyrics.plugins.tiny import TinyDetectorOptions
from lyrics.plugins.tiny.backbone import ConvTrunk
from lyrics.plugins.tiny.boxes import non_maximum_suppression, to_centre_size
from lyrics.plugins.tiny.knows_scenes import KnowsScenes
from lyrics.plugins.tiny.phrases import PhraseHead
from lyrics.plugins.tiny.trained_weights import materialize

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CellPredictions:
    """What every cell says.

    Args:
        states_BMD: the states that the rest is read from; on padding they mean nothing.
        mask_BM: True for cells of the image, False for padding.
        centres_px_M2: (x, y) of the cells' centres in pixels of the canvas.
        objectness_BM: logits.
        boxes_px_BM4: xyxy in pixels of the canvas, not clipped to it.
        phrases_BMP: logits of the vocabulary's names, given that there is an object.
    """

    states_BMD: torch.Tensor
    mask_BM: torch.Tensor
    centres_px_M2: torch.Tensor
    objectness_BM: torch.Tensor
    boxes_px_BM4: torch.Tensor
    phrases_BMP: torch.Tensor


class TinyDetector(KnowsScenes, nn.Module):
    """Images and phrases -> detections, and local tokens.

    Local tokens [B,M,width + 4]: a cell's state and its box (center x, center y, width, height; normalized in the
    original image and clipped to it). M is the number of cells of the canvas in row-major order, (image_size / 8)
    squared for images prepared as ``preprocessing`` says; the mask leaves out padding. With ``queries`` M is that
    number, and tokens are the cells that are surest of an object, best first, each of another box; the mask leaves out
    those that are hardly sure of one. Tokens do not depend on the phrases.

    A phrase counts as the name that it equals but for case and white space; one that equals no name is never detected.
    """

    #: A token ends in its box.
    tokens_end_in_boxes: Literal[True] = True

    def __init__(self, options: TinyDetectorOptions) -> None:
        super().__init__()
        self.feature_dim = options.feature_dim
        self.preprocessing = Preprocessing(
            resize="longest",
            size=options.image_size,
            pad_to=options.image_size,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        )
        #: What it can be asked for, without a tagger.
        self.vocabulary = options.vocabulary
        self.score_threshold = options.score_threshold
        self.nms_iou = options.nms_iou
        self.rival_iou = options.rival_iou
        self.max_detections = options.max_detections
        self.queries = options.queries
        self.query_threshold = options.query_threshold
        width = options.width
        self.trunk = ConvTrunk((width // 3, 2 * width // 3, width), (0, 2, options.blocks))
        self.narrow = nn.Identity() if options.query_width is None else nn.Linear(width, options.query_width)
        width = options.query_width or width
        self.naming = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.phrases = PhraseHead(width, options.vocabulary, prior_logit=-2.0)
        self.placing = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.objectness = nn.Linear(width, 1)
        self.distances = nn.Linear(width, 4)
        # Few cells hold an object: begin near a probability of 0.01 (Lin et al. 2017, section 4.1).
        nn.init.constant_(self.objectness.bias, -4.6)

    def predict(self, images: ImageBatch) -> CellPredictions:
        """What every cell says, before thresholds. Training reads this."""
        features_BDhw, mask_Bhw = self.trunk(images.pixels_BCHW, images.pixel_mask_BHW)
        states_BMD = self.narrow(features_BDhw.flatten(2).transpose(1, 2))
        stride = self.trunk.stride
        height, width = mask_Bhw.shape[1:]
        device = states_BMD.device
        rows, columns = torch.meshgrid(
            torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
        )
        centres_px_M2 = (torch.stack([columns, rows], dim=-1).flatten(0, 1) + 0.5) * stride
        placed = self.placing(states_BMD)
        # Distances are exponentials, in cells (FCOS, section 3.1); beyond exp(5) cells there is no image.
        distances_px = self.distances(placed).clamp(max=5.0).exp() * stride
        boxes_px_BM4 = torch.cat([centres_px_M2 - distances_px[..., :2], centres_px_M2 + distances_px[..., 2:]], dim=-1)
        return CellPredictions(
            states_BMD=states_BMD,
            mask_BM=mask_Bhw.flatten(1),
            centres_px_M2=centres_px_M2,
            objectness_BM=self.objectness(placed).squeeze(-1),
            boxes_px_BM4=boxes_px_BM4,
            phrases_BMP=self.phrases(self.naming(states_BMD)),
        )

    def forward(self, images: ImageBatch, phrases: Sequence[Sequence[str]]) -> DetectorOutput:
        """``phrases[i]`` are looked for in image i. Boxes come back in the original image."""
        assert len(phrases) == len(images), "one list of phrases per image"
        cells = self.predict(images)
        boxes_norm_BM4 = self._to_original(cells.boxes_px_BM4, images)
        tokens_BMD = torch.cat([cells.states_BMD, to_centre_size(boxes_norm_BM4)], dim=-1) * cells.mask_BM[..., None]
        scores_BMP = cells.phrases_BMP.sigmoid() * cells.objectness_BM.sigmoid()[..., None]
        scores_BMP = scores_BMP.masked_fill(~cells.mask_BM[..., None], -1.0)
        detections = tuple(
            self._detections(boxes_norm_M4, scores_MP, wanted)
            for boxes_norm_M4, scores_MP, wanted in zip(
                boxes_norm_BM4.float().cpu(), scores_BMP.detach().float().cpu(), phrases, strict=True
            )
        )
        if self.queries is None:
            return DetectorOutput(detections=detections, tokens_BMD=tokens_BMD, mask_BM=cells.mask_BM)
        return DetectorOutput(detections, *self._best(tokens_BMD, boxes_norm_BM4, cells))

    def _best(
        self, tokens_BMD: torch.Tensor, boxes_norm_BM4: torch.Tensor, cells: CellPredictions
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens [B,queries,D] of the cells that are surest of an object, best first, and which of them exist."""
        assert self.queries is not None
        best_BQD = tokens_BMD.new_zeros(len(tokens_BMD), self.queries, tokens_BMD.shape[2])
        mask_BQ = torch.zeros(best_BQD.shape[:2], dtype=torch.bool, device=tokens_BMD.device)
        sure_BM = cells.objectness_BM.detach().float().sigmoid().masked_fill(~cells.mask_BM, -1.0).cpu()
        for row, (sure_M, boxes_norm_M4) in enumerate(zip(sure_BM, boxes_norm_BM4.float().cpu(), strict=True)):
            # What is not a number stays, so that it is seen where values are checked.
            rows = (~(sure_M < self.query_threshold)).nonzero().flatten()
            kept = non_maximum_suppression(boxes_norm_M4[rows], sure_M[rows], self.nms_iou)[: self.queries]
            best_BQD[row, : len(kept)] = tokens_BMD[row, rows[kept].to(tokens_BMD.device)]
            mask_BQ[row, : len(kept)] = True
        return best_BQD, mask_BQ

    @staticmethod
    def _to_original(boxes_px_BM4: torch.Tensor, images: ImageBatch) -> torch.Tensor:
        """Boxes on the canvas [B,M,4] -> normalised in the original image, clipped to it, without gradient."""
        boxes_norm_BM4 = torch.zeros_like(boxes_px_BM4)
        for row_M4, boxes_px_M4, frame in zip(boxes_norm_BM4, boxes_px_BM4, images.frames, strict=True):
            boxes_norm_M4 = frame.boxes_from_canvas(boxes_px_M4.detach().double().cpu().numpy())
            row_M4.copy_(torch.from_numpy(boxes_norm_M4.clip(0, 1)))
        return boxes_norm_BM4

    def _detections(
        self, boxes_norm_M4: torch.Tensor, scores_MP: torch.Tensor, wanted: Sequence[str]
    ) -> tuple[Detection, ...]:
        """The detections of one image, best first: suppressed among the boxes of each phrase, then among those of
        all.
        """
        found: list[Detection] = []
        for phrase in dict.fromkeys(wanted):
            column = self.phrases.column(phrase)
            if column is None:
                continue
            cells = (scores_MP[:, column] >= self.score_threshold).nonzero().flatten()
            boxes_norm_N4, scores_N = boxes_norm_M4[cells], scores_MP[cells, column]
            for row in non_maximum_suppression(boxes_norm_N4, scores_N, self.nms_iou):
                box = Box.clip(*boxes_norm_N4[row].tolist())
                if box is not None:
                    found.append(Detection(phrase, box, scores_N[row].item()))
        found.sort(key=lambda detection: -detection.score)
        found = self._without_rivals(found)
        if len(found) > self.max_detections:
            logger.info("tiny-detector: kept the best %d of %d detections", self.max_detections, len(found))
        return tuple(found[: self.max_detections])

    def _without_rivals(self, found: Sequence[Detection]) -> list[Detection]:
        """Of several names for nearly the same box, the best; best first in and out."""
        if not found:
            return []
        boxes_norm_N4 = torch.tensor([one.box_norm.as_tuple() for one in found])
        scores_N = torch.tensor([one.score for one in found])
        return [found[row] for row in non_maximum_suppression(boxes_norm_N4, scores_N, self.rival_iou)]


def build(options: TinyDetectorOptions, context: BuildContext) -> TinyDetector:
    """The component. Raises ``WeightsError`` where trained weights are asked for and do not fit the options."""
    module = TinyDetector(options)
    materialize(module, "tiny-detector", options, context)
    return module
