"""``timm-vit``: a vision transformer of timm as an image encoder.

Importing this file imports timm, and with it torchvision.

Shapes: B images, C color channels, H and W pixels, N tokens (class and register tokens first, then patches row by row),
D width.
"""

from __future__ import annotations

import math
import re
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import ContractError, SpecError, UnknownNameError, did_you_mean
from lyrics.core.types import Preprocessing
from lyrics.core.weights.pretrained import load_module, locate_checkpoint, read_tensors
from lyrics.plugins.timm_vit import TimmVitOptions

# timm's repositories may also hold the same weights as another library names them (open_clip_model.safetensors).
_WEIGHTS = "model.safetensors"


class TimmVit(nn.Module):
    """Pixels [B,3,H,W] to every token of timm's ``forward_features``, [B,N,feature_dim].

    The classifier is left out.
    """

    def __init__(self, model: Any, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        self.preprocessing = preprocessing
        self.feature_dim: int = model.num_features
        self.num_tokens: int = model.num_prefix_tokens + model.patch_embed.num_patches
        self.image_size = preprocessing.size if preprocessing.crop is None else preprocessing.crop

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Return tokens [B,N,D] in the model's own dtype.

        Raises:
            ContractError: the images are not [B,3,image_size,image_size].
        """
        side = self.image_size
        if pixels_BCHW.ndim != 4 or tuple(pixels_BCHW.shape[1:]) != (3, side, side):
            raise ContractError(
                f"the image encoder reads images of shape [B, 3, {side}, {side}], not {list(pixels_BCHW.shape)}; "
                "prepare them with its `preprocessing`, or choose a model of another size"
            )
        pixels_BCHW = pixels_BCHW.to(next(self.model.parameters()).dtype)
        if len(pixels_BCHW) == 0:  # attention cannot reshape an empty batch
            return pixels_BCHW.new_zeros(0, self.num_tokens, self.feature_dim)
        tokens_BND: torch.Tensor = self.model.forward_features(pixels_BCHW)
        return tokens_BND


def build(options: TimmVitOptions, context: BuildContext) -> TimmVit:
    """Return the component ``timm-vit``.

    Raises:
        SpecError: timm has no model of that name, or it is no vision transformer on square images.
        WeightsError: the checkpoint cannot be found, is not safetensors, or does not fit the model.
    """
    name = options.model
    if not timm.is_model(name):
        raise UnknownNameError(
            f"timm {timm.__version__} has no model {name!r}.{did_you_mean(name, timm.list_models())}"
        )
    try:
        model = timm.create_model(name, pretrained=False, num_classes=0)
    except RuntimeError as error:  # an unknown tag
        known = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise UnknownNameError(f"timm {timm.__version__}: {error}.{did_you_mean(name, known)}") from error
    counts = (
        getattr(model, "num_prefix_tokens", None),
        getattr(getattr(model, "patch_embed", None), "num_patches", None),
    )
    if not all(isinstance(count, int) for count in counts):
        raise SpecError(
            f"{name!r} is a {type(model).__name__}, not a plain vision transformer: it gives no sequence of tokens. "
            "Choose another, such as vit_large_patch14_clip_224.openai."
        )
    preprocessing = preprocessing_of(model, options)
    if context.weights == "pretrained":
        source = options.checkpoint or _repository(model, name)
        path = locate_checkpoint(source, tensors=(_WEIGHTS,), downloads=context.downloads)
        tensors = read_tensors(path / _WEIGHTS if (path / _WEIGHTS).is_file() else path)
        load_module(model, tensors, f"{source!r}", unread=_classifier(model))
    return TimmVit(model, preprocessing).eval()


def preprocessing_of(model: Any, options: TimmVitOptions) -> Preprocessing:
    """Return what timm's configuration of the pretrained model says.

    Raises ``SpecError`` unless the model reads square RGB images.
    """
    config = resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise SpecError(f"{options.model!r} reads images of {config['input_size']}; only square RGB ones are prepared.")
    crops = options.resize == "crop" and config["crop_mode"] != "squash"
    return Preprocessing(
        resize="shortest" if crops else "squash",
        size=math.floor(height / config["crop_pct"]) if crops else height,
        crop=height if crops else None,
        mean=config["mean"],
        std=config["std"],
        resampling=config["interpolation"],
    )


def _repository(model: Any, name: str) -> str:
    """Return the hub repository with the model's weights. Raises ``SpecError`` when timm names none."""
    repository: str | None = model.pretrained_cfg.get("hf_hub_id")
    if not repository:
        raise SpecError(f"timm names no weights for {name!r}; set the option checkpoint, or a model with a tag.")
    return repository


def _classifier(model: Any) -> str:
    """Pattern of the tensors that classify, which a checkpoint has and an encoder does not."""
    layers = model.pretrained_cfg.get("classifier") or ()
    names = (layers,) if isinstance(layers, str) else layers
    return "|".join(rf"{re.escape(name)}\..*" for name in names)
