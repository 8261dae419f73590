"""``perceiver-resampler``: Flamingo's connector.

Shapes: B images, N image tokens, Q queries, L tokens that a query reads (image and queries), R rows of a stream, H
heads, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import SpecError
from lyrics.core.stage1.streams import Features, Stream, StreamOutputs
from lyrics.plugins.connectors import PerceiverResamplerOptions
from lyrics.plugins.connectors.mlp import rows_of_streams


class PerceiverResampler(nn.Module):
    """Image tokens [B,N,image_dim] -> ``num_queries`` soft tokens [B,Q,hidden_size], whatever is asked about the image.

    Raises ``SpecError`` where the width of image tokens is not known, or the heads do not divide it.
    """

    segments = ("V",)

    def __init__(self, options: PerceiverResamplerOptions, context: BuildContext) -> None:
        super().__init__()
        if not context.image_dim:
            raise SpecError("perceiver-resampler: the width of image tokens is not known; name an image encoder.")
        self.hidden_size = width = options.hidden_size or context.image_dim
        if width % options.num_heads:
            raise SpecError(
                f"perceiver-resampler: the width {width} of image tokens is not a multiple of num_heads "
                f"{options.num_heads}; set hidden_size or num_heads."
            )
        self.num_queries = options.num_queries
        self.queries_QD = nn.Parameter(torch.empty(options.num_queries, width).normal_(std=0.02))
        self.read = nn.Linear(context.image_dim, width) if context.image_dim != width else nn.Identity()
        self.layers = nn.ModuleList(
            _Layer(width, options.num_heads, options.ffn_factor) for _ in range(options.num_layers)
        )
        self.norm = nn.LayerNorm(width)

    def project(self, features: Features) -> Features:
        """Nothing is prepared: what ``forward`` reads are the features themselves."""
        return features

    def forward(self, streams: Sequence[Stream], features: Features) -> StreamOutputs:
        """The queries' states [R,Q,D] for each stream; its rows name images."""
        image_BND = self.read(features.image_tokens_BND)
        queries_BQD = self.queries_QD.expand(len(image_BND), -1, -1)
        for layer in self.layers:
            queries_BQD = layer(queries_BQD, image_BND, features.image_mask_BN)
        return rows_of_streams(self.norm(queries_BQD), streams)


class _Layer(nn.Module):
    """The queries read the image and each other, then each is transformed by itself."""

    def __init__(self, width: int, heads: int, ffn_factor: int) -> None:
        super().__init__()
        self.heads = heads
        self.image_norm, self.query_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, ffn_factor * width),
            nn.GELU(),
            nn.Linear(ffn_factor * width, width),
        )

    def forward(
        self, queries_BQD: torch.Tensor, image_BND: torch.Tensor, image_mask_BN: torch.Tensor | None
    ) -> torch.Tensor:
        normed_BQD = self.query_norm(queries_BQD)
        seen_BLD = torch.cat([self.image_norm(image_BND), normed_BQD], dim=1)
        query_BHQd = self._by_head(self.query(normed_BQD))
        key_BLD, value_BLD = self.key_value(seen_BLD).chunk(2, dim=-1)
        mask_B11L = None
        if image_mask_BN is not None:
            own_BQ = torch.ones(queries_BQD.shape[:2], dtype=torch.bool, device=queries_BQD.device)
            mask_B11L = torch.cat([image_mask_BN, own_BQ], dim=1)[:, None, None, :]
        found_BHQd = F.scaled_dot_product_attention(
            query_BHQd, self._by_head(key_BLD), self._by_head(value_BLD), attn_mask=mask_B11L
        )
        queries_BQD = queries_BQD + self.out(found_BHQd.transpose(1, 2).flatten(2))
        return queries_BQD + self.feed_forward(queries_BQD)  # type: ignore[no-any-return]

    def _by_head(self, tokens_BLD: torch.Tensor) -> torch.Tensor:
        return tokens_BLD.unflatten(2, (self.heads, -1)).transpose(1, 2)
