"""The two query transformers: MQ-Former, and BLIP-2's Q-Former as the baseline. This manifest imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lyrics.core.registry.component import (
    Component,
    Converter,
    NamesVocabulary,
    NamesWeights,
    Options,
    PublicModel,
    Template,
    hookimpl,
)


class QFormerOptions(Options):
    """What both query transformers have: the BERT trunk of BLIP-2 with visual queries."""

    FORMER_NAMES: ClassVar[Mapping[str, str]] = {"normalise_image_tokens": "normalize_image_tokens"}

    num_visual: int = Field(32, ge=1, description="visual queries, which read the image encoder's tokens")
    hidden_size: int = Field(768, ge=8, description="width of the trunk and of the query outputs")
    num_layers: int = Field(12, ge=1, description="transformer layers")
    num_heads: int = Field(12, ge=1, description="attention heads; divides hidden_size")
    intermediate_size: int = Field(3072, ge=8, description="inner width of the text and query feed-forwards")
    cross_attention_every: int = Field(2, ge=1, description="layers 0, n, 2n, ... have cross-attention")
    vocab_size: int = Field(
        30525, ge=8, description="BERT's 30522 tokens with [DEC], [BOS], [MLM]; padded to a multiple of 64"
    )
    max_positions: int = Field(512, ge=8, description="text positions; each text segment counts its own")
    activation: Literal["gelu", "relu"] = Field("gelu", description="gelu as in BLIP-2's weights; the paper says relu")
    hidden_dropout: float = Field(0.1, ge=0.0, lt=1.0, description="dropout on embeddings and block outputs")
    attention_dropout: float = Field(0.1, ge=0.0, lt=1.0, description="dropout on attention weights")
    layer_norm_eps: float = Field(1e-12, gt=0.0, description="epsilon of every LayerNorm of the trunk")
    init_std: float = Field(0.02, gt=0.0, description="standard deviation of initial weights, queries included")
    image_dim: int | None = Field(None, ge=1, description="width of image tokens; unset: the image encoder's")
    normalize_image_tokens: bool = Field(
        False, description="a trainable LayerNorm on image tokens, where a BLIP-2 checkpoint keeps its ln_vision"
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute each layer in the backward pass instead of keeping it"
    )
    attention: Literal["auto", "reference", "sdpa", "triton", "flash", "flex"] = Field(
        "auto", description="implementation of both attentions; a named one never falls back"
    )
    tokenizer: Annotated[str | None, NamesWeights()] = Field(
        "google-bert/bert-base-uncased",
        description="where pretrained weights take their tokenizer from: hub id or folder; null: the built-in one",
    )
    builtin_tokenizer: Annotated[str, NamesVocabulary()] = Field(
        "bytes", description="the built-in tokenizer: bytes, or the name of a vocabulary that a plugin provides"
    )
    numbers_in_order: bool = Field(
        False,
        description="new embeddings of the built-in tokenizer's numbers are smooth in their value; trained ones stay",
    )
    checkpoint: Annotated[str | None, NamesWeights()] = Field(
        None,
        description="stage-1 weights (.safetensors) in this library's, LAVIS', transformers' or the released naming",
    )

    @property
    def segments(self) -> tuple[str, ...]:
        """What its streams consist of."""
        return ("V", "C")


class MQFormerOptions(QFormerOptions):
    """MQ-Former: the trunk with grounding queries, which read the refiner's local tokens."""

    num_grounding: int = Field(
        32, ge=1, description="grounding queries, which read the detector's and segmenter's tokens"
    )
    local_dims: dict[str, int] | None = Field(
        None, description="width of local tokens per source (detector, segmenter); unset: what the refiner gives"
    )
    box_features: Literal["raw", "fourier"] = Field(
        "raw",
        description="the box in a local token (last four numbers): as it is, or also as waves of its sides",
    )

    @property
    def segments(self) -> tuple[str, ...]:
        return ("V", "G", "S", "C")


_SMALL = {
    "num_visual": 4,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 320,
    "max_positions": 64,
}

_LAVIS = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2"
_BLIP2 = (
    Converter(
        "blip2-lavis",
        "lyrics.plugins.mqformer.public:convert_lavis",
        marks=("Qformer.bert.embeddings.LayerNorm.weight", "query_tokens"),
        summary="BLIP-2 stage 1 from LAVIS (ViT-L or ViT-g): where the query transformer starts from",
        published=(f"{_LAVIS}/blip2_pretrained_vitL.pth", f"{_LAVIS}/blip2_pretrained.pth"),
    ),
    Converter(
        "blip2-transformers",
        "lyrics.plugins.mqformer.public:convert_transformers",
        marks=("qformer.layernorm.weight", "query_tokens", "embeddings.word_embeddings.weight"),
        summary="the same from transformers (Blip2ForImageTextRetrieval)",
    ),
)
_RELEASED = Converter(
    "lyrics-released-14b",
    "lyrics.plugins.mqformer.public:convert_released",
    marks=("qformer.embeddings.LayerNorm.weight", "query_tokens", "language_projection.weight"),
    summary="what the authors of Lyrics released, as a model folder",
    whole_model=True,
)


@hookimpl
def lyrics_components() -> Iterator[Component]:
    yield Component(
        kind="query-transformer",
        name="mqformer",
        build="lyrics.plugins.mqformer.build:build_mqformer",
        options=MQFormerOptions,
        summary="Multi-scale Querying Transformer: visual queries read the image, grounding queries the visual refiner",
        license="Apache-2.0",
        test_options={**_SMALL, "num_grounding": 4},
        converters=(*_BLIP2, _RELEASED),
    )
    yield Component(
        kind="query-transformer",
        name="qformer",
        build="lyrics.plugins.mqformer.build:build_qformer",
        options=QFormerOptions,
        summary="BLIP-2's Q-Former: the same trunk without grounding queries",
        license="Apache-2.0",
        test_options=_SMALL,
        converters=_BLIP2,
    )


@hookimpl
def lyrics_public_models() -> Iterator[PublicModel]:
    module = "lyrics.plugins.mqformer.blip2"
    yield PublicModel("blip2", "blip-2", f"{module}:read_blip2", "BLIP-2 with OPT (Salesforce/blip2-opt-2.7b), stage 1")
    yield PublicModel(
        "instructblip", "instructblip", f"{module}:read_instructblip", "Salesforce/instructblip-vicuna-7b and its kind"
    )


@hookimpl
def lyrics_templates() -> Iterator[Template]:
    yield Template(
        "blip2-qa", "lyrics.plugins.mqformer.blip2:BLIP2_QA", "Question: ... Answer: ..., as BLIP-2 is asked"
    )
