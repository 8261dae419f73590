"""``tiny-vit``: a vision transformer with a convolutional stem.

Shapes: B images, H and W pixels, N image tokens, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from lyrics.core.contracts import BuildContext
from lyrics.core.errors import ContractError
from lyrics.core.types import Preprocessing
from lyrics.plugins.tiny import TinyVitOptions
from lyrics.plugins.tiny.backbone import Downsample, require_random_weights


class Layer(nn.Module):
    """Self-attention and feed-forward, each with its normalisation in front (Dosovitskiy et al. 2021, equations 2 and 3)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens_BND: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(self.attention_norm(tokens_BND)).unflatten(2, (3, self.heads, -1))
        q_BHNd, k_BHNd, v_BHNd = qkv.permute(2, 0, 3, 1, 4)
        context_BHNd = F.scaled_dot_product_attention(q_BHNd, k_BHNd, v_BHNd)
        tokens_BND = tokens_BND + self.out(context_BHNd.transpose(1, 2).flatten(2))
        return tokens_BND + self.feed_forward(self.feed_forward_norm(tokens_BND))


class TinyVit(nn.Module):
    """Pixels [B,3,image_size,image_size] -> tokens [B,N,width], row by row, with N = (image_size / patch_size) squared."""

    def __init__(self, options: TinyVitOptions) -> None:
        super().__init__()
        self.feature_dim = options.feature_dim
        self.preprocessing = Preprocessing(
            resize="squash", size=options.image_size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        )
        halvings = options.patch_size.bit_length() - 1
        widths = [max(options.width >> (halvings - 1 - step), options.width // 4) for step in range(halvings)]
        self.stem = nn.Sequential(*(Downsample(a, b) for a, b in zip([3, *widths], widths, strict=False)))
        side = options.image_size // options.patch_size
        self.positions_ND = nn.Parameter(torch.empty(side * side, options.width))
        nn.init.trunc_normal_(self.positions_ND, std=0.02)
        self.layers = nn.ModuleList(Layer(options.width, options.heads) for _ in range(options.layers))
        self.norm = nn.LayerNorm(options.width)

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Raises ``ContractError`` for pictures of another size."""
        size = self.preprocessing.size
        if pixels_BCHW.shape[1:] != (3, size, size):
            raise ContractError(
                f"tiny-vit reads pictures of shape (batch, 3, {size}, {size}), not {tuple(pixels_BCHW.shape)}; "
                "prepare them as its `preprocessing` says"
            )
        tokens_BND = self.stem(pixels_BCHW).flatten(2).transpose(1, 2) + self.positions_ND
        for layer in self.layers:
            tokens_BND = layer(tokens_BND)
        return self.norm(tokens_BND)


def build(options: TinyVitOptions, context: BuildContext) -> TinyVit:
    """The component. Raises ``WeightsError`` for pretrained weights, of which there are none yet."""
    require_random_weights("tiny-vit", context)
    return TinyVit(options)
