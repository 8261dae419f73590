"""``sam-hq``: transformers' SAM-HQ as a segmenter of boxes.

``upstream.py`` puts the original code in the place of transformers' network; all the rest is the same.

Shapes: B images, C color channels, K boxes, H and W pixels of a canvas or image, h and w cells of the image
embedding, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import SamHQConfig, SamHQMaskDecoderConfig, SamHQModel, SamHQPromptEncoderConfig, SamHQVisionConfig

from lyrics.core.contracts import BuildContext
from lyrics.core.onednn import use_onednn
from lyrics.core.refining.box_segmenter import BoxSegmenter
from lyrics.core.types import Preprocessing
from lyrics.core.weights.pretrained import load_transformers, locate_checkpoint, read_tensors
from lyrics.core.weights.transformers_files import CONFIG_FILES, compare_config, part_config, write_config
from lyrics.plugins.sam_hq import SamHqOptions
from lyrics.plugins.sam_hq.decoder import Embedding, box_prompts, decode, embed, encode_positions_in_float32
from lyrics.plugins.sam_hq.encoder import exchange_layers
from lyrics.plugins.sam_hq.weights import from_original, is_original

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class SamHq(BoxSegmenter):
    """Images and boxes -> per box its mask in the original image, and a local token.

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

    def __init__(self, options: SamHqOptions, network: nn.Module, config: SamHQConfig) -> None:
        vision, _, prompts = _parts(config)
        image_size = int(vision.image_size)
        preprocessing = Preprocessing(
            resize="longest",
            size=image_size,
            pad_to=image_size,
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
            resampling="bilinear",
        )
        super().__init__(preprocessing, int(prompts.hidden_size), options.boxes_per_pass)
        self.config = config
        self.network = network
        use_onednn(network)

    def save_files(self, folder: Path) -> None:
        """The network's configuration, from which it is made again."""
        write_config(self.config, folder)

    def load_files(self, folder: Path) -> None:
        """Compare the stored configuration with the network's. Raises ``WeightsError`` that lists what differs."""
        compare_config(self.config, folder)

    def embed(self, pixels_CHW: torch.Tensor) -> Embedding:
        """Return what the decoder reads of one image, prepared and padded."""
        return embed(self.network, pixels_CHW)

    def mask_logits(self, embedding: Embedding, boxes_px_K4: torch.Tensor) -> torch.Tensor:
        """Return logits [K, 4h, 4w] of the masks of boxes (xyxy, pixels of the canvas)."""
        first_KHW, quality_KHW = decode(self.network, embedding, box_prompts(self.network, boxes_px_K4))
        return first_KHW + quality_KHW


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
