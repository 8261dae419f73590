"""SAM-HQ (Ke et al. 2023), Segment Anything with finer borders: a mask for every box it is asked for.

This file is the manifest: it imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from lyrics.core.registry.component import CheckpointOptions, Component, Converter, NamesWeights, hookimpl


class SamHqOptions(CheckpointOptions):
    """Options of ``sam-hq``.

    Numbers that are null are the checkpoint's; ``PUBLIC`` are those of the default one, SAM-HQ ViT-H.
    """

    PUBLIC: ClassVar[Mapping[str, Any]] = {
        "image_size": 1024,
        "patch_size": 16,
        "width": 1280,
        "layers": 32,
        "heads": 16,
        "mlp_ratio": 4.0,
        "window": 14,
        "global_layers": (7, 15, 23, 31),
        "prompt_width": 256,
        "decoder_layers": 2,
        "decoder_heads": 8,
        "decoder_ffn": 2048,
    }

    checkpoint: Annotated[str, NamesWeights()] = Field(
        "syscv-community/sam-hq-vit-huge",
        description="hub id, folder or .safetensors file, in the naming of transformers or of the original code",
    )
    boxes_per_pass: int = Field(
        64, ge=1, description="boxes that go through the mask decoder together; fewer need less memory"
    )

    image_size: int | None = Field(
        None, ge=1, le=10_000, description="longest side in pixels, and side of the padded square"
    )
    patch_size: int | None = Field(None, ge=1, description="pixels per image token along each side")
    width: int | None = Field(None, ge=1, description="width of the image encoder")
    layers: int | None = Field(None, ge=1, description="layers of the image encoder")
    heads: int | None = Field(None, ge=1, description="attention heads of the image encoder")
    mlp_ratio: float | None = Field(
        None, gt=0, description="feed-forward width of the image encoder, as a multiple of its width"
    )
    window: int | None = Field(None, ge=1, description="side in tokens of the windows that most layers attend in")
    global_layers: tuple[int, ...] | None = Field(
        None, min_length=1, description="layers that attend everywhere; the first gives the fine features"
    )

    prompt_width: int | None = Field(
        None, ge=8, multiple_of=8, description="width of prompts and of the image embedding"
    )
    decoder_layers: int | None = Field(None, ge=1, description="layers of the mask decoder")
    decoder_heads: int | None = Field(None, ge=1, description="attention heads of the mask decoder")
    decoder_ffn: int | None = Field(None, ge=1, description="feed-forward width of the mask decoder")

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        if not self.is_known:
            return self
        own = SimpleNamespace(**self.numbers)
        if own.image_size % own.patch_size:
            raise ValueError(f"image_size {own.image_size} is not a multiple of patch_size {own.patch_size}")
        if own.width % own.heads:
            raise ValueError(f"width {own.width} is not a multiple of heads {own.heads}")
        if own.prompt_width // 2 % own.decoder_heads:
            raise ValueError(
                f"half of prompt_width {own.prompt_width} is not a multiple of decoder_heads {own.decoder_heads}"
            )
        if any(not 0 <= layer < own.layers for layer in own.global_layers):
            raise ValueError(
                f"global_layers {own.global_layers} must lie in 0 to {own.layers - 1}, the encoder's layers"
            )
        return self

    @property
    def feature_dim(self) -> int | None:
        """Width of a local token: the mask's pooled image embedding and the box as (center x, center y, width, height).

        None where only the checkpoint knows it.
        """
        width = self.numbers["prompt_width"] if self.is_known else self.prompt_width
        return None if width is None else width + 4


@hookimpl
def lyrics_components() -> Iterator[Component]:
    small = {
        "image_size": 64,
        "patch_size": 8,
        "width": 32,
        "layers": 2,
        "heads": 2,
        "mlp_ratio": 2.0,
        "window": 3,
        "global_layers": (1,),
        "prompt_width": 32,
        "decoder_layers": 1,
        "decoder_heads": 2,
        "decoder_ffn": 32,
    }
    converters = (
        Converter(
            "sam-hq",
            "lyrics.plugins.sam_hq.public:convert",
            marks=("mask_decoder.hf_token.weight", "image_encoder.pos_embed"),
            summary="SAM-HQ (sam_hq_vit_h.pth; the smaller ones with --model)",
            published=("hub:lkeab/hq-sam/sam_hq_vit_h.pth",),
        ),
    )
    yield Component(
        kind="segmenter",
        name="sam-hq",
        build="lyrics.plugins.sam_hq.segmenter:build",
        options=SamHqOptions,
        summary="box-prompted segmenter, transformers' implementation; one local token of width 260 per box",
        license="Apache-2.0",
        test_options=small,
        converters=converters,
    )
    yield Component(
        kind="segmenter",
        name="sam-hq-upstream",
        build="lyrics.plugins.sam_hq.upstream:build",
        options=SamHqOptions,
        requires=("segment-anything-hq==0.3", "timm>=1.0.20", "torchvision"),
        install="pip install 'lyrics-vl[experts]'",
        summary="the same segmenter, its authors' implementation",
        license="code as its distribution states: MIT; weights: Apache-2.0",
        test_options=small,
        converters=converters,
    )
