"""SAM 2's image encoder as ``hf-segmenter`` runs it: the same network and weights, without work that nobody reads.

Of transformers' classes (5.23) it leaves out the attention scores between the heads of one position, which are not
used, and the neck's position encodings, which only videos read. The neck's projections of 1x1 are products of matrices,
and of the two fine levels they are one with the mask decoder's projections that follow. On a CPU, blocks that attend
within windows go through an image a few windows at a time, so that what a layer leaves is still in the processor's
cache when the next one reads it. Results differ by rounding.

Shapes: B images, H and W pixels or cells, N positions of a window, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.sam2.modeling_sam2 import (
    Sam2HieraDetModel,
    Sam2Model,
    Sam2MultiScaleAttention,
    Sam2MultiScaleBlock,
)

from lyrics.core import onednn

#: Positions that go through a block together on a CPU: their channels fit in its cache.
_AT_ONCE = 2048
#: Queries whose scores over all positions are held together.
_QUERIES = 256
#: From so many positions on, attention is worth two products by oneDNN.
_MANY = 1024


class LeanAttention(Sam2MultiScaleAttention):
    """Attention within windows, or over all of the image, without what transformers' class computes on the side."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Attend within each of B windows [B, H, W, C]."""
        if self.config._attn_implementation != "sdpa":
            return super().forward(hidden_states, **kwargs)
        batch, height, width, _ = hidden_states.shape
        qkv_BN3hC = self.qkv(hidden_states).view(batch, height * width, 3, self.num_attention_heads, -1)
        query, key, value = qkv_BN3hC.unbind(2)
        if self.query_stride:
            maps_BCHW = query.reshape(batch, height, width, -1).permute(0, 3, 1, 2)
            pooled_BCHW = F.max_pool2d(maps_BCHW, kernel_size=self.query_stride, stride=self.query_stride)
            height, width = pooled_BCHW.shape[2:]
            query = pooled_BCHW.permute(0, 2, 3, 1).reshape(batch, height * width, self.num_attention_heads, -1)
        seen_BhNC = _attended(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), self.scale)
        return self.proj(seen_BhNC.transpose(1, 2).reshape(batch, height, width, -1))


def _attended(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention of queries [B, heads, N, C] over keys and values [B, heads, M, C]."""
    few = key.shape[2] < _MANY or query.device.type != "cpu" or torch.is_grad_enabled() or not onednn.pays()
    if few or query.dtype != torch.float32:
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    seen = torch.empty_like(query)
    for image in range(query.shape[0]):
        for head in range(query.shape[1]):
            keys_MC, values_CM = key[image, head] * scale, value[image, head].T.contiguous()
            for start in range(0, query.shape[2], _QUERIES):
                own = slice(start, start + _QUERIES)
                scores_NM = onednn.linear(query[image, head, own], keys_MC)
                seen[image, head, own] = onednn.linear(scores_NM.softmax(dim=-1), values_CM)
    return seen


class LeanBlock(Sam2MultiScaleBlock):
    """A block of which a CPU sees a few rows of windows at a time, or after attention over all, a few positions."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Transform [B, H, W, C]; H and W are halved where queries are pooled."""
        if hidden_states.device.type != "cpu" or torch.is_grad_enabled():
            return super().forward(hidden_states, **kwargs)
        batch, _, width, _ = hidden_states.shape
        pooled_by: Any = self.query_stride
        rows = max(1, _AT_ONCE // (batch * width))
        # Windows that pooling does not divide come back as fewer cells than the image has: all of them or none.
        if self.window_size and not (pooled_by and self.window_size % pooled_by[0]):
            rows = max(1, rows // self.window_size) * self.window_size
            seen = [super(LeanBlock, self).forward(strip, **kwargs) for strip in hidden_states.split(rows, dim=1)]
            return torch.cat(seen, dim=1)
        if self.window_size or pooled_by or self.dim != self.dim_out:
            return super().forward(hidden_states, **kwargs)
        seen = hidden_states + self.attn(hidden_states=self.layer_norm1(hidden_states), **kwargs)
        return torch.cat([strip + self.mlp(self.layer_norm2(strip)) for strip in seen.split(rows, dim=1)], dim=1)


def is_lean(network: nn.Module) -> bool:
    """Return whether ``embed`` can take the place of the network's ``get_image_embeddings``."""
    if not isinstance(network, Sam2Model) or not isinstance(network.vision_encoder.backbone, Sam2HieraDetModel):
        return False
    neck, decoder = network.vision_encoder.neck, network.mask_decoder
    points = all(
        conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.padding == (0, 0)
        for conv in (*neck.convs, decoder.conv_s0, decoder.conv_s1)
    )
    return points and network.vision_encoder.num_feature_levels == 3


def make_lean(network: nn.Module) -> None:
    """Let the image encoder of a SAM 2 leave out what is not read; weights and their names stay as they are."""
    for module in network.modules():
        if type(module) is Sam2MultiScaleAttention:
            module.__class__ = LeanAttention
        elif type(module) is Sam2MultiScaleBlock:
            module.__class__ = LeanBlock


def embed(network: Any, pixels_BCHW: torch.Tensor) -> list[torch.Tensor]:
    """Return what ``network.get_image_embeddings(pixels_BCHW)`` returns: feature maps [B, C, H, W], the finest first.

    Args:
        network: one that ``is_lean``.
    """
    encoder, decoder = network.vision_encoder, network.mask_decoder
    neck = encoder.neck
    levels_BHWC = encoder.backbone(pixels_BCHW).intermediate_hidden_states
    last = len(levels_BHWC) - 1
    fine = {0: decoder.conv_s0, 1: decoder.conv_s1}
    maps: dict[int, torch.Tensor] = {}
    above: torch.Tensor | None = None
    # From coarse to fine, as levels are added to each other; of the fine ones three are read.
    for level in range(last, -1, -1):
        lateral, further = neck.convs[last - level], fine.get(level)
        joins = level in neck.fpn_top_down_levels and level != last
        if further is not None and not joins and level - 1 not in neck.fpn_top_down_levels:
            maps[level] = _projected(levels_BHWC[level], lateral, further)
            continue
        found = _projected(levels_BHWC[level], lateral)
        if joins:
            assert above is not None
            found = found + F.interpolate(above.float(), scale_factor=2.0, mode="nearest").to(found.dtype)
        above = found
        maps[level] = found if further is None else further(found)
    maps[2] = maps[2] + network.no_memory_embedding.reshape(1, -1, 1, 1)
    return [maps[level] for level in range(3)]


def _projected(level_BHWC: torch.Tensor, lateral: nn.Conv2d, further: nn.Conv2d | None = None) -> torch.Tensor:
    """A projection of 1x1, or two after each other as one, of a map [B, H, W, C]; returns [B, C, H, W]."""
    assert lateral.bias is not None
    weight_OC, bias_O = lateral.weight[:, :, 0, 0], lateral.bias
    if further is not None:
        assert further.bias is not None
        outer_OC = further.weight[:, :, 0, 0]
        bias_O = further.bias + outer_OC @ bias_O
        weight_OC = outer_OC @ weight_OC
    return onednn.linear(level_BHWC.to(weight_OC.dtype), weight_OC, bias_O).permute(0, 3, 1, 2)
