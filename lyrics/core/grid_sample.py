"""Bilinear sampling of feature maps that is right in every floating-point type.

This is the only place that calls torch's ``grid_sample``.

On a CPU torch (2.13) was seen to read uninitialized memory in bfloat16: the same input gives other values, and now and
then NaN, from call to call. bfloat16 also has too few bits for a place in an image. So samples are taken in float32 or
better, and returned in the type of the map.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F


def grid_sample(
    values_NCHW: torch.Tensor,
    grid_Nhw2: torch.Tensor,
    *,
    padding_mode: Literal["zeros", "border", "reflection"] = "zeros",
) -> torch.Tensor:
    """Sample maps bilinearly, with corners that are not aligned.

    Args:
        values_NCHW: maps [N,C,H,W] of any floating-point type.
        grid_Nhw2: places [N,h,w,2] as (x, y), from -1 (left or upper edge) to 1 (right or lower edge); any
            floating-point type and device. Keep it in float32 or float64 also where the maps are of fewer bits.
        padding_mode: what lies outside of a map, as in ``torch.nn.functional.grid_sample``.

    Returns:
        Samples [N,C,h,w] in the type and on the device of the maps.
    """
    exact = torch.promote_types(values_NCHW.dtype, torch.float32)
    grid = grid_Nhw2.to(values_NCHW.device, exact)
    sampled = F.grid_sample(values_NCHW.to(exact), grid, padding_mode=padding_mode, align_corners=False)
    return sampled.to(values_NCHW.dtype)
