"""The definition of both attentions: dense, plain, differentiable by autograd, right in float64.

Every other implementation is compared with this one. It imports none of them.
"""

from __future__ import annotations

import torch

from lyrics.kernels.cross import CrossPlan
from lyrics.kernels.hashing import dropout_keep
from lyrics.kernels.plan import Plan


def masked_softmax_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    keep: torch.Tensor | None,
    dropout_p: float,
) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) v with ``mask`` (True = seen) and dropout's ``keep``; q [..., L, d], k and v [..., M,
    d].

    A row that sees nothing is zero, and so is its gradient.
    """
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
        scores = scores.masked_fill(~mask.any(dim=-1, keepdim=True), 0.0)
    probabilities = torch.softmax(scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores, dim=-1)
    if mask is not None:
        probabilities = probabilities * mask
    if keep is not None:
        probabilities = probabilities * keep / (1.0 - dropout_p)
    return probabilities.to(v.dtype) @ v


def segment_attention(
    q_THd: torch.Tensor, k_THd: torch.Tensor, v_THd: torch.Tensor, plan: Plan, *, dropout_p: float, seed: int
) -> torch.Tensor:
    """Return one dense masked attention over all packed tokens."""
    mask = plan.derived.get("reference.mask")
    if mask is None or mask.device != q_THd.device:
        mask = plan.derived["reference.mask"] = plan.dense_mask().to(q_THd.device)
    keep = None
    if dropout_p > 0:
        keep = dropout_keep(plan.row_id_T, plan.col_id_T, q_THd.shape[1], seed, dropout_p)
    q, k, v = (x.transpose(0, 1) for x in (q_THd, k_THd, v_THd))
    return masked_softmax_attention(q, k, v, mask, keep, dropout_p).transpose(0, 1)


def cross_attention(
    q_SQHd: torch.Tensor, k_IMHd: torch.Tensor, v_IMHd: torch.Tensor, plan: CrossPlan, *, dropout_p: float, seed: int
) -> torch.Tensor:
    """Let every query set read its own copy of its image's keys and values."""
    index = plan.image_index_S.to(q_SQHd.device)
    mask = None if plan.key_mask_IM is None else plan.key_mask_IM[index][:, None, None, :]
    keep = None
    if dropout_p > 0:
        cols = plan.col_id_M.expand(index.shape[0], -1)
        keep = dropout_keep(plan.row_id_SQ, cols, q_SQHd.shape[2], seed, dropout_p)
    q, k, v = q_SQHd.transpose(1, 2), k_IMHd[index].transpose(1, 2), v_IMHd[index].transpose(1, 2)
    return masked_softmax_attention(q, k, v, mask, keep, dropout_p).transpose(1, 2)
