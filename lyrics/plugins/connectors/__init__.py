"""Connectors of other vision-language models as query transformers that read no text: baselines for MQ-Former.

This file is the manifest: it imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from pydantic import Field, model_validator

from lyrics.core.registry.component import Component, Options, PublicModel, hookimpl


class _ConnectorOptions(Options):
    hidden_size: int | None = Field(
        None, ge=1, description="width of a soft token before the projection; null: that of an image token"
    )

    @property
    def segments(self) -> tuple[str, ...]:
        """Visual queries alone: no text, so no objective that needs some."""
        return ("V",)


class MlpProjectorOptions(_ConnectorOptions):
    """Options of ``mlp-projector``: LLaVA's connector.

    Each image token becomes a soft token by itself. LLaVA-1.5's two layers are a linear layer with GELU here and the
    model's own projection behind it; with ``hidden_size`` set to the language model's width they are as wide as there.
    """

    skip_tokens: int = Field(
        0, ge=0, description="first image tokens that are left out: 1 for a class token, as LLaVA does"
    )
    num_tokens: int | None = Field(
        None, ge=1, description="tokens of an image before that; null: as many as the image encoder says"
    )

    @model_validator(mode="after")
    def _some_are_left(self) -> Self:
        if self.num_tokens is not None and self.skip_tokens >= self.num_tokens:
            raise ValueError(f"skip_tokens {self.skip_tokens} leaves nothing of {self.num_tokens} tokens")
        return self


class PerceiverResamplerOptions(_ConnectorOptions):
    """Options of ``perceiver-resampler``: Flamingo's connector (arXiv 2204.14198, section 3.1.1, figure 5).

    Learned queries read the image tokens and each other, as many layers as there are; nothing of the refiner and no
    text reaches them.
    """

    num_queries: int = Field(64, ge=1, description="soft tokens for each image; 64 in the paper")
    num_layers: int = Field(6, ge=1, description="how often the queries read the image; 6 in the paper")
    num_heads: int = Field(8, ge=1, description="attention heads; divides hidden_size")
    ffn_factor: int = Field(4, ge=1, description="inner width of the feed-forward layers, as a multiple")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size is not None and self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        return self


@hookimpl
def lyrics_components() -> Iterator[Component]:
    yield Component(
        kind="query-transformer",
        name="mlp-projector",
        build="lyrics.plugins.connectors.mlp:MlpProjector",
        options=MlpProjectorOptions,
        summary="LLaVA's connector: each image token becomes a soft token; reads no text and no objects",
        license="Apache-2.0",
        test_options={"hidden_size": 8},
    )
    yield Component(
        kind="query-transformer",
        name="perceiver-resampler",
        build="lyrics.plugins.connectors.resampler:PerceiverResampler",
        options=PerceiverResamplerOptions,
        summary="Flamingo's connector: learned queries read the image tokens; reads no text and no objects",
        license="Apache-2.0",
        test_options={"hidden_size": 8, "num_queries": 3, "num_layers": 2, "num_heads": 2},
    )


@hookimpl
def lyrics_public_models() -> Iterator[PublicModel]:
    yield PublicModel(
        "llava", "llava", "lyrics.plugins.connectors.llava:read", "LLaVA-1.5 (llava-hf/llava-1.5-7b-hf) and its kind"
    )
