"""``tiny-vit``: a small vision transformer on a convolutional trunk, which learns shapes from far fewer images than
attention does.

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
from lyrics.plugins.tiny.backbone import ConvTrunk
from lyrics.plugins.tiny.knows_scenes import KnowsScenes
from lyrics.plugins.tiny.trained_weights import materialize


class VitLayer(nn.Module):
    """Self-attention and feed-forward, each with its normalisation in front (Dosovitskiy et al. 2021, equations 2 and
    3).
    """

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


class TinyVit(KnowsScenes, nn.Module):
    """Pixels [B,3,image_size,image_size] -> tokens [B,N,width], row by row, with N = (image_size /
    patch_size) squared.
    """

    def __init__(self, options: TinyVitOptions) -> None:
        super().__init__()
        self.feature_dim = options.feature_dim
        self.preprocessing = Preprocessing(
            resize="squash", size=options.image_size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        )
        stages = options.patch_size.bit_length() - 1
        widths = [options.width * (stage + 1) // (stages + 1) for stage in range(stages)]
        self.trunk = ConvTrunk(tuple(widths), (0, *[2] * (stages - 2), options.blocks))
        self.entry = nn.Linear(widths[-1], options.width)
        side = options.image_size // options.patch_size
        self.num_tokens = side * side
        self.positions_ND = nn.Parameter(torch.empty(side * side, options.width))
        nn.init.trunc_normal_(self.positions_ND, std=0.02)
        self.layers = nn.ModuleList(VitLayer(options.width, options.heads) for _ in range(options.layers))
        self.norm = nn.LayerNorm(options.width)

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Raises ``ContractError`` for images of another size."""
        size = self.preprocessing.size
        if pixels_BCHW.shape[1:] != (3, size, size):
            raise ContractError(
                f"tiny-vit reads images of shape (batch, 3, {size}, {size}), not {tuple(pixels_BCHW.shape)}; "
                "prepare them as its `preprocessing` says"
            )
        everywhere_BHW = pixels_BCHW.new_ones(pixels_BCHW.shape[0], size, size, dtype=torch.bool)
        features_BChw, _ = self.trunk(pixels_BCHW, everywhere_BHW)
        tokens_BND = self.entry(features_BChw.flatten(2).transpose(1, 2)) + self.positions_ND
        for layer in self.layers:
            tokens_BND = layer(tokens_BND)
        return self.norm(tokens_BND)


def build(options: TinyVitOptions, context: BuildContext) -> TinyVit:
    """The component. Raises ``WeightsError`` where trained weights are asked for and do not fit the options."""
    module = TinyVit(options)
    materialize(module, "tiny-vit", options, context)
    return module
