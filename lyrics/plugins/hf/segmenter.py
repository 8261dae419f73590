"""``hf-segmenter``: transformers' promptable segmenters (``AutoModelForMaskGeneration``), asked with boxes.

Shapes: C color channels, K boxes, H and W pixels of the canvas, h and w cells of the image embedding, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForMaskGeneration

from lyrics.core.contracts import BuildContext
from lyrics.core.onednn import use_onednn
from lyrics.core.refining.box_segmenter import BoxSegmenter
from lyrics.plugins.hf import HfSegmenterOptions
from lyrics.plugins.hf.networks import CheckpointSource, KeepsConfig, find_source, make_network
from lyrics.plugins.hf.sam2 import embed, is_lean, make_lean


@dataclass(frozen=True)
class _Embedding:
    """What ``get_image_embeddings`` gave for one image, and of it the embedding that masks are pooled over."""

    given: Any
    image_Dhw: torch.Tensor


class HfSegmenter(BoxSegmenter, KeepsConfig):
    """Images and boxes -> masks in the original image and tokens [B, K, D + 4], as ``BoxSegmenter`` describes them.

    Each box gives one mask: the network's own choice for an unambiguous prompt (``multimask_output=False``), and of
    SAM-HQ the sum of SAM's first mask and the high-quality one, which its authors take for boxes.
    """

    def __init__(self, network: Any, source: CheckpointSource, boxes_per_pass: int) -> None:
        super().__init__(source.preprocessing, int(source.config.prompt_encoder_config.hidden_size), boxes_per_pass)
        self.network = network
        use_onednn(network)
        self._lean = is_lean(network)
        if self._lean:
            make_lean(network)
        self.config = source.config
        self.entries = source.entries

    def embed(self, pixels_CHW: torch.Tensor) -> _Embedding:
        """Return what the decoder reads of one image."""
        if self._lean:
            maps = embed(self.network, pixels_CHW[None])
            return _Embedding(maps, maps[-1][0])
        given = self.network.get_image_embeddings(pixels_CHW[None])
        if isinstance(given, tuple):  # SAM-HQ: the embedding, and those of earlier layers
            return _Embedding(given, given[0][0])
        return _Embedding(given, (given if isinstance(given, torch.Tensor) else given[-1])[0])

    def mask_logits(self, embedding: _Embedding, boxes_px_K4: torch.Tensor) -> torch.Tensor:
        """Return logits [K, ., .] of the masks of boxes (xyxy, pixels of the canvas)."""
        boxes = boxes_px_K4[None].to(embedding.image_Dhw.dtype)
        given = embedding.given
        if isinstance(given, tuple):
            image, earlier = given
            output = self.network(
                image_embeddings=image, intermediate_embeddings=earlier, input_boxes=boxes, multimask_output=False
            )
        else:
            output = self.network(image_embeddings=given, input_boxes=boxes, multimask_output=False)
        masks_KHW: torch.Tensor = output.pred_masks[0, :, 0]
        return masks_KHW


def build(options: HfSegmenterOptions, context: BuildContext) -> HfSegmenter:
    """Return the component ``hf-segmenter``.

    Raises:
        SpecError: nothing says what it is.
        WeightsError: the checkpoint is not found, is no promptable segmenter, or does not fit.
    """
    source = find_source(options, context, AutoModelForMaskGeneration, "segmenter")
    network = make_network(AutoModelForMaskGeneration._model_mapping[type(source.config)], source)
    return HfSegmenter(network, source, options.boxes_per_pass).eval()
