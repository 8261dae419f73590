"""Image encoders that come from contrastive pre-training: CLIP's ViT, and BLIP-2's EVA ViT-g.

This file is the manifest: it imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from lyrics.core.registry.component import CheckpointOptions, Component, NamesWeights, hookimpl


class _VitOptions(CheckpointOptions):
    """Numbers that both towers have.

    Those that are null are the checkpoint's; ``PUBLIC`` are those of the default one.
    """

    image_size: int | None = Field(
        None, ge=1, le=10_000, description="side in pixels of the square that the tower reads; null: the checkpoint's"
    )
    patch_size: int | None = Field(
        None, ge=1, description="pixels per token along each side; divides image_size; null: the checkpoint's"
    )
    width: int | None = Field(None, ge=1, description="width of a token; null: the checkpoint's")
    layers: int | None = Field(None, ge=1, description="transformer layers of the checkpoint; null: the checkpoint's")
    heads: int | None = Field(None, ge=1, description="attention heads; divides the width; null: the checkpoint's")
    mlp_width: int | None = Field(
        None, ge=1, description="inner width of the feed-forward layers; null: the checkpoint's"
    )

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        if not self.is_known:
            return self
        numbers = self.numbers
        if numbers["image_size"] % numbers["patch_size"]:
            raise ValueError(
                f"image_size {numbers['image_size']} is not a multiple of patch_size {numbers['patch_size']}"
            )
        if numbers["width"] % numbers["heads"]:
            raise ValueError(f"width {numbers['width']} is not a multiple of heads {numbers['heads']}")
        return self

    @property
    def feature_dim(self) -> int | None:
        """Width of an image token; None where only the checkpoint knows it."""
        return self.numbers["width"] if self.is_known else self.width


class ClipVitOptions(_VitOptions):
    """Options of ``clip-vit``.

    The default checkpoint is CLIP ViT-L/14 at 224 pixels: 257 tokens of width 1024 (paper, section 3.1).

    The class token is kept. Where to read the tower is ``skip_layers``. The default 1, the last layer but one, is what
    BLIP-2's paper (section 3.4, "slightly better performance") and LLaVA say: CLIP's loss looks at the class token of
    the last layer alone, so that layer's patch tokens say less about their own place. 0 reads the last layer. BLIP-2's
    public ViT-L weights (``blip2_pretrained_vitL``) need 3: LAVIS's code ran 21 of the 24 layers (salesforce/LAVIS#216,
    #609), and the keys and values of that Q-Former were trained on those. No LayerNorm follows in any case; CLIP's own
    was trained on the class token only.
    """

    PUBLIC: ClassVar[Mapping[str, Any]] = {
        "image_size": 224,
        "patch_size": 14,
        "width": 1024,
        "layers": 24,
        "heads": 16,
        "mlp_width": 4096,
    }

    checkpoint: Annotated[str, NamesWeights()] = Field(
        "openai/clip-vit-large-patch14",
        min_length=1,
        description="hub id or folder with safetensors of a CLIP model or of its vision tower, in transformers' naming",
    )
    skip_layers: int = Field(
        1,
        ge=0,
        description="last layers left out, neither built nor loaded: 1: the last layer but one; 3: BLIP-2's ViT-L",
    )
    resize: Literal["squash", "crop"] = Field(
        "squash",
        description="squash the whole image to a square (BLIP-2), or crop the center of its shortest side (CLIP)",
    )

    @model_validator(mode="after")
    def _some_layer_is_left(self) -> Self:
        if self.is_known and self.skip_layers >= self.numbers["layers"]:
            raise ValueError(f"skip_layers {self.skip_layers} leaves nothing of {self.numbers['layers']} layers")
        return self


class EvaVitGOptions(_VitOptions):
    """Options of ``eva-vit-g``.

    The default checkpoint is BLIP-2's tower: 257 tokens of width 1408, after its last LayerNorm.

    The checkpoint has 39 layers because BLIP-2 left out the last of EVA's 40, for the reason that ``clip-vit`` gives.
    """

    PUBLIC: ClassVar[Mapping[str, Any]] = {
        "image_size": 224,
        "patch_size": 14,
        "width": 1408,
        "layers": 39,
        "heads": 16,
        "mlp_width": 6144,
    }

    checkpoint: Annotated[str, NamesWeights()] = Field(
        "Salesforce/blip2-itm-vit-g",
        min_length=1,
        description="hub id or folder with a BLIP-2 or Lyrics model or its tower in safetensors, transformers' names",
    )
    layer_norm_eps: float | None = Field(
        None,
        gt=0,
        description="LayerNorm epsilon; null: the checkpoint's (1e-6 in newer BLIP-2 configurations); without one "
        "1e-5, as in the "
        "released Lyrics code",
    )


@hookimpl
def lyrics_components() -> Iterator[Component]:
    """Yield ``clip-vit`` and ``eva-vit-g``."""
    small = {"image_size": 28, "width": 16, "layers": 2, "heads": 2, "mlp_width": 32}
    yield Component(
        kind="image-encoder",
        name="clip-vit",
        build="lyrics.plugins.clip_vit.encoder:build_clip",
        options=ClipVitOptions,
        summary="CLIP's vision tower; ViT-L/14 at 224 by default",
        license="weights of openai/clip-vit-large-patch14: MIT",
        test_options=small,
    )
    yield Component(
        kind="image-encoder",
        name="eva-vit-g",
        build="lyrics.plugins.clip_vit.encoder:build_eva",
        options=EvaVitGOptions,
        summary="BLIP-2's EVA ViT-g at 224, which the released Lyrics checkpoint reads",
        license="weights of BLIP-2: MIT",
        test_options=small,
    )
