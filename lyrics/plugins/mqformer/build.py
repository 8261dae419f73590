"""Building MQ-Former and BLIP-2's Q-Former, with their tokenizer and checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import SpecError
from lyrics.core.language.tokenizers import builtin_tokenizer
from lyrics.core.weights.pretrained import locate_checkpoint
from lyrics.core.weights.transformers_files import TOKENIZER_PATTERNS, load_tokenizer
from lyrics.plugins.mqformer import MQFormerOptions, QFormerOptions
from lyrics.plugins.mqformer.convert import load_checkpoint
from lyrics.plugins.mqformer.model import SPECIAL_TOKENS, MQFormer


def build_mqformer(options: MQFormerOptions, context: BuildContext) -> MQFormer:
    """MQ-Former for the encoder and refiner of ``context``."""
    local_dims = dict(context.local_dims) if options.local_dims is None else dict(options.local_dims)
    return _build(options, context, local_dims)


def build_qformer(options: QFormerOptions, context: BuildContext) -> MQFormer:
    """BLIP-2's Q-Former: no grounding queries, so local sources are not read."""
    return _build(options, context, {})


def _build(options: QFormerOptions, context: BuildContext, local_dims: Mapping[str, int]) -> MQFormer:
    if options.hidden_size % options.num_heads:
        raise SpecError(
            f"query_transformer: hidden_size {options.hidden_size} is not divisible by num_heads {options.num_heads}."
        )
    image_dim = options.image_dim or context.image_dim
    if not image_dim:
        raise SpecError("query_transformer: the width of image tokens is unknown; set options.image_dim.")
    model = MQFormer(options, image_dim, local_dims, tokenizer_of(options, context))
    if context.weights == "pretrained" and options.checkpoint is not None:
        load_checkpoint(model, options.checkpoint)
    return model


def tokenizer_of(options: QFormerOptions, context: BuildContext) -> Any:
    """BERT's with the added tokens; without pretrained weights the built-in one, which needs no download."""
    if context.weights != "pretrained" or options.tokenizer is None:
        return builtin_tokenizer(options.builtin_tokenizer, SPECIAL_TOKENS, context.registry)
    folder = locate_checkpoint(options.tokenizer, tensors=(), also=TOKENIZER_PATTERNS, downloads=context.downloads)
    tokenizer = load_tokenizer(folder)
    # [DEC] first: it is 30522 in BLIP-2's and the released checkpoints.
    added = [token for token in ("[DEC]", "[BOS]", "[MLM]") if token not in tokenizer.get_vocab()]
    tokenizer.add_special_tokens({"additional_special_tokens": added[: max(0, options.vocab_size - len(tokenizer))]})
    if len(tokenizer) > options.vocab_size:
        raise SpecError(
            f"query_transformer.vocab_size is {options.vocab_size}, and tokenizer {options.tokenizer!r} has "
            f"{len(tokenizer)} tokens."
        )
    return tokenizer
