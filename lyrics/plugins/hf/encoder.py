"""``hf-image-encoder``: the vision tower of a transformers model as an image encoder.

Shapes: B images, C color channels, H and W pixels, N tokens, D width.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import ContractError, SpecError, WeightsError
from lyrics.core.weights.pretrained import read_tensors
from lyrics.core.weights.transformers_files import stored_config
from lyrics.plugins.hf import HfImageEncoderOptions
from lyrics.plugins.hf.networks import CheckpointSource, KeepsConfig, find_source, make_network

#: How the names of a tower's tensors begin in a whole model, the longest first: CLIP's, LLaVA's as published and as
#: transformers saves it now.
_VISION = (
    "vision_model.",
    "model.vision_tower.vision_model.",
    "model.vision_tower.",
    "vision_tower.vision_model.",
    "vision_tower.",
)
_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")
#: Modules that only look at a pooled image, which nobody reads here.
_POOLING = ("pooler", "head")
#: Model types whose last norm is one of those, and not applied to the tokens.
_NORM_OF_POOLED = ("clip_vision_model", "chinese_clip_vision_model")
#: What the last norm of a tower is called.
_NORMS = ("post_layernorm", "layernorm", "layer_norm", "norm", "rms_norm")
#: Model types that fit their positions to any size of image without being asked to.
_ANY_SIZE = ("dinov2", "dinov2_with_registers", "dinov3_vit", "dinov3_convnext", "swin", "swinv2")
#: Entries of a configuration that are of a backbone.
_OF_BACKBONES = ("out_features", "out_indices", "stage_names", "_out_features", "_out_indices")
#: Parameters that only pre-training reads.
_UNREAD = ("mask_token",)


class HfImageEncoder(KeepsConfig):
    """Pixels [B,3,H,W] -> the tower's tokens [B,N,feature_dim]: class and register tokens first, where it has them.

    ``skip_layers=0`` gives ``last_hidden_state``; n > 0 the hidden state n layers before the last one's, without the
    last norm; so does ``last_norm=False`` of the last one. What nothing reads then (skipped layers, pooling heads, the
    mask token) is neither built nor kept.
    """

    def __init__(self, tower: Any, source: CheckpointSource) -> None:
        super().__init__()
        self.tower = tower
        self.config = tower.config
        self.entries = source.entries
        self.preprocessing = source.preprocessing
        self.feature_dim = _width(tower.config)
        self.side = self.preprocessing.crop or self.preprocessing.size
        #: For a tower that was trained at another size and can interpolate its positions, but does not do it unasked.
        asks = "interpolate_pos_encoding" in inspect.signature(tower.forward).parameters
        self._asked = {"interpolate_pos_encoding": True} if asks and _image_size(tower.config) != self.side else {}
        self.num_tokens = self._count_tokens()

    def _count_tokens(self) -> int:
        """Tokens of an image, counted by a pass that computes nothing."""
        with torch.device("meta"), torch.no_grad():
            outline = type(self.tower)(self.tower.config)
            return int(outline(torch.zeros(1, 3, self.side, self.side), **self._asked).last_hidden_state.shape[1])

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Return tokens [B,N,D] in the tower's own precision.

        Raises:
            ContractError: the images are not [B,3,side,side].
        """
        if pixels_BCHW.ndim != 4 or tuple(pixels_BCHW.shape[1:]) != (3, self.side, self.side):
            raise ContractError(
                f"the image encoder reads images of shape [B, 3, {self.side}, {self.side}], not "
                f"{list(pixels_BCHW.shape)}; prepare them with its `preprocessing`"
            )
        pixels_BCHW = pixels_BCHW.to(self.tower.dtype)
        if len(pixels_BCHW) == 0:  # transformers' attention cannot reshape an empty batch
            return pixels_BCHW.new_zeros(0, self.num_tokens, self.feature_dim)
        tokens_BND: torch.Tensor = self.tower(pixel_values=pixels_BCHW, **self._asked).last_hidden_state
        return tokens_BND


def build(options: HfImageEncoderOptions, context: BuildContext) -> HfImageEncoder:
    """Return the component ``hf-image-encoder``.

    Raises:
        SpecError: nothing says what it is, or ``skip_layers`` leaves nothing.
        WeightsError: the checkpoint is not found, has no vision tower, or does not fit.
    """
    source = find_source(
        options, context, AutoModel, "image encoder", lambda config: _tower_config(config, options.checkpoint)
    )
    if stored_config(context.files) is None:  # one that was saved has the layers that are run, and no others
        source = replace(source, config=_without_last_layers(source.config, options.skip_layers, source.name))
    _check_size(source)
    model_class = AutoModel._model_mapping[type(source.config)]
    skipped = options.skip_layers > 0 or not options.last_norm
    tensors = None
    if source.weights is not None:
        tensors = _of_the_tower(read_tensors(source.weights, _VISION), source.config)
        tensors |= _unread(model_class, source.config, tensors, skipped=skipped)
    tower = make_network(model_class, source, tensors)
    _drop_unread(tower, skipped=skipped)
    return HfImageEncoder(tower, source).eval()


def _tower_config(config: Any, checkpoint: str | None) -> Any:
    """A whole model's configuration of its vision tower.

    Raises ``WeightsError`` for a model that gives no sequence of image tokens.
    """
    found = getattr(config, "vision_config", config)
    if type(found) not in AutoModel._model_mapping or not _is_of_images(found):
        raise WeightsError(
            f"image encoder: {checkpoint or 'the option config'} is of the model type {config.model_type!r}, of which "
            "no vision tower can be taken: it looks at no images, or its tower is no model of its own in transformers."
        )
    return found


def _is_of_images(config: Any) -> bool:
    return hasattr(config, "num_channels") and _width(config) > 0


def _width(config: Any) -> int:
    """Width of a token."""
    return int(getattr(config, "hidden_size", None) or (getattr(config, "hidden_sizes", None) or [0])[-1])


def _image_size(config: Any) -> int | None:
    side = getattr(config, "image_size", None)
    return side[0] if isinstance(side, list | tuple) else side


def _without_last_layers(config: Any, skip_layers: int, source: str) -> Any:
    if not skip_layers:
        return config
    layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(layers, int):
        raise SpecError(
            f"{source}: skip_layers is for towers of layers that are alike; a {config.model_type!r} has none."
        )
    if layers - skip_layers < 1:
        raise SpecError(f"skip_layers {skip_layers} leaves nothing of the {layers} layers of {source}.")
    # What a backbone would give out is named by layers, some of which are gone.
    entries = {name: value for name, value in config.to_dict().items() if name not in _OF_BACKBONES}
    return type(config)(**{**entries, "num_hidden_layers": layers - skip_layers})


def _check_size(source: CheckpointSource) -> None:
    """Raise ``SpecError`` where the tower reads images of one size, and is to get another."""
    config, side = source.config, source.preprocessing.crop or source.preprocessing.size
    made_for = _image_size(config)
    model_class: Any = AutoModel._model_mapping[type(config)]
    interpolates = "interpolate_pos_encoding" in inspect.signature(model_class.forward).parameters
    if made_for in (None, side) or interpolates or config.model_type in _ANY_SIZE:
        return
    raise SpecError(
        f"{source.name}: reads images of {made_for} pixels only, and is to be given {side}; set preprocessor.size to "
        f"{{height: {made_for}, width: {made_for}}}."
    )


def _unread(
    model_class: Any, config: Any, tensors: Mapping[str, torch.Tensor], *, skipped: bool
) -> dict[str, torch.Tensor]:
    """Zeros for what is taken out again after loading, where the checkpoint lacks it: a classifier has no pooler."""
    with torch.device("meta"):
        outline = model_class(config)
    whole = {name: tensor.shape for name, tensor in outline.state_dict().items()}
    _drop_unread(outline, skipped=skipped)
    gone = whole.keys() - outline.state_dict().keys() - tensors.keys()
    return {name: torch.zeros(whole[name]) for name in gone}


def _of_the_tower(tensors: Mapping[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    """The tower's tensors of a checkpoint of the tower or of a whole model, by their names in the tower."""
    if any(name.startswith(f"{config.model_type}.") for name in tensors):  # of a classifier
        prefix = f"{config.model_type}."
        tensors = {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
    layers = getattr(config, "num_hidden_layers", None)
    return {name: one for name, one in tensors.items() if not _is_left_out(name, layers)}


def _is_left_out(name: str, layers: int | None) -> bool:
    if name.endswith("embeddings.position_ids"):
        return True
    match = _LAYER.search(name)
    return layers is not None and match is not None and int(match[1]) >= layers


def _drop_unread(tower: nn.Module, *, skipped: bool) -> None:
    """Take out what does not reach the tokens."""
    config: Any = tower.config
    names = [*_POOLING, *(_NORMS if skipped or config.model_type in _NORM_OF_POOLED else ())]
    for owner in (tower, getattr(tower, "model", None)):
        for name in names:
            if isinstance(owner, nn.Module) and isinstance(getattr(owner, name, None), nn.Module):
                setattr(owner, name, nn.Identity())
    for module in list(tower.modules()):
        for name in _UNREAD:
            if isinstance(getattr(module, name, None), nn.Parameter):
                module.register_parameter(name, None)
