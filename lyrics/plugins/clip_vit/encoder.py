"""CLIP's vision tower and BLIP-2's EVA ViT-g, as image encoders on transformers' classes.

Shapes: B images, C color channels, H and W pixels, N tokens (class token first, then patches row by row), D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Blip2VisionConfig, Blip2VisionModel, CLIPVisionConfig, CLIPVisionModel

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import ContractError, SpecError
from lyrics.core.types import Preprocessing
from lyrics.core.weights.pretrained import load_transformers, locate_checkpoint, read_tensors
from lyrics.core.weights.transformers_files import CONFIG_FILES, compare_config, part_config, save_config, stored_config
from lyrics.plugins.clip_vit import ClipVitOptions, EvaVitGOptions

# The pixel statistics of CLIP's training images, which BLIP-2 uses too (preprocessor_config.json of both).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

PREFIX = "vision_model."

# For random weights. BLIP-2's configuration says 1e-10, which gives every image the same tokens.
INITIALIZER_RANGE = 0.02


class VitEncoder(nn.Module):
    """A vision tower of transformers as an image encoder: pixels [B,3,H,W] -> tokens [B,1+patches,feature_dim]."""

    def __init__(
        self,
        tower: CLIPVisionModel | Blip2VisionModel,
        preprocessing: Preprocessing,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.preprocessing = preprocessing
        config: Any = tower.config
        self.feature_dim = int(config.hidden_size)
        self.image_size = int(config.image_size)
        self.num_tokens = 1 + (config.image_size // config.patch_size) ** 2

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Return tokens [B,N,D] in the tower's own dtype, class token first.

        Raises:
            ContractError: the images are not [B,3,image_size,image_size].
        """
        expected = (3, self.image_size, self.image_size)
        if pixels_BCHW.ndim != 4 or tuple(pixels_BCHW.shape[1:]) != expected:
            raise ContractError(
                f"the image encoder reads images of shape [B, 3, {self.image_size}, {self.image_size}], not "
                f"{list(pixels_BCHW.shape)}; prepare them with its `preprocessing`, or build it with another image_size"
            )
        pixels_BCHW = pixels_BCHW.to(self.tower.dtype)
        if len(pixels_BCHW) == 0:  # transformers' attention cannot reshape an empty batch
            return pixels_BCHW.new_zeros(0, self.num_tokens, self.feature_dim)
        tokens_BND: torch.Tensor = self.tower(pixel_values=pixels_BCHW).last_hidden_state
        return tokens_BND

    def save_files(self, folder: Path) -> None:
        """The tower's configuration, from which it is made again."""
        save_config(self.tower, folder)

    def load_files(self, folder: Path) -> None:
        """Compare the stored configuration with the tower's. Raises ``WeightsError`` that lists what differs."""
        compare_config(self.tower.config, folder)


def build_clip(options: ClipVitOptions, context: BuildContext) -> VitEncoder:
    """CLIP's vision tower without its last ``skip_layers`` layers.

    Raises:
        WeightsError: the checkpoint cannot be found, is not safetensors, or does not fit the options.
    """
    checkpoint = _located(options, context)
    config = part_config(
        options,
        files=context.files,
        checkpoint=checkpoint,
        model_types=("clip", "clip_vision_model"),
        numbers_of=lambda found: _numbers_of(found) | _whole_depth(found, options, context),
        from_numbers=lambda numbers: CLIPVisionConfig(**_names(numbers), initializer_range=INITIALIZER_RANGE),
    )
    config = getattr(config, "vision_config", config)
    if _rebuilt(context):
        kept = config.num_hidden_layers
    else:
        kept = config.num_hidden_layers - options.skip_layers
        if kept < 1:
            raise SpecError(
                f"skip_layers {options.skip_layers} leaves nothing of the {config.num_hidden_layers} layers of "
                f"{options.checkpoint!r}"
            )
    skipped = range(kept, config.num_hidden_layers)
    config.num_hidden_layers = kept
    if checkpoint is not None:
        unread = ("embeddings.position_ids", *(f"encoder.layers.{layer}." for layer in skipped))
        tower = _pretrained(CLIPVisionModel, config, options.checkpoint, checkpoint, unread)
    else:
        tower = CLIPVisionModel(config)
    tower.post_layernorm = nn.Identity()  # it normalizes the pooled class token, which nobody reads here
    preprocessing = _squash(config.image_size)
    if options.resize == "crop":
        preprocessing = replace(preprocessing, resize="shortest", crop=config.image_size)
    return VitEncoder(tower, preprocessing).eval()


def _rebuilt(context: BuildContext) -> bool:
    return stored_config(context.files) is not None


def _whole_depth(config: Any, options: ClipVitOptions, context: BuildContext) -> dict[str, int]:
    """Return the checkpoint's layers; a tower that was saved has only those that are run."""
    layers = int(getattr(config, "vision_config", config).num_hidden_layers)
    return {"layers": layers + options.skip_layers if _rebuilt(context) else layers}


def build_eva(options: EvaVitGOptions, context: BuildContext) -> VitEncoder:
    """BLIP-2's EVA ViT-g; the tokens have passed its last LayerNorm (LAVIS's ``ln_vision``).

    Raises:
        WeightsError: the checkpoint cannot be found, is not safetensors, or does not fit the options.
    """
    checkpoint = _located(options, context)
    config = part_config(
        options,
        files=context.files,
        checkpoint=checkpoint,
        model_types=("blip-2", "blip_2_vision_model", "instructblip"),
        numbers_of=_numbers_of,
        from_numbers=lambda numbers: Blip2VisionConfig(
            **_names(numbers), layer_norm_eps=1e-5, initializer_range=INITIALIZER_RANGE
        ),
    )
    config = getattr(config, "vision_config", config)
    if not isinstance(config, Blip2VisionConfig):  # InstructBLIP's is the same by another name
        config = _blip2_config(config)
    if options.layer_norm_eps is not None:
        config.layer_norm_eps = options.layer_norm_eps
    if checkpoint is not None:
        tower = _pretrained(Blip2VisionModel, config, options.checkpoint, checkpoint, unread=())
    else:
        tower = Blip2VisionModel(config)
    return VitEncoder(tower, _squash(config.image_size)).eval()


def _blip2_config(config: Any) -> Any:
    return Blip2VisionConfig(**{name: value for name, value in config.to_dict().items() if name != "model_type"})


#: Option -> name in transformers' configuration of the tower.
_CONFIG_NAMES = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
}


def _names(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {_CONFIG_NAMES[option]: value for option, value in numbers.items()}


def _numbers_of(config: Any) -> dict[str, Any]:
    """Return a configuration's numbers by the names of the options; of a whole model those of its tower."""
    tower = getattr(config, "vision_config", config)
    return {option: getattr(tower, name) for option, name in _CONFIG_NAMES.items()}


def _located(options: ClipVitOptions | EvaVitGOptions, context: BuildContext) -> Path | None:
    """Return where the checkpoint lies, if its weights are to be read."""
    if context.weights != "pretrained":
        return None
    return locate_checkpoint(options.checkpoint, also=CONFIG_FILES, downloads=context.downloads)


def _pretrained(model_class: Any, config: Any, checkpoint: str, path: Path, unread: tuple[str, ...]) -> Any:
    """The tower of a checkpoint, every tensor accounted for but those whose names inside the tower begin as ``unread``
    says.

    Whole models (CLIPModel, Blip2Model, the released Lyrics) keep their tower under ``vision_model.``, and what is
    outside of it is left alone; a tower saved alone has no prefix.
    """
    tensors = read_tensors(path, (PREFIX,))
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(unread)}
    return load_transformers(model_class, config, tensors, f"the vision tower of {checkpoint!r}")


def _squash(size: int) -> Preprocessing:
    return Preprocessing(resize="squash", size=size, mean=CLIP_MEAN, std=CLIP_STD, resampling="bicubic")
