"""The original code's state-dict names (SysCV/sam-hq, ``sam_hq_vit_h``) as transformers', and back.

Every key is translated or an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from lyrics.core.errors import WeightsError

#: (pattern of a key's beginning, replacement). The first that matches is applied; what follows it stays.
_BEGINNINGS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"image_encoder\.patch_embed\.proj\.", "vision_encoder.patch_embed.projection."),
        (r"image_encoder\.pos_embed$", "vision_encoder.pos_embed"),
        (r"image_encoder\.blocks\.(\d+)\.norm(\d)\.", r"vision_encoder.layers.\1.layer_norm\2."),
        (r"image_encoder\.blocks\.(\d+)\.(attn|mlp)\.", r"vision_encoder.layers.\1.\2."),
        (r"image_encoder\.neck\.0\.", "vision_encoder.neck.conv1."),
        (r"image_encoder\.neck\.1\.", "vision_encoder.neck.layer_norm1."),
        (r"image_encoder\.neck\.2\.", "vision_encoder.neck.conv2."),
        (r"image_encoder\.neck\.3\.", "vision_encoder.neck.layer_norm2."),
        (
            r"prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$",
            "shared_image_embedding.positional_embedding",
        ),
        (r"prompt_encoder\.point_embeddings\.", "prompt_encoder.point_embed."),
        (r"prompt_encoder\.(no_mask_embed|not_a_point_embed)\.", r"prompt_encoder.\1."),
        (r"prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
        (r"prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
        (r"prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
        (r"prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
        (r"prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
        (r"mask_decoder\.transformer\.norm_final_attn\.", "mask_decoder.transformer.layer_norm_final_attn."),
        (r"mask_decoder\.transformer\.layers\.(\d+)\.norm(\d)\.", r"mask_decoder.transformer.layers.\1.layer_norm\2."),
        (r"mask_decoder\.transformer\.", "mask_decoder.transformer."),
        (r"mask_decoder\.(iou_token|mask_tokens)\.", r"mask_decoder.\1."),
        (r"mask_decoder\.hf_token\.", "mask_decoder.hq_token."),
        (r"mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
        (r"mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
        (r"mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
        (r"mask_decoder\.compress_vit_feat\.0\.", "mask_decoder.compress_vit_conv1."),
        (r"mask_decoder\.compress_vit_feat\.1\.", "mask_decoder.compress_vit_norm."),
        (r"mask_decoder\.compress_vit_feat\.3\.", "mask_decoder.compress_vit_conv2."),
        (r"mask_decoder\.embedding_encoder\.0\.", "mask_decoder.encoder_conv1."),
        (r"mask_decoder\.embedding_encoder\.1\.", "mask_decoder.encoder_norm."),
        (r"mask_decoder\.embedding_encoder\.3\.", "mask_decoder.encoder_conv2."),
        (r"mask_decoder\.embedding_maskfeature\.0\.", "mask_decoder.mask_conv1."),
        (r"mask_decoder\.embedding_maskfeature\.1\.", "mask_decoder.mask_norm."),
        (r"mask_decoder\.embedding_maskfeature\.3\.", "mask_decoder.mask_conv2."),
        # Three-layer perceptrons: first, middle and last layer have names of their own in transformers.
        (
            r"mask_decoder\.(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.0\.",
            r"mask_decoder.\1.proj_in.",
        ),
        (
            r"mask_decoder\.(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.1\.",
            r"mask_decoder.\1.layers.0.",
        ),
        (
            r"mask_decoder\.(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.2\.",
            r"mask_decoder.\1.proj_out.",
        ),
        (r"mask_decoder\.hf_mlp\.layers\.0\.", "mask_decoder.hq_mask_mlp.proj_in."),
        (r"mask_decoder\.hf_mlp\.layers\.1\.", "mask_decoder.hq_mask_mlp.layers.0."),
        (r"mask_decoder\.hf_mlp\.layers\.2\.", "mask_decoder.hq_mask_mlp.proj_out."),
    )
)

#: transformers' second name for the random frequencies of positions.
_COPY = "prompt_encoder.shared_embedding.positional_embedding"


def is_original(state: Mapping[str, torch.Tensor]) -> bool:
    """Return whether the keys are the original code's and not transformers'."""
    return any(key.startswith("image_encoder.") for key in state)


def from_original(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the original code's state dict in transformers' naming.

    Raises ``WeightsError`` for a key that is not known.
    """
    return {_translate(key, tensor): tensor for key, tensor in state.items()}


def to_original(state: Mapping[str, torch.Tensor], original: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict in transformers' naming in the original code's: the inverse of ``from_original``.

    Unknown keys keep their name.

    ``original`` is the original network's own state dict; its names are read, its values are not.
    """
    theirs = {_translate(key, tensor): key for key, tensor in original.items()}
    return {theirs.get(key, key): tensor for key, tensor in state.items() if key != _COPY}


def _translate(key: str, tensor: torch.Tensor) -> str:
    for pattern, replacement in _BEGINNINGS:
        if match := pattern.match(key):
            return match.expand(replacement) + key[match.end() :]
    raise WeightsError(
        f"{key!r} {list(tensor.shape)} is no tensor of SAM-HQ as its authors name them; the checkpoint is of another "
        "model or a variant that is not supported."
    )
