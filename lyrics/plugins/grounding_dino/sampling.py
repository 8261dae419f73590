"""Sampling of image features in float32, fast on a CPU.

It is the heart of deformable attention (Zhu et al. 2021, equation 3).

Shapes: B images, S cells of all levels, Q queries, H heads, L levels, K points per level, P = L * K points, d head
width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.grounding_dino.modeling_grounding_dino import MultiScaleDeformableAttention


class Sampling(MultiScaleDeformableAttention):
    """In the place of transformers' module; the same to float32 rounding.

    - *Precision*: float32, whatever that of the rest. ``lyrics.core.grid_sample`` says why; transformers' module calls
      torch's ``grid_sample`` itself, so it is given float32 (on a GPU; the CPU's way is below).
    - *Speed*: on the CPU the d features of a cell are read as they lie in memory, and summed at once by
      ``embedding_bag``. ``grid_sample`` reads them one plane of the image after the other and writes every sample
      before they are summed.
    """

    def forward(
        self,
        value: torch.Tensor,
        value_spatial_shapes: torch.Tensor,
        value_spatial_shapes_list: list[tuple[int, int]],
        level_start_index: torch.Tensor,
        sampling_locations: torch.Tensor,
        attention_weights: torch.Tensor,
        im2col_step: int,
    ) -> torch.Tensor:
        """Map features [B,S,H,d] to [B,Q,H * d].

        Places are [B,Q,H,L,K,2] (x and y, shares of the canvas), weights [B,Q,H,L,K].
        """
        features, places, weights = value.float(), sampling_locations.float(), attention_weights.float()
        if value.device.type == "cpu":
            sampled = sample(features, value_spatial_shapes_list, places, weights)
        else:
            sampled = super().forward(
                features,
                value_spatial_shapes,
                value_spatial_shapes_list,
                level_start_index,
                places,
                weights,
                im2col_step,
            )
        return sampled.to(value.dtype)


def sample(
    features_BSHd: torch.Tensor,
    levels: list[tuple[int, int]],
    places_BQHLK2: torch.Tensor,
    weights_BQHLK: torch.Tensor,
) -> torch.Tensor:
    """Weighted sum of bilinear samples [B,Q,H * d]; features outside of a level are 0.

    Args:
        levels: (rows, columns) of each level, which lie one after the other in S.
    """
    images, cells, heads, _ = features_BSHd.shape
    queries, points = places_BQHLK2.shape[1], places_BQHLK2.shape[4]
    sizes_L2 = torch.tensor([(columns, rows) for rows, columns in levels])
    first_L = sizes_L2.prod(1).cumsum(0) - sizes_L2.prod(1)
    columns_P, rows_P = sizes_L2.repeat_interleave(points, dim=0).unbind(1)  # P = L * K
    left, right = _neighbors(places_BQHLK2[..., 0].flatten(3), columns_P)
    upper, lower = _neighbors(places_BQHLK2[..., 1].flatten(3), rows_P)

    # A bag holds the four neighbors of the P points of one head of one query. The table has a row per image, cell and
    # head.
    rows_BQH4P = torch.empty(images, queries, heads, 4, len(columns_P), dtype=torch.int32)
    shares_BQH4P = torch.empty(rows_BQH4P.shape)
    weights_BQHP = weights_BQHLK.flatten(3)
    begin_BQHP = (torch.arange(images) * cells * heads).view(-1, 1, 1, 1) + torch.arange(heads).view(-1, 1)
    begin_BQHP = (begin_BQHP + first_L.repeat_interleave(points) * heads).to(torch.int32)
    pitch_P = (columns_P * heads).to(torch.int32)
    for vertical, (row_BQHP, down_BQHP) in enumerate((upper, lower)):
        begin_row_BQHP = torch.addcmul(begin_BQHP, row_BQHP, pitch_P)
        share_BQHP = down_BQHP * weights_BQHP
        for horizontal, (column_BQHP, across_BQHP) in enumerate((left, right)):
            corner = 2 * vertical + horizontal
            torch.add(begin_row_BQHP, column_BQHP, alpha=heads, out=rows_BQH4P[:, :, :, corner])
            shares_BQH4P[:, :, :, corner] = share_BQHP * across_BQHP
    bags = images * queries * heads
    summed = F.embedding_bag(
        rows_BQH4P.view(bags, -1),
        features_BSHd.reshape(images * cells * heads, -1),
        per_sample_weights=shares_BQH4P.view(bags, -1),
        mode="sum",
    )
    return summed.view(images, queries, -1)


def _neighbors(places_BQHP: torch.Tensor, cells_P: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Along one axis the two cells whose centers a place lies between (int32), each with its share.

    0 for a cell that does not exist.
    """
    # Counted from the center of the first cell. Farther than one cell beyond the border nothing is left of a feature.
    position = torch.addcmul(torch.tensor(-0.5), places_BQHP, cells_P.to(places_BQHP.dtype)).clamp_(min=-1)
    position = torch.minimum(position, cells_P.to(position.dtype))
    first = position.floor()
    second_share = position - first
    first_cell = first.to(torch.int32)
    last_P = cells_P.to(torch.int32) - 1
    neighbors = []
    for cell, share in ((first_cell, 1 - second_share), (first_cell + 1, second_share)):
        inside_cell = torch.minimum(cell.clamp(min=0), last_P)
        neighbors.append((inside_cell, share.mul_(inside_cell == cell)))
    return neighbors


def exchange_sampling(network: nn.Module) -> None:
    """Sampling has no weights, so the layers that do it are exchanged in place."""
    for module in list(network.modules()):
        if isinstance(getattr(module, "attn", None), MultiScaleDeformableAttention):
            module.attn = Sampling()
