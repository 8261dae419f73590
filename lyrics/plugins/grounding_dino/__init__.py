"""Grounding DINO (Liu et al. 2023), an open-vocabulary detector: boxes for the phrases it is asked for.

This file is the manifest: it imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from lyrics.core.registry.component import CheckpointOptions, Component, Converter, NamesWeights, hookimpl


class GroundingDinoOptions(CheckpointOptions):
    """Options of ``grounding-dino``.

    Numbers that are null are the checkpoint's; ``PUBLIC`` are those of the default one.
    """

    PUBLIC: ClassVar[Mapping[str, Any]] = {
        "swin_width": 96,
        "swin_depths": (2, 2, 6, 2),
        "swin_heads": (3, 6, 12, 24),
        "swin_window": 7,
        "text_width": 768,
        "text_layers": 12,
        "text_heads": 12,
        "text_ffn": 3072,
        "text_vocabulary": 30522,
        "text_positions": 512,
        "max_text_tokens": 256,
        "width": 256,
        "queries": 900,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "heads": 8,
        "ffn": 2048,
    }

    checkpoint: Annotated[str, NamesWeights()] = Field(
        "IDEA-Research/grounding-dino-tiny",
        description="hub id, folder or .safetensors file, in the naming of transformers or of the original code",
    )
    tokenizer: Annotated[str | None, NamesWeights()] = Field(
        None,
        description="hub id or folder of the text encoder's BERT tokenizer; without one, that beside the checkpoint",
    )

    shortest_side: int = Field(800, ge=1, description="pixels that the image's shortest side is resized to")
    longest_side: int = Field(1333, ge=1, description="most pixels of the longest side; wins over shortest_side")
    box_threshold: float = Field(
        0.25, ge=0, le=1, description="a query is a box when its score for some phrase is above this"
    )
    text_threshold: float = Field(
        0.2, ge=0, le=1, description="a box is reported for each phrase whose score is above this"
    )
    nms_iou: float = Field(
        0.6, ge=0, le=1, description="of two boxes for one phrase that overlap more, the better stays"
    )
    max_detections: int = Field(300, ge=1, description="most detections per image; the best are kept")

    swin_width: int | None = Field(None, ge=1, description="channels of the Swin backbone's first stage")
    swin_depths: tuple[int, int, int, int] | None = Field(None, description="layers of each Swin stage")
    swin_heads: tuple[int, int, int, int] | None = Field(None, description="attention heads of each Swin stage")
    swin_window: int | None = Field(None, ge=1, description="side of a Swin attention window")

    text_width: int | None = Field(None, ge=1, description="width of the BERT text encoder")
    text_layers: int | None = Field(None, ge=1, description="layers of the text encoder")
    text_heads: int | None = Field(None, ge=1, description="attention heads of the text encoder")
    text_ffn: int | None = Field(None, ge=1, description="feed-forward width of the text encoder")
    text_vocabulary: int | None = Field(None, ge=1, description="word pieces that the text encoder knows")
    text_positions: int | None = Field(None, ge=1, description="position embeddings of the text encoder")
    max_text_tokens: int | None = Field(
        None, ge=4, description="most tokens of one prompt; phrases that need more are detected in several prompts"
    )

    width: int | None = Field(None, ge=32, multiple_of=32, description="width of a query")
    queries: int | None = Field(None, ge=1, description="queries, which are also the local tokens")
    encoder_layers: int | None = Field(None, ge=1, description="fusion layers of image and text")
    decoder_layers: int | None = Field(None, ge=2, description="layers that refine the queries")
    heads: int | None = Field(None, ge=2, multiple_of=2, description="attention heads of both")
    ffn: int | None = Field(None, ge=2, multiple_of=2, description="feed-forward width of both")

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        if not self.is_known:
            return self
        own = SimpleNamespace(**self.numbers)
        if own.width % own.heads:
            raise ValueError(f"width {own.width} is not a multiple of heads {own.heads}")
        if own.text_width % own.text_heads:
            raise ValueError(f"text_width {own.text_width} is not a multiple of text_heads {own.text_heads}")
        for stage, stage_heads in enumerate(own.swin_heads):
            channels = own.swin_width * 2**stage
            if stage_heads < 1 or channels % stage_heads:
                raise ValueError(
                    f"the {channels} channels of Swin stage {stage} are not a multiple of its {stage_heads} heads"
                )
        if own.text_positions < own.max_text_tokens:
            raise ValueError(
                f"text_positions {own.text_positions} is less than max_text_tokens {own.max_text_tokens}; lower the "
                "latter"
            )
        return self

    @property
    def feature_dim(self) -> int | None:
        """Width of a local token: a query's state and its box as (center x, center y, width, height).

        None where only the checkpoint knows it.
        """
        width = self.numbers["width"] if self.is_known else self.width
        return None if width is None else width + 4


class GroundingDinoUpstreamOptions(GroundingDinoOptions):
    """Options of ``grounding-dino-upstream``.

    They are those of ``grounding-dino``, within what the original code takes for granted.
    """

    max_text_tokens: int | None = Field(
        None,
        ge=4,
        le=256,
        description="most tokens of one prompt; phrases that need more are detected in several prompts",
    )
    width: int | None = Field(
        None, ge=256, le=256, description="width of a query; the original code knows no other than 256"
    )


@hookimpl
def lyrics_components() -> Iterator[Component]:
    small = {
        "shortest_side": 64,
        "longest_side": 96,
        "box_threshold": 0.0,  # every box, so that the conformance suite sees detections whatever the random weights
        "text_threshold": 0.0,
        "swin_width": 12,
        "swin_depths": (1, 1, 2, 1),
        "swin_heads": (1, 2, 3, 4),
        "swin_window": 4,
        "text_width": 32,
        "text_layers": 1,
        "text_heads": 2,
        "text_ffn": 32,
        "text_vocabulary": 1286,
        "text_positions": 64,
        "max_text_tokens": 64,
        "width": 64,
        "queries": 20,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "heads": 4,
        "ffn": 64,
    }
    original = Converter(
        "grounding-dino",
        "lyrics.plugins.grounding_dino.public:convert",
        marks=("transformer.level_embed", "feat_map.weight"),
        summary="Grounding DINO (groundingdino_swint_ogc.pth)",
        published=(
            "https://github.com/IDEA-Research/GroundingDINO/releases/download/v0.1.0-alpha/groundingdino_swint_ogc.pth",
        ),
    )
    yield Component(
        kind="detector",
        name="grounding-dino",
        build="lyrics.plugins.grounding_dino.detector:build",
        options=GroundingDinoOptions,
        summary="open-vocabulary detector, transformers' implementation; 900 local tokens of width 260",
        license="Apache-2.0",
        test_options=small,
        converters=(
            original,
            Converter("lyrics-released-14b", "lyrics.plugins.grounding_dino.public:convert_released", whole_model=True),
        ),
    )
    yield Component(
        kind="detector",
        name="grounding-dino-upstream",
        build="lyrics.plugins.grounding_dino.upstream:build",
        options=GroundingDinoUpstreamOptions,
        requires=("groundingdino-py==0.4.0", "timm>=1.0.20", "torchvision"),
        install="pip install 'lyrics-vl[experts]'",
        summary="the same detector, its authors' implementation; slower, one image at a time",
        license="Apache-2.0",
        test_options={**small, "width": 256},
        converters=(original,),
    )
