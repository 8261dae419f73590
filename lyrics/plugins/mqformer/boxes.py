"""Boxes of local tokens as sines and cosines of their sides.

A local token ends with its box, four numbers in 0 .. 1. A linear map of these hardly tells 0.41 from 0.42; the paper's
way (``raw``) leaves that to the layers behind it. With ``fourier`` each side is also given as sines and cosines of
doubling frequencies, from which a linear map reads it off (Mildenhall et al. 2020, section 5.1; Tancik et al. 2020).

Letters: B images, M local tokens, D their width.
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
    """Return sines and cosines [..,WIDTH] of x1, y1, x2, y2 [..,4], as shares of the image's sides (fp32 or fp64)."""
    frequencies = math.pi * 2.0 ** torch.arange(BANDS, device=sides_4.device, dtype=sides_4.dtype)
    phases = (sides_4[..., None] * frequencies).flatten(-2)
    return torch.cat([phases.sin(), phases.cos()], dim=-1)


def with_box_waves(tokens_BMD: torch.Tensor, width: int) -> torch.Tensor:
    """Return local tokens of ``width`` numbers, the last four of which are the box, followed by its waves.

    Columns after ``width`` (padding) are left out.
    """
    tokens_BMD = tokens_BMD[..., :width]
    return torch.cat([tokens_BMD, box_waves(tokens_BMD[..., -4:]).to(tokens_BMD.dtype)], dim=-1)
