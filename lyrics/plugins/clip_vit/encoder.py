"""CLIP's vision tower and BLIP-2's EVA ViT-g, as image encoders on transformers' classes.

Shapes: B images, C colour channels, H and W pixels, N tokens (class token first, then patches row by row), D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import Blip2VisionConfig, Blip2VisionModel, CLIPVisionConfig, CLIPVisionModel

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import ContractError
from lyrics.core.pretrained import load_transformers, locate_checkpoint, read_tensors
from lyrics.core.types import Preprocessing
from lyrics.plugins.clip_vit import ClipVitOptions, EvaVitGOptions

# The pixel statistics of CLIP's training pictures, which BLIP-2 uses too (preprocessor_config.json of both).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

PREFIX = "vision_model."

# For random weights. BLIP-2's configuration says 1e-10, which gives every picture the same tokens.
INITIALIZER_RANGE = 0.02


class VitEncoder(nn.Module):
    """A vision tower of transformers as an image encoder: pixels [B,3,H,W] -> tokens [B,1+patches,feature_dim]."""

    def __init__(
        self,
        tower: CLIPVisionModel | Blip2VisionModel,
        options: ClipVitOptions | EvaVitGOptions,
        preprocessing: Preprocessing,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.preprocessing = preprocessing
        self.feature_dim = options.feature_dim
        self.image_size = options.image_size
        self.num_tokens = 1 + (options.image_size // options.patch_size) ** 2

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Tokens [B,N,D] in the tower's own dtype, class token first.

        Raises:
            ContractError: the pictures are not [B,3,image_size,image_size].
        """
        expected = (3, self.image_size, self.image_size)
        if pixels_BCHW.ndim != 4 or tuple(pixels_BCHW.shape[1:]) != expected:
            raise ContractError(
                f"the image encoder reads pictures of shape [B, 3, {self.image_size}, {self.image_size}], not "
                f"{list(pixels_BCHW.shape)}; prepare them with its `preprocessing`, or build it with another image_size"
            )
        pixels_BCHW = pixels_BCHW.to(self.tower.dtype)
        if len(pixels_BCHW) == 0:  # transformers' attention cannot reshape an empty batch
            return pixels_BCHW.new_zeros(0, self.num_tokens, self.feature_dim)
        tokens_BND: torch.Tensor = self.tower(pixel_values=pixels_BCHW).last_hidden_state
        return tokens_BND


def build_clip(options: ClipVitOptions, context: BuildContext) -> VitEncoder:
    """CLIP's vision tower without its last ``skip_layers`` layers.

    Raises:
        WeightsError: the checkpoint cannot be found, is not safetensors, or does not fit the options.
    """
    config = CLIPVisionConfig(
        image_size=options.image_size,
        patch_size=options.patch_size,
        hidden_size=options.width,
        num_hidden_layers=options.layers - options.skip_layers,
        num_attention_heads=options.heads,
        intermediate_size=options.mlp_width,
        initializer_range=INITIALIZER_RANGE,
    )
    if context.weights == "pretrained":
        skipped = range(options.layers - options.skip_layers, options.layers)
        unread = ("embeddings.position_ids", *(f"encoder.layers.{layer}." for layer in skipped))
        tower = _pretrained(CLIPVisionModel, config, options.checkpoint, unread)
    else:
        tower = CLIPVisionModel(config)
    tower.post_layernorm = nn.Identity()  # it normalises the pooled class token, which nobody reads here
    preprocessing = _squash(options.image_size)
    if options.resize == "crop":
        preprocessing = replace(preprocessing, resize="shortest", crop=options.image_size)
    return VitEncoder(tower, options, preprocessing).eval()


def build_eva(options: EvaVitGOptions, context: BuildContext) -> VitEncoder:
    """BLIP-2's EVA ViT-g; the tokens have passed its last LayerNorm (LAVIS's ``ln_vision``).

    Raises:
        WeightsError: the checkpoint cannot be found, is not safetensors, or does not fit the options.
    """
    config = Blip2VisionConfig(
        image_size=options.image_size,
        patch_size=options.patch_size,
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=options.mlp_width,
        layer_norm_eps=options.layer_norm_eps,
        initializer_range=INITIALIZER_RANGE,
    )
    if context.weights == "pretrained":
        tower = _pretrained(Blip2VisionModel, config, options.checkpoint, unread=())
    else:
        tower = Blip2VisionModel(config)
    return VitEncoder(tower, options, _squash(options.image_size)).eval()


def _pretrained(model_class: Any, config: Any, checkpoint: str, unread: tuple[str, ...]) -> Any:
    """The tower of a checkpoint, every tensor accounted for but those whose names inside the tower begin as ``unread`` says.

    Whole models (CLIPModel, Blip2Model, the released Lyrics) keep their tower under ``vision_model.``, and what is outside of
    it is left alone; a tower saved alone has no prefix.
    """
    tensors = read_tensors(locate_checkpoint(checkpoint))
    if any(name.startswith(PREFIX) for name in tensors):
        tensors = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(unread)}
    return load_transformers(model_class, config, tensors, f"the vision tower of {checkpoint!r}")


def _squash(size: int) -> Preprocessing:
    return Preprocessing(resize="squash", size=size, mean=CLIP_MEAN, std=CLIP_STD, resampling="bicubic")
