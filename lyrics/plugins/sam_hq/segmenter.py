"""``sam-hq``: transformers' SAM-HQ as a segmenter of boxes.

``upstream.py`` puts the original code in the place of transformers' network; all the rest is the same.

Shapes: B images, C color channels, K boxes, H and W pixels of a canvas or image, h and w cells of the image
embedding, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import SamHQConfig, SamHQMaskDecoderConfig, SamHQModel, SamHQPromptEncoderConfig, SamHQVisionConfig

from lyrics.core.contracts import BuildContext
from lyrics.core.geometry import Box, Frame
from lyrics.core.masks import Mask
from lyrics.core.refining.side_by_side import side_by_side
from lyrics.core.types import ImageBatch, Preprocessing, SegmenterOutput
from lyrics.core.weights.pretrained import load_transformers, locate_checkpoint, read_tensors
from lyrics.core.weights.transformers_files import CONFIG_FILES, compare_config, part_config, write_config
from lyrics.plugins.sam_hq import SamHqOptions
from lyrics.plugins.sam_hq.decoder import Embedding, box_prompts, decode, embed, encode_positions_in_float32
from lyrics.plugins.sam_hq.encoder import exchange_layers
from lyrics.plugins.sam_hq.weights import from_original, is_original

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class SamHq(nn.Module):
    """Images and boxes -> per box its mask in the original picture, and a local token.

    A mask is the first mask of SAM plus the high-quality mask (the authors' default for a box), above a logit of 0,
    enlarged as the authors do: bilinear to the canvas, cut to the image, bilinear to the original image. A box that
    the canvas does not show (its place was cropped away) has an empty mask.

    Local tokens [B, K, prompt_width + 4]: the image embedding averaged over the mask (each cell weighted by the part of
    it that the mask covers; over the box where the mask is empty), and the box as (center x, center y, width, height),
    normalized in the original image.

    An image is encoded once however many boxes it has, and not at all without boxes; boxes are decoded
    ``boxes_per_pass`` at a time.
    """

    network: Any
    #: Whether the network may be called twice at a time.
    reentrant = True

    def __init__(self, options: SamHqOptions, network: nn.Module, config: SamHQConfig) -> None:
        super().__init__()
        self.config = config
        vision, _, prompts = _parts(config)
        self.feature_dim = int(prompts.hidden_size) + 4
        image_size = int(vision.image_size)
        self.preprocessing = Preprocessing(
            resize="longest",
            size=image_size,
            pad_to=image_size,
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
            resampling="bilinear",
        )
        self.boxes_per_pass = options.boxes_per_pass
        self.patch_size = int(vision.patch_size)
        self.network = network

    def save_files(self, folder: Path) -> None:
        """The network's configuration, from which it is made again."""
        write_config(self.config, folder)

    def load_files(self, folder: Path) -> None:
        """Compare the stored configuration with the network's. Raises ``WeightsError`` that lists what differs."""
        compare_config(self.config, folder)

    def forward(self, images: ImageBatch, boxes: Sequence[Sequence[Box]]) -> SegmenterOutput:
        """Return masks and tokens, in the order of the boxes.

        Raises ``ValueError`` unless there is one list of boxes per picture.
        """
        if len(boxes) != len(images) or any(isinstance(own, Box) for own in boxes):
            raise ValueError(
                f"a segmenter needs one list of boxes for each of the {len(images)} pictures, not {boxes!r:.200}"
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

    def embed(self, pixels_CHW: torch.Tensor) -> Embedding:
        """Return what the decoder reads of one image, prepared and padded."""
        return embed(self.network, pixels_CHW)

    def mask_logits(self, embedding: Embedding, boxes_px_K4: torch.Tensor) -> torch.Tensor:
        """Return logits [K, 4h, 4w] of the masks of boxes (xyxy, pixels of the canvas)."""
        first_KHW, quality_KHW = decode(self.network, embedding, box_prompts(self.network, boxes_px_K4))
        return first_KHW + quality_KHW

    def _segment(
        self, embedding: Embedding, boxes: Sequence[Box], frame: Frame
    ) -> tuple[tuple[Mask, ...], torch.Tensor]:
        """Masks and tokens [K, D] of one picture's boxes."""
        width, height = frame.size
        device = embedding.image_Dhw.device
        boxes_px_K4 = torch.tensor([frame.box_to_canvas(box) for box in boxes], dtype=torch.float32, device=device)
        boxes_px_K4 = boxes_px_K4.clamp(min=boxes_px_K4.new_zeros(4), max=boxes_px_K4.new_tensor([width, height] * 2))
        to_original = _ToOriginal(frame, device)
        masks: list[Mask] = []
        tokens: list[torch.Tensor] = []
        for chunk in range(0, len(boxes), self.boxes_per_pass):
            chunk_px_K4 = boxes_px_K4[chunk : chunk + self.boxes_per_pass]
            small_KHW = self.mask_logits(embedding, chunk_px_K4).float()
            # Box by box from here on: logits of the size of canvas and picture for all of them would be gigabytes.
            for box, box_px_4, small_HW in zip(
                boxes[chunk : chunk + len(small_KHW)], chunk_px_K4, small_KHW, strict=True
            ):
                logits_HW = self._enlarged(small_HW)[:height, :width]
                if frame.visible_fraction(box) == 0:
                    logits_HW = torch.full_like(logits_HW, -1.0)
                masks.append(Mask.from_array(to_original(logits_HW)))
                tokens.append(self._token(embedding.image_Dhw, logits_HW > 0, box_px_4, box))
        return tuple(masks), torch.stack(tokens)

    def _enlarged(self, logits_HW: torch.Tensor) -> torch.Tensor:
        """Mask logits as large as the padded canvas."""
        side = self.preprocessing.size
        return F.interpolate(logits_HW[None, None], (side, side), mode="bilinear", align_corners=False)[0, 0]

    def _token(self, image_Dhw: torch.Tensor, mask_HW: torch.Tensor, box_px_4: torch.Tensor, box: Box) -> torch.Tensor:
        """The image embedding averaged over the mask, and the box in the original picture."""
        side = self.preprocessing.size
        padded_HW = F.pad(mask_HW.float(), (0, side - mask_HW.shape[1], 0, side - mask_HW.shape[0]))
        weight_hw = F.avg_pool2d(padded_HW[None], self.patch_size)[0]
        if not mask_HW.any():
            weight_hw = self._box_coverage(box_px_4, image_Dhw.shape[1])
        pooled_D = (image_Dhw.float() * weight_hw).sum(dim=(1, 2)) / weight_hw.sum()
        center = ((box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2, box.x2 - box.x1, box.y2 - box.y1)
        return torch.cat([pooled_D, pooled_D.new_tensor(center)]).to(image_Dhw.dtype)

    def _box_coverage(self, box_px_4: torch.Tensor, cells: int) -> torch.Tensor:
        """The part of each cell that a box covers [h, w]; for a box without area, the cell that it lies in."""
        edges = torch.arange(cells + 1, device=box_px_4.device) * float(self.patch_size)
        sides = []
        for low, high in (box_px_4[[1, 3]], box_px_4[[0, 2]]):
            covered = (torch.minimum(high, edges[1:]) - torch.maximum(low, edges[:-1])).clamp(min=0)
            if not covered.any():
                covered[(low / self.patch_size).long().clamp(0, cells - 1)] = 1.0
            sides.append(covered)
        return sides[0][:, None] * sides[1]


class _ToOriginal:
    """Bilinear sampling of a canvas [H, W] at the centers of the original picture's pixels, for a frame of any steps.

    For a canvas that was only resized this is ``F.interpolate(..., mode="bilinear", align_corners=False)``.
    """

    def __init__(self, frame: Frame, device: torch.device) -> None:
        width, height = frame.original_size
        canvas_width, canvas_height = frame.size
        self._columns = _neighbors(_centers_px(frame, width, axis=0), canvas_width, device)
        self._rows = _neighbors(_centers_px(frame, height, axis=1), canvas_height, device)
        self._shown_HW = frame.mask_from_canvas(np.ones((canvas_height, canvas_width), dtype=np.bool_))

    def __call__(self, logits_HW: torch.Tensor) -> np.ndarray:
        """Where the logits are above 0 in the original picture, bool; False where the canvas does not show it."""
        above, below, down = self._rows
        rows_HW = torch.lerp(logits_HW[above], logits_HW[below], down[:, None])
        left, right, across = self._columns
        original_HW = torch.lerp(rows_HW[:, left], rows_HW[:, right], across)
        return (original_HW > 0).cpu().numpy() & self._shown_HW


def _centers_px(frame: Frame, pixels: int, axis: int) -> np.ndarray:
    """Where on the canvas the centers of the original picture's columns (axis 0) or rows (axis 1) lie, in pixels."""
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


def network_config(numbers: Mapping[str, Any]) -> SamHQConfig:
    """Return the options' numbers as transformers' configuration; what is not an option is the same in every public
    checkpoint.
    """
    own = SimpleNamespace(**numbers)
    return SamHQConfig(
        vision_config=SamHQVisionConfig(
            hidden_size=own.width,
            output_channels=own.prompt_width,
            num_hidden_layers=own.layers,
            num_attention_heads=own.heads,
            image_size=own.image_size,
            patch_size=own.patch_size,
            mlp_ratio=own.mlp_ratio,
            window_size=own.window,
            global_attn_indexes=list(own.global_layers),
            num_pos_feats=own.prompt_width // 2,
            # transformers' 1e-10 would make an encoder without pretrained weights a constant.
            initializer_range=0.02,
        ),
        prompt_encoder_config=SamHQPromptEncoderConfig(
            hidden_size=own.prompt_width, image_size=own.image_size, patch_size=own.patch_size
        ),
        mask_decoder_config=SamHQMaskDecoderConfig(
            hidden_size=own.prompt_width,
            mlp_dim=own.decoder_ffn,
            num_hidden_layers=own.decoder_layers,
            num_attention_heads=own.decoder_heads,
            iou_head_hidden_dim=own.prompt_width,
            vit_dim=own.width,
        ),
    )


def _parts(config: SamHQConfig) -> tuple[Any, Any, Any]:
    """The configurations of image encoder, mask decoder and prompt encoder."""
    return config.vision_config, config.mask_decoder_config, config.prompt_encoder_config


def numbers_of(config: SamHQConfig) -> dict[str, Any]:
    """Return a configuration's numbers by the names of the options."""
    vision, decoder, prompts = _parts(config)
    return {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "width": vision.hidden_size,
        "layers": vision.num_hidden_layers,
        "heads": vision.num_attention_heads,
        "mlp_ratio": vision.mlp_ratio,
        "window": vision.window_size,
        "global_layers": tuple(vision.global_attn_indexes),
        "prompt_width": prompts.hidden_size,
        "decoder_layers": decoder.num_hidden_layers,
        "decoder_heads": decoder.num_attention_heads,
        "decoder_ffn": decoder.mlp_dim,
    }


def settled_config(options: SamHqOptions, context: BuildContext, checkpoint: Path | None) -> SamHQConfig:
    """Return the configuration of the network that is to be built; ``checkpoint`` is where its weights lie, if any are
    read.
    """
    config: SamHQConfig = part_config(
        options,
        files=context.files,
        checkpoint=checkpoint,
        model_types=("sam_hq",),
        numbers_of=numbers_of,
        from_numbers=network_config,
    )
    # The authors' two-way decoder keeps PyTorch's default; transformers' is 1e-6, in the public configurations too.
    _parts(config)[1].layer_norm_eps = 1e-5
    return config


def located(options: SamHqOptions, context: BuildContext) -> Path | None:
    """Return where the checkpoint lies, if its weights are to be read."""
    if context.weights != "pretrained":
        return None
    return locate_checkpoint(options.checkpoint, also=CONFIG_FILES, downloads=context.downloads)


def build(options: SamHqOptions, context: BuildContext) -> SamHq:
    """Return the component ``sam-hq``.

    Raises ``WeightsError`` when the checkpoint is not found or does not fit the options.
    """
    path = located(options, context)
    config = settled_config(options, context, path)
    if path is not None:
        state = read_tensors(path)
        network = load_transformers(SamHQModel, config, from_original(state) if is_original(state) else state, path)
    else:
        network = SamHQModel(config)
    encode_positions_in_float32(network, config)
    exchange_layers(network)
    return SamHq(options, network, config).eval()
