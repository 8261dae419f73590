"""Boxes as sines and cosines of their sides.

A linear map of four numbers in 0 .. 1 hardly tells 0.41 from 0.42; of sines and cosines of doubling frequencies it
reads them off (Mildenhall et al. 2020, section 5.1; Tancik et al. 2020).

Letters: B images, M tokens.
"""

from __future__ import annotations

import math

import torch

#: Waves of length 2, 1, 1/2, ... 1/64 of the image's side: the first tells all places apart, the last 1/1000 of the
#: side.
BANDS = 8
#: Numbers that a token grows by.
WIDTH = 4 * 2 * BANDS


def box_waves(boxes_BM4: torch.Tensor) -> torch.Tensor:
    """Return sines and cosines of x1, y1, x2, y2: [B,M,WIDTH].

    Boxes are center x, center y, width and height, as shares of the image's sides.

    Computed in fp32 at least: the shortest wave's phase does not fit a half-precision number.
    """
    boxes_BM4 = boxes_BM4 if boxes_BM4.dtype == torch.float64 else boxes_BM4.float()
    center_BM2, half_BM2 = boxes_BM4[..., :2], boxes_BM4[..., 2:] / 2
    return side_waves(torch.cat([center_BM2 - half_BM2, center_BM2 + half_BM2], dim=-1))


def side_waves(sides_4: torch.Tensor) -> torch.Tensor:
    """Return sines and cosines of x1, y1, x2, y2 [..,4], as shares of the image's sides: [..,WIDTH]."""
    frequencies = math.pi * 2.0 ** torch.arange(BANDS, device=sides_4.device, dtype=sides_4.dtype)
    phases = (sides_4[..., None] * frequencies).flatten(-2)
    return torch.cat([phases.sin(), phases.cos()], dim=-1)
