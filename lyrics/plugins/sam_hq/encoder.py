"""The layers of SAM's image encoder, computed with less memory and less work than transformers', on the same weights.

- Relative positions are added to the attention scores as a row's part and a column's part. For a layer that attends
  everywhere transformers writes their sums out: 16 heads x 4,096 x 4,096 numbers, 1 GB, more than half of the layer's
  time on a CPU. Here a block of rows has its own small table at a time.
- Windows of 14 x 14 do not divide 64 x 64 tokens, so they are padded to 70 x 70. The padding is zero, and its
  queries, keys and values are the layer's bias: nothing needs to be multiplied for it.

Shapes: B images, h and w cells (tokens), N = h * w, D width, A heads, d = D / A.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

#: Queries of one head that get a table of positions together, on a CPU: 8 MB of it, at 4,096 keys.
_ROWS = 512


class EncoderLayer(nn.Module):
    """A ``SamHQVisionLayer``'s modules under the same names, and its results [B, h, w, D]."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer_norm1, self.attn = layer.layer_norm1, layer.attn
        self.layer_norm2, self.mlp = layer.layer_norm2, layer.mlp
        self.window_size: int = layer.window_size

    def forward(self, hidden_BhwD: torch.Tensor) -> torch.Tensor:
        _, height, width, _ = hidden_BhwD.shape
        attn = self.attn
        qkv = attn.qkv(self.layer_norm1(hidden_BhwD))
        if self.window_size:
            qkv, padded = _partitioned(qkv, attn.qkv.bias, self.window_size)
        mixed = attention(qkv, attn.rel_pos_h, attn.rel_pos_w, attn.num_attention_heads)
        if self.window_size:
            mixed = _unpartitioned(mixed, padded)[:, :height, :width]
        hidden_BhwD = hidden_BhwD + attn.proj(mixed)
        return hidden_BhwD + self.mlp(self.layer_norm2(hidden_BhwD))  # type: ignore[no-any-return]


def attention(
    qkv: torch.Tensor, rel_pos_h: torch.Tensor, rel_pos_w: torch.Tensor, heads: int, rows: int = _ROWS
) -> torch.Tensor:
    """Attention with relative positions (Li et al. 2022, MViTv2, equation 4).

    ``qkv`` are queries, keys and values [B, h, w, 3D]; ``rel_pos_h`` [2h - 1, d] and ``rel_pos_w`` [2w - 1, d] the
    embeddings of distances. Returns [B, h, w, D].
    """
    batch, height, width, _ = qkv.shape
    tokens = height * width
    query, key, value = qkv.view(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)  # each [B, A, N, d]
    grid = query.unflatten(2, (height, width))
    by_row = torch.einsum("bahwd,hkd->bahwk", grid, _at_distances(rel_pos_h, height)).flatten(2, 3)  # [B, A, N, h]
    by_column = torch.einsum("bahwd,wkd->bahwk", grid, _at_distances(rel_pos_w, width)).flatten(2, 3)  # [B, A, N, w]

    if tokens <= rows or qkv.device.type != "cpu":
        table = (by_row[..., None] + by_column[..., None, :]).flatten(-2)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=table)
        return mixed.transpose(1, 2).reshape(batch, height, width, -1)

    mixed = qkv.new_empty(batch, tokens, heads, query.shape[-1])
    for image in range(batch):
        for head in range(heads):
            at = (slice(image, image + 1), slice(head, head + 1))
            for first in range(0, tokens, rows):
                some = (*at, slice(first, first + rows))
                table = (by_row[some][..., None] + by_column[some][..., None, :]).flatten(-2)
                part = F.scaled_dot_product_attention(query[some], key[at], value[at], attn_mask=table)
                mixed[image, first : first + rows, head] = part[0, 0]
    return mixed.view(batch, height, width, -1)


def _at_distances(embeddings: torch.Tensor, side: int) -> torch.Tensor:
    """Return embeddings [side, side, d] of the distances from each place to each.

    They are read from [2 * side - 1, d], of the distances -(side - 1) ... side - 1.
    """
    assert len(embeddings) == 2 * side - 1
    places = torch.arange(side, device=embeddings.device)
    return embeddings[places[:, None] - places + side - 1]


def _partitioned(qkv: torch.Tensor, bias: torch.Tensor, window: int) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """[B, h, w, 3D] -> windows [B * n * m, window, window, 3D], and (B, n, m).

    What lies beyond the image has ``bias``.
    """
    batch, height, width, _ = qkv.shape
    down, across = -(-height // window), -(-width // window)
    if (down * window, across * window) != (height, width):
        padded = bias.expand(batch, down * window, across * window, -1).clone()
        padded[:, :height, :width] = qkv
        qkv = padded
    windows = qkv.view(batch, down, window, across, window, -1).transpose(2, 3)
    return windows.reshape(batch * down * across, window, window, -1), (batch, down, across)


def _unpartitioned(windows: torch.Tensor, counts: tuple[int, int, int]) -> torch.Tensor:
    """Windows [B * n * m, window, window, D] -> [B, n * window, m * window, D]."""
    batch, down, across = counts
    window = windows.shape[1]
    grid = windows.view(batch, down, across, window, window, -1).transpose(2, 3)
    return grid.reshape(batch, down * window, across * window, -1)


def exchange_layers(network: Any) -> None:
    """Put ``EncoderLayer`` in the place of the layers of a ``SamHQModel``'s image encoder. Names and weights stay."""
    layers = network.vision_encoder.layers
    for index, layer in enumerate(layers):
        layers[index] = EncoderLayer(layer)
