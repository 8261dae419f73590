"""MQ-Former by its plain definition: one padded batch, one dense mask, nothing shared, nothing skipped.

It is what tests and ``lyrics bench step`` compare the packed forward pass with, so it uses the weights of the model and
none of its packing: every segment is padded to its longest row, every layer computes every row, and keys and values of
the features are projected for every row of the stream.

Letters: R rows, L padded tokens in the order V, G, S, C, K cached tokens, D width, H heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import nn

from lyrics.core.stage1.streams import Features, Stream
from lyrics.plugins.mqformer import QFormerOptions
from lyrics.plugins.mqformer.layers import CrossAttention, KeysAndValues, Layer, SelfAttention, activate, pad_width


class Trunk(Protocol):
    """The weights that the definition uses."""

    options: QFormerOptions
    num_visual: int
    num_grounding: int
    num_queries: int
    local_dims: dict[str, int]
    query_tokens_QD: nn.Parameter
    word_embeddings: nn.Embedding
    position_embeddings: nn.Embedding
    embedding_norm: nn.LayerNorm
    image_norm: nn.Module
    layers: nn.ModuleList

    def read_local(self, name: str, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...


@dataclass(frozen=True, eq=False)
class DenseOutputs:
    """All hidden states [R,L,D], where each segment lies, keys and values of every layer, and the mask.

    Keys and values are those of the self-attention, [R,L,H,d].
    """

    hidden_RLD: torch.Tensor
    segments: dict[str, slice]
    cache: list[KeysAndValues]
    mask_RLL: torch.Tensor


def forward_dense(
    model: Trunk, stream: Stream, features: Features, cache: Sequence[KeysAndValues] | None = None
) -> DenseOutputs:
    """Run one stream. ``cache`` holds the keys and values of its prefix's layers, one row per row, all visible.

    Padded rows are computed and mean nothing. Only for evaluation: no dropout.
    """
    options = model.options
    parts, segments, exists = [], {}, []
    length = 0
    if stream.image_index_R is not None:
        for name, tokens in zip(
            "VG", model.query_tokens_QD.split([model.num_visual, model.num_grounding]), strict=True
        ):
            parts.append(tokens.expand(stream.num_rows, -1, -1))
            segments[name] = slice(length, length + len(tokens))
            exists.append(torch.ones(stream.num_rows, len(tokens), dtype=torch.bool))
            length += len(tokens)
    device = model.query_tokens_QD.device
    for name, text in sorted(stream.text.items(), key=lambda item: "SC".index(item[0])):
        size = text.ids_RL.shape[1]
        positions = torch.arange(size, device=device) + text.first_position
        parts.append(model.word_embeddings(text.ids_RL.to(device)) + model.position_embeddings(positions))
        segments[name] = slice(length, length + size)
        exists.append(text.mask_RL)
        length += size
    mask_RLL = dense_mask(stream, segments, torch.cat(exists, dim=1)).to(device)
    hidden = model.embedding_norm(torch.cat(parts, dim=1))
    num_queries = model.num_queries if stream.image_index_R is not None else 0
    kept: list[KeysAndValues] = []
    for number, module in enumerate(model.layers):
        layer = cast(Layer, module)
        past = None if cache is None else cache[number]
        hidden, keys_and_values = _self_attention(layer.self_attention, hidden, mask_RLL, past)
        kept.append(keys_and_values)
        queries, text_part = hidden[:, :num_queries], hidden[:, num_queries:]
        if num_queries and layer.image_attention is not None:
            assert stream.image_index_R is not None
            index = stream.image_index_R.to(device)
            visual, grounding = queries[:, : model.num_visual], queries[:, model.num_visual :]
            image_mask = None if features.image_mask_BN is None else features.image_mask_BN[index]
            image = pad_width(model.image_norm(features.image_tokens_BND[index]))
            visual = _cross_attention(layer.image_attention, visual, [image], image_mask)
            if layer.local_attention is not None:
                local = [model.read_local(name, *features.local[name]) for name in model.local_dims]
                sources = [tokens[index] for tokens, _ in local]
                local_mask = torch.cat([mask[index] for _, mask in local], dim=1)
                grounding = _cross_attention(layer.local_attention, grounding, sources, local_mask)
            queries = torch.cat([visual, grounding], dim=1)
        outputs = []
        for part, ffn in ((queries, layer.query_ffn), (text_part, layer.text_ffn)):
            inner = activate(F.linear(part, ffn.up.weight, ffn.up.bias), options.activation)
            outputs.append(ffn.norm(part + F.linear(inner, ffn.down.weight, ffn.down.bias)))
        hidden = torch.cat(outputs, dim=1)
    return DenseOutputs(hidden, segments, kept, mask_RLL)


def dense_mask(stream: Stream, segments: dict[str, slice], exists_RL: torch.Tensor) -> torch.Tensor:
    """Return the stream's table as a matrix per row: bool [R,L,L], padding never seen."""
    length = exists_RL.shape[1]
    mask = torch.zeros(length, length, dtype=torch.bool)
    for (row, column), seen in stream.visibility.items():
        if row not in segments or column not in segments or seen == "none":
            continue
        block = torch.ones(
            segments[row].stop - segments[row].start, segments[column].stop - segments[column].start
        ).bool()
        mask[segments[row], segments[column]] = block.tril() if seen == "causal" else block
    return mask[None] & exists_RL[:, None, :]


def _self_attention(
    block: SelfAttention, hidden: torch.Tensor, mask_RLL: torch.Tensor, past: KeysAndValues | None
) -> tuple[torch.Tensor, KeysAndValues]:
    heads = (block.options.num_heads, -1)
    q, k, v = (x.unflatten(-1, heads) for x in F.linear(hidden, block.qkv.weight, block.qkv.bias).chunk(3, dim=-1))
    keys, values, mask = k, v, mask_RLL
    if past is not None:
        keys, values = torch.cat([past[0], k], dim=1), torch.cat([past[1], v], dim=1)
        mask = torch.cat([mask.new_ones(*mask.shape[:2], past[0].shape[1]), mask], dim=2)
    read = F.scaled_dot_product_attention(
        q.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask[:, None]
    )
    output = F.linear(read.transpose(1, 2).flatten(2), block.output.weight, block.output.bias)
    return block.norm(hidden + output), (k, v)


def _cross_attention(
    block: CrossAttention, queries: torch.Tensor, sources: Sequence[torch.Tensor], mask: torch.Tensor | None
) -> torch.Tensor:
    heads = (block.options.num_heads, -1)
    q = F.linear(queries, block.query.weight, block.query.bias).unflatten(-1, heads)
    keys, values = [], []
    for tokens, module in zip(sources, block.key_value.values(), strict=True):
        k, v = module(tokens).chunk(2, dim=-1)
        keys.append(k.unflatten(-1, heads))
        values.append(v.unflatten(-1, heads))
    attn_mask = None if mask is None else mask[:, None, None, :]
    read = F.scaled_dot_product_attention(
        q.transpose(1, 2), torch.cat(keys, 1).transpose(1, 2), torch.cat(values, 1).transpose(1, 2), attn_mask=attn_mask
    )
    output = F.linear(read.transpose(1, 2).flatten(2), block.output.weight, block.output.bias)
    return cast(torch.Tensor, block.norm(queries + output))
