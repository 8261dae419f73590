"""The layers of MQ-Former.

Post-LayerNorm, self-attention shared by queries and text, two cross-attentions, two feed-forwards.

Letters: T packed tokens, P query sets (one per stream row with queries), Q queries of a set (V visual + G grounding), I
images, N image tokens, M local tokens, D width, H heads, d head width, n selected rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from lyrics.kernels import CrossPlan, Plan, cross_attention, segment_attention
from lyrics.plugins.mqformer import QFormerOptions

KeysAndValues = tuple[torch.Tensor, torch.Tensor]


def padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def pad_width(tokens: torch.Tensor) -> torch.Tensor:
    """Zero columns up to a multiple of 8."""
    missing = padded(tokens.shape[-1], 8) - tokens.shape[-1]
    return F.pad(tokens, (0, missing)) if missing else tokens


@dataclass(frozen=True, eq=False)
class Rows:
    """The query rows that a layer computes: all of them, or in the last layer those that are wanted."""

    plan: Plan
    index: torch.Tensor | None
    """Packed positions computed, None for all."""
    num_query_rows: int
    visual: CrossPlan | None
    grounding: CrossPlan | None


class Layer(nn.Module):
    """Self-attention of queries and text, cross-attention of queries where it ``reads``, two feed-forwards."""

    def __init__(self, options: QFormerOptions, image_dim: int, local_dims: Mapping[str, int], reads: bool):
        super().__init__()
        self.num_visual = options.num_visual
        self.self_attention = SelfAttention(options)
        self.image_attention = CrossAttention(options, {"image": image_dim}) if reads else None
        self.local_attention = CrossAttention(options, local_dims) if reads and local_dims else None
        self.query_ffn = FeedForward(options)
        self.text_ffn = FeedForward(options)

    def forward(
        self,
        queries_TD: torch.Tensor,
        text_TD: torch.Tensor,
        rows: Rows,
        seen: tuple[KeysAndValues | None, KeysAndValues | None],
        seed: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden_TD = self.self_attention(torch.cat([queries_TD, text_TD]), rows.plan, rows.index, seed)
        queries_TD, text_TD = hidden_TD.split([rows.num_query_rows, len(hidden_TD) - rows.num_query_rows])
        if self.image_attention is not None and rows.visual is not None:
            num_sets = len(rows.visual.image_index_S)
            visual_PVD, grounding_PGD = queries_TD.view(num_sets, -1, queries_TD.shape[-1]).split(
                [self.num_visual, len(queries_TD) // num_sets - self.num_visual], dim=1
            )
            visual_PVD = self.image_attention(visual_PVD, seen[0], rows.visual, seed + 1)
            if self.local_attention is not None:
                grounding_PGD = self.local_attention(grounding_PGD, seen[1], rows.grounding, seed + 2)
            queries_TD = torch.cat([visual_PVD, grounding_PGD], dim=1).view(-1, queries_TD.shape[-1])
        return self.query_ffn(queries_TD), self.text_ffn(text_TD)


class SelfAttention(nn.Module):
    """BERT's self-attention block on packed tokens, its weights shared by queries and text."""

    def __init__(self, options: QFormerOptions):
        super().__init__()
        width = options.hidden_size
        self.options = options
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=options.layer_norm_eps)

    def forward(self, hidden_TD: torch.Tensor, plan: Plan, index: torch.Tensor | None, seed: int) -> torch.Tensor:
        heads = (self.options.num_heads, self.options.hidden_size // self.options.num_heads)
        if index is None:
            q, k, v = self.qkv(hidden_TD).view(-1, 3, *heads).unbind(1)
        else:  # queries of the wanted rows only, keys and values of all
            width = self.options.hidden_size
            weight, bias = self.qkv.weight, self.qkv.bias
            k, v = F.linear(hidden_TD, weight[width:], bias[width:]).view(-1, 2, *heads).unbind(1)
            hidden_TD = hidden_TD.index_select(0, index)
            q = F.linear(hidden_TD, weight[:width], bias[:width]).view(-1, *heads)
        dropout_p = self.options.attention_dropout if self.training else 0.0
        read = segment_attention(q, k, v, plan, dropout_p=dropout_p, seed=seed, impl=self.options.attention)
        projected = F.dropout(self.output(read.flatten(1)), self.options.hidden_dropout, self.training)
        return cast(torch.Tensor, self.norm(hidden_TD + projected))


class CrossAttention(nn.Module):
    """Queries of one kind reading frozen features.

    Each source has its own key and value projection; sources are concatenated along the sequence. Source widths are
    padded to a multiple of 8 with weight columns that only ever meet zeros.
    """

    def __init__(self, options: QFormerOptions, source_dims: Mapping[str, int]):
        super().__init__()
        width = options.hidden_size
        self.options = options
        self.source_dims = dict(source_dims)
        self.query = nn.Linear(width, width)
        self.key_value = nn.ModuleDict(
            {name: nn.Linear(padded(dim, 8), 2 * width) for name, dim in source_dims.items()}
        )
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=options.layer_norm_eps)

    def reset_parameters_xavier(self) -> None:
        """Each of query, key, value and output by its own fans; the padding columns zero."""
        width = self.options.hidden_size
        nn.init.xavier_uniform_(self.query.weight)
        nn.init.xavier_uniform_(self.output.weight)
        for name, dim in self.source_dims.items():
            weight = cast(nn.Linear, self.key_value[name]).weight
            with torch.no_grad():
                weight[:, dim:] = 0.0
                for block in (weight[:width, :dim], weight[width:, :dim]):
                    nn.init.xavier_uniform_(block)

    def project(self, sources: Mapping[str, torch.Tensor], norm: nn.LayerNorm | None = None) -> KeysAndValues:
        """Source tokens [I, tokens, width] -> keys and values [I, all tokens, H, d].

        With ``norm`` the tokens are normalized but for its scale g and shift b: W (g x + b) + c = (W g) x + (W b + c).
        The gradients of g and b then come out of a product of weights, and none has to reach the frozen tokens.
        """
        heads = (self.options.num_heads, self.options.hidden_size // self.options.num_heads)
        projected = []
        for name, module in self.key_value.items():
            weight: torch.Tensor = cast(nn.Linear, module).weight
            bias: torch.Tensor = cast(nn.Linear, module).bias
            if norm is not None:
                weight, bias = weight * pad_width(norm.weight), bias + F.linear(pad_width(norm.bias), weight)
            projected.append(F.linear(sources[name], weight, bias).unflatten(-1, (2, *heads)))
        both = projected[0] if len(projected) == 1 else torch.cat(projected, dim=1)
        keys, values = both.unbind(2)  # its backward is one stack; two slices would each fill a tensor of zeros
        return keys, values

    def forward(self, queries_PQD: torch.Tensor, seen: KeysAndValues, plan: CrossPlan, seed: int) -> torch.Tensor:
        heads = (self.options.num_heads, self.options.hidden_size // self.options.num_heads)
        q = self.query(queries_PQD).unflatten(-1, heads)
        dropout_p = self.options.attention_dropout if self.training else 0.0
        read = cross_attention(q, *seen, plan, dropout_p=dropout_p, seed=seed, impl=self.options.attention)
        projected = F.dropout(self.output(read.flatten(2)), self.options.hidden_dropout, self.training)
        return cast(torch.Tensor, self.norm(queries_PQD + projected))


class FeedForward(nn.Module):
    """Two linear maps with the activation between them, residual and LayerNorm."""

    compiled_alone = True

    def __init__(self, options: QFormerOptions):
        super().__init__()
        self.dropout = options.hidden_dropout
        self.activation = options.activation
        self.up = nn.Linear(options.hidden_size, options.intermediate_size)
        self.down = nn.Linear(options.intermediate_size, options.hidden_size)
        self.norm = nn.LayerNorm(options.hidden_size, eps=options.layer_norm_eps)

    def forward(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        projected = self.down(activate(self.up(hidden_TD), self.activation))
        return cast(torch.Tensor, self.norm(hidden_TD + F.dropout(projected, self.dropout, self.training)))


class TokenHead(nn.Module):
    """BERT's prediction head up to the output embedding, which is the word embedding."""

    compiled_alone = True

    def __init__(self, options: QFormerOptions):
        super().__init__()
        self.activation = options.activation
        self.transform = nn.Linear(options.hidden_size, options.hidden_size)
        self.norm = nn.LayerNorm(options.hidden_size, eps=options.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(padded(options.vocab_size, 64)))

    def forward(self, hidden_nD: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.norm(activate(self.transform(hidden_nD), self.activation)))


def activate(hidden: torch.Tensor, name: str) -> torch.Tensor:
    return F.gelu(hidden) if name == "gelu" else F.relu(hidden)
