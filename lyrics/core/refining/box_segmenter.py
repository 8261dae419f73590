"""Segmenters that encode an image once and decode a mask for each box: what all of them do around their network.

Shapes: B images, C color channels, K boxes, H and W pixels of a canvas or image, h and w cells of the image
embedding, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from lyrics.core.geometry import Box, Frame
from lyrics.core.masks import Mask
from lyrics.core.refining.canvas_masks import CanvasToOriginal, mask_token
from lyrics.core.refining.side_by_side import side_by_side
from lyrics.core.types import ImageBatch, Preprocessing, SegmenterOutput


class Embedded(Protocol):
    """What a network's decoder reads of one image."""

    @property
    def image_Dhw(self) -> torch.Tensor: ...


class BoxSegmenter(nn.Module, ABC):
    """Images and boxes -> per box its mask in the original image, and a local token.

    A subclass has the ``network``, ``embed`` and ``mask_logits``. A mask is where the logits are above 0, enlarged
    bilinearly to the canvas, cut to the image, and bilinearly to the original image. A box that the canvas does not
    show (its place was cropped away) has an empty mask. Local tokens [B, K, embedding_dim + 4]: see
    ``lyrics.core.refining.canvas_masks.mask_token``.

    An image is encoded once however many boxes it has, and not at all without boxes; boxes are decoded
    ``boxes_per_pass`` at a time.

    Args:
        preprocessing: makes square canvases, of one size for all images.
        embedding_dim: width of the image embedding.
        boxes_per_pass: boxes that go through the decoder together.
    """

    network: Any
    #: Whether the network may be called twice at a time.
    reentrant = True
    #: A token ends in its box.
    tokens_end_in_boxes: Literal[True] = True

    def __init__(self, preprocessing: Preprocessing, embedding_dim: int, boxes_per_pass: int) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.feature_dim = embedding_dim + 4
        self.boxes_per_pass = boxes_per_pass
        self._side = preprocessing.pad_to or preprocessing.crop or preprocessing.size

    @abstractmethod
    def embed(self, pixels_CHW: torch.Tensor) -> Any:
        """Return what the decoder reads of one image, prepared and padded; an ``Embedded``."""

    @abstractmethod
    def mask_logits(self, embedding: Any, boxes_px_K4: torch.Tensor) -> torch.Tensor:
        """Return logits [K, ., .] of the masks of boxes (xyxy, pixels of the canvas); they cover the padded canvas."""

    def forward(self, images: ImageBatch, boxes: Sequence[Sequence[Box]]) -> SegmenterOutput:
        """Return masks and tokens, in the order of the boxes.

        Raises ``ValueError`` unless there is one list of boxes per image.
        """
        if len(boxes) != len(images) or any(isinstance(own, Box) for own in boxes):
            raise ValueError(
                f"a segmenter needs one list of boxes for each of the {len(images)} images, not {boxes!r:.200}"
            )
        most = max(map(len, boxes), default=0)
        parameter = self.network.mask_decoder.iou_token.weight
        tokens_BKD = parameter.new_zeros(len(boxes), most, self.feature_dim)
        mask_BK = torch.zeros(len(boxes), most, dtype=torch.bool, device=parameter.device)
        masks: list[tuple[Mask, ...]] = [()] * len(boxes)
        asked = [picture for picture, own in enumerate(boxes) if own]

        def segmented(picture: int) -> tuple[tuple[Mask, ...], torch.Tensor]:
            embedding = self.embed(images.pixels_BCHW[picture].to(parameter))
            return self._segment(embedding, boxes[picture], images.frames[picture])

        results = side_by_side(segmented, asked, parameter.device) if self.reentrant else map(segmented, asked)
        for picture, (own_masks, tokens_KD) in zip(asked, results, strict=True):
            masks[picture] = own_masks
            tokens_BKD[picture, : len(own_masks)] = tokens_KD
            mask_BK[picture, : len(own_masks)] = True
        return SegmenterOutput(masks=tuple(masks), tokens_BKD=tokens_BKD, mask_BK=mask_BK)

    def _segment(
        self, embedding: Embedded, boxes: Sequence[Box], frame: Frame
    ) -> tuple[tuple[Mask, ...], torch.Tensor]:
        """Masks and tokens [K, D] of one image's boxes."""
        width, height = frame.size
        device = embedding.image_Dhw.device
        boxes_px_K4 = torch.tensor([frame.box_to_canvas(box) for box in boxes], dtype=torch.float32, device=device)
        boxes_px_K4 = boxes_px_K4.clamp(min=boxes_px_K4.new_zeros(4), max=boxes_px_K4.new_tensor([width, height] * 2))
        to_original = CanvasToOriginal(frame, device)
        masks: list[Mask] = []
        tokens: list[torch.Tensor] = []
        for chunk in range(0, len(boxes), self.boxes_per_pass):
            chunk_px_K4 = boxes_px_K4[chunk : chunk + self.boxes_per_pass]
            small_KHW = self.mask_logits(embedding, chunk_px_K4).float()
            # Box by box from here on: logits of the size of canvas and image for all of them would be gigabytes.
            for box, box_px_4, small_HW in zip(
                boxes[chunk : chunk + len(small_KHW)], chunk_px_K4, small_KHW, strict=True
            ):
                logits_HW = self._enlarged(small_HW)[:height, :width]
                if frame.visible_fraction(box) == 0:
                    logits_HW = torch.full_like(logits_HW, -1.0)
                masks.append(Mask.from_array(to_original(logits_HW)))
                tokens.append(mask_token(embedding.image_Dhw, logits_HW > 0, box_px_4, box, self._side))
        return tuple(masks), torch.stack(tokens)

    def _enlarged(self, logits_HW: torch.Tensor) -> torch.Tensor:
        """Mask logits as large as the padded canvas."""
        return F.interpolate(logits_HW[None, None], (self._side, self._side), mode="bilinear", align_corners=False)[
            0, 0
        ]
