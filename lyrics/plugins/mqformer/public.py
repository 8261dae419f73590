"""Converters of BLIP-2's stage-1 checkpoints and of the query transformer inside the released Lyrics.

BLIP-2's keys keep their names, which ``convert.load_checkpoint`` reads under any options: with more queries or words
than the file has, with grounding queries or without. What it does not have is initialized when the model is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from lyrics.core.contracts import BuildContext
from lyrics.core.conversion.plan import Beside, ConversionPlan, Piece, SourceCheckpoint, fewer_tokens, read_tokenizer
from lyrics.core.errors import WeightsError
from lyrics.plugins.mqformer import MQFormerOptions, QFormerOptions
from lyrics.plugins.mqformer.build import build_mqformer, build_qformer, tokenizer_of
from lyrics.plugins.mqformer.convert import (
    LAVIS,
    RELEASED_STAGE2,
    TRANSFORMERS,
    Made,
    Naming,
    from_upstream,
    load_converted,
    sources,
)
from lyrics.plugins.mqformer.model import MQFormer

#: Where no spec says which local tokens there are: both kinds. Only the names of the new tensors depend on it, not
#: their width.
_LOCAL_DIMS = {"detector": 260, "segmenter": 260}


def convert_lavis(source: SourceCheckpoint, options: QFormerOptions, context: BuildContext) -> ConversionPlan:
    """BLIP-2 stage 1 as LAVIS saved it. Raises ``WeightsError`` for a parameter that is missing or of another shape."""
    return _blip2(source, options, context, LAVIS)


def convert_transformers(source: SourceCheckpoint, options: QFormerOptions, context: BuildContext) -> ConversionPlan:
    """BLIP-2 stage 1 as transformers' ``Blip2ForImageTextRetrieval``, which has no token head.

    Raises ``WeightsError`` as above.
    """
    return _blip2(source, options, context, TRANSFORMERS)


def _blip2(source: SourceCheckpoint, options: QFormerOptions, context: BuildContext, naming: Naming) -> ConversionPlan:
    keys = f"{naming.encoder}.0.crossattention.{naming.nested}.key.weight"
    if keys not in source:
        raise WeightsError(f"{source.path}: has no {keys}, whose width is that of the image tokens.")
    context = replace(context, image_dim=context.image_dim or source.shapes()[keys].shape[1])
    # The checkpoint's LayerNorm of image tokens is always taken: whether it is used is the business of the spec that
    # reads the result.
    model = _on_meta(options.model_copy(update={"normalize_image_tokens": True}), context)
    converted = from_upstream(source, model, naming)
    report = load_converted(model, converted)
    wanted = sources(model, naming)
    used = [key for name in converted.trunk for key in wanted[name].keys]
    rows = tuple(f"{name}[{count}:]" for name, count in report.partly.items())
    return ConversionPlan(
        {key: Piece((key,)) for key in used},
        new=(*report.initialized, *rows),
        notes=("set query_transformer.options.checkpoint to the file model.safetensors in this folder",),
    )


def convert_released(
    source: Mapping[str, torch.Tensor], options: MQFormerOptions, context: BuildContext
) -> ConversionPlan:
    """Return the query transformer of the released Lyrics (stage 2, without a token head).

    Names are those of our own state dict.
    """
    model = _on_meta(options, context)
    state = {key: source[key] for key in source if key == "query_tokens" or key.startswith("qformer.")}
    converted = from_upstream(state, model, RELEASED_STAGE2)
    report = load_converted(model, converted)
    if report.partly.get("word_embeddings.weight", model.vocab_size) != model.vocab_size:
        raise WeightsError(
            f"the query transformer of the released Lyrics has {report.partly['word_embeddings.weight']} words, the "
            f"spec says {model.vocab_size}; set query_transformer.options.vocab_size to the checkpoint's."
        )
    if "query_tokens_QD" in report.partly:
        raise WeightsError(
            f"query_tokens of the released Lyrics are {report.partly['query_tokens_QD']}, the spec says "
            f"{model.num_queries}; set query_transformer.options.num_visual and num_grounding to the checkpoint's."
        )
    made = {name: Made(model, RELEASED_STAGE2, name) for name in converted.trunk}
    return ConversionPlan(
        {name: Piece(one.keys, one) for name, one in made.items()},
        new=report.initialized,
        beside=Beside(
            "the tokenizer of the texts that it reads (BERT's)",
            "bytes as tokens, with which its words mean nothing",
            _Tokenizer(options),
        ),
    )


class _Tokenizer:
    """Puts the tokenizer of a folder into a query transformer, with the tokens that it adds to BERT's."""

    def __init__(self, options: MQFormerOptions) -> None:
        self.options = options

    def __call__(self, folder: Path, part: MQFormer) -> tuple[str, ...]:
        words = self.options.vocab_size
        read_tokenizer(folder, words)
        options = self.options.model_copy(update={"tokenizer": str(folder)})
        part.tokenizer = tokenizer_of(options, BuildContext("pretrained"))
        return fewer_tokens(folder, part.tokenizer, words)


def _on_meta(options: QFormerOptions, context: BuildContext) -> MQFormer:
    context = replace(context, weights="meta", local_dims=context.local_dims or _LOCAL_DIMS)
    with torch.device("meta"):
        if isinstance(options, MQFormerOptions):
            return build_mqformer(options, context)
        return build_qformer(options, context)
