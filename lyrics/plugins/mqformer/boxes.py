"""Boxes of local tokens as sines and cosines of their sides.

A local token ends with its box, four numbers in 0 .. 1. A linear map of these hardly tells 0.41 from 0.42; the paper's
way (``raw``) leaves that to the layers behind it. With ``fourier`` each side is also given as sines and cosines of
doubling frequencies, from which a linear map reads it off (Mildenhall et al. 2020, section 5.1; Tancik et al. 2020).

Letters: B images, M local tokens, D their width.
"""

from __future__ import annotations

import torch

from lyrics.core.box_waves import box_waves


def with_box_waves(tokens_BMD: torch.Tensor, width: int) -> torch.Tensor:
    """Return local tokens of ``width`` numbers, the last four of which are the box, followed by its waves.

    Columns after ``width`` (padding) are left out.
    """
    tokens_BMD = tokens_BMD[..., :width]
    return torch.cat([tokens_BMD, box_waves(tokens_BMD[..., -4:]).to(tokens_BMD.dtype)], dim=-1)
